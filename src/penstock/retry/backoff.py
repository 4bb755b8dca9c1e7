"""How long to wait before a retry: full jitter, which spreads a crowd of clients best.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. The first retry is jittered too.
Invariant: a delay lies in ``[0, min(cap_s, base_s * 2**n)]`` for any ``n``, however large.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["RandomSource", "ceiling_s", "full_jitter"]

_MAX_DOUBLINGS = 64  # beyond this every cap is reached; keeps 2**n a small number


class RandomSource(Protocol):
    """What ``random.Random`` offers; seeded in tests and in the simulator."""

    def uniform(self, a: float, b: float, /) -> float: ...


def ceiling_s(retry: int, base_s: float, cap_s: float) -> float:
    """Return the longest wait before the retry number ``retry`` (0 = the first)."""
    return min(cap_s, base_s * float(2 ** min(retry, _MAX_DOUBLINGS)))


def full_jitter(retry: int, base_s: float, cap_s: float, rng: RandomSource) -> float:
    """Draw the wait before the retry number ``retry`` (0 = the first), in seconds."""
    return rng.uniform(0.0, ceiling_s(retry, base_s, cap_s))
