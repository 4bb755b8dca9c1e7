"""A moment after which nobody waits any more; made once per call and handed down.

Invariants: a deadline is finite and never moves; ``remaining()`` is never negative; the clock is injected and
monotonic. There is no "for ever": every wait has a limit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from penstock.errors import BadArgument, DataPlaneTimeout

__all__ = ["Clock", "Deadline"]

Clock: TypeAlias = Callable[[], float]  # seconds, monotonic


class Deadline:
    """``timeout_s`` seconds from now, on ``clock``.

    Raises:
        BadArgument: ``timeout_s`` is negative, infinite, or no number at all.
    """

    __slots__ = ("at", "clock", "started", "timeout_s")

    def __init__(self, timeout_s: float, clock: Clock = time.monotonic) -> None:
        if not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= sys.float_info.max:
            raise BadArgument(f"timeout_s must be a finite number of seconds, 0 or more; got {timeout_s!r}")
        self.timeout_s = timeout_s
        self.clock = clock
        self.started = clock()
        self.at = self.started + timeout_s

    def remaining(self) -> float:
        """Seconds left, 0.0 once expired: fit to be the timeout of a socket, a lock or a queue."""
        return max(0.0, self.at - self.clock())

    def elapsed(self) -> float:
        """Seconds since it was made."""
        return self.clock() - self.started

    def expired(self) -> bool:
        """Whether its moment has come."""
        return self.clock() >= self.at

    def require(
        self, what: str, *, partition: str | None = None, missing: Sequence[str] = (), attempts: int = 0
    ) -> None:
        """Raise ``DataPlaneTimeout`` naming ``what`` was waited for, if expired; else do nothing."""
        if not self.expired():
            return
        elapsed = self.elapsed()
        raise DataPlaneTimeout(
            f"{what}: not done within {self.timeout_s:g} s ({elapsed:.3f} s have passed)",
            partition=partition,
            missing=missing or [what],
            attempts=attempts,
            elapsed_s=elapsed,
        )

    def within(self, timeout_s: float) -> Deadline:
        """Return a deadline for a part of the work: ``timeout_s`` from now, and never later than this one."""
        return Deadline(min(timeout_s, self.remaining()), self.clock)

    def __repr__(self) -> str:
        return f"Deadline({self.timeout_s:g} s, {self.remaining():.3f} s left)"
