"""What is known of endpoints: shared, bounded, fair."""

from __future__ import annotations

from penstock.retry import health
from penstock.retry.health import Health
from penstock.retry.policy import FIELD, Policy


def test_unknown_endpoints_may_be_retried() -> None:
    """Nothing is held against a stranger."""
    known = Health(Policy())
    assert known.may_retry("a")
    assert known.eligible(["a"], 0.0) == ["a"]
    assert known.tokens() == {}


def test_a_failed_attempt_costs_a_token_and_holds_the_endpoint() -> None:
    """Budget and quarantine change together."""
    known = Health(Policy())
    known.record("a", failed=1, answered=0, now=0.0)
    assert known.tokens() == {"a": 9.0}
    assert known.eligible(["a", "b"], 1.0) == ["b"]


def test_any_answer_shows_that_the_endpoint_lives() -> None:
    """A batch that came back in part lifts the quarantine, though it costs tokens."""
    known = Health(Policy())
    known.record("a", failed=1, answered=0, now=0.0)
    known.record("a", failed=5, answered=5, now=1.0)
    assert known.eligible(["a", "b"], 2.0) == ["a", "b"]
    assert known.tokens()["a"] < 9.0


def test_neither_answer_nor_failure_changes_nothing() -> None:
    """A backpressured endpoint is alive, and not rewarded."""
    known = Health(Policy())
    known.record("a", failed=1, answered=0, now=0.0)
    known.record("a", failed=0, answered=0, now=1.0)
    assert known.tokens() == {"a": 9.0}
    assert known.eligible(["a", "b"], 2.0) == ["b"]


def test_a_full_bucket_is_forgotten() -> None:
    """Memory is kept for those in trouble only."""
    known = Health(Policy())
    known.record("a", failed=1, answered=0, now=0.0)
    for _ in range(10):
        known.record("a", failed=0, answered=1, now=1.0)
    assert known.tokens() == {}


def test_the_field_preset_keeps_no_account() -> None:
    """Without bucket and quarantine failures leave no trace."""
    known = Health(FIELD)
    for _ in range(50):
        known.record("a", failed=1, answered=0, now=0.0)
    assert known.may_retry("a")
    assert known.eligible(["a", "b"], 0.0) == ["a", "b"]


def test_memory_is_bounded() -> None:
    """Of too many endpoints in trouble the first is forgotten."""
    known = Health(Policy())
    for number in range(health._MAX_BUCKETS + 5):
        known.record(str(number), failed=1, answered=0, now=0.0)
    assert len(known.tokens()) == health._MAX_BUCKETS
    assert "0" not in known.tokens()
    assert "4096 endpoints" in repr(known)
