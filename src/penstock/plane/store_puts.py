"""Writing rows into a store: a grant at the plane, the block under its key, a commit.

Invariants: nothing is visible before the commit, and then everything is; a block's key is written once, for each
attempt has a grant of its own; what came to nothing is freed by the store's agent, or here if the plane does not know
of it any more; a store that fails for a while, or is full, is waited for until the caller's deadline.
"""

from __future__ import annotations

import contextlib

import msgspec

from penstock.config import ClientConfig
from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneFull,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    DataPlaneWriteError,
    MissingExtra,
)
from penstock.payload import block
from penstock.payload.block import Bytes
from penstock.payload.buffers import SHARED
from penstock.payload.columns import Batch
from penstock.payload.stores.contract import BlockStore, Corrupt, Full, Ok, Outcome
from penstock.plane import events as ev
from penstock.plane.again import settled
from penstock.plane.link import Link
from penstock.plane.stores import Stores, address_of, block_key
from penstock.points import reached
from penstock.requests import BlockPlace, Commit, Grant, GrantAgain, Granted, HostPlace, Record
from penstock.retry import Answer, Deadline, Kind, Policy, Reason, Retrier

__all__ = ["STORE_AGAIN", "StorePuts"]

# Stores come back, and so do their agents: what may still succeed is tried until the caller's deadline. What fails
# within the store is the store's own to retry.
STORE_AGAIN = Policy(max_attempts=100_000, base_s=0.02, cap_s=1.0, bucket_tokens=0.0, quarantine_s=0.0)
_RESERVE_SHARE, _RESERVE_S = 0.1, 1.0  # of a call's time, kept for the commit, and for saying what went wrong
_CLEAN_S = 2.0  # for removing what nobody will ever need; its agent is told too, where the plane knows of it


class _Again(Exception):
    """The grant did not live that long: nothing happened."""


class StorePuts:
    """The puts of one client, into the store that its configuration names."""

    def __init__(self, link: Link, stores: Stores, retrier: Retrier, config: ClientConfig) -> None:
        self._link = link
        self._stores = stores
        self._retrier = retrier
        self._read_back = config.integrity == "paranoid"

    def put(self, wanted: Grant, batch: Batch, deadline: Deadline) -> None:
        """Write ``batch`` as ``wanted`` describes it; all its rows are visible on return.

        Raises:
            MissingExtra: the store's library is not installed here.
            DataPlaneTimeout: the outcome is unknown.
            DataPlaneFull: the store had no room, all the time.
            DataPlaneError: nothing became visible.
        """
        last: list[DataPlaneError] = []

        def attempt(until: Deadline) -> Answer[None]:
            try:
                self._once(wanted, batch, until)
            except _Again:
                return Answer(Kind.RETRYABLE, code="GrantAgain")
            except MissingExtra:
                raise
            except (DataPlaneUnavailable, _NoRoom) as failed:
                self._link.require_open("put_samples")
                self._stores.forget()
                if not (last and isinstance(last[0], _NoRoom)):  # whatever came of the last try for room
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
        cls: type[DataPlaneError] = DataPlaneUnavailable
        if end.reason is Reason.CORRUPT:
            cls = DataPlaneWriteError
        elif last and isinstance(last[0], _NoRoom):
            cls = DataPlaneFull
        raise cls(
            f"the put was not committed in {end.attempts} attempts ({end.code}){''.join(f': {e}' for e in last)}",
            partition=wanted.partition,
            keys=wanted.keys,
            attempts=end.attempts,
            elapsed_s=deadline.elapsed(),
        )

    def _once(self, wanted: Grant, batch: Batch, deadline: Deadline) -> None:
        """All the steps."""
        place = self._stores.own(deadline)
        store = self._stores.open(place, deadline)
        reached("client.putting")
        asked = msgspec.structs.replace(wanted, host=place.host_id)
        with self._link.call(asked, Granted, deadline) as granted:
            try:
                reached("client.granted")
                content = self._written(store, place, granted, batch, deadline)
                reached("client.copied")
                self._commit(store, granted, content, deadline)
            finally:
                self._link.note(ev.GrantOver(granted.grant))

    def _written(self, store: BlockStore, place: HostPlace, granted: Granted, batch: Batch, deadline: Deadline) -> int:
        """Put the block under its key; return what it holds."""
        data = SHARED.take(batch.nbytes)
        content = batch.write_into(data, granted.grant)
        key = block_key(place.host_id, granted.grant)
        (outcome,) = store.put_many([key], [data], _before(deadline))
        if not isinstance(outcome, Ok):
            raise _refused(address_of(place.store), batch.nbytes, outcome)
        if self._read_back:
            _verify(store, key, data, granted.grant, deadline)
        return content

    def _commit(self, store: BlockStore, granted: Granted, content: int, deadline: Deadline) -> None:
        where = BlockPlace(granted.grant, 0, 0, granted.place.nbytes, 0, host=granted.place.host)
        reply = self._link.ask(Commit(granted.grant, content, [where]), Record, deadline)
        reached("client.put")
        if isinstance(reply, GrantAgain):
            with contextlib.suppress(DataPlaneUnavailable, DataPlaneTimeout):
                store.remove_many([block_key(where.host, granted.grant)], deadline.within(_CLEAN_S))
            raise _Again

    def __repr__(self) -> str:
        return f"StorePuts({self._stores!r})"


class _NoRoom(DataPlaneFull):
    """The store is full; it may have room later."""


def _refused(address: str, nbytes: int, outcome: Outcome) -> DataPlaneError:
    """Return the error of a block that the store did not take: for certain nobody will ever read it."""
    if isinstance(outcome, Full):
        return _NoRoom(f"the store {address} has no room for {nbytes} bytes: free rows, or give it larger segments")
    return DataPlaneUnavailable(f"the store {address} did not take {nbytes} bytes: {outcome}")


def _verify(store: BlockStore, key: str, data: Bytes, block_id: int, deadline: Deadline) -> None:
    """Read back what was just written (integrity ``paranoid``)."""
    (outcome,) = store.get_many([key], [len(data)], _before(deadline))
    if isinstance(outcome, Corrupt):
        raise CorruptPayload(f"block {block_id} came back damaged: {outcome.kind}")
    if not isinstance(outcome, Ok):
        raise DataPlaneUnavailable(f"block {block_id} cannot be read back: {outcome}")
    block.verify(outcome.view, block.parse(outcome.view, block_id))
    if outcome.view != data.data:
        raise CorruptPayload(f"block {block_id} came back as other bytes")


def _before(deadline: Deadline) -> Deadline:
    """Return the store's part of a call's time."""
    left = deadline.remaining()
    return deadline.within(left - min(_RESERVE_S, left * _RESERVE_SHARE))
