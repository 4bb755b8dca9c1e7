"""The plane's shared memory as one client sees it, at its edges: gone directories, the end, maps let go of."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.plane.arenas import ArenaGone, Arenas
from penstock.requests import ArenaPlace, BlockPlace

PLACE = BlockPlace(1, 7, 0, 64, 1)
ARENA = ArenaPlace(7, 4096, in_shm=False)


def arenas_of(folder: Path) -> Arenas:
    return Arenas(folder, lambda _pin: None, "full")


def test_an_arena_that_is_not_there_is_asked_for_again(tmp_path: Path) -> None:
    """Its plane has restarted: where the rows lie now, the plane knows."""
    with pytest.raises(ArenaGone):
        arenas_of(tmp_path).writer(PLACE, ARENA)


@pytest.mark.parametrize("again", [False, True])
def test_a_directory_removed_under_its_plane_is_named_at_once(tmp_path: Path, again: bool) -> None:
    """Nothing comes back by asking again, be there another directory of that name or none."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "keeps its inode").mkdir()
    arenas = arenas_of(home)
    shutil.rmtree(home)
    if again:
        (tmp_path / "keeps its inode").rename(home)
    with pytest.raises(DataPlaneUnavailable, match=f"{home} was removed or replaced under its plane") as caught:
        arenas.writer(PLACE, ARENA)
    assert not isinstance(caught.value, ArenaGone)


def test_the_end_waits_for_who_is_writing(tmp_path: Path) -> None:
    """After its goodbye a client's grants are others' to write: nothing of it writes any more by then."""
    arenas = arenas_of(tmp_path)
    order: list[str] = []

    def end() -> None:
        arenas.end()
        order.append("ended")

    with arenas.writing():
        thread = threading.Thread(target=end)
        thread.start()
        while not arenas.ended:
            thread.join(0.001)
        with pytest.raises(DataPlaneUnavailable, match="closed"), arenas.writing():
            order.append("written")
        order.append("copied")
    thread.join(10)
    assert order == ["copied", "ended"]


def test_an_arena_that_was_let_go_of_is_lost_until_the_end(tmp_path: Path) -> None:
    """What lay there lies elsewhere; after the end nothing lies anywhere for this client."""
    (tmp_path / "arena-7").write_bytes(bytes(4096))
    (tmp_path / "arena-7").chmod(0o600)
    arenas = arenas_of(tmp_path)
    arenas.writer(PLACE, ARENA)
    assert not arenas.lost([ARENA])
    (tmp_path / "arena-7").unlink()
    arenas._drop_unlinked()
    assert arenas.lost([ARENA])
    arenas.end()
    assert not arenas.lost([ARENA])
