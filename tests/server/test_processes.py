"""Processes as the kernel knows them."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.server import processes
from penstock.server.processes import Process, Processes, has_ended, start_time


class Poller:
    """Calls back for readable descriptors, when asked to."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        del self.watched[fd]

    def poll(self, timeout_s: float) -> None:
        for fd in select.select(list(self.watched), [], [], timeout_s)[0]:
            self.watched[fd]()


def _connect_child() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child process that connected to us, and our end of the connection."""
    name = f"\0penstock-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        script = f"import socket, time; s = socket.socket(socket.AF_UNIX); s.connect({name!r}); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", script])
        return child, listener.accept()[0]


@pytest.mark.parametrize("peerpidfd", [True, False], ids=["SO_PEERPIDFD", "pidfd_open"])
def test_the_end_of_a_process_is_told_once(monkeypatch: pytest.MonkeyPatch, peerpidfd: bool) -> None:
    """The kernel's word comes when the process ends, and not before; two connections of it are one process."""
    if not peerpidfd:
        monkeypatch.setattr(processes, "_SO_PEERPIDFD", 9999)
    poller, gone = Poller(), list[Process]()
    known = Processes(poller.watch, poller.unwatch, gone.append)
    child, sock = _connect_child()
    with sock:
        process = known.behind(sock)
        assert process.pid == child.pid
        assert known.behind(sock) is process
        poller.poll(0.05)
        assert gone == []
        child.kill()
        poller.poll(30)
        assert gone == [process]
        assert not poller.watched
        assert len(known) == 0
        child.wait()
        with pytest.raises(DataPlaneUnavailable):
            known.behind(sock)


def test_start_time_tells_processes_of_one_pid_apart() -> None:
    """It is read after the command's name, which may hold anything."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert start_time(child.pid) >= start_time(os.getpid()) > 0
    finally:
        child.kill()
        child.wait()
    with pytest.raises(OSError, match="No such"):
        start_time(child.pid)


def test_closing_watches_nobody() -> None:
    """Descriptors are closed with it."""
    poller = Poller()
    known = Processes(poller.watch, poller.unwatch, lambda _: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = known.behind(ours)
        assert process.pid == os.getpid()
        known.close()
        assert not poller.watched
        assert process.pidfd == -1


def test_who_has_ended_is_known_by_its_pid() -> None:
    """Also before its parent has taken note; who lives has not, whoever that is."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not has_ended(child.pid)
    assert not has_ended(os.getpid())
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert has_ended(child.pid)
    child.communicate()
    assert has_ended(child.pid)
