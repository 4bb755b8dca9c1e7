"""Quarantine: holds, expires, lifts, and never starves anybody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.retry import quarantine
from penstock.retry.quarantine import Quarantine

ENDPOINTS = ("a", "b", "c")


def test_a_failed_endpoint_is_left_alone_until_its_time_is_over() -> None:
    """Held for 30 s from the failure, free at the 30th."""
    held = Quarantine(30.0)
    held.failed("b", 100.0)
    assert held.eligible(ENDPOINTS, 129.9) == ["a", "c"]
    assert held.eligible(ENDPOINTS, 130.0) == ["a", "b", "c"]


def test_each_failure_holds_anew() -> None:
    """The second failure counts from its own moment (a port whose second attempt was not held came back too early)."""
    held = Quarantine(30.0)
    held.failed("a", 0.0)
    held.failed("a", 20.0)
    assert "a" not in held.eligible(ENDPOINTS, 49.0)
    assert held.held(49.0) == ["a"]
    assert held.held(50.0) == []


def test_a_success_lifts_at_once() -> None:
    """An endpoint that answers is used again."""
    held = Quarantine(30.0)
    held.failed("a", 0.0)
    held.lift("a")
    held.lift("never failed")
    assert held.eligible(ENDPOINTS, 1.0) == ["a", "b", "c"]


def test_when_all_are_held_the_oldest_failure_goes_first() -> None:
    """All become eligible, in the order of their last failures."""
    held = Quarantine(30.0)
    for when, endpoint in enumerate(["a", "c", "b", "a"]):
        held.failed(endpoint, float(when))
    assert held.eligible(ENDPOINTS, 5.0) == ["c", "b", "a"]


def test_zero_seconds_hold_nobody() -> None:
    """The switch that turns quarantine off."""
    held = Quarantine(0.0)
    held.failed("a", 1.0)
    assert held.eligible(ENDPOINTS, 1.0) == ["a", "b", "c"]


def test_memory_is_bounded() -> None:
    """Endpoints that never come back are forgotten, oldest failure first."""
    held = Quarantine(1e9)
    for number in range(quarantine._MAX_ENDPOINTS + 10):
        held.failed(str(number), 0.0)
    assert len(held.held(1.0)) == quarantine._MAX_ENDPOINTS
    assert held.eligible(["9"], 1.0) == ["9"]
    assert repr(held).startswith("Quarantine(4096 failed")


@given(st.lists(st.tuples(st.sampled_from(ENDPOINTS), st.booleans(), st.floats(0, 40)), max_size=30))
def test_nobody_starves(history: list[tuple[str, bool, float]]) -> None:
    """Whatever happened: somebody is eligible, nobody twice, and a free one always comes before a held one."""
    held, now = Quarantine(30.0), 0.0
    for endpoint, success, later in history:
        now += later
        held.lift(endpoint) if success else held.failed(endpoint, now)
        eligible = held.eligible(ENDPOINTS, now)
        assert eligible
        assert len(set(eligible)) == len(eligible)
        in_quarantine = held.held(now)
        assert set(eligible) == set(ENDPOINTS) - set(in_quarantine) or eligible == in_quarantine
