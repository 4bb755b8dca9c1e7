"""The shared memory of a simulated host: blocks by number, with what every row of every field holds.

It outlives the plane, as shared memory does. Invariant: a block is readable from the moment it is filled until it is
freed and unpinned; a block number is never used twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import xxhash

from penstock.requests import BlockPlace

__all__ = ["Arena", "Block", "value_of"]


def value_of(key: str, name: str) -> int:
    """What an honest producer writes: a function of row and field, so that any reader can judge what it got."""
    return xxhash.xxh3_64_intdigest(f"{key}/{name}".encode())


@dataclass(slots=True)
class Block:
    """``values`` is None until its writer has copied."""

    generation: int
    keys: Sequence[str] = ()
    values: Mapping[str, Sequence[int]] | None = None
    filled: bool = False
    freed: bool = False
    pins: set[int] = field(default_factory=set)


class Arena:
    def __init__(self) -> None:
        self.blocks: dict[int, Block] = {}
        self._generation = 0

    def allot(self, number: int, nbytes: int) -> BlockPlace:
        assert number not in self.blocks, f"block {number} is used twice"
        self._generation += 1
        self.blocks[number] = Block(self._generation)
        return BlockPlace(number, 0, self._generation << 12, nbytes, self._generation)

    def write(self, place: BlockPlace, keys: Sequence[str], fields: Sequence[str]) -> None:
        """The writer copies; into a slot that is nobody's any more it may, for its memory is kept from others."""
        block = self.blocks.get(place.block_id)
        if block is None or block.generation != place.generation:
            return
        assert not block.filled, f"block {place.block_id} is written while it is read"
        block.keys = keys
        block.values = {name: [value_of(key, name) for key in keys] for name in fields}

    def fill(self, number: int) -> None:
        block = self.blocks[number]
        assert block.values is not None, f"block {number} is visible before it was written"
        block.filled = True

    def read(self, number: int, name: str, index: int, pin: int) -> tuple[str, int] | None:
        """Return (key, value); None when this is no readable block."""
        block = self.blocks.get(number)
        if block is None or not block.filled or block.values is None or pin not in block.pins:
            return None
        return block.keys[index], block.values[name][index]

    def free(self, number: int) -> None:
        """Its last row is gone, or its grant was dropped."""
        block = self.blocks.get(number)
        if block is not None:
            block.freed = True
            self._drop_if_unused(number, block)

    def unpin(self, number: int, pin: int) -> None:
        block = self.blocks.get(number)
        if block is not None:
            block.pins.discard(pin)
            self._drop_if_unused(number, block)

    def reconcile(self, live: Iterable[int]) -> list[int]:
        """A new plane keeps what its journal names and nothing else; return what is named and not there."""
        alive = set(live)
        for number in [n for n in self.blocks if n not in alive]:
            del self.blocks[number]
        for number in alive & self.blocks.keys():
            block = self.blocks[number]
            block.filled, block.freed = block.values is not None, False
            block.pins.clear()
        return sorted(n for n in alive if n not in self.blocks or not self.blocks[n].filled)

    def _drop_if_unused(self, number: int, block: Block) -> None:
        if block.freed and not block.pins:
            del self.blocks[number]
