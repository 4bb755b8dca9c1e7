"""A descriptor that wakes a thread out of its selector, from any thread, signal handler or finalizer."""

from __future__ import annotations

import os
import threading

__all__ = ["Waker"]


class Waker:
    """Wakes one thread.

    Invariants: after ``close`` nothing is written to a descriptor that may be somebody else's by then; a forked child,
    in which the lock may be held for ever, wakes nobody.
    """

    __slots__ = ("_fd", "_lock", "_pid")

    def __init__(self) -> None:
        self._fd: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pid = os.getpid()
        self._lock = threading.RLock()  # reentrant: a finalizer may run within ``wake`` and call it

    def fileno(self) -> int:
        return -1 if self._fd is None else self._fd

    def wake(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def drain(self) -> None:
        """Forget the wakes so far."""
        if self._fd is not None:
            try:
                os.eventfd_read(self._fd)
            except BlockingIOError:
                return

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
