"""The arenas as one: where a block lies, through moves and pins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import DataPlaneNotReady, DataPlaneUnavailable, StaleSlotError
from penstock.payload.arena import Arena, OldArena
from penstock.payload.slots import Mode
from penstock.requests import ArenaPlace, BlockPlace
from penstock.server.storage import PLANE, Storage

READER = 3


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """Block 5 lies in an old file; this life's arena is empty."""
    with Arena.create(tmp_path / "old", 1, 1 << 16, 0) as before:
        place = before.grant(5, 512, READER)
        assert place is not None
        before.writer(place)[:] = 55
        old = OldArena.open(tmp_path / "old", [place])
        with Arena.create(tmp_path / "new", 2, 1 << 16, 0) as arena:
            made = Storage(arena, ArenaPlace(2, 1 << 16, in_shm=False), [(old, ArenaPlace(1, 1 << 16, in_shm=False))])
            yield made
            arena.check_invariants()


def _move(storage: Storage, block_id: int, nbytes: int, value: int) -> BlockPlace | None:
    place = storage.begin_move(block_id, nbytes)
    assert place is not None
    storage.arena.writer(place)[:] = value
    return storage.end_move(block_id, place)


def test_an_old_block_is_served_until_it_has_moved(storage: Storage) -> None:
    """Before the move it is pinned and read in the old file; after it in the new one, and the old file goes."""
    place, hold = storage.pin(5, READER)
    assert place.arena_id == 1
    assert [a.arena_id for a in storage.arenas_of([place])] == [1]
    assert storage.in_old_files() == [5]
    assert storage.retire() == []
    moved = _move(storage, 5, 512, 66)
    assert moved is not None
    assert (moved.block_id, moved.arena_id) == (5, 2)
    storage.unpin(hold, READER)  # of the old place: it must not touch the new one
    assert storage.statistics().ignored == 0
    assert storage.retire() == [1]
    assert bytes(storage.view(5)[:1]) == bytes([66])


def test_a_compacted_block_keeps_its_id_while_its_old_place_is_pinned(storage: Storage) -> None:
    """The old slot stays for its reader; others find the block at its new place; unpinning frees the old one."""
    place = storage.grant(9, 1024, READER)
    assert place is not None
    storage.fill(9)
    _, hold = storage.pin(9, READER)
    moved = _move(storage, 9, 256, 1)
    assert moved is not None
    assert moved.block_id == 9
    assert moved.offset != place.offset
    again, second = storage.pin(9, READER)
    assert (again.block_id, again.offset, again.nbytes) == (9, moved.offset, 256)
    assert storage.statistics().condemned_slots == 1
    storage.unpin(hold, READER)
    assert storage.statistics().condemned_slots == 0
    twice = _move(storage, 9, 256, 2)
    assert twice is not None
    storage.unpin(second, READER)
    storage.release(9)
    storage.release(5)
    assert storage.statistics().used == 0
    with pytest.raises(StaleSlotError):
        storage.pin(9, READER)


@pytest.mark.parametrize("block_id", [5, 9], ids=["out of an old file", "within the arena"])
def test_a_block_freed_while_it_moves_is_not_moved(storage: Storage, block_id: int) -> None:
    """Neither place keeps anything of it."""
    if block_id == 9:
        assert storage.grant(9, 512, READER) is not None
        storage.fill(9)
    _, hold = storage.pin(block_id, PLANE)
    place = storage.begin_move(block_id, 512)
    assert place is not None
    storage.release(block_id)
    assert storage.end_move(block_id, place) is None
    storage.unpin(hold, PLANE)
    storage.release(5)
    assert storage.statistics().used == 0


def test_a_cancelled_move_leaves_the_block_where_it_lay(storage: Storage) -> None:
    """The new place is free again and the old one is served."""
    place = storage.begin_move(5, 512)
    assert place is not None
    storage.cancel_move(5, place)
    assert storage.statistics().used == 0
    assert storage.take_freed()
    assert not storage.take_freed()
    assert storage.pin(5, READER)[0].arena_id == 1
    assert np.frombuffer(storage.view(5), np.uint8)[0] == 55


def test_an_arena_whose_file_is_gone_is_reported(storage: Storage) -> None:
    """A ping finds out that clients can no longer map the arena."""
    storage.check()
    storage.arena.path.unlink()
    with pytest.raises(DataPlaneUnavailable, match="gone"):
        storage.check()


def test_a_block_of_an_earlier_life_is_read_and_not_consumed(storage: Storage) -> None:
    """Nothing is ever freed there: its reads need no tokens, and to be consumed it must have moved."""
    place, _ = storage.pin(5, READER)
    reading = storage.begin_read(5, place.generation, Mode.RETAIN)
    assert bytes(reading.data) == bytes([55]) * 512
    for generation, mode, error in (
        (place.generation + 1, Mode.RETAIN, StaleSlotError),
        (place.generation, Mode.CONSUME, DataPlaneNotReady),
    ):
        with pytest.raises(error):
            storage.begin_read(5, generation, mode)
    moved = _move(storage, 5, 512, 66)
    assert moved is not None
    storage.retire()
    assert bytes(reading.data) == bytes([55]) * 512, "what has begun goes on from the old file"
    assert storage.end_read(reading, consumed=False)
    anew = storage.begin_read(5, moved.generation, Mode.CONSUME)
    assert bytes(anew.data) == bytes([66]) * 512
    assert storage.end_read(anew, consumed=True)
    assert storage.take_freed()
    with pytest.raises(StaleSlotError):
        storage.begin_read(5, moved.generation, Mode.RETAIN)
    storage.release(5)  # the ledger's own word comes later, and finds nothing
    assert storage.statistics().ignored == 0


def test_a_compacted_block_is_read_at_its_new_place_and_ended_at_its_old(storage: Storage) -> None:
    """A read that began before keeps the old slot, which is free with its end; the inner number cannot be named."""
    place = storage.grant(9, 1024, READER)
    assert place is not None
    storage.fill(9)
    before = storage.begin_read(9, place.generation, Mode.RETAIN)
    moved = _move(storage, 9, 1024, 77)
    assert moved is not None
    with pytest.raises(StaleSlotError):
        storage.begin_read(9, place.generation, Mode.RETAIN)
    after = storage.begin_read(9, moved.generation, Mode.RETAIN)
    assert after.block_id < 0
    assert bytes(after.data) == bytes([77]) * 1024
    assert storage.statistics().condemned_slots == 1
    assert storage.end_read(before, consumed=False)
    assert storage.statistics().condemned_slots == 0
    with pytest.raises(StaleSlotError, match="no block -1"):
        storage.begin_read(after.block_id, moved.generation, Mode.RETAIN)
    with pytest.raises(StaleSlotError, match="no block -1"):
        storage.pin(after.block_id, READER)
    assert storage.end_read(after, consumed=False)
