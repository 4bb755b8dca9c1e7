"""Waiting for one's own plane to come back: not a retry, so there is a deadline and jitter and nothing else.

Invariants: no cap on the number of tries, no bucket, no quarantine: there is one plane and it is wanted; a delay never
reaches past the deadline; the iterator ends when the deadline has expired.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from penstock.retry.backoff import RandomSource, full_jitter
from penstock.retry.deadline import Deadline

__all__ = ["reconnect_delays"]

BASE_S = 0.02
CEILING_S = 0.5  # a plane is back within seconds; asking its socket costs microseconds


def reconnect_delays(
    deadline: Deadline, rng: RandomSource, *, base_s: float = BASE_S, ceiling_s: float = CEILING_S
) -> Iterator[float]:
    """Yield how long to wait before each next try, in seconds, until ``deadline`` has expired.

    The caller tries once before the first delay, sleeps each delay (through its own injected sleep) and tries again;
    when the iterator ends it raises, with ``deadline.require(what)``.
    """
    for retry in count():
        if deadline.expired():
            return
        yield min(full_jitter(retry, base_s, ceiling_s, rng), deadline.remaining())
