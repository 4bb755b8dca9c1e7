"""Deadlines: finite, monotone, and named when they pass."""

from __future__ import annotations

import math

import pytest

from penstock.errors import BadArgument, DataPlaneTimeout
from penstock.retry.deadline import Deadline


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_remaining_counts_down_to_zero_and_no_further() -> None:
    """What is left shrinks with the clock and is never negative."""
    clock = Clock()
    deadline = Deadline(2.0, clock)
    assert deadline.remaining() == 2.0
    clock.now += 1.5
    assert (deadline.remaining(), deadline.elapsed(), deadline.expired()) == (0.5, 1.5, False)
    clock.now += 5
    assert (deadline.remaining(), deadline.expired()) == (0.0, True)


def test_zero_seconds_are_expired_at_once() -> None:
    """A timeout of 0 leaves no time, not for ever."""
    assert Deadline(0.0, Clock()).expired()


@pytest.mark.parametrize("timeout_s", [-1.0, math.inf, math.nan, 10**400, None, "5"])
def test_a_deadline_is_finite(timeout_s: object) -> None:
    """There is no "for ever", no time before now, and no error but a named one."""
    with pytest.raises(BadArgument, match="finite"):
        Deadline(timeout_s, Clock())  # type: ignore[arg-type]


def test_require_names_what_was_waited_for() -> None:
    """Past the deadline the error says what, how long, and carries the fields."""
    clock = Clock()
    deadline = Deadline(1.0, clock)
    deadline.require("nothing yet")
    clock.now += 1.25
    with pytest.raises(DataPlaneTimeout, match=r"field 'x': not done within 1 s \(1.250 s") as caught:
        deadline.require("field 'x'", partition="train", attempts=3)
    error = caught.value
    assert (error.partition, error.missing, error.attempts, error.elapsed_s) == ("train", ["field 'x'"], 3, 1.25)


def test_require_keeps_the_names_of_what_is_missing() -> None:
    """``missing`` given by the caller is what the error carries."""
    with pytest.raises(DataPlaneTimeout) as caught:
        Deadline(0.0, Clock()).require("claim", missing=["group 'g7'"])
    assert caught.value.missing == ["group 'g7'"]


def test_a_part_never_outlives_the_whole() -> None:
    """A deadline made within another ends with it at the latest."""
    clock = Clock()
    whole = Deadline(3.0, clock)
    clock.now += 2
    assert whole.within(10.0).at == whole.at
    assert whole.within(0.5).remaining() == 0.5
    clock.now += 2
    assert whole.within(1.0).expired()


def test_repr_tells_what_is_left() -> None:
    """The state is visible in a log line."""
    assert repr(Deadline(3.0, Clock())) == "Deadline(3 s, 3.000 s left)"
