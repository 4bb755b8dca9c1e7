"""The arena's owner: grants are backed and nobody else's, what is freed goes back, earlier lives are only read."""

from __future__ import annotations

import errno
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadArgument, CorruptPayload, DataPlaneNotReady, StaleSlotError
from penstock.payload import arena as arena_module
from penstock.payload import block, codec
from penstock.payload.arena import Arena, OldArena
from penstock.payload.mapping import ArenaMap
from penstock.payload.memory import PAGE, available_memory
from penstock.payload.slots import Mode
from penstock.requests import BlockPlace
from tests.payload.room import Room, a_room, new_path

MIB = 1 << 20


def test_the_file_is_new_private_and_sparse() -> None:
    """Created exclusively, mode 0600, and holding no memory before the first grant."""
    path = new_path()
    with Arena.create(path, 1, 8 * MIB + 1, 0) as arena:
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert (found.st_size, found.st_blocks) == (8 * MIB + PAGE, 0)
        with pytest.raises(FileExistsError):
            Arena.create(path, 1, MIB, 0)
        assert arena.capacity == found.st_size
    assert not path.exists()


def test_a_grant_is_backed_by_memory_before_it_is_given() -> None:
    """Touching a granted place can never raise SIGBUS."""
    with a_room() as room:
        place = room.arena.grant(1, 5 * MIB, 7)
        assert place is not None
        assert room.arena.statistics().resident >= 5 * MIB
        assert (place.block_id, place.arena_id, place.nbytes) == (1, 1, 5 * MIB)


