"""The shared memory of a simulated host: slots by (block, generation), with what every row of every field holds.

It outlives the plane, as shared memory does. Invariants: a slot is readable from the moment it is filled until it is
freed and unpinned; a generation is never used twice, so that a stale place reads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import xxhash

from penstock.requests import BlockPlace

__all__ = ["Arena", "Slot", "value_of"]


def value_of(key: str, name: str) -> int:
    """What an honest producer writes: a function of row and field, so that any reader can judge what it got."""
    return xxhash.xxh3_64_intdigest(f"{key}/{name}".encode())


@dataclass(slots=True)
class Slot:
    """``values`` is None until its writer has copied."""

    keys: Sequence[str] = ()
    values: Mapping[str, Sequence[int]] | None = None
    filled: bool = False
    freed: bool = False
    pins: set[int] = field(default_factory=set)


class Arena:
    """Attributes: slots: (block id, generation) -> slot."""

    def __init__(self) -> None:
        self.slots: dict[tuple[int, int], Slot] = {}
        self._generation = 0
        self._numbers: set[int] = set()  # ever given out, in any life of the plane

    def allot(self, block_id: int, nbytes: int) -> BlockPlace:
        """Find a slot for a block that is to be written."""
        assert block_id not in self._numbers, f"block number {block_id} is used a second time"
        self._numbers.add(block_id)
        return self._place(block_id, nbytes, Slot())

    def of_block(self, block_id: int) -> list[tuple[int, int]]:
        """Where the block lies, or has lain and is still read."""
        return [slot for slot in self.slots if slot[0] == block_id]

    def write(self, place: BlockPlace, keys: Sequence[str], fields: Sequence[str]) -> None:
        """The writer copies; into a slot that is nobody's any more it may, for its memory is kept from others."""
        slot = self.slots.get((place.block_id, place.generation))
        if slot is None:
            return
        assert not slot.filled, f"block {place.block_id} is written while it is read"
        slot.keys = keys
        slot.values = {name: [value_of(key, name) for key in keys] for name in fields}

    def fill(self, block_id: int) -> None:
        """The block is visible now."""
        (where,) = self.of_block(block_id)
        slot = self.slots[where]
        assert slot.values is not None, f"block {block_id} is visible before it was written"
        slot.filled = True

    def compact(self, place: BlockPlace, positions: Sequence[int]) -> BlockPlace:
        """Copy the rows at ``positions`` to a new slot; the old one stays until it is freed."""
        old = self.slots[place.block_id, place.generation]
        assert old.values is not None
        values = {name: [column[at] for at in positions] for name, column in old.values.items()}
        keys = [old.keys[at] for at in positions]
        return self._place(place.block_id, place.nbytes, Slot(keys, values, filled=True))

    def read(self, place: BlockPlace, name: str, index: int) -> tuple[str, int] | None:
        """Return (key, value); None when this is no readable block any more."""
        slot = self.slots.get((place.block_id, place.generation))
        if slot is None or not slot.filled or slot.values is None or place.pin not in slot.pins:
            return None
        return slot.keys[index], slot.values[name][index]

    def free(self, block_id: int) -> None:
        """Its last row is gone, or its grant was dropped."""
        for where in self.of_block(block_id):
            self.free_slot(where)

    def free_slot(self, where: tuple[int, int]) -> None:
        slot = self.slots.get(where)
        if slot is not None:
            slot.freed = True
            self._drop_if_unused(where, slot)

    def pin(self, place: BlockPlace, pin: int) -> None:
        self.slots[place.block_id, place.generation].pins.add(pin)

    def unpin(self, where: tuple[int, int], pin: int) -> None:
        slot = self.slots.get(where)
        if slot is not None:
            slot.pins.discard(pin)
            self._drop_if_unused(where, slot)

    def reconcile(self, live: Iterable[BlockPlace]) -> list[int]:
        """A new plane keeps what its journal names and nothing else; return the blocks named that are not there."""
        named = {(place.block_id, place.generation) for place in live}
        self.slots = {where: slot for where, slot in self.slots.items() if where in named}
        for slot in self.slots.values():
            slot.filled, slot.freed = slot.values is not None, False
            slot.pins.clear()
        there = {where for where, slot in self.slots.items() if slot.filled}
        return sorted(block_id for block_id, _ in named - there)

    def _place(self, block_id: int, nbytes: int, slot: Slot) -> BlockPlace:
        self._generation += 1
        self.slots[block_id, self._generation] = slot
        return BlockPlace(block_id, 0, self._generation << 12, nbytes, self._generation)

    def _drop_if_unused(self, where: tuple[int, int], slot: Slot) -> None:
        if slot.freed and not slot.pins:
            del self.slots[where]
