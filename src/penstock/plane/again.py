"""An operation under the retry policy: its first attempt costs nothing extra, what follows is the policy's to decide.

Invariant: a failed first attempt is the retrier's first attempt: it is counted, classed and logged like any other,
unless the deadline came meanwhile; one attempt is always made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from penstock.plane.recall import recallable
from penstock.retry import Answer, Deadline, Kind, Retrier, Settled

__all__ = ["pause", "settled"]

T = TypeVar("T")


def settled(
    retrier: Retrier, path: str, name: str, attempt: Callable[[Deadline], Answer[T]], deadline: Deadline
) -> Settled[T]:
    """Return how ``attempt`` ended; ``path`` and ``name`` say in logs what was done and to what."""
    first = attempt(deadline)
    if first.kind is Kind.OK:
        return Settled(first.value, None, first.code, 1)
    made = [first]

    def again(_keys: Sequence[str], _endpoint: str, until: Deadline) -> list[Answer[T]]:
        return [made.pop() if made else attempt(until)]

    end = retrier.run(path, [name], again, deadline=deadline).settled[name]
    if end.attempts:
        return end
    return Settled(None, end.reason, first.code, 1)  # the deadline came during the first attempt


def pause(seconds: float) -> None:
    """Sleep; a call that is recalled meanwhile sleeps no longer."""
    over = threading.Event()
    with recallable(over.set):
        over.wait(seconds)
