"""One controller at a time drives a run: the lock on its folder.

Invariants: a second controller is refused at once and told who drives; the lock ends with its process, however that
ends, and children do not inherit it (POSIX record locks); as long as work on the folder is under way it is held, so
that a write that hung cannot fall into the next life.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from penstock.errors import ControllerError

__all__ = ["LOCK_NAME", "FolderLock"]

LOCK_NAME = "controller.lock"  # in the run's folder; holds the process id of who drives
_MAX_PID = 32  # characters of a process id

T = TypeVar("T")

_guard = threading.Lock()
_held: set[str] = set()  # by this process: the kernel would let it lock twice


def _disown() -> None:
    """This is a forked child: the locks are its parent's."""
    global _guard  # noqa: PLW0603 - a lock that another process's thread holds cannot be freed
    _guard = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_disown)


class FolderLock:
    """``take`` it, ``use`` it for what is done in the folder, ``leave`` it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = os.path.realpath(folder)
        self._fd = -1
        self._users = 0
        self._left = False

    def take(self) -> None:
        """Lock the folder, which is made if it is not there.

        Raises:
            ControllerError: another controller drives this run, or the folder cannot be used.
        """
        with _guard:
            if self._name in _held:
                raise ControllerError(f"a controller of this process drives the run of {self._folder} already")
            _held.add(self._name)
        try:
            self._fd = self._locked()
        except BaseException:
            with _guard:
                _held.discard(self._name)
            raise

    def _locked(self) -> int:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self._folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as bad:
            raise ControllerError(f"cannot use the run's folder {self._folder}: {bad}") from bad
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except OSError as bad:
            who = os.pread(fd, _MAX_PID, 0).decode(errors="replace")
            os.close(fd)
            if bad.errno in (errno.EACCES, errno.EAGAIN):
                raise ControllerError(f"process {who} drives the run of {self._folder} already") from bad
            raise ControllerError(f"cannot lock the run's folder {self._folder}: {bad}") from bad
        return fd

    def use(self, work: Callable[[], T]) -> T:
        """Do ``work``; the folder stays locked until it is done, whoever has left meanwhile.

        Raises:
            ControllerError: the controller has left.
        """
        with _guard:
            if self._left:
                raise ControllerError(f"the run of {self._folder} is over")
            self._users += 1
        try:
            return work()
        finally:
            with _guard:
                self._users -= 1
            self._unlock_if_free()

    def leave(self) -> None:
        """The run is over; idempotent, and never waits."""
        with _guard:
            self._left = True
        self._unlock_if_free()

    def _unlock_if_free(self) -> None:
        with _guard:
            if self._left and not self._users and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                _held.discard(self._name)
