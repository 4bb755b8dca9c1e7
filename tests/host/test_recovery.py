"""What earlier lives left, without processes: files that are wanted, listed, damaged or nobody's."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from penstock.config import PlaneConfig
from penstock.host import events as ev
from penstock.host.agent import Agent
from penstock.host.keeper import Who
from penstock.host.recovery import leave, next_arena_id, recover
from penstock.hosting import Orders
from penstock.parts import ArenaPlace, BlockPlace
from penstock.payload.arena import Arena, OldArena
from penstock.server.recovery import make_arena
from penstock.server.storage import Storage
from penstock.wire import paths
from tests.server.harness import batch_of

HOST = 5
MIB = 1024 * 1024


def arena_with(folder: Path, arena_id: int, *block_ids: int) -> tuple[Arena, ArenaPlace, list[BlockPlace]]:
    """An arena file of an earlier life, in the directory, with blocks."""
    arena, where = make_arena(folder, arena_id, MIB, PlaneConfig(), in_shm=False, clock=time.monotonic)
    places = []
    for block_id in block_ids:
        data = batch_of(1, 64, block_id % 200)
        place = arena.grant(block_id, data.nbytes, 1)
        assert place is not None
        data.write_into(arena.writer(place), block_id)
        arena.fill(block_id)
        places.append(msgspec.structs.replace(place, host=HOST))
    return arena, where, places


def agent_of(folder: Path, life: int, old: list[tuple[OldArena, ArenaPlace]]) -> Agent:
    arena, where = make_arena(
        folder, next_arena_id(folder, life), MIB, PlaneConfig(), in_shm=False, clock=time.monotonic
    )

    async def nobody(effect: ev.Replicate) -> ev.Copied | ev.NotCopied:
        return ev.NotCopied(effect.grant, "nobody")

    storage = Storage(arena, where, old, host=HOST)
    return Agent(Who(HOST, "alpha", "penstock://plane:1", MIB), life, PlaneConfig(), storage, replicate=nobody)


def test_files_that_rows_need_are_opened_and_others_unlinked(tmp_path: Path) -> None:
    """The plane's word decides; a block in a file that is not there is lost by name."""
    arena_with(tmp_path, 1, 10, 11)[0].close(unlink=False)
    places = arena_with(tmp_path, 2, 20)
    places[0].close(unlink=False)
    missing = BlockPlace(30, 3, 0, 64, 1, 0, HOST)
    left = recover(tmp_path, [*places[2], missing])
    assert [arena.arena_id for _, arena in paths.arena_files(tmp_path)] == [2]
    assert [arena.blocks() for arena, _ in left.old] == [[20]]
    assert left.lost == {"arena 3 is missing": [30]}


def test_a_block_whose_header_does_not_hold_is_lost_and_the_others_are_not(tmp_path: Path) -> None:
    """One flipped byte costs one block."""
    arena, where, places = arena_with(tmp_path, 1, 10, 11)
    arena.close(unlink=False)
    with paths.arena_path(tmp_path, where).open("r+b") as file:
        file.seek(places[0].offset + 20)
        file.write(b"\xff\xff")

    async def play() -> None:
        left = recover(tmp_path, places)
        agent = agent_of(tmp_path, 7, left.old)
        agent.take_over(left, ev.Enlisting(places, 3))
        assert [place.block_id for place in agent.keeper.live_blocks()] == [11]
        assert agent.keeper.report().lost == [10]
        agent.plane.storage.close(unlink=True)

    asyncio.run(play())


def test_a_clean_end_is_found_though_the_plane_never_heard_of_it(tmp_path: Path) -> None:
    """The list beside the file says where the blocks lie; the plane is told that they moved."""

    async def play() -> None:
        arena, where, places = arena_with(tmp_path, 1, 10, 11)
        storage = Storage(arena, msgspec.structs.replace(where, in_shm=True), host=HOST)
        assert storage.host == HOST
        agent = agent_of(tmp_path, 7, [])
        agent.plane.storage = storage
        agent.plane.custody._storage = storage
        agent.plane.tell(ev.Found(places))
        leave(agent.plane, tmp_path)
        paths.arena_path(tmp_path, where).unlink(missing_ok=True)
        left = recover(tmp_path, places)
        assert not left.lost
        again = agent_of(tmp_path, 8, left.old)
        again.take_over(left, ev.Enlisting(places, 3))
        assert {place.block_id for place in again.keeper.report().moved} == {10, 11}
        again.plane.storage.close(unlink=True)

    asyncio.run(play())


def test_an_old_file_stays_until_the_plane_knows_that_its_blocks_have_moved(tmp_path: Path) -> None:
    """A life that ends in between would look for them where the plane says that they lie."""
    arena, where, places = arena_with(tmp_path, 1, 10)
    arena.close(unlink=False)
    old = paths.arena_path(tmp_path, where)

    async def play() -> None:
        left = recover(tmp_path, places)
        agent = agent_of(tmp_path, 7, left.old)
        agent.take_over(left, ev.Enlisting(places, 3))
        assert await agent.mover._empty_old_files()
        assert agent.mover.moved == 1
        assert await agent.mover._empty_old_files()
        assert old.exists()
        said = agent.keeper.report()
        assert [place.block_id for place in said.moved] == [10]
        agent.plane.tell(ev.Ordered(Orders(3), said))
        assert await agent.mover._empty_old_files()
        assert not old.exists()
        agent.plane.storage.close(unlink=True)

    asyncio.run(play())


def test_lists_without_their_files_are_removed(tmp_path: Path) -> None:
    """Nothing gathers in the directory, life after life."""
    (tmp_path / "blocks-9.list").write_bytes(msgspec.msgpack.encode([]))
    (tmp_path / "blocks-8.new").write_bytes(b"cut")
    recover(tmp_path, [])
    assert list(tmp_path.glob("blocks-*")) == []


@pytest.mark.parametrize("content", [b"", b"\xc1", msgspec.msgpack.encode([1, 2])])
def test_a_list_that_cannot_be_read_is_told_and_costs_its_blocks_only(tmp_path: Path, content: bytes) -> None:
    """The rows are lost by name, the agent starts."""
    arena, _, places = arena_with(tmp_path, 1, 10)
    arena.close(unlink=False)
    (tmp_path / "blocks-1.list").write_bytes(content)
    elsewhere = msgspec.structs.replace(places[0], arena_id=77)
    left = recover(tmp_path, [elsewhere])
    assert left.lost == {"arena 77 is missing": [10]}
