"""Full jitter: within its ceiling, from the first retry on."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from penstock.retry.backoff import ceiling_s, full_jitter


@given(st.integers(0, 10**6), st.floats(0, 10), st.floats(0, 10), st.integers())
def test_a_delay_never_exceeds_its_ceiling(retry: int, base_s: float, cap_s: float, seed: int) -> None:
    """However many retries: within [0, min(cap, base * 2**n)]."""
    delay = full_jitter(retry, base_s, cap_s, random.Random(seed))
    assert 0.0 <= delay <= min(cap_s, ceiling_s(retry, base_s, cap_s))


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    """50 ms, 100 ms, ... 1.6 s, 2 s, 2 s."""
    assert [ceiling_s(n, 0.05, 2.0) for n in range(8)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


def test_the_first_retry_is_jittered_too() -> None:
    """A crowd that failed together does not come back together."""
    rng = random.Random(1)
    delays = [full_jitter(0, 0.05, 2.0, rng) for _ in range(1000)]
    assert min(delays) < 0.005
    assert max(delays) > 0.045
    assert 0.022 < sum(delays) / 1000 < 0.028
