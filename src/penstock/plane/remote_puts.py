"""Writing rows through this machine's agent: a grant at the plane, a slot of the agent, one copy, a seal, a commit.

Invariants: nothing is visible before the commit, and then everything is, on as many hosts as was asked for; grant and
slot are held exactly as long as this process may write there; whatever dies in between costs one more copy, under the
caller's deadline, never a torn block.
"""

from __future__ import annotations

import time

import msgspec

from penstock.config import MIB, ClientConfig
from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    DataPlaneWriteError,
)
from penstock.payload.columns import Batch
from penstock.plane import events as ev
from penstock.plane.again import settled
from penstock.plane.link import Link
from penstock.plane.remote_host import OwnHost
from penstock.points import reached
from penstock.requests import BlockPlace, Commit, Grant, GrantAgain, Granted, HostPlace, Record, Reserve, Seal, Sealed
from penstock.retry import Answer, Deadline, Kind, Policy, Reason, Retrier
from penstock.retry.quarantine import Quarantine

__all__ = ["PUT_AGAIN", "RemotePuts"]

# Hosts come back: what may still succeed is tried until the caller's deadline.
PUT_AGAIN = Policy(max_attempts=100_000, base_s=0.02, cap_s=1.0, bucket_tokens=0.0, quarantine_s=0.0)
UNWILLING_S = 30.0  # a host that has not taken a copy is the last to be asked for so long
COPY_S = 3.0  # for a second host to take a copy, beside the time that its bytes take:
COPY_BYTES_PER_S = 32 * MIB  # slower is a line that a training run cannot live with


class _Again(Exception):
    """A grant, or a slot, did not live that long: nothing happened. Raised where what is held is let go of at once."""


class RemotePuts:
    """The puts of one client. ``read_back``: verify each block after its copy (integrity ``paranoid``)."""

    def __init__(self, link: Link, host: OwnHost, retrier: Retrier, config: ClientConfig) -> None:
        self._link = link
        self._host = host
        self._retrier = retrier
        self._replicas = config.replicas
        self._at_least = 1 if config.under_replicated else config.replicas
        self._read_back = config.integrity == "paranoid"
        self._unwilling = Quarantine(UNWILLING_S)  # hosts, by id, that have not taken a copy

    def put(self, wanted: Grant, batch: Batch, deadline: Deadline) -> None:
        """Write ``batch`` as ``wanted`` describes it; all its rows are visible on return.

        Raises:
            DataPlaneTimeout: the outcome is unknown.
            DataPlaneError: nothing became visible.
        """
        last: list[DataPlaneError] = []

        def attempt(until: Deadline) -> Answer[None]:
            try:
                self._once(wanted, batch, until)
            except _Again as again:
                if isinstance(again.__cause__, DataPlaneError):
                    last[:] = [again.__cause__]
                return Answer(Kind.RETRYABLE, code="GrantAgain")
            except DataPlaneUnavailable as failed:
                self._link.require_open("put_samples")
                self._host.link("put_samples")
                last[:] = [failed]
                return Answer(Kind.RETRYABLE, code=type(failed).__name__)
            except CorruptPayload as torn:
                last[:] = [torn]
                return Answer(Kind.CORRUPT, code="CorruptPayload")
            return Answer(Kind.OK)

        self._link.require_open("put_samples")
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

    def _once(self, wanted: Grant, batch: Batch, deadline: Deadline) -> None:
        """All the steps."""
        agent = self._host.link("put_samples")
        here = self._host.host_id(agent, deadline)
        unwilling = [int(host) for host in self._unwilling.held(time.monotonic())]
        asked = msgspec.structs.replace(
            wanted, host=here, replicas=self._replicas, at_least=self._at_least, avoid=unwilling
        )
        reached("client.putting")
        with self._link.call(asked, Granted, deadline) as granted:
            try:
                reached("client.granted")
                self._fill(agent, granted, batch, deadline)
            finally:
                self._link.note(ev.GrantOver(granted.grant))

    def _fill(self, agent: Link, granted: Granted, batch: Batch, deadline: Deadline) -> None:
        """Reserve, copy, seal, commit."""
        with agent.call(Reserve(granted.grant, batch.nbytes, granted.life), Granted, deadline) as slot:
            try:
                content = self._copied(slot, batch)
                places = self._places(self._sealed(agent, granted, content, deadline), granted.replica)
                reply = self._link.ask(Commit(granted.grant, content, places), Record, deadline)
                reached("client.put")
                if isinstance(reply, GrantAgain):
                    raise _Again
            finally:
                agent.note(ev.GrantOver(slot.grant))

    def _copied(self, slot: Granted, batch: Batch) -> int:
        arenas = self._host.arenas
        with arenas.writing():
            content = batch.write_into(arenas.writer(slot.place, slot.arena), slot.grant)
            if self._read_back:
                arenas.read_back(slot.place, slot.arena)
        reached("client.copied")
        return content

    def _sealed(self, agent: Link, granted: Granted, content: int, deadline: Deadline) -> Record:
        """Have the block sealed, and copied if that is wanted; nothing is visible yet, so that it may be done again."""
        try:
            return agent.ask(Seal(granted.grant, content, granted.replica), Record, _copying(granted, deadline))
        except DataPlaneTimeout as late:
            if deadline.expired() or granted.replica is None:
                raise
            self._unwilling.failed(str(granted.replica.host_id), time.monotonic())
            raise _Again from late

    def _places(self, sealed: Record, replica: HostPlace | None) -> list[BlockPlace]:
        """Return where the block lies for certain."""
        if not isinstance(sealed, Sealed):
            raise _Again
        if replica is not None and len(sealed.places) == 1:
            self._unwilling.failed(str(replica.host_id), time.monotonic())
        elif replica is not None:
            self._unwilling.lift(str(replica.host_id))
        if len(sealed.places) < self._at_least:
            why = sealed.why or "no second one took it"
            raise DataPlaneUnavailable(
                f"the block lies on {len(sealed.places)} of {self._at_least} hosts: {why}; "
                "under_replicated=True would put it all the same"
            )
        return sealed.places


def _copying(granted: Granted, deadline: Deadline) -> Deadline:
    """The time for sealing: a second host that is silent must leave enough of the caller's to ask a third."""
    if granted.replica is None:
        return deadline
    return deadline.within(COPY_S + granted.place.nbytes / COPY_BYTES_PER_S)
