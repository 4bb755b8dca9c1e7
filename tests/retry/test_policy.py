"""Policies: the presets are what they promise, and limits that make no sense are refused."""

from __future__ import annotations

import math

import msgspec
import pytest

from penstock.errors import BadArgument
from penstock.retry.policy import DEFAULT, FIELD, NONE, Policy, preset


def test_default_has_the_stated_limits() -> None:
    """30 s, 12 attempts, 50 ms doubling to 2 s, backpressure 0.5 s within 5 s, A6's bucket, 30 s of quarantine."""
    assert (DEFAULT.timeout_s, DEFAULT.max_attempts, DEFAULT.base_s, DEFAULT.cap_s) == (30.0, 12, 0.05, 2.0)
    assert (DEFAULT.backpressure_base_s, DEFAULT.backpressure_budget_s) == (0.5, 5.0)
    assert (DEFAULT.bucket_tokens, DEFAULT.tokens_per_success, DEFAULT.quarantine_s) == (10.0, 0.1, 30.0)
    assert DEFAULT.jitter


def test_field_is_one_try_and_three_more_a_second_apart() -> None:
    """Batches of 400, 4 workers, nothing adaptive."""
    assert (FIELD.max_attempts, FIELD.base_s, FIELD.cap_s, FIELD.jitter) == (4, 1.0, 1.0, False)
    assert (FIELD.batch, FIELD.workers, FIELD.bucket_tokens, FIELD.quarantine_s) == (400, 4, 0.0, 0.0)


def test_presets_go_by_name() -> None:
    """An unknown name lists the known ones."""
    assert (preset("default"), preset("field"), preset("none")) == (DEFAULT, FIELD, NONE)
    assert NONE.max_attempts == 1
    with pytest.raises(BadArgument, match=r"'patient'; known: \['default', 'field', 'none'\]"):
        preset("patient")


@pytest.mark.parametrize(
    "limits",
    [
        {"max_attempts": 0},
        {"corrupt_attempts": 0},
        {"workers": 0},
        {"batch": 0},
        {"timeout_s": -1.0},
        {"timeout_s": math.inf},
        {"base_s": math.nan},
        {"quarantine_s": -0.1},
    ],
)
def test_limits_without_sense_are_refused(limits: dict[str, float]) -> None:
    """The error names the limit."""
    with pytest.raises(BadArgument, match=next(iter(limits))):
        Policy(**limits)  # type: ignore[arg-type]


def test_unknown_limits_are_errors() -> None:
    """A mistyped option is not ignored."""
    with pytest.raises(msgspec.ValidationError, match="max_tries"):
        msgspec.convert({"max_tries": 3}, Policy)
