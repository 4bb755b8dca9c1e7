"""Writing rows: a grant, one copy into shared memory, a commit.

Invariants: nothing is visible before the commit, and then everything is; a grant is held exactly as long as this
process may write under it; a plane that restarted between grant and commit costs one more copy, never a torn block.
"""

from __future__ import annotations

from penstock.errors import CorruptPayload, DataPlaneError, DataPlaneUnavailable, DataPlaneWriteError
from penstock.payload.columns import Batch
from penstock.plane import events as ev
from penstock.plane.again import settled
from penstock.plane.arenas import ArenaGone, Arenas
from penstock.plane.link import Link
from penstock.points import reached
from penstock.requests import Commit, Grant, GrantAgain, Granted, Record
from penstock.retry import Answer, Deadline, Kind, Policy, Reason, Retrier

__all__ = ["GRANT_AGAIN", "Puts"]

# A grant ends only with its plane's life; the link waits for the next one, so there is little to wait for here.
GRANT_AGAIN = Policy(max_attempts=100, base_s=0.01, cap_s=0.5, bucket_tokens=0.0, quarantine_s=0.0)


class Puts:
    """The puts of one client. ``read_back``: verify each block after its copy (integrity ``paranoid``)."""

    def __init__(self, link: Link, arenas: Arenas, retrier: Retrier, *, read_back: bool) -> None:
        self._link = link
        self._arenas = arenas
        self._retrier = retrier
        self._read_back = read_back

    def put(self, wanted: Grant, batch: Batch, deadline: Deadline) -> None:
        """Write ``batch`` as ``wanted`` describes it; all its rows are visible on return.

        Raises:
            DataPlaneTimeout: the outcome is unknown.
            DataPlaneError: nothing became visible.
        """
        last: list[DataPlaneError] = []

        def attempt(until: Deadline) -> Answer[None]:
            try:
                done = self._once(wanted, batch, until)
            except ArenaGone as gone:
                last[:] = [gone]
                return Answer(Kind.RETRYABLE, code="ArenaGone")
            except CorruptPayload as torn:
                last[:] = [torn]
                return Answer(Kind.CORRUPT, code="CorruptPayload")
            return Answer(Kind.OK) if done else Answer(Kind.RETRYABLE, code="GrantAgain")

        end = settled(self._retrier, "put", wanted.partition, attempt, deadline)
        if end.reason is None:
            return
        cls = DataPlaneWriteError if end.reason is Reason.CORRUPT else DataPlaneUnavailable
        raise cls(
            f"the put was not committed in {end.attempts} attempts ({end.code}){''.join(f': {e}' for e in last)}",
            partition=wanted.partition,
            keys=wanted.keys,
            attempts=end.attempts,
            elapsed_s=deadline.elapsed(),
        )

    def _once(self, wanted: Grant, batch: Batch, deadline: Deadline) -> bool:
        """Grant, copy, commit; False if the grant did not live that long, and nothing happened."""
        reached("client.putting")
        granted = self._link.ask(wanted, Granted, deadline)
        try:
            reached("client.granted")
            with self._arenas.writing():
                content = batch.write_into(self._arenas.writer(granted.place, granted.arena), granted.grant)
                if self._read_back:
                    self._arenas.read_back(granted.place, granted.arena)
            reached("client.copied")
            reply = self._link.ask(Commit(granted.grant, content), Record, deadline)
            reached("client.put")
        except DataPlaneUnavailable as failed:
            if not isinstance(failed, ArenaGone) and self._arenas.lost([granted.arena]):
                raise ArenaGone(f"an arena was let go of during the put: {failed}") from failed
            raise
        finally:
            self._link.note(ev.GrantOver(granted.grant))
        return not isinstance(reply, GrantAgain)
