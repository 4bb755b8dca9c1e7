"""The token bucket: gRPC A6's numbers, and attempts of many keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadArgument
from penstock.retry.bucket import TokenBucket


def test_five_failures_stop_retries() -> None:
    """Ten tokens, one per failure, no retry at half or below: four failures may be retried, the fifth not."""
    bucket = TokenBucket()
    allowed = []
    for _ in range(6):
        bucket.record(failed=1, answered=0)
        allowed.append(bucket.may_retry())
    assert allowed == [True, True, True, True, False, False]


def test_ten_successes_pay_for_one_failure() -> None:
    """A tenth of a token per success, exactly."""
    bucket = TokenBucket()
    for _ in range(5):
        bucket.record(failed=1, answered=0)
    assert not bucket.may_retry()
    bucket.record(failed=0, answered=1)
    assert bucket.tokens == 5.1
    assert bucket.may_retry()
    for _ in range(49):
        bucket.record(failed=0, answered=1)
    assert bucket.full


def test_a_batch_counts_once_whatever_its_size() -> None:
    """One broken connection under 400 keys is one failure; one bad key in 400 is hardly any."""
    whole, partial = TokenBucket(), TokenBucket()
    whole.record(failed=400, answered=0)
    partial.record(failed=1, answered=399)
    assert whole.tokens == 9.0
    assert partial.full


def test_one_key_in_eleven_is_the_break_even() -> None:
    """Below it a bucket recovers, above it drains: the ratio of A6."""
    steady, draining = TokenBucket(), TokenBucket()
    for _ in range(100):
        steady.record(failed=1, answered=10)
        draining.record(failed=2, answered=10)
    assert steady.tokens == 10.0
    assert not draining.may_retry()


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=50))
def test_tokens_stay_within_the_bucket(attempts: list[tuple[int, int]]) -> None:
    """Never below nothing, never above the capacity, and nothing counts for nothing."""
    bucket = TokenBucket(4.0, 0.5)
    for failed, answered in attempts:
        before = bucket.tokens
        bucket.record(failed=failed, answered=answered)
        assert 0.0 <= bucket.tokens <= 4.0
        assert failed or answered or bucket.tokens == before


@pytest.mark.parametrize(("capacity", "gain"), [(0.0, 0.1), (-1.0, 0.1), (10.0, -0.1), (10.0, 1.1)])
def test_a_bucket_of_nothing_is_refused(capacity: float, gain: float) -> None:
    """Limits that make no sense are the caller's mistake."""
    with pytest.raises(BadArgument):
        TokenBucket(capacity, gain)


def test_repr_tells_the_tokens() -> None:
    """The state is visible in a log line."""
    assert repr(TokenBucket()) == "TokenBucket(10 of 10)"
