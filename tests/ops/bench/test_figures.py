"""Numbers from laps."""

from __future__ import annotations

import pytest

from penstock.ops.bench.figures import Measured, figures_of, goals_of, ledger_goals_of, ratios_of
from penstock.ops.bench.scaling import LedgerFigures

MEMCPY = Measured("memcpy", "ragged", 1_000_000, 400_000, {"put": [0.001], "get": [0.0005]})
OWN = Measured(
    "penstock",
    "ragged",
    1_000_000,
    400_000,
    {"put": [0.004, 0.002, 0.100], "get": [0.001], "get half": [0.001], "claim": [0.002]},
)
OTHER = Measured("transferqueue", "ragged", 1_000_000, 400_000, {"put": [0.1], "get": [0.01], "get half": [0.004]})


def test_rate_is_of_the_median_lap_and_the_bytes_that_moved() -> None:
    """A slow outlier changes the range, not the figure; a half counts its own bytes."""
    found = {(f.peer, f.operation): f for f in figures_of([MEMCPY, OWN])}
    put = found["penstock", "put"]
    assert (put.median_ms, put.best_ms, put.worst_ms, put.laps) == (4.0, 2.0, 100.0, 3)
    assert put.mb_s == pytest.approx(250)
    assert found["penstock", "get half"].mb_s == pytest.approx(400)


def test_memcpy_of_the_same_direction_is_the_measure() -> None:
    """Puts are compared with the copy in, reads with the copy out; what moves no bytes has no rate."""
    found = {(f.peer, f.operation): f for f in figures_of([MEMCPY, OWN])}
    assert found["penstock", "put"].of_memcpy == pytest.approx(0.25)
    assert found["penstock", "get"].of_memcpy == pytest.approx(0.5)
    assert found["penstock", "claim"].mb_s is None


def test_ratio_to_each_peer_where_both_do_it() -> None:
    """How many times the peer's rate, for operations that both have."""
    found = {(r.other, r.operation): r.ratio for r in ratios_of(figures_of([MEMCPY, OWN, OTHER]), "penstock")}
    assert found["transferqueue", "put"] == pytest.approx(25)
    assert ("memcpy", "get half") not in found


def test_goals_are_judged_only_where_measured() -> None:
    """A goal without a figure in this run is not judged; one that is missed is not met."""
    figures = figures_of([MEMCPY, OWN, OTHER])
    goals = {g.what: g for g in goals_of(figures, ratios_of(figures, "penstock"))}
    assert goals["ragged put / transferqueue"].met
    assert not goals["ragged put, MB/s"].met
    assert not any(what.startswith("dense") for what in goals)


def test_without_memcpy_there_are_rates_only() -> None:
    """No limit measured, no ratio to it."""
    assert all(f.of_memcpy is None for f in figures_of([OWN]))


def test_ledgers_goals_are_upper_bounds() -> None:
    """Cost ratio, bytes a row and restart are judged for all sizes but the smallest."""

    def of_size(rows: int, ratio: float, bytes_per_row: float) -> LedgerFigures:
        return LedgerFigures(rows, {"pop": 1.0}, {"pop": ratio}, {"pop": 1.0}, {"pop": ratio}, bytes_per_row, 2.0)

    goals = {g.what: g.met for g in ledger_goals_of([of_size(1000, 1.0, 900), of_size(2000, 1.4, 400)])}
    assert goals == {"pop, 2,000 rows / fewest": False, "bytes a row, 2,000 rows": True, "restart s, 2,000 rows": True}
