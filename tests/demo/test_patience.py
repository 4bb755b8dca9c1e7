"""Patience: what is waited out, what is not, and for how long."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.demo.patience import patiently
from penstock.errors import DataPlaneError, DataPlaneTimeout, DataPlaneUnavailable, LeaseLost


def failing(times: int, error: type[DataPlaneError]) -> Callable[[], int]:
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error("away")
        return calls

    return call


@pytest.mark.parametrize("error", [DataPlaneUnavailable, DataPlaneTimeout])
def test_a_plane_that_comes_back_is_waited_for(error: type[DataPlaneError]) -> None:
    """The call is repeated, with a pause before each repetition."""
    pauses: list[float] = []
    assert patiently(failing(3, error), 60.0, pauses.append) == 4
    assert len(pauses) == 3


def test_any_other_failure_is_raised_at_once() -> None:
    """A lost lease will not come back by waiting."""
    pauses: list[float] = []
    with pytest.raises(LeaseLost):
        patiently(failing(1, LeaseLost), 60.0, pauses.append)
    assert pauses == []


def test_patience_ends_with_the_last_error() -> None:
    """No patience: the first failure is the last."""
    with pytest.raises(DataPlaneUnavailable, match="away"):
        patiently(failing(1, DataPlaneUnavailable), 0.0, lambda _seconds: None)
