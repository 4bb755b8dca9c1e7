"""An arena of the test's own and a client's map of it, in one process."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.config import Integrity
from penstock.payload import codec, decode
from penstock.payload.arena import Arena
from penstock.payload.files import SHM
from penstock.payload.mapping import ArenaMap, BlockReader
from penstock.requests import BlockPlace, Source

CLIENT = 7


def new_path() -> Path:
    return SHM / f"penstock-test{os.getpid()}-{uuid.uuid4().int >> 96}"


class Room:
    """What a plane and one client do with blocks, without the requests between them."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.map = ArenaMap.open(arena.path, arena.capacity)
        self.released: list[int] = []
        self._next_block = 1
        self._next_pin = 1

    def put(self, fields: Any, rows: int, *, strict: bool = False) -> BlockPlace:
        batch = codec.encode(fields, rows, strict_tensors=strict)
        place = self.arena.grant(self._next_block, batch.nbytes, CLIENT)
        assert place is not None
        self._next_block += 1
        batch.write_into(self.map.writer(place), place.block_id)
        assert self.arena.fill(place.block_id)
        return place

    def open(self, place: BlockPlace, integrity: Integrity = "full") -> BlockReader:
        """Pin and open; the pin is taken back as soon as it is released."""
        assert self.arena.pin(place.block_id, CLIENT)
        pin, self._next_pin = self._next_pin, self._next_pin + 1
        pinned = self.arena.place_of(place.block_id, pin)
        return self.map.reader(pinned, integrity, lambda done: self._unpin(done, place.block_id))

    def read(self, places: Sequence[BlockPlace], sources: list[Source], n: int) -> dict[str, Any]:
        readers = [self.open(place) for place in places]
        try:
            return decode.gather(readers, sources, n)
        finally:
            for reader in readers:
                reader.close()

    def whole(self, place: BlockPlace) -> dict[str, Any]:
        with self.open(place) as reader:
            return decode.read_block(reader)

    def _unpin(self, pin: int, block_id: int) -> None:
        self.released.append(pin)
        self.arena.unpin(block_id, CLIENT)


@contextmanager
def a_room(capacity: int = 64 << 20, warm: int = 1 << 20) -> Iterator[Room]:
    with Arena.create(new_path(), 1, capacity, warm) as arena:
        room = Room(arena)
        yield room
        room.map.close()
