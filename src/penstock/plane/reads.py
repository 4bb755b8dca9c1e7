"""Reading rows: one atomic locate, blocks verified, columns as views or gathers; and what becomes of bad blocks.

Invariants: all asked rows or an error that names the missing ones (``drop``: all that can be read, and which); a read
is of one moment, whatever is read again; nothing that failed its checks is served; a damaged block is reported to the
plane, which looks for itself, and read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    FieldNotProduced,
    StaleSlotError,
    UnknownName,
    abbreviate,
    error_of,
)
from penstock.payload import decode
from penstock.payload.mapping import BlockReader
from penstock.plane.again import settled
from penstock.plane.arenas import ArenaGone, Arenas
from penstock.plane.link import Link
from penstock.points import reached
from penstock.requests import Damaged, Done, Locate, Located, RowIssue, Status, StatusReport
from penstock.retry import Answer, Deadline, Kind, Policy, Retrier

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["RE_READ", "Reads"]

# The endpoint is this host's memory: neither a budget nor a quarantine would spare anybody anything.
RE_READ = Policy(max_attempts=8, base_s=0.01, cap_s=0.5, corrupt_attempts=2, bucket_tokens=0.0, quarantine_s=0.0)


class _Unreadable(Exception):
    def __init__(self, error: DataPlaneError, keys: Sequence[str]) -> None:
        super().__init__(str(error))
        self.error = error
        self.keys = list(keys)


class _Damage(CorruptPayload):
    """Blocks that failed their checks, and the rows in them."""

    def __init__(self, found: CorruptPayload, keys: Sequence[str], block_ids: Sequence[int]) -> None:
        super().__init__(f"{found} (rows {abbreviate(keys)})", keys=keys)
        self.block_ids = list(block_ids)


class Reads:
    """The reads of one client."""

    def __init__(self, link: Link, arenas: Arenas, retrier: Retrier) -> None:
        self._link = link
        self._arenas = arenas
        self._retrier = retrier

    def read(
        self, partition: str, keys: Sequence[str], fields: Sequence[str], deadline: Deadline, *, drop: bool
    ) -> tuple[TensorDict, list[int]]:
        """Return the columns and the positions, in ``keys``, of the rows that they hold.

        Raises:
            UnknownName, FieldNotProduced, DataPlaneReadError: see ``DataPlaneClient.get_samples``.
        """
        asked = list(range(len(keys)))
        while True:
            if not asked:
                return self._nothing(partition, fields, deadline), asked
            try:
                return self._with_retries(partition, [keys[i] for i in asked], list(fields), deadline), asked
            except _Unreadable as bad:
                if not drop or not bad.keys:
                    raise bad.error from None
                gone = set(bad.keys)
                asked = [i for i in asked if keys[i] not in gone]

    def _nothing(self, partition: str, fields: Sequence[str], deadline: Deadline) -> TensorDict:
        """No rows, with the dtypes that the partition's fields have."""
        from penstock.plane import columns as tables

        self._link.ask(Locate(partition, [], list(fields)), Located, deadline)  # refuses names that are not known
        status = self._link.ask(Status(), StatusReport, deadline, method="get_samples")
        specs = {spec.name: spec for p in status.partitions if p.partition == partition for spec in p.fields}
        return tables.table({name: tables.join(specs.get(name), []) for name in fields}, 0)

    def _with_retries(self, partition: str, keys: list[str], fields: list[str], deadline: Deadline) -> TensorDict:
        last: list[DataPlaneError] = []

        def attempt(until: Deadline) -> Answer[TensorDict]:
            try:
                return Answer(Kind.OK, self._once(partition, keys, fields, until))
            except _Damage as damage:
                last[:] = [damage]
                self._report(damage, until)
                return Answer(Kind.CORRUPT, code="CorruptPayload")
            except (StaleSlotError, ArenaGone) as stale:
                last[:] = [stale]
                return Answer(Kind.RETRYABLE, code=type(stale).__name__)

        end = settled(self._retrier, "read", partition, attempt, deadline)
        if end.reason is None:
            assert end.value is not None
            return end.value
        raise self._given_up(partition, last[0], end.attempts, deadline)

    def _given_up(self, partition: str, last: DataPlaneError, attempts: int, deadline: Deadline) -> _Unreadable:
        if isinstance(last, CorruptPayload):
            error: DataPlaneError = CorruptPayload(
                f"rows of partition {partition!r} are damaged and were not served: {last}",
                partition=partition,
                keys=last.keys,
                attempts=attempts,
                elapsed_s=deadline.elapsed(),
            )
            return _Unreadable(error, last.keys)
        cls = DataPlaneTimeout if deadline.expired() else DataPlaneReadError
        error = cls(
            f"the blocks of partition {partition!r} moved during each of {attempts} reads: {last}",
            partition=partition,
            attempts=attempts,
            elapsed_s=deadline.elapsed(),
        )
        return _Unreadable(error, [])

    def _once(self, partition: str, keys: list[str], fields: list[str], deadline: Deadline) -> TensorDict:
        """Locate, verify, decode. The pins of what is not handed out return with the context."""
        reached("client.reading")
        try:
            with self._link.call(Locate(partition, keys, fields), Located, deadline) as located, ExitStack() as stack:
                reached("client.pinned")
                if located.issues:
                    raise self._issues(partition, located.issues)
                table = self._decoded(partition, located, keys, stack)
                reached("client.read")
                return table
        except (UnknownName, FieldNotProduced) as lacking:
            raise _Unreadable(lacking, lacking.keys) from None

    def _decoded(self, partition: str, located: Located, keys: list[str], stack: ExitStack) -> TensorDict:
        try:
            readers = self._open(located, keys, stack)
            columns = decode.gather(readers, located.sources, len(keys))
            if self._arenas.ended:
                raise DataPlaneUnavailable("the client was closed during the read", partition=partition)
            table: TensorDict = decode.to_tensordict(columns, len(keys))
        except DataPlaneUnavailable as failed:
            if self._arenas.lost(located.arenas):
                raise ArenaGone(f"an arena was let go of during the read: {failed}") from failed
            raise
        except DataPlaneError:
            raise
        except (RuntimeError, MemoryError) as failed:  # torch's and Python's words for "no memory"
            text = f"{len(keys)} rows of partition {partition!r} cannot be put together here: {failed}"
            raise DataPlaneReadError(text, partition=partition, keys=keys) from failed
        return table

    def _issues(self, partition: str, issues: Sequence[RowIssue]) -> _Unreadable:
        keys = [issue.key for issue in issues]
        codes = {issue.code for issue in issues}
        cls = error_of(codes.pop()) if len(codes) == 1 else DataPlaneReadError
        why = "; ".join(dict.fromkeys(issue.why for issue in issues))
        text = f"rows {abbreviate(keys)} of partition {partition!r} cannot be read: {why}"
        return _Unreadable(cls(text, partition=partition, keys=keys, missing=[i.why for i in issues]), keys)

    def _open(self, located: Located, keys: Sequence[str], stack: ExitStack) -> list[BlockReader]:
        arenas = {arena.arena_id: arena for arena in located.arenas}
        readers: list[BlockReader] = []
        bad: dict[int, CorruptPayload] = {}
        for at, place in enumerate(located.blocks):
            try:
                reader = self._arenas.reader(place, arenas[place.arena_id])
            except CorruptPayload as damaged:
                bad[at] = damaged
            else:
                readers.append(stack.enter_context(reader))
        if bad:
            hit = {i for source in located.sources for i, block in enumerate(source.block) if block in bad}
            ids = [located.blocks[at].block_id for at in bad]
            raise _Damage(next(iter(bad.values())), [keys[i] for i in sorted(hit)], ids)
        return readers

    def _report(self, damage: _Damage, deadline: Deadline) -> None:
        """Tell the plane; it marks the rows lost if it finds the damage too."""
        for block_id in damage.block_ids:
            self._link.ask(Damaged(block_id), Done, deadline)