def test_no_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """ENOSPC of the machine and a full arena are both None, counted apart; both heal."""

    def refuse(fd: int, offset: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with a_room(capacity=MIB) as room:
        with monkeypatch.context() as patched:
            patched.setattr(arena_module, "allocate", refuse)
            assert [room.arena.grant(n, 1000, 7) for n in range(4)] == [None] * 4
        assert room.arena.statistics().no_memory == 4
        assert len([r for r in caplog.records if "no memory" in r.message]) == 3, "the 1st, 2nd and 4th time"
        assert room.arena.grant(1, MIB, 7) is not None
        assert room.arena.grant(2, 1, 7) is None
        assert room.arena.statistics().full == 1
        room.arena.check_invariants()


def test_a_tmpfs_larger_than_the_memory_does_not_wake_the_oom_killer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory promises more than the machine has: what would leave too little to others is refused."""
    left = [300 * MIB]
    monkeypatch.setattr(arena_module, "available_memory", lambda: left[0])
    with a_room() as room:
        assert room.arena.grant(1, 60 * MIB, 7) is None
        assert room.arena.grant(2, 20 * MIB, 7) is not None
        left[0] = 258 * MIB
        small = [room.arena.grant(n, MIB, 7) for n in range(3, 20)]
        assert small[0] is not None, "small blocks are looked at together"
        assert small[-1] is None
        assert room.arena.statistics().no_memory > 0
        left[0] = 10_000 * MIB
        assert room.arena.grant(99, 20 * MIB, 7) is not None
        room.arena.check_invariants()


def test_an_arena_on_disk_does_not_ask_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages are cache: a plane that is short of memory can still write its blocks down."""
    monkeypatch.setattr(arena_module, "available_memory", lambda: 0)
    with Arena.create(tmp_path / "arena-1", 1, 64 * MIB, 0) as arena:
        assert arena.grant(1, 8 * MIB, 7) is not None
        arena.abandon(1)
        assert arena.statistics().resident == 0, "holes are punched there too"


def test_a_large_grant_is_backed_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call allocates more than a slice, and the room is not told before all of it is there."""
    monkeypatch.setattr(arena_module, "SLICE_BYTES", MIB)
    with a_room() as room:
        assert room.arena.begin(1, 3 * MIB + 100, 7)
        sizes = []
        while not room.arena.back(1):
            sizes.append(room.arena.path.stat().st_blocks * 512)
            assert room.arena.begun() == [1]
        assert sizes == [MIB + PAGE, 2 * MIB + PAGE]
        assert room.arena.begun() == []
        assert room.arena.path.stat().st_blocks * 512 == 3 * MIB + PAGE
        room.arena.check_invariants()


@pytest.mark.parametrize("end", ["abandoned", "death", "no memory"])
def test_room_that_was_not_all_backed_returns_as_it_was(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """What was allocated is warm, what was not is cold: the next grants there are backed before they are given."""
    monkeypatch.setattr(arena_module, "SLICE_BYTES", MIB)
    with a_room(warm=16 * MIB) as room:
        assert room.arena.begin(1, 3 * MIB + 100, 7)
        assert not room.arena.back(1)
        if end == "abandoned":
            room.arena.abandon(1)
        elif end == "death":
            room.arena.owner_gone(7)
        else:
            with monkeypatch.context() as broken:
                broken.setattr(arena_module, "allocate", _no_space)
                assert not room.arena.back(1)
        assert room.arena.begun() == room.arena.blocks() == []
        for number in range(2, 9):
            room.arena.check_invariants()
            statistics = room.arena.statistics()
            assert statistics.resident >= statistics.used + statistics.warm
            assert room.arena.grant(number, MIB // 2 + 100, 7) is not None


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


def test_the_machine_says_what_memory_it_has() -> None:
    """The kernel's reckoning is a sane number of bytes."""
    available = available_memory()
    assert available is not None
    assert MIB < available < 1 << 50


def test_fragmented_space_is_joined_when_a_large_block_needs_it() -> None:
    """Warm and cold neighbours become one extent rather than a refusal."""
    with a_room(capacity=4 * MIB, warm=4 * MIB) as room:
        for n in range(4):
            assert room.arena.grant(n, MIB // 2, 7) is not None
        for n in range(4):
            room.arena.abandon(n)
        assert room.arena.grant(9, 4 * MIB, 7) is not None
        room.arena.check_invariants()


def test_freeing_almost_everything_returns_the_memory() -> None:
    """After 99.95 % of the blocks are freed, what is resident is what lives and the warm limit."""
    blocks, size, warm = 2000, 32 * 1024, MIB
    with a_room(capacity=128 * MIB, warm=warm) as room:
        for n in range(blocks):
            assert room.arena.grant(n, size, 7) is not None
            room.arena.fill(n)
        assert room.arena.statistics().resident >= blocks * size
        for n in range(1, blocks):
            room.arena.release(n)
        found = room.arena.statistics()
        assert found.used == size
        assert found.resident <= 2 * found.used + warm
        assert room.arena.path.stat().st_blocks * 512 == found.resident
        room.arena.check_invariants()


def test_small_blocks_hold_less_than_twice_their_size() -> None:
    """A thousand 1 KiB blocks take about a MiB, not four."""
    with a_room(warm=0) as room:
        for n in range(1000):
            room.arena.grant(n, 1000, 7)
        assert room.arena.statistics().resident < 2 * 1000 * 1000


def test_a_pinned_block_keeps_its_bytes_when_its_rows_are_gone(room: Room) -> None:
    """Its place is given to nobody before the last pin is out."""
    place = room.put({"x": np.arange(1000)}, 1000)
    before = bytes(room.arena.read(place.block_id))
    assert room.arena.pin(place.block_id, 7)
    assert room.arena.release(place.block_id)
    assert room.arena.statistics().condemned_slots == 1
    other = room.put({"x": np.zeros(1000)}, 1000)
    assert other.offset != place.offset
    assert bytes(room.arena.read(place.block_id)) == before
    assert room.arena.unpin(place.block_id, 7)
    with pytest.raises(StaleSlotError):
        room.arena.read(place.block_id)


def test_late_and_wrong_reports_change_nothing(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """Stale generations and unknown blocks are counted and warned of at a bounded rate."""
    place = room.put({"x": np.arange(10)}, 10)
    arena = room.arena
    assert not arena.fill(place.block_id, place.generation + 1)
    assert not arena.release(place.block_id, place.generation - 1)
    for _ in range(100):
        assert not arena.unpin(place.block_id, 7)
        assert not arena.fill(999)
    assert arena.statistics().ignored == 202
    assert len(caplog.records) == 14, "each kind at times 1, 2, 4 ... 64"
    assert arena.statistics().ready_slots == 1
    arena.check_invariants()


def test_a_block_has_one_place(room: Room) -> None:
    """Granting a block twice, or an empty one, is our caller's mistake."""
    room.arena.grant(1, 100, 7)
    for block_id, nbytes in ((1, 100), (2, 0)):
        with pytest.raises(BadArgument):
            room.arena.grant(block_id, nbytes, 7)


def test_a_killed_writers_slot_comes_back_with_its_death_and_not_before(room: Room) -> None:
    """kill -9 in mid-copy: the slot is nobody's until the owner is told that the process is gone."""
    place = room.arena.grant(1, 4 * MIB, 99)
    assert place is not None
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom penstock.payload.mapping import ArenaMap\n"
        "from penstock.requests import BlockPlace\n"
        f"m = ArenaMap.open(Path({str(room.arena.path)!r}), {room.arena.capacity})\n"
        f"w = m.writer(BlockPlace(1, 1, {place.offset}, {place.nbytes}, {place.generation}))\n"
        "w[:2000000] = 0xAB\nprint('copying', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "copying\n"
        writer.kill()
        assert writer.wait() == -signal.SIGKILL
    assert room.arena.read(1)[1_999_999] == 0xAB, "the fault fired in mid-copy"
    assert not room.arena.release(1)
    assert not room.arena.unpin(1, 99)
    assert room.arena.owner_gone(98) == []
    assert room.arena.statistics().writing_slots == 1
    assert room.arena.owner_gone(99) == [1]
    assert room.arena.statistics().writing_slots == 0
    assert room.arena.grant(2, 4 * MIB, 7) is not None
    room.arena.check_invariants()


def test_the_owner_writes_only_what_it_granted_and_not_yet_filled(room: Room) -> None:
    """A place that was filled, or another's, is not to be written."""
    place = room.arena.grant(5, 1000, 0)
    assert place is not None
    room.arena.writer(place)[:] = 1
    room.arena.fill(5)
    with pytest.raises(StaleSlotError):
        room.arena.writer(place)


def test_closing_twice_is_once() -> None:
    """close is idempotent and leaves the file to whoever wants it."""
    path = new_path()
    arena = Arena.create(path, 1, MIB, 0)
    arena.close(unlink=False)
    arena.close(unlink=True)
    assert path.exists()
    path.unlink()


# -- reads by tokens ------------------------------------------------------------------------------------------------


def test_a_read_has_the_blocks_bytes_until_it_ends(room: Room) -> None:
    """Released in retain mode, consumed in consume mode; an end that comes twice changes nothing."""
    place = room.put({"x": np.arange(1000)}, 1000)
    first = room.arena.begin_read(place.block_id, place.generation, Mode.RETAIN, 7)
    second = room.arena.begin_read(place.block_id, place.generation, Mode.RETAIN, 8)
    block.verify(first.data, block.parse(first.data, place.block_id))
    assert (room.arena.statistics().tokens, room.arena.statistics().reading_slots) == (2, 1)
    assert room.arena.release_reading(first)
    assert not room.arena.release_reading(first)
    assert room.arena.release_reading(second)
    last = room.arena.begin_read(place.block_id, place.generation, Mode.CONSUME, 7)
    assert room.arena.mark_consumed(last)
    assert room.arena.blocks() == []
    assert not room.arena.mark_consumed(last)
    assert room.arena.statistics().ignored == 2
    room.arena.check_invariants()


def test_a_block_being_read_keeps_its_bytes_when_its_rows_are_gone(room: Room) -> None:
    """Its place is given to nobody before the last read has ended."""
    place = room.put({"x": np.arange(1000)}, 1000)
    reading = room.arena.begin_read(place.block_id, place.generation, Mode.RETAIN, 7)
    before = bytes(reading.data)
    assert room.arena.release(place.block_id)
    with pytest.raises(StaleSlotError, match="condemned"):
        room.arena.begin_read(place.block_id, place.generation, Mode.RETAIN, 7)
    assert room.put({"x": np.zeros(1000)}, 1000).offset != place.offset
    assert bytes(reading.data) == before
    assert room.arena.release_reading(reading)
    assert place.block_id not in room.arena.blocks()
    assert room.put({"x": np.zeros(1000)}, 1000).offset == place.offset


def test_a_dead_readers_tokens_end_with_it(room: Room) -> None:
    """And what only they kept is free."""
    place = room.put({"x": np.arange(1000)}, 1000)
    reading = room.arena.begin_read(place.block_id, place.generation, Mode.RETAIN, 99)
    room.arena.release(place.block_id)
    assert room.arena.owner_gone(99) == [place.block_id]
    assert not room.arena.release_reading(reading)


def test_what_cannot_be_read_says_whether_to_ask_again(room: Room) -> None:
    """Gone or recycled is stale; being written, or read in the other mode, is not ready."""
    place = room.put({"x": np.arange(1000)}, 1000)
    arena = room.arena
    for block_id, generation in ((place.block_id, place.generation + 1), (999, 1), (-1, 1)):
        with pytest.raises(StaleSlotError):
            arena.begin_read(block_id, generation, Mode.RETAIN, 7)
    arena.begin_read(place.block_id, place.generation, Mode.RETAIN, 7)
    with pytest.raises(DataPlaneNotReady, match="to retain"):
        arena.begin_read(place.block_id, place.generation, Mode.CONSUME, 7)
    writing = arena.grant(50, 1000, 7)
    assert writing is not None
    with pytest.raises(DataPlaneNotReady, match="writing"):
        arena.begin_read(50, writing.generation, Mode.RETAIN, 7)


def test_a_slot_that_was_used_again_is_not_read_by_an_old_reference() -> None:
    """ABA: the same bytes, another block, and the same block's number with the old generation."""
    with a_room(capacity=4096 * 3) as room:
        old = room.put({"x": np.arange(1000)}, 1000)
        room.arena.release(old.block_id)
        new = room.put({"x": np.arange(1000)}, 1000)
        assert new.offset == old.offset
        for block_id in (old.block_id, new.block_id):
            with pytest.raises(StaleSlotError):
                room.arena.begin_read(block_id, old.generation, Mode.RETAIN, 7)
        assert room.arena.begin_read(new.block_id, new.generation, Mode.RETAIN, 7).data.nbytes == new.nbytes


# -- earlier lives ------------------------------------------------------------------------------------------------


def test_blocks_of_an_earlier_life_are_served_until_their_file_is_unlinked() -> None:
    """The dead plane's file is read as it lies, and nothing of it is left but what is mapped."""
    with a_room() as room:
        places = [room.put({"x": np.full(1000, n)}, 1000) for n in range(3)]
        held = room.open(places[2])
        view = held.private()
        room.arena.close(unlink=False)  # the plane dies here
        old = OldArena.open(room.arena.path, places)
        assert old.blocks() == [1, 2, 3]
        assert old.place_of(2, pin=5).pin == 5
        for place in places:
            block.verify(old.read(place.block_id), block.parse(old.read(place.block_id), place.block_id))
            old.drop(place.block_id)
        assert old.empty
        with pytest.raises(StaleSlotError):
            old.read(1)
        old.close(unlink=True)
        assert not room.arena.path.exists()
        block.verify(view, block.parse(view, 3))  # an old view still has what it mapped
        held.close()


def test_an_old_file_that_cannot_hold_its_blocks_is_refused() -> None:
    """A journal's places outside the file, links and strangers are errors, never reads."""
    with a_room(capacity=MIB) as room:
        with pytest.raises(CorruptPayload):
            OldArena.open(room.arena.path, [BlockPlace(1, 1, MIB - 10, 100, 1)])
        link = room.arena.path.with_name(room.arena.path.name + "0")
        link.symlink_to(room.arena.path)
        try:
            with pytest.raises(OSError, match=r"[Ll]evels of symbolic links"):
                OldArena.open(link, [])
        finally:
            link.unlink()


def test_importing_the_owners_side_loads_no_torch() -> None:
    """The plane's process never pays for torch."""
    code = (
        "import sys, penstock.payload.arena, penstock.payload.mapping, penstock.payload.compact\n"
        "print([m for m in ('torch', 'tensordict') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_batch_is_written_by_the_owner_alone_without_a_client() -> None:
    """codec -> arena -> bytes: the same block wherever it is written."""
    batch = codec.encode({"x": np.arange(5)}, 5)
    with a_room() as room:
        place = room.arena.grant(1, batch.nbytes, 0)
        assert place is not None
        batch.write_into(room.arena.writer(place), 1)
        other = bytearray(batch.nbytes)
        batch.write_into(other, 1)
        assert bytes(room.arena.read(1)) == bytes(other)
        assert ArenaMap.open(room.arena.path, room.arena.capacity).nbytes == room.arena.capacity
