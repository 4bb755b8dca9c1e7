"""Waiting for one's plane: bounded by the deadline and by nothing else."""

from __future__ import annotations

import random

from penstock.retry.deadline import Deadline
from penstock.retry.reconnect import CEILING_S, reconnect_delays


class Clock:
    """A clock moved by the sleeper."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_delays_fill_the_deadline_and_do_not_pass_it() -> None:
    """A plane that stays away is asked until the very deadline, many more than 12 times."""
    clock, delays = Clock(), []
    for delay in reconnect_delays(Deadline(30.0, clock), random.Random(3)):
        clock.now += delay
        delays.append(delay)
    assert clock.now == 30.0
    assert len(delays) > 60
    assert 0.0 <= min(delays) <= max(delays) <= CEILING_S


def test_no_time_means_no_delay() -> None:
    """With nothing left the iterator is empty: the caller has tried once already."""
    assert list(reconnect_delays(Deadline(0.0, Clock()), random.Random(0))) == []


def test_slow_tries_eat_the_same_deadline() -> None:
    """Time spent in connecting counts: a try that takes 10 s leaves room for few."""
    clock, tries = Clock(), 0
    for delay in reconnect_delays(Deadline(25.0, clock), random.Random(3)):
        clock.now += delay + 10.0
        tries += 1
    assert tries == 3
