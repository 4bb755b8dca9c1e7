"""The client's side: views are private, pins end exactly once, and nothing unverified is served."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.errors import CorruptPayload, DataPlaneUnavailable, StaleSlotError
from penstock.payload import mapping as mapping_module
from penstock.payload import memory
from penstock.payload.block import Bytes
from penstock.payload.mapping import COPY_BELOW, ArenaMap
from penstock.payload.memory import PAGE, Mapped
from penstock.requests import BlockPlace
from tests.descriptors import open_descriptors
from tests.payload.room import Room, a_room

ROWS = 64
BIG = {"x": torch.arange(ROWS * 1024).view(ROWS, 1024), "y": torch.ones(ROWS)}  # larger than COPY_BELOW


def flip_last_column_byte(room: Room, place: BlockPlace) -> None:
    room.map.writer(place)[-64] ^= 1


def test_a_view_holds_its_pin_until_the_last_slice_is_gone(room: Room) -> None:
    """Columns, slices, numpy arrays and reshaped tensors all keep the bytes; the last one lets them go."""
    place = room.put(BIG, ROWS)
    columns = room.whole(place)
    part = columns["x"][3:5].reshape(-1).numpy()[10:20]
    tail = columns["y"][-1:]
    del columns
    gc.collect()
    assert room.released == []
    assert room.arena.statistics().pins == 1
    assert part.tolist() == list(range(3 * 1024 + 10, 3 * 1024 + 20))
    del part
    assert room.released == []
    del tail
    assert room.released == [1]
    assert room.arena.statistics().pins == 0
    assert room.map.live_views == 0


def test_a_write_to_a_view_changes_the_users_copy_only(room: Room) -> None:
    """No crash, and neither the plane's bytes nor a later reader see it."""
    place = room.put(BIG, ROWS)
    before = bytes(room.arena.read(place.block_id))
    mine = room.whole(place)
    mine["x"].zero_()
    mine["y"] += 1
    assert bytes(room.arena.read(place.block_id)) == before
    theirs = room.whole(place)
    assert torch.equal(theirs["x"], BIG["x"])
    assert int(mine["x"].sum()) == 0


def test_a_small_block_is_copied_and_pins_nothing(room: Room) -> None:
    """Below the threshold a copy is cheaper than a mapping, and the pin is back at once."""
    place = room.put({"x": torch.arange(10)}, 10)
    assert place.nbytes < COPY_BELOW
    columns = room.whole(place)
    assert room.released == [1]
    columns["x"].zero_()
    assert room.whole(place)["x"].tolist() == list(range(10))


def test_a_gather_releases_its_pins_with_the_reader(room: Room) -> None:
    """What was copied out needs no pin."""
    from penstock.requests import Source

    place = room.put(BIG, ROWS)
    columns = room.read([place], [Source(["x", "y"], [0, 0], [5, 3])], 2)
    assert room.released == [1]
    assert torch.equal(columns["x"], BIG["x"][[5, 3]])


def test_closing_a_reader_twice_releases_once(room: Room) -> None:
    """close is idempotent whether or not a view took the pin."""
    place = room.put(BIG, ROWS)
    reader = room.open(place)
    reader.close()
    reader.close()
    assert room.released == [1]
    reader = room.open(place)
    view = reader.private()
    reader.close()
    reader.close()
    assert room.released == [1]
    del view, reader
    assert room.released == [1, 2]


def test_when_the_kernel_gives_no_mapping_the_view_is_a_copy(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer with 65,530 views gets the next one all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "out of mappings")

    place = room.put(BIG, ROWS)
    reader = room.open(place)
    monkeypatch.setattr(mapping_module, "map_file", refuse)
    view = reader.private()
    reader.close()
    assert room.released == [1]
    assert len(view) == place.nbytes


def test_privatised_views_depend_on_the_file_no_more(room: Room) -> None:
    """Before a client ends: every page of each live view is its own, the pins are released, the bytes unchanged."""
    place = room.put(BIG, ROWS)
    view, other = room.whole(place), room.whole(place)
    other["y"][0] = 42.0
    assert room.map.live_views == 2
    assert room.map.privatise() == 2
    assert sorted(room.released) == [1, 2]
    assert room.map.privatise() == 0
    room.arena.release(place.block_id)
    room.map._bytes[: place.nbytes] = 0xFF  # the next block comes to lie there
    assert torch.equal(view["x"], BIG["x"])
    assert torch.equal(view["y"], BIG["y"])
    assert other["y"][:2].tolist() == [42.0, 1.0]
    del view, other
    assert sorted(room.released) == [1, 2], "once each"


