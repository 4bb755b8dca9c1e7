"""The directory's lock."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.server import lifecycle
from penstock.server import lock as locks
from penstock.server.lock import LockHolder
from penstock.wire import paths


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    """While one holds it nobody else gets it; afterwards anybody may."""
    first = locks.take(tmp_path)
    assert first is not None
    first.describe(LockHolder(os.getpid(), auto=True))
    assert locks.take(tmp_path) is None
    assert locks.holder_of(tmp_path) == LockHolder(os.getpid(), auto=True)
    first.release()
    first.release()
    second = locks.take(tmp_path)
    assert second is not None
    second.release()


def test_a_plane_started_by_hand_is_not_taken_over(tmp_path: Path) -> None:
    """The refusal names the process."""
    first = locks.take(tmp_path)
    assert first is not None
    first.describe(LockHolder(4321, auto=False))
    with pytest.raises(DataPlaneUnavailable, match="4321"):
        locks.take_over(tmp_path)
    first.release()


def test_who_waits_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A take-over names the auto-started plane once, before it waits; an interrupt takes the served marker away."""
    first = locks.take(tmp_path)
    assert first is not None
    first.describe(LockHolder(4321, auto=True))
    told: list[int] = []

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.server.lock.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        locks.take_over(tmp_path, lambda holder: told.append(holder.pid))
    assert told == [4321]
    with pytest.raises(KeyboardInterrupt):
        lifecycle._lock(lifecycle.Options(data_dir=tmp_path))
    assert not paths.served_path(tmp_path).exists()
    first.release()


def test_a_marker_of_another_server_stays(tmp_path: Path) -> None:
    """Who is refused by a plane started by hand does not take that plane's marker away, whoever made it first."""
    first = locks.take(tmp_path)
    assert first is not None
    first.describe(LockHolder(4321, auto=False))
    with pytest.raises(DataPlaneUnavailable):
        lifecycle._lock(lifecycle.Options(data_dir=tmp_path))
    assert paths.served_path(tmp_path).exists()
    first.release()


def test_a_lock_file_that_was_replaced_is_locked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a file that its plane has removed is no lock on the directory."""
    before = os.open
    removed: list[Path] = []

    def open_then_lose(path: Path, *rest: int) -> int:
        fd = before(path, *rest)
        if not removed:
            removed.append(path)
            paths.lock_path(tmp_path).unlink()
        return fd

    monkeypatch.setattr("penstock.server.lock.os.open", open_then_lose)
    lock = locks.take(tmp_path)
    assert removed
    assert lock is not None
    assert paths.lock_path(tmp_path).exists()
    assert locks.take(tmp_path) is None
    lock.release()


def test_an_unreadable_lock_file_names_nobody(tmp_path: Path) -> None:
    """Damage in the file's text is no holder, and no crash."""
    paths.lock_path(tmp_path).write_bytes(b"\x00\x01")
    assert locks.holder_of(tmp_path) is None
    assert locks.holder_of(tmp_path / "nowhere") is None


def test_a_lock_stands_until_its_file_is_gone_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot say just now is no reason to think so."""
    lock = locks.take(tmp_path)
    assert lock is not None
    assert lock.stands
    with monkeypatch.context() as broken:

        def stale(*_: object) -> None:
            raise OSError(errno.ESTALE, "stale file handle")

        broken.setattr("penstock.server.lock.Path.stat", stale)
        assert lock.stands
    paths.lock_path(tmp_path).rename(tmp_path / "elsewhere")
    assert (lock.stands, lock.removed) == (False, False)
    paths.lock_path(tmp_path).touch()
    (tmp_path / "elsewhere").unlink()
    assert (lock.stands, lock.removed) == (False, True)
    lock.release()
