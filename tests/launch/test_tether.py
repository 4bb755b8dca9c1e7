"""What an earlier keeper left behind is known by more than its number, and put away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from penstock.launch import tether
from penstock.launch.tether import Orphan, mark_path, put_away, start_of


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        try:
            yield process
        finally:
            process.kill()


def mark(folder: Path, pid: int, began: int) -> None:
    mark_path(folder).write_bytes(msgspec.json.encode(Orphan(pid, began)))


def test_an_orphan_is_killed_and_its_mark_removed(tmp_path: Path) -> None:
    """It is dead when the call returns: its lock is free."""
    with sleeper() as process:
        mark(tmp_path, process.pid, start_of(process.pid))
        assert put_away(tmp_path)
        assert process.wait(10) == -9
    assert not mark_path(tmp_path).exists()


def test_somebody_else_with_its_number_is_left_alone(tmp_path: Path) -> None:
    """Numbers of processes are used again; the moment of the start tells them apart."""
    with sleeper() as process:
        mark(tmp_path, process.pid, start_of(process.pid) - 1)
        assert not put_away(tmp_path)
        assert process.poll() is None
    assert not mark_path(tmp_path).exists()


def test_who_has_ended_needs_no_killing(tmp_path: Path) -> None:
    """The mark alone is removed."""
    with sleeper() as process:
        mark(tmp_path, process.pid, start_of(process.pid))
    assert start_of(process.pid) == 0
    assert not put_away(tmp_path)
    assert not mark_path(tmp_path).exists()


def test_without_a_mark_or_with_a_damaged_one_nobody_is_killed(tmp_path: Path) -> None:
    """Whoever serves a directory by hand has no mark, and is no keeper's to end."""
    assert not put_away(tmp_path)
    mark_path(tmp_path).write_bytes(b'{"pid": 1')
    assert not put_away(tmp_path)


def test_without_a_folder_it_ends_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot say where it is, for its folder has gone, is told to end like any other."""
    ended: list[str] = []
    monkeypatch.setattr(tether, "_end", lambda: ended.append("in order"))
    keeper, ours = socket.socketpair()
    with keeper, ours:
        keeper.sendall(b"end\n")
        tether._mind(ours, tmp_path / "gone", 0.0)
    assert ended == ["in order"]


def test_a_start_is_that_of_the_process() -> None:
    """Two processes of one moment may share it; this one and its parent do not."""
    assert start_of(os.getpid()) >= start_of(os.getppid()) > 0
