"""Warnings about peers are counted, and logged at a bounded rate."""

from __future__ import annotations

import logging

import pytest

from penstock.wire.warnings import Warnings


def test_a_flood_of_one_kind_is_one_line_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    """Of a thousand warnings of one kind one is logged at once, the next says how many it stands for."""
    now = 100.0
    warnings = Warnings(logging.getLogger("test"), lambda: now)
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            warnings.warn("malformed", "a frame was malformed")
        warnings.warn("other", "something else")
        now = 120.0
        warnings.warn("malformed", "a frame was malformed")
    assert warnings.counters == {"malformed": 1001, "other": 1}
    assert [r.getMessage() for r in caplog.records] == [
        "a frame was malformed",
        "something else",
        "a frame was malformed (999 more malformed since the last such line)",
    ]
