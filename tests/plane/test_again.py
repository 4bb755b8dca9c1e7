"""One operation under the retry policy."""

from __future__ import annotations

import contextvars
import threading
import time

import pytest

from penstock.plane.again import pause, settled
from penstock.plane.recall import Recall, Recalled
from penstock.retry import Answer, Deadline, Kind, Policy, Reason, Retrier


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_failed_first_attempt_is_the_first_of_the_policys() -> None:
    """Two tries are two tries."""
    clock, tried = Clock(), [0]

    def attempt(_until: Deadline) -> Answer[int]:
        tried[0] += 1
        return Answer(Kind.RETRYABLE, code="busy")

    retrier = Retrier(Policy(max_attempts=2), clock=clock, sleep=clock.sleep)
    end = settled(retrier, "read", "p", attempt, Deadline(10.0, clock))
    assert (end.reason, end.code, end.attempts, tried) == (Reason.ATTEMPTS, "busy", 2, [2])
    assert retrier.statistics().attempts == 2


def test_an_attempt_that_outlasts_the_deadline_is_told() -> None:
    """Its answer and its number are those of the end: nobody reads of zero attempts."""
    clock = Clock()

    def attempt(_until: Deadline) -> Answer[int]:
        clock.now += 5.0
        return Answer(Kind.RETRYABLE, code="busy")

    end = settled(Retrier(clock=clock, sleep=clock.sleep), "read", "p", attempt, Deadline(1.0, clock))
    assert (end.reason, end.code, end.attempts) == (Reason.DEADLINE, "busy", 1)


def test_a_wait_before_another_try_is_recalled() -> None:
    """A call that is taken back does not sleep on; one that nobody recalls sleeps."""
    recall = Recall()

    def call() -> None:
        recall.cover()
        pause(30.0)

    began = time.monotonic()
    threading.Timer(0.05, recall.ask).start()
    with pytest.raises(Recalled):
        contextvars.copy_context().run(call)
    assert time.monotonic() - began < 10.0
    pause(0.01)
