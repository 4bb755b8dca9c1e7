"""Blocks that lie in a store, beside those that lie on hosts: each read is divided between the two.

Invariants: a block has one outcome; what was got once in a read is not got again; what a store does not have, or has
damaged, is told to the plane, whose agent of that store looks for itself; bytes are served only after the block's own
checks, whatever the store has checked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec
import numpy as np

from penstock.config import Integrity
from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    MissingExtra,
)
from penstock.payload import block
from penstock.payload.stores.contract import Corrupt, Missing, Ok, Outcome
from penstock.plane.blocks import Blocks, FetchedBlock, Opened, Opening
from penstock.plane.exchange import LEAST_S
from penstock.plane.stores import Stores, address_of, block_key
from penstock.requests import BlockPlace, Damaged, HostPlace, Located
from penstock.retry import Deadline

__all__ = ["StoreBlocks"]

GET_S = 20.0  # then the plane is asked again: what is lost by then it knows
_RESERVE_SHARE, _RESERVE_S = 0.1, 0.5  # of a call's time, kept for saying what went wrong


class StoreBlocks:
    """Where a client's blocks come from. Args: others: those that lie in no store; integrity: what is checked."""

    def __init__(self, others: Blocks, stores: Stores, integrity: Integrity) -> None:
        self.others = others
        self.stores = stores
        self.integrity: Integrity = integrity

    def begin(self) -> Opening:
        return _StoreOpening(self)


class _StoreOpening:
    """One read."""

    def __init__(self, blocks: StoreBlocks) -> None:
        self._blocks = blocks
        self._others = blocks.others.begin()
        self.damage = self._others.damage
        self._got: dict[int, FetchedBlock] = {}  # by block id; an id is one block's for ever

    @property
    def ended(self) -> bool:
        return self._blocks.stores.closed or self._others.ended

    def lost(self) -> bool:
        return self._others.lost()

    def open(self, located: Located, stack: ExitStack, deadline: Deadline) -> Opened:
        stores = {host.host_id: host for host in located.hosts if host.store}
        stored: dict[int, list[int]] = defaultdict(list)  # store -> positions
        rest = []
        for at, place in enumerate(located.blocks):
            if place.host in stores:
                stored[place.host].append(at)
            else:
                rest.append(at)
        opened = self._open_others(located, rest, stack, deadline) if rest or not stored else Opened()
        for host_id, positions in stored.items():
            self._open_stored(stores[host_id], {at: located.blocks[at] for at in positions}, deadline, opened)
        return opened

    def _open_others(self, located: Located, rest: Sequence[int], stack: ExitStack, deadline: Deadline) -> Opened:
        if len(rest) == len(located.blocks):
            return self._others.open(located, stack, deadline)
        part = msgspec.structs.replace(located, blocks=[located.blocks[at] for at in rest])
        found = self._others.open(part, stack, deadline)
        return Opened(
            {rest[n]: one for n, one in found.blocks.items()}, {rest[n]: error for n, error in found.bad.items()}
        )

    def _open_stored(self, store: HostPlace, places: dict[int, BlockPlace], deadline: Deadline, opened: Opened) -> None:
        wanted = {at: place for at, place in places.items() if place.block_id not in self._got}
        for at, outcome in zip(wanted, self._get(store, list(wanted.values()), deadline), strict=True):
            error = self._take(store, wanted[at], outcome)
            if error is not None:
                opened.bad[at] = error
        for at, place in places.items():
            if place.block_id in self._got:
                opened.blocks[at] = self._got[place.block_id]

    def _get(
        self, store: HostPlace, places: list[BlockPlace], deadline: Deadline
    ) -> Sequence[Outcome | DataPlaneError]:
        """Get all of them from their store; one that cannot be opened here is every block's outcome."""
        if not places:
            return []
        keys = [block_key(store.host_id, place.block_id) for place in places]
        until = _before(deadline)
        try:
            opened = self._blocks.stores.open(store, until)
            return opened.get_many(keys, [place.nbytes for place in places], until)
        except MissingExtra as missing:
            return [DataPlaneReadError(f"they lie in the store {address_of(store.store)}: {missing}")] * len(places)
        except (DataPlaneUnavailable, DataPlaneTimeout) as failed:
            return [DataPlaneUnavailable(f"the store {address_of(store.store)}: {failed}")] * len(places)

    def _take(self, store: HostPlace, place: BlockPlace, outcome: Outcome | DataPlaneError) -> DataPlaneError | None:
        """Keep the block if it came whole; else return why not, and note what the plane should know."""
        if isinstance(outcome, DataPlaneError):
            return outcome
        if isinstance(outcome, Ok):
            try:
                self._got[place.block_id] = self._checked(place, outcome)
            except CorruptPayload as damaged:
                self.damage.append(Damaged(place.block_id, place.host))
                return damaged
            return None
        where = f"the store {address_of(store.store)}"
        if isinstance(outcome, Missing | Corrupt):
            self.damage.append(Damaged(place.block_id, place.host))
        if isinstance(outcome, Corrupt):
            return CorruptPayload(f"block {place.block_id} comes damaged out of {where}: {outcome.kind}")
        if isinstance(outcome, Missing):
            return DataPlaneUnavailable(f"{where} does not have block {place.block_id}: its agent is told to look")
        return DataPlaneUnavailable(f"{where} did not give block {place.block_id}: {outcome}")

    def _checked(self, place: BlockPlace, outcome: Ok) -> FetchedBlock:
        data = np.frombuffer(outcome.view, np.uint8)
        header = block.parse(data, place.block_id, checked=self._blocks.integrity != "off")
        if self._blocks.integrity in ("full", "paranoid"):
            block.verify(data, header)
        return FetchedBlock(header, data)


def _before(deadline: Deadline) -> Deadline:
    """Return the deadline of a get: there is to be time for saying how it went."""
    left = deadline.remaining()
    return Deadline(max(LEAST_S, min(GET_S, left - min(_RESERVE_S, left * _RESERVE_SHARE))), deadline.clock)
