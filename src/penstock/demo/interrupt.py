"""Signals as a flag: Ctrl-C, SIGTERM and SIGHUP end a run in order, at any moment.

Invariants: a handler only raises the flag, so that no process is half started and no clean-up is cut short; every wait
of the main thread sees the flag; the first signal asks for the end, the second for a quick one.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupt", "signals_as_flag"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupt:
    """The flag."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self.times = 0

    def note(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """A signal came."""
        self.times += 1
        self._came.set()

    def heed(self) -> None:
        """The first signal has been answered: what follows may wait again, until the next one comes."""
        self._came.clear()

    def check(self) -> None:
        """Raise ``KeyboardInterrupt`` if a signal came."""
        if self._came.is_set():
            raise KeyboardInterrupt

    def sleep(self, seconds: float) -> None:
        """Sleep, or raise ``KeyboardInterrupt`` as soon as a signal comes."""
        self._came.wait(seconds)
        self.check()

    def hurry(self) -> bool:
        """Whether the user asked twice."""
        return self.times > 1


@contextmanager
def signals_as_flag() -> Iterator[Interrupt]:
    """Yield the flag that ``SIGNALS`` raise; outside the main thread nothing raises it, for there are no signals."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt.note) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
