"""Carries a schedule out on a running job: one strike after another, each armed, seen to fire, and got over.

Invariants: a fault counts when the director saw it take effect; a strike whose moment does not come within
``PATIENCE_S`` is given up, and told as such; every fault that fired is in the job's ledger before its victim is reaped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from penstock.demo.soak.health import StuckWatch
from penstock.demo.soak.schedule import Strike
from penstock.testing.director import Director
from penstock.testing.faults import Fired, Sentence

if TYPE_CHECKING:
    from penstock.demo.job import Job

__all__ = ["Limits", "Opponent", "Struck"]

PATIENCE_S = 15.0  # for the moments of a strike to come
REST_S = 45.0  # for the run to get over a strike; the job itself gives up on a run that makes no step for so long


@dataclass(frozen=True)
class Limits:
    """When it is enough: so many faults have fired, so much time has passed; None = no limit."""

    faults: int | None = None
    seconds: float | None = None


@dataclass
class Struck:
    """A strike that was carried out, or tried.

    Attributes:
        began_at, over_at: when it was armed, and when the run had got over it, in monotonic seconds.
        fired: its faults that took effect.
        shortfalls: why the others did not.
    """

    strike: Strike
    began_at: float
    over_at: float | None = None
    fired: list[Fired] = field(default_factory=list)
    shortfalls: list[str] = field(default_factory=list)

    @property
    def is_decided(self) -> bool:
        """Whether of each of its faults it is known that it fired, or did not."""
        return len(self.fired) + len(self.shortfalls) >= len(self.strike.sentences)

    @property
    def seconds(self) -> float | None:
        """From its first fault until the run had got over it."""
        return None if self.over_at is None or not self.fired else self.over_at - self.fired[0].at


class Opponent:
    """Strikes at one job.

    Args:
        strikes: what is to happen; the run is done when there is none left.
        limits: when it is done anyway.

    Attributes:
        director: who carries the faults out; the job's processes take part in it.
        struck: what was tried so far.
    """

    def __init__(self, strikes: Iterator[Strike], limits: Limits) -> None:
        self.director = Director()
        self.struck: list[Struck] = []
        self._strikes = strikes
        self._limits = limits
        self._slots: dict[int, str] = {}  # pid -> slot, of every life there was
        self._seen_fired = self._seen_missed = 0
        self._current: Struck | None = None
        self._next_at = 0.0
        self._began_at: float | None = None
        self._is_exhausted = False
        self._over_since: float | None = None  # no more strikes
        self._steps_then = 0
        self._watch = StuckWatch()

    @property
    def stuck(self) -> list[str]:
        """What to say of times in which everybody was well and nothing happened."""
        return self._watch.episodes

    @property
    def fired(self) -> list[Fired]:
        """The faults that took effect."""
        return self.director.fired

    # -- the job's ----------------------------------------------------------------------------------------------------

    def turn(self, job: Job, timeout_s: float) -> None:
        """Carry out what is due; what has fired is in the job's ledger of faults when this returns."""
        for slot in job.processes.slots():
            life = job.processes.life(slot)
            if life is not None:
                self._slots[life.process.pid] = slot
        self.director.turn(timeout_s)
        self._note_news(job)
        now = time.monotonic()
        for struck in self.struck:
            if struck.over_at is None and struck.is_decided and not self._is_suffered(job, struck):
                struck.over_at = now

    def strike(self, job: Job) -> None:
        """Arm the next strike, if it is time."""
        now = time.monotonic()
        self._began_at = self._began_at or now
        self._watch.look(job, self.director.stopped, now)
        if (current := self._current) is not None and self._is_finished(current, now):
            self._current, self._next_at = None, now + current.strike.gap_s
        if self._current is None and now >= self._next_at and not self._is_over(now):
            self._arm(now)
        if self._current is None and self._over_since is None and self._is_over(now):
            self.rest(job)

    def is_done(self, job: Job) -> bool:
        """Whether there was enough of it, and the run has got over all of it and goes on."""
        if self._over_since is None or self.director.busy:
            return False
        if time.monotonic() - self._over_since > REST_S:
            return True  # who has not recovered is told by name
        return not job.faults.unrecovered() and job.progress.steps > self._steps_then

    def rest(self, job: Job) -> None:
        """Strike no more; whoever is stopped goes on."""
        if self._over_since is None:
            self._over_since, self._steps_then = time.monotonic(), job.progress.steps
        if self._current is not None:
            self._give_up(self._current, "the soak was over")
            self._current = None
        self._is_exhausted = True
        self.director.go_on()

    def close(self, job: Job) -> None:
        """Let go of everybody: nobody is held or stopped any more, and who is started takes no part. Idempotent."""
        job.processes.dismiss()
        self.director.close()

    # -- strikes ------------------------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        strike = next(self._strikes, None)
        if strike is None:
            self._is_exhausted = True
            return
        self._current = Struck(strike, now)
        self.struck.append(self._current)
        self.director.arm(*strike.sentences)

    def _is_over(self, now: float) -> bool:
        faults, seconds = self._limits.faults, self._limits.seconds
        if self._is_exhausted or (faults is not None and len(self.fired) >= faults):
            return True
        return seconds is not None and self._began_at is not None and now - self._began_at >= seconds

    def _is_finished(self, struck: Struck, now: float) -> bool:
        """Whether it is time to think of the next one."""
        age = now - struck.began_at
        if age > PATIENCE_S and self._is_pending(struck):
            self._give_up(struck, f"it did not come within {PATIENCE_S:g} s")
        if not struck.is_decided:
            return age > REST_S
        return not struck.strike.rest or struck.over_at is not None or age > REST_S

    def _give_up(self, struck: Struck, why: str) -> None:
        armed = zip(self.director.pending, self.director.shortfalls(), strict=True)
        struck.shortfalls += [f"{said}; {why}" for sentence, said in armed if sentence in struck.strike.sentences]
        self.director.disarm(*struck.strike.sentences)

    def _is_pending(self, struck: Struck) -> bool:
        return any(sentence in struck.strike.sentences for sentence in self.director.pending)

    def _is_suffered(self, job: Job, struck: Struck) -> bool:
        """Whether a victim has not got on yet: its own next progress is what counts."""
        suffering = set(job.faults.unrecovered())
        return any(self._slots.get(fired.pid) in suffering for fired in struck.fired)

    # -- what the director tells --------------------------------------------------------------------------------------

    def _note_news(self, job: Job) -> None:
        fired, self._seen_fired = self.director.fired[self._seen_fired :], len(self.director.fired)
        for one in fired:
            until = one.at + one.sentence.for_s if one.sentence.kind == "stop" else None
            job.faults.struck(self._slots[one.pid], one.pid, one.at, until)
            self._owner_of(one.sentence).fired.append(one)
        missed, self._seen_missed = self.director.missed[self._seen_missed :], len(self.director.missed)
        for miss in missed:
            self._owner_of(miss.sentence).shortfalls.append(str(miss))

    def _owner_of(self, sentence: Sentence) -> Struck:
        return next(struck for struck in reversed(self.struck) if sentence in struck.strike.sentences)
