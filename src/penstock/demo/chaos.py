"""Faults: whom to kill when, which kills were seen to fire, and how long each took to recover from.

Invariants: a fault has fired when the victim's exit status says SIGKILL, or a director saw its effect, not when the
signal was sent; it has been recovered from at the next progress of the slot that was struck, made by a life that began
after its death, or after its stop.
"""

from __future__ import annotations

import math
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.demo.processes import Ended, kind_of
from penstock.demo.spec import RecoveryTimes
from penstock.testing.checker import Fault

__all__ = ["ANY", "CABLE", "KINDS", "KINDS_OF_HOSTS", "Chaos", "FaultLedger"]

KINDS = ("worker", "trainer", "scorer", "controller", "plane")
CABLE = "cable"  # is cut, not killed: between two hosts
KINDS_OF_HOSTS = (*KINDS, "host", CABLE)
JITTER = 0.25  # of the period, either way
ANY = "any"
GRACE = 2.0  # periods
PAIRS = 0.25  # of the strikes hit the controller as well


class Chaos:
    """A seeded schedule: every ``period_s`` or so a strike at one of ``kinds``, now and then at the controller with it.

    Each kind is struck once, in an order of chance, before any is struck again: a short run meets them all.

    Args:
        seed: of the schedule.
        period_s: mean time between strikes.
        now: monotonic seconds; the first strike comes a period later.
        kinds: what there is to strike at.
    """

    def __init__(self, seed: int, period_s: float, now: float, kinds: Sequence[str] = KINDS) -> None:
        self._kinds = kinds
        self._random = random.Random(seed)
        self._period_s = period_s
        self._next_at = now + self._gap()
        self._spared: list[str] = []  # kinds that were not struck yet in this round

    def due(self, now: float, slots: Sequence[str], *, is_recovering: bool = False) -> list[str]:
        """Return the slots to kill now, out of those that live; none = not yet, or nobody to kill.

        A run that ``is_recovering`` is given time, but not for ever: on a slow machine faults would only pile up.
        """
        if now < self._next_at + (GRACE * self._period_s if is_recovering else 0.0) or not slots:
            return []
        self._next_at = now + self._gap()
        victims = [self._victim(slots)]
        if self._random.random() < PAIRS:
            victims += [slot for slot in slots if kind_of(slot) == "controller" and slot not in victims]
        return victims

    def _victim(self, slots: Sequence[str]) -> str:
        living = {kind_of(slot) for slot in slots}
        if not living & set(self._spared):
            self._spared = self._random.sample(self._kinds, len(self._kinds))
        kind = next(kind for kind in self._spared if kind in living)
        self._spared.remove(kind)
        return self._random.choice([slot for slot in sorted(slots) if kind_of(slot) == kind])

    def _gap(self) -> float:
        return self._period_s * self._random.uniform(1 - JITTER, 1 + JITTER)


@dataclass
class _Hit:
    """One fault. ``until``: of a stop, when the victim goes on; otherwise None, for it has died of it."""

    slot: str
    pid: int
    at: float
    until: float | None = None
    fired: bool = False
    reaped: bool = False
    recovered_at: float | None = None

    def is_over(self, born_at: float, now: float) -> bool:
        """Whether progress at ``now``, of a life that began at ``born_at``, is a recovery."""
        return born_at > self.at if self.until is None else now > self.until

    def seconds(self) -> float | None:
        """How long the recovery took: from the death, or from the end of the stop."""
        if not self.fired or self.recovered_at is None:
            return None
        return self.recovered_at - (self.at if self.until is None else self.until)


class FaultLedger:
    """What was struck and what became of it; noted by the main thread, progress by any thread.

    Args:
        kinds: what may be struck in this run.
    """

    def __init__(self, kinds: Sequence[str] = KINDS) -> None:
        self._kinds = kinds
        self._hits: list[_Hit] = []
        self._lock = threading.Lock()

    def killed(self, slot: str, pid: int, now: float) -> None:
        """A SIGKILL was sent to ``pid``."""
        with self._lock:
            self._hits.append(_Hit(slot, pid, now))

    def struck(self, slot: str, pid: int, at: float, until: float | None = None) -> None:
        """A director saw a fault take effect: ``pid`` is dead, or, with ``until``, stopped until then."""
        with self._lock:
            self._hits.append(_Hit(slot, pid, at, until, fired=True))

    def ended(self, news: Ended) -> Fault | None:
        """Return the fault that fired if ``news`` is a death by our hand."""
        with self._lock:
            mine = [h for h in self._hits if h.pid == news.pid and h.until is None and not h.reaped]
            if not any(hit.fired or news.status == -9 for hit in mine):
                return None
            for hit in mine:
                hit.fired = hit.reaped = True
            return Fault(kind_of(news.peer), news.pid)

    def progress(self, slot: str, born_at: float, now: float) -> None:
        """``slot`` got on, by a life that began at ``born_at``."""
        with self._lock:
            for hit in self._hits:
                if hit.recovered_at is None and hit.slot == slot and hit.is_over(born_at, now):
                    hit.recovered_at = now

    def counts(self) -> dict[str, int]:
        """How many fired, by kind; kinds without any are 0."""
        with self._lock:
            fired = Counter(kind_of(hit.slot) for hit in self._hits if hit.fired)
        return {kind: fired[kind] for kind in self._kinds}

    def fired(self) -> int:
        """How many fired in all."""
        return sum(self.counts().values())

    def unrecovered(self) -> list[str]:
        """The slots of faults from which the run has not got on yet."""
        with self._lock:
            return [hit.slot for hit in self._hits if hit.fired and hit.recovered_at is None]

    def seconds(self, *, of_stops: bool = False) -> dict[str, list[float]]:
        """How long each recovery from a death took, or from a stop, by kind; a kind without any is missing."""
        times: dict[str, list[float]] = {}
        with self._lock:
            for hit in self._hits:
                seconds = hit.seconds()
                if seconds is not None and (hit.until is not None) == of_stops:
                    times.setdefault(kind_of(hit.slot), []).append(seconds)
        return {kind: times[kind] for kind in self._kinds if kind in times}

    def outages(self) -> list[tuple[str, float, float]]:
        """Who was struck, from when, and until when it had not got on: slot, and two moments in monotonic seconds."""
        with self._lock:
            hits = [hit for hit in self._hits if hit.fired]
        return [(hit.slot, hit.at, math.inf if hit.recovered_at is None else hit.recovered_at) for hit in hits]

    def recovery(self) -> dict[str, RecoveryTimes]:
        """How long recoveries from deaths took, by kind, and "any" for all together; a kind without any is missing."""
        times = self.seconds()
        if times:
            times[ANY] = [seconds for of_kind in times.values() for seconds in of_kind]
        return {kind: RecoveryTimes.of(of_kind) for kind, of_kind in times.items()}
