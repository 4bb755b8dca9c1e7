"""The shared memory of a simulated machine: what its agent owns, and what outlives the agent.

Invariants: a slot is readable from its seal until it is freed and unpinned; a generation is never used twice, so that a
stale place reads nothing; what is damaged stays damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.requests import BlockPlace
from penstock.testing.sim.arena import Slot, value_of

__all__ = ["HostMemory"]


class HostMemory:
    """Attributes: slots: (block, generation) -> slot; damaged: blocks whose bytes a fault has changed or wiped."""

    def __init__(self, host_id: int) -> None:
        self.slots: dict[tuple[int, int], Slot] = {}
        self.damaged: set[int] = set()
        self._host_id = host_id
        self._generation = 0

    def allot(self, block_id: int, nbytes: int) -> BlockPlace:
        """Find a slot for a block that is to be written."""
        self._generation += 1
        self.slots[block_id, self._generation] = Slot()
        return BlockPlace(block_id, 1, self._generation << 12, nbytes, self._generation, host=self._host_id)

    def write(self, place: BlockPlace, keys: Sequence[str], fields: Sequence[str]) -> None:
        """The writer copies; into a slot that is nobody's any more he may, for its memory is kept from others."""
        slot = self.slots.get((place.block_id, place.generation))
        if slot is not None:
            assert not slot.filled, f"block {place.block_id} is written while it is read"
            slot.keys = keys
            slot.values = {name: [value_of(key, name) for key in keys] for name in fields}

    def copy(self, place: BlockPlace, source: HostMemory, there: BlockPlace) -> bool:
        """Pull the block from another machine; False: it is not there any more, or not whole."""
        mine = self.slots.get((place.block_id, place.generation))
        theirs = source.slots.get((there.block_id, there.generation))
        whole = theirs is not None and theirs.filled and there.block_id not in source.damaged
        if mine is None or theirs is None or not whole:
            return False
        mine.keys, mine.values = theirs.keys, theirs.values
        return True

    def fill(self, block_id: int) -> None:
        """The block is sealed."""
        for where, slot in self.slots.items():
            if where[0] == block_id and not slot.freed:
                assert slot.values is not None, f"block {block_id} is sealed before it was written"
                slot.filled = True

    def read(self, place: BlockPlace, name: str, index: int) -> tuple[str, int] | None:
        """Return (key, value); None: there is no such block any more, or its checksum does not hold."""
        slot = self.slots.get((place.block_id, place.generation))
        if slot is None or not slot.filled or slot.values is None or place.block_id in self.damaged:
            return None
        return slot.keys[index], slot.values[name][index]

    def free(self, block_id: int) -> None:
        for where in [where for where in self.slots if where[0] == block_id]:
            self.slots[where].freed = True
            self._drop_if_unused(where)

    def pin(self, place: BlockPlace, pin: int) -> None:
        self.slots[place.block_id, place.generation].pins.add(pin)

    def unpin(self, where: tuple[int, int], pin: int) -> None:
        slot = self.slots.get(where)
        if slot is not None:
            slot.pins.discard(pin)
            self._drop_if_unused(where)

    def has(self, place: BlockPlace) -> bool:
        """Whether the block lies at the place, written."""
        slot = self.slots.get((place.block_id, place.generation))
        return slot is not None and slot.values is not None and not slot.freed

    def reconcile(self, live: Iterable[BlockPlace]) -> list[BlockPlace]:
        """A new agent keeps what the plane names and nothing else; return what of that is there, whole."""
        found = [place for place in live if self.has(place) and place.block_id not in self.damaged]
        named = {(place.block_id, place.generation) for place in found}
        self.slots = {where: slot for where, slot in self.slots.items() if where in named}
        for slot in self.slots.values():
            slot.filled = True
            slot.pins.clear()
        return found

    def damage(self, block_id: int) -> None:
        """Its bytes are not what they were."""
        self.damaged.add(block_id)

    def wipe(self) -> None:
        """The machine has lost its memory."""
        self.damaged.update(block_id for block_id, _ in self.slots)
        self.slots.clear()

    def _drop_if_unused(self, where: tuple[int, int]) -> None:
        slot = self.slots[where]
        if slot.freed and not slot.pins:
            del self.slots[where]
