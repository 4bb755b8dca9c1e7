"""The timers and their limits."""

from __future__ import annotations

import math

import pytest

from penstock.endpoint.timing import Timing
from penstock.errors import BadArgument


def test_resends_double_up_to_the_cap() -> None:
    """Jittered down by half at most, so that a crowd does not come at once and nobody waits for nothing."""
    timing = Timing(resend_base_s=0.1, resend_cap_s=1.0)
    assert [timing.resend_s(n)[1] for n in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert all(most / 2 == least for least, most in map(timing.resend_s, range(100)))


def test_a_ping_may_be_lost_before_silence_is_believed() -> None:
    """Silence shorter than two keep-alives is refused."""
    assert Timing().silence_s >= 3 * Timing().keepalive_s
    with pytest.raises(BadArgument, match="twice keepalive_s"):
        Timing(keepalive_s=5, silence_s=9)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_times_are_positive_and_finite(value: float) -> None:
    """What is not is refused by name."""
    with pytest.raises(BadArgument, match="handshake_limit_s"):
        Timing(handshake_limit_s=value)
