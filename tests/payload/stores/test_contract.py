"""One outcome per key, and the errors that outcomes are."""

from __future__ import annotations

import pytest

from penstock.errors import (
    BadArgument,
    BatchError,
    CorruptPayload,
    DataPlaneError,
    DataPlaneFull,
    DataPlaneNotReady,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneWriteError,
    UnknownName,
)
from penstock.payload.stores.contract import (
    MAX_KEY_BYTES,
    Corrupt,
    Failed,
    Full,
    Missing,
    NotReady,
    Ok,
    Outcome,
    check_keys,
    error_of,
    raise_failures,
)
from penstock.retry import Reason


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Missing(), UnknownName),
        (NotReady(), DataPlaneNotReady),
        (Corrupt("checksum"), CorruptPayload),
        (Full(), DataPlaneFull),
        (Failed("-800", 3, 1.5), DataPlaneReadError),
        (Failed("-800", 3, 1.5, Reason.DEADLINE.value), DataPlaneTimeout),
    ],
)
def test_each_outcome_is_an_error_of_its_own(outcome: Outcome, error: type[DataPlaneError]) -> None:
    """Which names the key, the call and what the store said."""
    made = error_of("k7", outcome, "get")
    assert type(made) is error
    assert made.keys == ["k7"]
    assert "get" in made.message


def test_an_error_of_a_failure_says_what_was_tried() -> None:
    """Code, attempts and seconds, as fields and in words."""
    made = error_of("k", Failed("-800", 3, 1.5), "put", DataPlaneWriteError)
    assert (type(made), made.attempts, made.elapsed_s) == (DataPlaneWriteError, 3, 1.5)
    assert "-800" in made.message


def test_a_success_is_no_error() -> None:
    """Asking for one is the caller's mistake."""
    with pytest.raises(BadArgument):
        error_of("k", Ok(), "get")


def test_failures_are_raised_together_with_what_succeeded() -> None:
    """Keys, codes and attempts; the values that came are not lost."""
    good = Ok(memoryview(b"v"), 1)
    with pytest.raises(BatchError) as caught:
        raise_failures(["a", "b", "c"], [good, Missing(), Failed("-800", 4)], "get")
    assert set(caught.value.failures) == {"b", "c"}
    assert caught.value.successes == {"a": good}
    assert all(word in caught.value.message for word in ("2 of 3", "Missing", "-800", "4 attempts", "'b'"))


def test_nothing_is_raised_when_all_went_well() -> None:
    """Nor when there was nothing to do."""
    raise_failures(["a"], [Ok()], "get")
    raise_failures([], [], "get")


def test_outcomes_that_do_not_fit_the_keys_are_our_own_bug() -> None:
    """One outcome per key."""
    with pytest.raises(ValueError, match="zip"):
        raise_failures(["a", "b"], [Ok()], "get")


@pytest.mark.parametrize(
    "key", ["", "x" * (MAX_KEY_BYTES + 1), "ä" * 300, "a\0b", "a\x1fb", "a\n", "\ud800", 5, None, b"k"]
)
def test_a_bad_key_is_refused(key: object) -> None:
    """Empty, too long in UTF-8, with control characters (stores use those), without an encoding, or no text."""
    with pytest.raises(BadArgument):
        check_keys(["fine", key])  # type: ignore[list-item]


@pytest.mark.parametrize("key", ["k", "x" * MAX_KEY_BYTES, "ключ/β 1", "a b", "\u00a0", "penstock/1f/2"])
def test_a_good_key_is_taken(key: str) -> None:
    """Any other text."""
    check_keys([key])


def test_one_text_is_no_list_of_keys() -> None:
    """Its letters would be taken for keys."""
    with pytest.raises(BadArgument, match="one string"):
        check_keys("abc")


def test_keys_of_a_put_are_different() -> None:
    """Those that repeat are named."""
    check_keys(["a", "b", "a"])
    with pytest.raises(BadArgument, match="'a'") as caught:
        check_keys(["a", "b", "a"], unique=True)
    assert caught.value.keys == ["a"]
