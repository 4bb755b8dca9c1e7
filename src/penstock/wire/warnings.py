"""Warnings about peers: counted always, logged at most once in a while for each kind.

Invariant: every warning is in ``counters``, whether it was logged or not; a log line says how many it stands for.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

__all__ = ["Warnings"]

_EVERY_S = 10.0  # one line of a kind in this time


class Warnings:
    """Args: log: where lines go; clock: monotonic seconds."""

    def __init__(self, log: logging.Logger, clock: Callable[[], float]) -> None:
        self.counters: Counter[str] = Counter()
        self._log = log
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # kind -> when it was last logged, and its count then

    def warn(self, kind: str, sentence: str) -> None:
        """Count one ``kind``; log ``sentence`` unless one of its kind was logged a moment ago."""
        self.counters[kind] += 1
        count = self.counters[kind]
        now = self._clock()
        when, counted = self._said.get(kind, (-_EVERY_S, 0))
        if now - when < _EVERY_S:
            return
        self._said[kind] = (now, count)
        unsaid = count - counted - 1
        self._log.warning("%s%s", sentence, f" ({unsaid} more {kind} since the last such line)" if unsaid else "")
