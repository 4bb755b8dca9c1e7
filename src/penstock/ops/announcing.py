"""Passing on the first word of a process of ours that serves in the foreground, while it serves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["announcing"]

_LONGEST_WORD = 8192


@contextmanager
def announcing(announce: Callable[[str], None]) -> Iterator[int]:
    """Yield a descriptor for the server's first word, which the server closes; ``announce`` is given that word."""
    heard, ready = os.pipe()
    wake = os.dup(ready)

    def wait() -> None:
        announce(os.read(heard, _LONGEST_WORD).decode(errors="replace").strip())

    waiter = threading.Thread(target=wait, name="announce")
    waiter.start()
    try:
        yield ready
    finally:
        os.write(wake, b"\n")  # a server that ended without a word has not woken the waiter
        waiter.join()
        os.close(wake)
        os.close(heard)
