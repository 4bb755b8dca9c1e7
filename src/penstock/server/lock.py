"""The flock that makes a plane the only one of its data directory, and taking that over from an auto-started plane.

Invariants: whoever holds the flock is the directory's plane, from before it looks at the journal until after it has
let go of everything; the file says who holds it; the flock dies with its process. A directory that was removed and made
anew is not locked by an old descriptor.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from penstock.errors import DataPlaneUnavailable
from penstock.requests import WIRE_VERSION, Call, OpenSession, Request, Shutdown
from penstock.wire import WireError, encode_call, paths

__all__ = ["Lock", "LockHolder", "holder_of", "take", "take_over"]

_TAKE_OVER_S = 60.0  # an auto-started plane that ends writes its live blocks down first
_POLL_S = 0.05  # flock(2) has no timed wait
_ASK_S = 5.0


class LockHolder(msgspec.Struct, frozen=True):
    """What the lock file says of its holder."""

    pid: int
    auto: bool


class Lock:
    """A held lock; ``release`` lets go of it."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    def describe(self, holder: LockHolder) -> None:
        """Write into the file who holds it."""
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, msgspec.json.encode(holder), 0)

    @property
    def stands(self) -> bool:
        """Whether the file that is locked is still the directory's: who looks there finds this plane."""
        try:
            return _is_at(self._fd, self._path)
        except OSError:  # a file system that cannot say just now is no reason to end
            return True

    @property
    def removed(self) -> bool:
        """Whether the file is gone for good, its directory with it; not merely elsewhere."""
        return os.fstat(self._fd).st_nlink == 0

    def release(self) -> None:
        """Let go. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def take(data_dir: Path) -> Lock | None:
    """Take the directory's lock, or return None if another process holds it.

    Raises:
        OSError: there is no such directory, or no lock can be made in it.
    """
    path = paths.lock_path(data_dir)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if _is_at(fd, path):
            return Lock(path, fd)
        os.close(fd)  # its plane removed the file between our opening and locking it


def holder_of(data_dir: Path) -> LockHolder | None:
    """Return who says that it holds the lock; None if that cannot be read."""
    try:
        return msgspec.json.decode(paths.lock_path(data_dir).read_bytes(), type=LockHolder)
    except (OSError, msgspec.MsgspecError):
        return None


def take_over(data_dir: Path, waiting: Callable[[LockHolder], None] = lambda _: None) -> Lock:
    """Take the lock, asking an auto-started plane that holds it to end first; ``waiting`` is told once which.

    Raises:
        DataPlaneUnavailable: a plane that was started by hand holds it, or the other one does not end.
    """
    deadline = time.monotonic() + _TAKE_OVER_S
    asked = told = 0
    while (lock := take(data_dir)) is None:
        holder = holder_of(data_dir)
        if holder is not None and not holder.auto:
            raise DataPlaneUnavailable(f"{data_dir} is served by process {holder.pid} already")
        if holder is not None and holder.pid != told:
            waiting(holder)
            told = holder.pid
        if time.monotonic() > deadline:
            raise DataPlaneUnavailable(f"the plane of {data_dir} ({holder}) has not ended within {_TAKE_OVER_S:g} s")
        if holder is not None and holder.pid != asked and _ask_to_end(data_dir):
            asked = holder.pid
        time.sleep(_POLL_S)
    return lock


def _ask_to_end(data_dir: Path) -> bool:
    """Send ``Shutdown`` to the plane; whether it could be sent. Its end is seen by its lock."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_ASK_S)
            sock.connect(str(paths.socket_path(data_dir)))
            pid = os.getpid()
            sock.sendall(
                _call(1, OpenSession(WIRE_VERSION, pid, "penstock serve", "operator", socket.gethostname(), pid))
            )
            sock.recv(1)
            sock.sendall(_call(2, Shutdown("penstock serve takes over")))
            while sock.recv(4096):
                pass
    except (OSError, WireError):
        return False
    return True


def _call(call_id: int, body: Request) -> bytes:
    return encode_call(Call(id=call_id, seq=0, done_below=0, deadline_s=_ASK_S, abandoned=[], unpins=[], body=body))


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
