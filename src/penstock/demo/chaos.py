"""Faults: whom to kill when, which kills were seen to fire, and how long each took to recover from.

Invariants: a fault has fired when the victim's exit status says SIGKILL, not when the signal was sent; it has been
recovered from at the next progress of the slot that was killed, made by a life that began after the kill.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.demo.processes import Ended, kind_of
from penstock.demo.spec import RecoveryTimes
from penstock.testing.checker import Fault

__all__ = ["ANY", "KINDS", "Chaos", "FaultLedger"]

KINDS = ("worker", "trainer", "scorer", "controller", "plane")
JITTER = 0.25  # of the period, either way
ANY = "any"
PAIRS = 0.25  # of the strikes hit the controller as well


class Chaos:
    """A seeded schedule: every ``period_s`` or so a strike at one of ``KINDS``, now and then at the controller with it.

    Each kind is struck once, in an order of chance, before any is struck again: a short run meets them all.

    Args:
        seed: of the schedule.
        period_s: mean time between strikes.
        now: monotonic seconds; the first strike comes a period later.
    """

    def __init__(self, seed: int, period_s: float, now: float) -> None:
        self._random = random.Random(seed)
        self._period_s = period_s
        self._next_at = now + self._gap()
        self._spared: list[str] = []  # kinds that were not struck yet in this round

    def due(self, now: float, slots: Sequence[str]) -> list[str]:
        """Return the slots to kill now, out of those that live; none = not yet, or nobody to kill."""
        if now < self._next_at or not slots:
            return []
        self._next_at = now + self._gap()
        victims = [self._victim(slots)]
        if self._random.random() < PAIRS:
            victims += [slot for slot in slots if kind_of(slot) == "controller" and slot not in victims]
        return victims

    def _victim(self, slots: Sequence[str]) -> str:
        living = {kind_of(slot) for slot in slots}
        if not living & set(self._spared):
            self._spared = self._random.sample(KINDS, len(KINDS))
        kind = next(kind for kind in self._spared if kind in living)
        self._spared.remove(kind)
        return self._random.choice([slot for slot in sorted(slots) if kind_of(slot) == kind])

    def _gap(self) -> float:
        return self._period_s * self._random.uniform(1 - JITTER, 1 + JITTER)


@dataclass
class _Kill:
    slot: str
    pid: int
    at: float
    fired: bool = False
    recovered_at: float | None = None


class FaultLedger:
    """What was killed and what became of it; noted by the main thread, progress by any thread."""

    def __init__(self) -> None:
        self._kills: list[_Kill] = []
        self._lock = threading.Lock()

    def killed(self, slot: str, pid: int, now: float) -> None:
        """A SIGKILL was sent to ``pid``."""
        with self._lock:
            self._kills.append(_Kill(slot, pid, now))

    def ended(self, news: Ended) -> Fault | None:
        """Return the fault that fired if ``news`` is a death by our hand."""
        with self._lock:
            mine = next((kill for kill in self._kills if kill.pid == news.pid and not kill.fired), None)
            if mine is None or news.status != -9:
                return None
            mine.fired = True
            return Fault(kind_of(news.peer), news.pid)

    def progress(self, slot: str, born_at: float, now: float) -> None:
        """``slot`` got on, by a life that began at ``born_at``."""
        with self._lock:
            for kill in self._kills:
                if kill.recovered_at is None and kill.slot == slot and born_at > kill.at:
                    kill.recovered_at = now

    def counts(self) -> dict[str, int]:
        """How many fired, by kind; kinds without any are 0."""
        with self._lock:
            fired = Counter(kind_of(kill.slot) for kill in self._kills if kill.fired)
        return {kind: fired[kind] for kind in KINDS}

    def fired(self) -> int:
        """How many fired in all."""
        return sum(self.counts().values())

    def unrecovered(self) -> list[str]:
        """The slots of faults from which the run has not got on yet."""
        with self._lock:
            return [kill.slot for kill in self._kills if kill.fired and kill.recovered_at is None]

    def recovery(self) -> dict[str, RecoveryTimes]:
        """How long recoveries took, by kind, and "any" for all together; a kind without any is missing."""
        times: dict[str, list[float]] = {}
        with self._lock:
            for kill in self._kills:
                if kill.fired and kill.recovered_at is not None:
                    for kind in (kind_of(kill.slot), ANY):
                        times.setdefault(kind, []).append(kill.recovered_at - kill.at)
        return {kind: RecoveryTimes.of(times[kind]) for kind in (*KINDS, ANY) if kind in times}
