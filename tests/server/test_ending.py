"""What a clean end leaves behind when it cannot write everything down."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from penstock.payload.arena import Arena
from penstock.requests import ArenaPlace, BlockPlace
from penstock.server import ending
from penstock.server.plane import Plane
from penstock.server.storage import Storage
from penstock.wire import paths
from tests.server.inside import CAPACITY, Inside, inside


def _in_shared_memory(world: Inside) -> None:
    """Let the arena count as shared memory, wherever its file lies."""
    storage: Storage = world.plane.storage
    storage._places[1] = ArenaPlace(1, CAPACITY, in_shm=True)


def test_a_spill_that_fails_half_way_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the second block: shared memory stays, and the journal does not say that the first moved."""
    copy = ending.copy_out

    def copy_one(plane: Plane, file: Arena, place: BlockPlace) -> BlockPlace:
        if file.blocks():
            raise OSError(errno.ENOSPC, "no space left on device")
        return copy(plane, file, place)

    async def scenario(world: Inside) -> None:
        world.put(["a"])
        world.put(["b"])
        _in_shared_memory(world)
        monkeypatch.setattr(ending, "copy_out", copy_one)
        appended = world.journal.appended
        ending.leave(world.plane, tmp_path, keep=True)
        assert world.journal.appended == appended
        assert {place.arena_id for place in world.plane.ledger.live_blocks()} == {1}
        assert [arena.arena_id for _, arena in paths.arena_files(tmp_path)] == [1]

    inside(tmp_path, scenario)


def test_what_lives_is_written_down_before_shared_memory_goes(tmp_path: Path) -> None:
    """Every live block lies in a new file of the directory, and the journal says so."""

    async def scenario(world: Inside) -> None:
        world.put(["a"])
        world.put(["b"])
        _in_shared_memory(world)
        ending.leave(world.plane, tmp_path, keep=True)
        assert {place.arena_id for place in world.plane.ledger.live_blocks()} == {2}
        assert world.journal.flushed == world.journal.appended
        assert (tmp_path / "arena-2").exists()

    inside(tmp_path, scenario)
