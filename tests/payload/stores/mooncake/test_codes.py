"""What each code of Mooncake means."""

from __future__ import annotations

import pytest

from penstock.payload.stores.mooncake.codes import LATE, MISSING, NOT_SENT, meaning_of, told
from penstock.retry import Kind

RETRYABLE = [-800, -707, -703, -900, -901, -101, -103, -702, -708, -714, -1010]


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        (Kind.RETRYABLE, RETRYABLE),
        (Kind.BACKPRESSURE, [-200, -1700]),
        (Kind.MISSING, [MISSING]),
        (Kind.FATAL, [-400, -600, -601, -1012]),
        (Kind.CORRUPT, [-801]),
    ],
)
def test_codes_are_of_their_kind(kind: Kind, codes: list[int]) -> None:
    """As observed, and written down."""
    assert {code: meaning_of(code).kind for code in codes} == dict.fromkeys(codes, kind)
    assert all(meaning_of(code).known for code in codes)


@pytest.mark.parametrize("code", [-9999, -2, 7])
def test_a_code_that_nobody_wrote_down_is_unknown(code: int) -> None:
    """It may be tried once more; nothing is assumed of its memory."""
    meaning = meaning_of(code)
    assert (meaning.kind, meaning.known, meaning.settled) == (Kind.RETRYABLE, False, False)


@pytest.mark.parametrize("code", [-800, -801, -707, -900, -901, -601, LATE])
def test_after_a_transfer_that_failed_memory_is_not_free(code: int) -> None:
    """The library does not say whether it has ended."""
    assert not meaning_of(code).settled


def test_our_own_words_are_told_as_words() -> None:
    """And the library's codes as its codes, which its users know."""
    assert [told(code) for code in (LATE, NOT_SENT, -800, -9999)] == ["late", "not sent", "-800", "-9999"]
