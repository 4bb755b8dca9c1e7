"""Where a plane's files lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.requests import ArenaPlace
from penstock.wire import paths


def test_one_directory_has_one_identity(tmp_path: Path) -> None:
    """A link to a directory, and a path with dots, name the same plane; another directory names another."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert paths.plane_id(tmp_path / "a") == paths.plane_id(tmp_path / "link") == paths.plane_id(tmp_path / "b/../a")
    assert paths.plane_id(tmp_path / "a") != paths.plane_id(tmp_path / "b")
    assert paths.socket_path(tmp_path / "a") == paths.socket_path(tmp_path / "link")


def test_a_new_directory_of_the_same_path_is_another_plane(tmp_path: Path) -> None:
    """A directory that took the place of another does not inherit its shared memory."""
    data = tmp_path / "d"
    data.mkdir()
    before = paths.plane_id(data)
    data.rename(tmp_path / "moved")
    data.mkdir()
    assert paths.plane_id(data) != before


def test_long_directories_get_a_short_socket(tmp_path: Path) -> None:
    """A socket's path always fits AF_UNIX."""
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    assert len(os.fsencode(paths.socket_path(deep))) <= 107
    assert paths.socket_path(deep).parent.name == f"penstock-{os.getuid()}"
    paths.make_socket_dir(deep)
    assert paths.socket_path(deep).parent.stat().st_mode & 0o777 == 0o700


def test_a_socket_directory_open_to_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory under /tmp that others may write is not used for a socket."""
    deep = tmp_path / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    short = tmp_path / "short"
    short.mkdir(mode=0o777)
    short.chmod(0o777)
    monkeypatch.setattr(paths, "_SHORT_DIR", str(short))
    with pytest.raises(DataPlaneUnavailable, match="0700"):
        paths.make_socket_dir(deep)


def test_arena_files_are_found_by_their_names(tmp_path: Path) -> None:
    """Arena files of this plane are listed, oldest first; other files in the directory are not."""
    for arena_id in (10, 9):
        path = paths.arena_path(tmp_path, ArenaPlace(arena_id=arena_id, nbytes=3, in_shm=False))
        path.write_bytes(b"abc")
    (tmp_path / "arena-x").write_bytes(b"")
    assert [(a.arena_id, a.nbytes, a.in_shm) for _, a in paths.arena_files(tmp_path)] == [(9, 3, False), (10, 3, False)]


def test_what_is_not_ours_is_no_arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may put a file of our name into ``/dev/shm``: links, folders, absurd ids, others' files do not count."""
    (tmp_path / "arena-1").symlink_to(tmp_path / "nowhere")
    (tmp_path / "arena-2").mkdir()
    (tmp_path / f"arena-{'9' * 40}").write_bytes(b"abc")
    (tmp_path / "arena-٣").write_bytes(b"abc")
    assert paths.arena_files(tmp_path) == []
    (tmp_path / "arena-3").write_bytes(b"abc")
    assert [arena.arena_id for _, arena in paths.arena_files(tmp_path)] == [3]
    monkeypatch.setattr("penstock.wire.paths.os.geteuid", lambda: 4242)
    assert paths.arena_files(tmp_path) == []


def test_the_directorys_files_lie_in_it(tmp_path: Path) -> None:
    """Lock, marker, journal and log lie in the data directory; shared memory carries the plane's id."""
    names = (paths.lock_path, paths.served_path, paths.journal_dir, paths.log_path)
    assert {f(tmp_path).parent for f in names} == {tmp_path}
    assert len({f(tmp_path) for f in names}) == 4
    shm = paths.arena_path(tmp_path, ArenaPlace(arena_id=7, nbytes=1, in_shm=True))
    assert shm == Path(f"/dev/shm/penstock-{paths.plane_id(tmp_path)}-7")