def test_without_populate_write_views_are_privatised_by_touching(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 5.14 do the same, page by page."""

    class Old:
        def madvise(self, *_: object) -> int:
            import ctypes

            ctypes.set_errno(22)
            return -1

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    real = memory._libc
    place = room.put(BIG, ROWS)
    view = room.whole(place)
    monkeypatch.setattr(memory, "_libc", Old())
    assert room.map.privatise() == 1
    room.map._bytes[: place.nbytes] = 0xFF
    assert torch.equal(view["x"], BIG["x"])
    assert len(room.map.writer(place)) == place.nbytes


def test_a_view_that_cannot_be_privatised_keeps_its_pin(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for its pages: it goes on depending on the file, and the plane knows."""

    def refuse(*_: object) -> None:
        raise OSError(12, "no memory")

    place = room.put(BIG, ROWS)
    view = room.whole(place)
    with monkeypatch.context() as patched:
        patched.setattr(mapping_module, "populate", refuse)
        assert room.map.privatise() == 0
    assert room.released == []
    del view
    assert room.released == [1]


def test_a_view_in_a_forked_child_is_the_childs_own(room: Room) -> None:
    """After privatise and fork: parent and child write and drop the same view without seeing each other."""
    place = room.put(BIG, ROWS)
    view = room.whole(place)
    room.map.privatise()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        ok = b"n"
        try:
            view["y"].numpy()[:] = 9
            same = bool((view["x"].numpy() == BIG["x"].numpy()).all())
            del view
            ok = b"y" if same else b"n"
        finally:
            os.write(write, ok)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"y"
    os.close(read)
    os.close(write)
    assert view["y"].tolist() == [1.0] * ROWS
    assert len(room.released) == 1


def test_views_are_dropped_by_the_cycle_collector_in_any_thread(room: Room) -> None:
    """Pins come back from garbage in cycles, collected by a thread that never saw the view."""
    place = room.put(BIG, ROWS)
    cycle: list[object] = [room.whole(place)]
    cycle.append(cycle)
    del cycle
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert room.released == [1]


# -- integrity ----------------------------------------------------------------------------------------------------


def test_each_level_finds_what_it_says(room: Room) -> None:
    """full finds a flipped payload byte, header a flipped header byte, off trusts both but never the bounds."""
    place = room.put(BIG, ROWS)
    flip_last_column_byte(room, place)
    with pytest.raises(CorruptPayload, match="'y'"):
        room.open(place, "full")
    with pytest.raises(CorruptPayload):
        room.map.read_back(place)
    room.open(place, "header").close()
    room.map.writer(place)[50] ^= 1  # reserved: only the header's checksum covers it
    with pytest.raises(CorruptPayload, match="header"):
        room.open(place, "header")
    room.open(place, "off").close()
    room.map.writer(place)[24] ^= 1  # the block's length
    with pytest.raises(CorruptPayload):
        room.open(place, "off")
    assert len(room.released) == 5, "every pin came back"
    assert room.arena.statistics().pins == 0


def test_a_block_is_verified_once_per_map_and_generation(room: Room) -> None:
    """The second reading trusts the first, until told to forget; another generation is another block."""
    place = room.put(BIG, ROWS)
    room.open(place).close()
    flip_last_column_byte(room, place)
    room.open(place).close()
    room.map.forget_verified()
    with pytest.raises(CorruptPayload):
        room.open(place)


def test_a_recycled_place_is_stale_and_not_corrupt(room: Room) -> None:
    """A reference that outlived its block names neither damage nor somebody else's rows."""
    place = room.put(BIG, ROWS)
    room.arena.release(place.block_id)
    again = room.put(BIG, ROWS)
    assert again.offset == place.offset
    with pytest.raises(StaleSlotError):
        room.map.reader(place, "off", room.released.append)
    room.map.writer(again)[:64] = 0
    with pytest.raises(StaleSlotError):
        room.map.reader(place, "full", room.released.append)
    assert room.released == [0, 0]


def test_a_block_recycled_during_a_gather_is_stale(room: Room) -> None:
    """The copy is looked at again before it is served."""
    from penstock.payload import decode
    from penstock.requests import Source

    place = room.put(BIG, ROWS)
    with room.open(place) as reader:
        room.map.writer(place)[24:32] = 77  # length; then the id
        room.map.writer(place)[16:24] = 77
        with pytest.raises(StaleSlotError):
            decode.gather([reader], [Source(["x"], [0], [1])], 1)


# -- opening ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_the_planes_is_refused(room: Room, tmp_path: Path) -> None:
    """Missing, of another size, a link, a directory: DataPlaneUnavailable, nothing mapped, no descriptor kept."""
    descriptors = open_descriptors()
    link = tmp_path / "link"
    link.symlink_to(room.arena.path)
    for path, nbytes in ((tmp_path / "no", 1), (room.arena.path, 4096), (link, room.arena.capacity), (tmp_path, 4096)):
        with pytest.raises(DataPlaneUnavailable):
            ArenaMap.open(path, nbytes)
    assert open_descriptors() == descriptors


def test_another_users_file_is_refused(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of the file is checked, not its mode alone."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(DataPlaneUnavailable, match="not a regular file of user 12345"):
        ArenaMap.open(room.arena.path, room.arena.capacity)


@pytest.mark.parametrize("offset", [-4096, 64 << 20])
def test_a_place_outside_the_arena_is_corrupt(room: Room, offset: int) -> None:
    """A reply that lies cannot make the client read or write elsewhere."""
    place = BlockPlace(1, 1, offset, 8192, 1, 5)
    with pytest.raises(CorruptPayload, match="outside"):
        room.map.writer(place)
    with pytest.raises(CorruptPayload):
        room.map.reader(place, "off", room.released.append)
    assert room.released == [5]


def test_views_outlive_the_map_and_cost_no_descriptor(room: Room) -> None:
    """A thousand views, no descriptor each; closing the map leaves them valid."""
    place = room.put(BIG, ROWS)
    descriptors = open_descriptors()
    views = [room.whole(place) for _ in range(1000)]
    assert open_descriptors() == descriptors
    room.map.close()
    room.map.close()
    assert torch.equal(views[500]["x"], BIG["x"])
    with pytest.raises(DataPlaneUnavailable):
        room.map.writer(place)
    del views
    assert sorted(room.released) == list(range(1, 1001))


def test_a_view_survives_the_planes_death() -> None:
    """The file is unlinked under a live view: the bytes stay."""
    with a_room() as room:
        view = room.whole(room.put(BIG, ROWS))
    assert torch.equal(view["x"], BIG["x"])


def test_interpreter_exit_with_live_views_is_clean(room: Room) -> None:
    """No finalizer runs into a torn-down interpreter."""
    place = room.put(BIG, ROWS)
    code = (
        "from pathlib import Path\nfrom penstock.payload import decode\n"
        "from penstock.payload.mapping import ArenaMap\nfrom penstock.requests import BlockPlace\n"
        f"m = ArenaMap.open(Path({str(room.arena.path)!r}), {room.arena.capacity})\n"
        f"p = BlockPlace({place.block_id}, 1, {place.offset}, {place.nbytes}, {place.generation})\n"
        "r = m.reader(p, 'full', print)\ncolumns = decode.read_block(r)\nr.close()\nprint(int(columns['y'].sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == str(ROWS)
    assert "Traceback" not in done.stderr


def test_the_writer_faults_its_pages_in_once(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second put to the same pages asks the kernel for nothing."""
    asked: list[int] = []
    real = memory.populate

    def count(mapped: memory.Mapped, start: int, nbytes: int) -> None:
        asked.append(nbytes)
        real(mapped, start, nbytes)

    monkeypatch.setattr(mapping_module, "populate", count)
    first = room.put(BIG, ROWS)
    room.arena.release(first.block_id)
    second = room.put(BIG, ROWS)
    assert second.offset == first.offset
    assert asked == [first.nbytes]
    assert np.frombuffer(room.arena.read(second.block_id), np.uint8).any()


def test_without_populate_write_a_writer_touches_its_own_bytes_only(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small blocks share pages, and a neighbour may be written at this moment: its bytes are not even rewritten."""
    touched: list[int] = []
    base = room.map._bytes.ctypes.data

    def note(pages: Bytes) -> None:
        touched.extend(pages.ctypes.data - base + n * pages.strides[0] for n in range(len(pages)))

    monkeypatch.setattr(memory, "_MADV_POPULATE_WRITE", 9999)
    monkeypatch.setattr(memory, "_touch", note)
    assert room.map._shared is not None
    for start, nbytes in [(256, 512), (3 * PAGE - 256, 512), (PAGE, PAGE), (PAGE + 768, 3 * PAGE)]:
        touched.clear()
        memory.populate(room.map._shared, start, nbytes)
        assert min(touched) >= start
        assert max(touched) < start + nbytes
        assert {at // PAGE for at in touched} == set(range(start // PAGE, (start + nbytes - 1) // PAGE + 1))


def test_a_view_is_mapped_before_its_file_can_be_closed(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that ends in another thread does not take the descriptor away, for another file to get its number."""
    place = room.put(BIG, ROWS)
    map_file = memory.map_file
    closers: list[threading.Thread] = []

    def slow_map(fd: int, *args: int, **options: Any) -> Mapped:
        closers.append(threading.Thread(target=room.map.close))
        closers[0].start()
        closers[0].join(0.2)
        os.fstat(fd)
        return map_file(fd, *args, **options)

    monkeypatch.setattr(mapping_module, "map_file", slow_map)
    with room.open(place) as reader:
        view = reader.private()
    closers[0].join()
    assert len(view) == place.nbytes
