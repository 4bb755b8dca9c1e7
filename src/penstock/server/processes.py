"""Client processes as the kernel knows them: who is at the other end of a socket, and when it is gone.

Invariants: a process is its pid and its start time, so that a recycled pid is somebody else; its pidfd is watched until
it is readable, which the kernel makes it at the process's end and never before; only this user's processes are served.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from penstock.errors import DataPlaneUnavailable

__all__ = ["ELSEWHERE", "Process", "Processes", "has_ended"]

_SO_PEERPIDFD = 77  # Linux 6.5, asm-generic/socket.h; without it pidfd_open and the start time must do
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_START_TIME = 19  # field 22 of proc_pid_stat(5), counted from the field after the command's closing bracket


class Process:
    """One process. ``started``: clock ticks after boot."""

    __slots__ = ("pid", "pidfd", "started")

    def __init__(self, pid: int, started: int, pidfd: int) -> None:
        self.pid = pid
        self.started = started
        self.pidfd = pidfd

    def __repr__(self) -> str:
        if not self.pid:
            return "a process of another machine"
        return f"Process({self.pid}, started {self.started}{'' if self.pidfd >= 0 else ', gone'})"


ELSEWHERE = Process(0, 0, -1)  # who came over TCP: a process that this kernel knows nothing of, and watches not


class Processes:
    """The live processes that have connected.

    Args:
        watch: call back when a descriptor is readable (``loop.add_reader``).
        unwatch: stop that (``loop.remove_reader``).
        gone: told once of each process that has ended.
    """

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None]], object],
        unwatch: Callable[[int], object],
        gone: Callable[[Process], None],
    ) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._gone = gone
        self._known: dict[tuple[int, int], Process] = {}

    def __len__(self) -> int:
        return len(self._known)

    def behind(self, sock: socket.socket) -> Process:
        """Return the process that connected ``sock``.

        Raises:
            DataPlaneUnavailable: it has ended, is not visible from here (another pid namespace), or is another user's.
        """
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in (os.getuid(), 0):
            raise DataPlaneUnavailable(f"a process of user {uid} is not served here")
        if pid <= 0:
            raise DataPlaneUnavailable("the client's process is not visible from the plane's pid namespace")
        pidfd = _pidfd_of(sock, pid)
        try:
            started = start_time(pid)
        except OSError:
            os.close(pidfd)
            raise DataPlaneUnavailable(f"process {pid} has ended") from None
        known = self._known.get((pid, started))
        if known is not None:
            os.close(pidfd)
            return known
        return self._add(Process(pid, started, pidfd))

    def close(self) -> None:
        """Watch nobody any more."""
        for process in list(self._known.values()):
            self._remove(process)

    def _add(self, process: Process) -> Process:
        self._known[process.pid, process.started] = process
        self._watch(process.pidfd, lambda: self._ended(process))
        return process

    def _ended(self, process: Process) -> None:
        self._remove(process)
        self._gone(process)

    def _remove(self, process: Process) -> None:
        self._unwatch(process.pidfd)
        os.close(process.pidfd)
        process.pidfd = -1
        del self._known[process.pid, process.started]


def start_time(pid: int) -> int:
    """Return when ``pid`` started, in clock ticks after boot.

    Raises:
        OSError: there is no such process.
    """
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return int(stat.rpartition(")")[2].split()[_START_TIME])


def has_ended(pid: int) -> bool:
    """Whether the process that was called ``pid`` is known to have ended: nobody, or a zombie, is called so now.

    A recycled pid is somebody else's, who lives: then it is not known.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)


def _pidfd_of(sock: socket.socket, pid: int) -> int:
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel; or, as below, a peer that has ended
        pass
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise DataPlaneUnavailable(f"process {pid} cannot be watched: {error.strerror}") from error
