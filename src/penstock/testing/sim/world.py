"""A seeded world: virtual time, an event queue, one source of chance, a trace.

Invariants: nothing here reads a clock or any other randomness; two runs of one seed do the same things in the same
order; what happens at one moment happens in the order in which it was asked for.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

__all__ = ["Process", "World"]

_TRACE_LINES = 2000  # the last ones tell what went wrong


class World:
    """Time and chance of one run.

    Args:
        seed: decides everything.
        traced: keep the last lines of what was said, for people; costs time.
    """

    def __init__(self, seed: int, traced: bool = False) -> None:
        self.seed = seed
        self.now = 0.0
        self.rng = random.Random(seed)
        self.traced = traced
        self.trace: deque[str] = deque(maxlen=_TRACE_LINES)
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, when: float, do: Callable[..., None], *args: Any) -> None:
        """Call ``do(*args)`` at ``when``, not before now."""
        self._order += 1
        heapq.heappush(self._queue, (max(when, self.now), self._order, do, args))

    def after(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay_s, do, *args)

    def run(self, until: float, done: Callable[[], bool]) -> bool:
        """Let time pass to ``until``, or until ``done()``; return whether it is done."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, do, args = heapq.heappop(queue)
            do(*args)
            if done():
                return True
        self.now = until
        return done()

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def fault(self, kind: str, what: object = "") -> None:
        """A fault has fired: it hit something."""
        self.faults[kind] += 1
        self.say("fault", kind, what)

    def say(self, who: str, *what: object) -> None:
        if self.traced:
            self.trace.append(f"{self.now:10.4f} {who:<12} {' '.join(str(w) for w in what)}")


class Process:
    """Something that can be stopped (SIGSTOP) and continued: what comes to it meanwhile waits, in order."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.frozen_until = 0.0
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._thaws = False

    def awake(self, do: Callable[..., None], *args: Any) -> None:
        """Run ``do(*args)`` now, or as soon as the process goes on."""
        if self.world.now < self.frozen_until:
            self._held.append((do, args))
            if len(self._held) == 1:
                self.world.at(self.frozen_until, self._thaw)
        elif self._held and not self._thaws:
            self._held.append((do, args))
            self._thaw()
        else:
            do(*args)

    def _thaw(self) -> None:
        self._thaws = True
        while self._held and self.world.now >= self.frozen_until:
            do, args = self._held.popleft()
            do(*args)
        self._thaws = False
        if self._held:  # it was stopped again
            self.world.at(self.frozen_until, self._thaw)

    def stop(self, seconds: float) -> None:
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)
