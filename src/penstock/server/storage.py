"""The arena of this life and the files of earlier ones, seen as one place where blocks lie.

Invariants: room is granted in this life's arena only; a block lies in one place at a time, and every question about it
is answered from there; an earlier life's file goes when no block that lives is left in it. Not thread-safe but for
the bytes that ``view`` returned: those of a pinned block stay where they are.

A compacted block keeps its id in the ledger while its old slot may still be pinned, so that the arena knows it by a
number of its own, below zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import NamedTuple

import msgspec

from penstock.errors import DataPlaneNotReady, DataPlaneUnavailable, StaleSlotError
from penstock.payload.arena import Arena, ArenaStatistics, OldArena, Reading
from penstock.payload.slots import Mode
from penstock.requests import ArenaPlace, BlockPlace

__all__ = ["PLANE", "Hold", "Storage"]

PLANE = 0  # the owner number of the plane itself: it moves and verifies blocks


class Hold(NamedTuple):
    """One pin, as the arena knows it; ``key`` 0: on an earlier life's file, where nothing is ever freed."""

    key: int
    generation: int


_NO_HOLD = Hold(0, 0)


class Storage:
    """All arenas of a plane, or of a host.

    Args:
        arena, place: this life's, and what clients are told of it.
        old: those of earlier lives, with the same.
        host: whose they are, in the places that are told; 0 = the plane's own.
    """

    def __init__(
        self, arena: Arena, place: ArenaPlace, old: Iterable[tuple[OldArena, ArenaPlace]] = (), *, host: int = 0
    ) -> None:
        self.arena = arena
        self._host = host
        self._places = {place.arena_id: place}
        self._old: dict[int, OldArena] = {}
        self._old_of: dict[int, OldArena] = {}  # block -> the earlier life's arena it lies in
        self._keys: dict[int, int] = {}  # compacted block -> the arena's number for it
        self._new_keys = count(-1, -1)
        self._moving: set[int] = set()  # blocks that are being moved and have not been freed meanwhile
        self._freed = False
        for earlier, where in old:
            self._old[where.arena_id] = earlier
            self._places[where.arena_id] = where
            self._old_of.update(dict.fromkeys(earlier.blocks(), earlier))

    @property
    def host(self) -> int:
        """Whose the arenas are; 0 = the plane's own."""
        return self._host

    # -- slots ----------------------------------------------------------------------------------------------------

    def grant(self, block_id: int, nbytes: int, owner: int) -> BlockPlace | None:
        """Find room in this life's arena. None: there is none now, or it is not all allocated (``backing``): ask again.

        A slice is allocated at each asking, so that one large put does not hold up everybody else.
        """
        if block_id not in self.arena.begun() and not self.arena.begin(block_id, nbytes, owner):
            return None
        return self.place_of(block_id) if self.arena.back(block_id) else None

    def place_of(self, block_id: int) -> BlockPlace:
        """Where the block lies, as it is told.

        Raises:
            StaleSlotError: no such block.
        """
        earlier = self._old_of.get(block_id)
        place = self.arena.place_of(self._key(block_id)) if earlier is None else earlier.place_of(block_id)
        return self._told(place, block_id)

    def backing(self) -> int | None:
        """The block for which a slice is to be allocated next; None when there is none."""
        return next(iter(self.arena.begun()), None)

    def withdraw(self, block_id: int) -> None:
        """Nobody wants the room any more that ``grant`` has begun to allocate, if it has."""
        if block_id in self.arena.begun():
            self.abandon(block_id)

    def fill(self, block_id: int) -> None:
        self.arena.fill(self._key(block_id))

    def abandon(self, block_id: int) -> None:
        """The granted slot will not be written any more, and holds nothing."""
        self._freed |= self.arena.abandon(block_id)

    def release(self, block_id: int) -> None:
        """The block's last row is gone, or it lies elsewhere now."""
        self._moving.discard(block_id)
        earlier = self._old_of.pop(block_id, None)
        if earlier is not None:
            earlier.drop(block_id)
            return
        key = self._keys.pop(block_id, block_id)
        if self._lies_here(key):  # a lost block lies nowhere
            self._freed |= self.arena.release(key)

    def pin(self, block_id: int, owner: int) -> tuple[BlockPlace, Hold]:
        """Keep the block's bytes for ``owner``; say where they lie.

        Raises:
            StaleSlotError: no such block.
        """
        earlier = self._old_of.get(block_id)
        if earlier is not None:
            return self._told(earlier.place_of(block_id), block_id), _NO_HOLD
        key = self._key(block_id)
        if not self.arena.pin(key, owner):
            raise StaleSlotError(f"block {block_id} has no place any more")
        place = self.arena.place_of(key)
        return self._told(place, block_id), Hold(key, place.generation)

    def unpin(self, hold: Hold, owner: int) -> None:
        if hold.key:
            self._freed |= self.arena.unpin(hold.key, owner, hold.generation)

    def begin_read(self, block_id: int, generation: int, mode: Mode, reader: int = PLANE) -> Reading:
        """Begin an attempt to read the block where it lies; every one ends with ``end_read``.

        Raises:
            StaleSlotError: no such block, or it lies elsewhere now, in another generation.
            DataPlaneNotReady: it is being written, read in the other mode, or is to be consumed and has yet to move.
        """
        earlier = self._old_of.get(block_id)
        if earlier is None:
            return self.arena.begin_read(self._key(block_id), generation, mode, reader)
        if earlier.place_of(block_id).generation != generation:
            raise StaleSlotError(f"block {block_id} is not in generation {generation}")
        if mode is Mode.CONSUME:
            raise DataPlaneNotReady(f"block {block_id} lies in an earlier life's file: not to be consumed there")
        return Reading(block_id, generation, 0, earlier.read(block_id))

    def end_read(self, reading: Reading, *, consumed: bool) -> bool:
        """End the attempt. False: it had been superseded or its block is gone, and nothing changed."""
        if not reading.token:
            return True
        end = self.arena.mark_consumed if consumed else self.arena.release_reading
        ended = end(reading)
        self._freed |= ended
        return ended

    def owner_gone(self, owner: int) -> None:
        """The kernel says that the owner's process is gone."""
        self.arena.owner_gone(owner)
        self._freed = True

    def take_freed(self) -> bool:
        """Whether room may have come since the last time this was asked."""
        freed, self._freed = self._freed, False
        return freed

    # -- moving ---------------------------------------------------------------------------------------------------

    def in_old_files(self) -> list[int]:
        """The blocks that lie in files of earlier lives, file by file, oldest id first."""
        return list(self._old_of)

    def view(self, block_id: int) -> memoryview:
        """The block's bytes where they lie; valid while it is pinned.

        Raises:
            StaleSlotError: no such block.
        """
        earlier = self._old_of.get(block_id)
        return earlier.read(block_id) if earlier is not None else self.arena.read(self._key(block_id))

    def begin_move(self, block_id: int, nbytes: int) -> BlockPlace | None:
        """Find room for the plane itself to write the block anew; the place is the arena's, not yet the block's."""
        key = block_id if block_id in self._old_of else next(self._new_keys)
        place = self.arena.grant(key, nbytes, PLANE)
        if place is not None:
            self._moving.add(block_id)
        return place

    def end_move(self, block_id: int, place: BlockPlace) -> BlockPlace | None:
        """The block has been written to ``place``: it lies there from now on. None: it was freed meanwhile."""
        if block_id not in self._moving:
            self._freed |= self.arena.abandon(place.block_id)
            return None
        self.arena.fill(place.block_id)
        self.release(block_id)
        if place.block_id != block_id:
            self._keys[block_id] = place.block_id
        return self._told(place, block_id)

    def cancel_move(self, block_id: int, place: BlockPlace) -> None:
        """The block could not be moved; it lies where it lay."""
        self._moving.discard(block_id)
        self._freed |= self.arena.abandon(place.block_id)

    def retire(self) -> list[int]:
        """Unlink the files of earlier lives in which no block is left; return their ids."""
        empty = [arena_id for arena_id, earlier in self._old.items() if earlier.empty]
        for arena_id in empty:
            self._old.pop(arena_id).close(unlink=True)
            del self._places[arena_id]
        return empty

    # -- facts ----------------------------------------------------------------------------------------------------

    def arena_of(self, place: BlockPlace) -> ArenaPlace:
        return self._places[place.arena_id]

    def arenas_of(self, places: Iterable[BlockPlace]) -> list[ArenaPlace]:
        """What a reader of these blocks must map."""
        return [self._places[arena_id] for arena_id in dict.fromkeys(p.arena_id for p in places)]

    def check(self) -> None:
        """Make sure that clients can still map the arena.

        Raises:
            DataPlaneUnavailable: somebody removed its file.
        """
        if not self.arena.path.exists():
            raise DataPlaneUnavailable(f"the arena's file {self.arena.path} is gone: restart the plane")

    def statistics(self) -> ArenaStatistics:
        return self.arena.statistics()

    def summary(self) -> str:
        """The arena in a sentence, for whoever finds it full."""
        s = self.statistics()
        return (
            f"{s.used} of {s.capacity} bytes are in slots ({s.ready_slots} ready, {s.writing_slots} being written, "
            f"{s.condemned_slots} only pinned)"
        )

    def unlink_shared(self) -> None:
        """Nothing of our own is left in shared memory, but what is mapped."""
        ours: list[Arena | OldArena] = [self.arena, *self._old.values()]
        for arena in ours:
            if self._places[arena.arena_id].in_shm:
                arena.path.unlink(missing_ok=True)

    def close(self, *, unlink: bool) -> None:
        """Let go of the files. ``unlink``: of all of them nothing is left."""
        self.arena.close(unlink=unlink)
        for earlier in self._old.values():
            earlier.close(unlink=unlink)

    def _lies_here(self, key: int) -> bool:
        try:
            self.arena.place_of(key)
        except StaleSlotError:
            return False
        return True

    def _key(self, block_id: int) -> int:
        if block_id < 0:  # the arena has blocks below zero, but nobody else may name them
            raise StaleSlotError(f"there is no block {block_id}")
        return self._keys.get(block_id, block_id)

    def _told(self, place: BlockPlace, block_id: int) -> BlockPlace:
        """A place of the arena's, as the rest of the world knows it."""
        if place.block_id == block_id and place.host == self._host:
            return place
        return msgspec.structs.replace(place, block_id=block_id, host=self._host)
