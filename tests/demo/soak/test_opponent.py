"""The opponent, against processes that pass a point again and again: strikes follow one another, and are counted."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from penstock.demo.chaos import FaultLedger
from penstock.demo.job import Job
from penstock.demo.processes import Ended
from penstock.demo.progress import Progress
from penstock.demo.soak import opponent as module
from penstock.demo.soak.opponent import Limits, Opponent
from penstock.demo.soak.places import Place
from penstock.demo.soak.schedule import Strike
from penstock.testing.faults import Sentence, kill, stop

SOON_S = 30.0
SCRIPT = """
import sys, time
from penstock.points import reached
from penstock.testing.injection import take_part
take_part(int(sys.argv[1]))
while True:
    reached("round")
    time.sleep(0.005)
"""


@dataclass
class FakeLife:
    process: subprocess.Popen[bytes]
    started_at: float
    ready_at: float | None = None


@dataclass
class FakeJob:
    """A job of two slots, whose dead are replaced, and which get on whenever ``working``."""

    opponent: Opponent
    working: bool = True
    lives: dict[str, FakeLife] = field(default_factory=dict)
    faults: FaultLedger = field(default_factory=FaultLedger)
    progress: Progress = field(default_factory=Progress)
    deaths: list[str] = field(default_factory=list)  # not by our hand

    @property
    def processes(self) -> FakeJob:
        return self

    def slots(self) -> list[str]:
        return list(self.lives)

    def life(self, slot: str) -> FakeLife | None:
        return self.lives.get(slot)

    def dismiss(self) -> None:
        """Nobody is started after that."""

    def start(self, slot: str) -> None:
        seat = self.opponent.director.enrol(slot, slot.partition("-")[0])
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(seat.fd)], pass_fds=[seat.fd])
        seat.given_to(process.pid)
        self.lives[slot] = FakeLife(process, time.monotonic())

    def turn(self) -> None:
        job = cast("Job", self)
        self.opponent.turn(job, 0.02)
        for slot, life in list(self.lives.items()):
            status = life.process.poll()
            if status is not None:
                self.opponent.turn(job, 0.0)
                if self.faults.ended(Ended(f"{slot}.1", life.process.pid, status)) is None:
                    self.deaths.append(slot)
                self.start(slot)
            elif self.working:
                self.faults.progress(slot, life.started_at, time.monotonic())
        self.progress.steps += self.working
        self.opponent.strike(job)

    def until(self, happened: Callable[[], Any]) -> None:
        end = time.monotonic() + SOON_S
        while not happened():
            assert time.monotonic() < end, [str(struck) for struck in self.opponent.struck]
            self.turn()

    def is_done(self) -> bool:
        return self.opponent.is_done(cast("Job", self))

    def close(self) -> None:
        self.opponent.close(cast("Job", self))
        for life in self.lives.values():
            life.process.kill()
            life.process.wait()


def strike(number: int, *sentences: Sentence, rest: bool = True) -> Strike:
    return Strike(number, "single", Place("worker", "round"), sentences, rest)


@pytest.fixture
def play() -> Iterator[Callable[..., FakeJob]]:
    jobs: list[FakeJob] = []

    def begin(strikes: Iterator[Strike], limits: Limits | None = None) -> FakeJob:
        job = FakeJob(Opponent(strikes, limits or Limits()))
        jobs.append(job)
        for slot in ("worker-0", "plane-0"):
            job.start(slot)
        return job

    yield begin
    for job in jobs:
        job.close()


def test_strikes_come_one_after_another_until_none_is_left(play: Callable[..., FakeJob]) -> None:
    """Each once the one before it was got over; all that fired is in the ledger, and nobody died for another reason."""
    both = (kill("worker", at="round", nth=2), stop("plane", at="worker:round", for_s=0.3, nth=2))
    job = play(iter([strike(1, *both), strike(2, kill("plane", at="round"))]))
    job.until(job.is_done)
    opponent = job.opponent
    assert [[f.sentence for f in struck.fired] for struck in opponent.struck] == [
        list(both),
        [kill("plane", at="round")],
    ]
    first, second = opponent.struck
    assert first.over_at is not None
    assert second.began_at >= first.over_at >= first.fired[1].at + 0.3  # the stop is over too
    assert job.faults.counts() | {"worker": 1, "plane": 2} == job.faults.counts()
    assert job.faults.seconds().keys() == {"worker", "plane"}
    assert job.faults.seconds(of_stops=True).keys() == {"plane"}
    assert (job.deaths, job.faults.unrecovered()) == ([], [])


def test_enough_is_enough(play: Callable[..., FakeJob]) -> None:
    """After so many faults no more is armed, and the run has to get on once more."""
    endless = (strike(n, kill("worker", at="round", nth=n)) for n in itertools.count(1))
    job = play(endless, Limits(faults=2))
    job.until(lambda: len(job.opponent.fired) == 2)
    steps = job.progress.steps
    job.until(job.is_done)
    assert job.progress.steps > steps
    assert len(job.opponent.struck) == 2


def test_a_moment_that_does_not_come_is_given_up_and_told(
    play: Callable[..., FakeJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shortfall says how far it came; the next one has its turn."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    never = kill("worker", at="never")
    job = play(iter([strike(1, never), strike(2, kill("worker", at="round"))]))
    job.until(job.is_done)
    missed, hit = job.opponent.struck
    assert [said.startswith(f"{never}: its point was reached 0 times") for said in missed.shortfalls] == [True]
    assert (len(hit.fired), hit.shortfalls, job.opponent.director.pending) == (1, [], [])


def test_a_strike_without_rest_is_followed_before_it_was_got_over(play: Callable[..., FakeJob]) -> None:
    """So the next one hits a run that is still on its feet again."""
    job = play(iter([strike(1, kill("worker", at="round"), rest=False), strike(2, kill("plane", at="round"))]))
    job.working = False
    job.until(lambda: len(job.opponent.fired) == 2)
    assert [struck.over_at for struck in job.opponent.struck] == [None, None]
    job.working = True
    job.until(job.is_done)
    assert all(struck.over_at is not None for struck in job.opponent.struck)


def test_a_run_that_is_to_rest_is_struck_no_more(play: Callable[..., FakeJob]) -> None:
    """What is armed is disarmed, who is stopped goes on at once, and it is done when the run goes on."""
    job = play(iter([strike(1, stop("worker", at="round", for_s=SOON_S), kill("worker", at="never"))]))
    job.until(lambda: job.opponent.fired)
    began = time.monotonic()
    job.opponent.rest(cast("Job", job))
    assert job.opponent.director.stopped == []
    assert job.opponent.director.pending == []
    assert job.opponent.struck[0].shortfalls
    assert time.monotonic() - began < SOON_S / 2
