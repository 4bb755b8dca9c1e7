"""What was measured, as numbers: medians, rates and ratios. Pure; the only place where they are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.ops.bench.scaling import LedgerFigures

__all__ = ["Figure", "Goal", "Measured", "Ratio", "figures_of", "goals_of", "ledger_goals_of", "ratios_of"]

MOVES = ("put", "put list", "get", "get header", "get half")  # operations that move the batch's bytes
_MEGA = 1e6


@dataclass(frozen=True)
class Measured:
    """All laps of one peer with one batch."""

    peer: str
    batch: str
    nbytes: int
    half_nbytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """One operation of one peer.

    Attributes:
        mb_s: payload megabytes (10^6) a second; None for operations that move no payload.
        of_memcpy: its rate over that of memcpy in the same direction, in the same run.
    """

    peer: str
    batch: str
    operation: str
    median_ms: float
    best_ms: float
    worst_ms: float
    laps: int
    mb_s: float | None
    of_memcpy: float | None


@dataclass(frozen=True)
class Ratio:
    """How many times faster ``peer`` is than ``other`` at an operation, by medians."""

    batch: str
    operation: str
    peer: str
    other: str
    ratio: float


@dataclass(frozen=True)
class Goal:
    """A figure the design promises, and what this run measured. ``at_most``: less is better."""

    what: str
    goal: float
    measured: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal


def figures_of(measured: Sequence[Measured]) -> list[Figure]:
    """Return a figure for each operation that was measured."""
    limits = {m.batch: m for m in measured if m.peer == "memcpy"}
    return [_figure(m, operation, limits.get(m.batch)) for m in measured for operation in m.seconds]


def _figure(measured: Measured, operation: str, limit: Measured | None) -> Figure:
    laps = measured.seconds[operation]
    moved = measured.half_nbytes if operation == "get half" else measured.nbytes
    rate = moved / median(laps) / _MEGA if operation in MOVES else None
    of_memcpy = None
    if rate is not None and limit is not None:
        direction = "put" if operation.startswith("put") else "get"
        of_memcpy = rate / (limit.nbytes / median(limit.seconds[direction]) / _MEGA)
    milli = [1e3 * s for s in laps]
    return Figure(
        measured.peer, measured.batch, operation, median(milli), min(milli), max(milli), len(laps), rate, of_memcpy
    )


def ratios_of(figures: Sequence[Figure], peer: str) -> list[Ratio]:
    """Return how ``peer`` compares with each other peer, where both do the same; a blob has no half to read."""
    own = {(f.batch, f.operation): f.mb_s for f in figures if f.peer == peer and f.mb_s is not None}
    return [
        Ratio(f.batch, f.operation, peer, f.peer, own[f.batch, f.operation] / f.mb_s)
        for f in figures
        if f.peer != peer and f.mb_s is not None and (f.batch, f.operation) in own
    ]


_OF_MEMCPY = (  # (batch, operation, goal): rates over memcpy
    ("dense", "put", 0.5),
    ("dense", "get header", 20.0),
    ("dense", "get", 1.5),
    ("dense", "get half", 0.3),
)
_RATES = (("ragged", "put", 2000.0), ("ragged", "get", 2000.0), ("ragged", "get half", 1000.0))  # MB/s
_OF_PEER = (("ragged", "put", "transferqueue", 20.0), ("ragged", "get", "transferqueue", 20.0))


def goals_of(figures: Sequence[Figure], ratios: Sequence[Ratio]) -> list[Goal]:
    """Return the design's goals that this run has figures for."""
    own: Mapping[tuple[str, str], Figure] = {(f.batch, f.operation): f for f in figures if f.peer == "penstock"}
    beside = {(r.batch, r.operation, r.other): r.ratio for r in ratios}
    found = [
        Goal(f"{batch} {operation} / memcpy", goal, figure.of_memcpy)
        for batch, operation, goal in _OF_MEMCPY
        if (figure := own.get((batch, operation))) is not None and figure.of_memcpy is not None
    ]
    found += [
        Goal(f"{batch} {operation}, MB/s", goal, figure.mb_s)
        for batch, operation, goal in _RATES
        if (figure := own.get((batch, operation))) is not None and figure.mb_s is not None
    ]
    found += [
        Goal(f"{batch} {operation} / {other}", goal, beside[batch, operation, other])
        for batch, operation, other, goal in _OF_PEER
        if (batch, operation, other) in beside
    ]
    return found


_COST_RATIO, _BYTES_A_ROW, _RESTART_S = 1.3, 500.0, 3.0


def ledger_goals_of(found: Sequence[LedgerFigures]) -> list[Goal]:
    """Return the design's goals for the ledger: many live rows cost what few do."""
    goals = []
    for figures in found[1:]:
        rows = f"{figures.live_rows:,} rows"
        goals += [Goal(f"{name}, {rows} / fewest", _COST_RATIO, r, True) for name, r in figures.of_smallest.items()]
        goals.append(Goal(f"bytes a row, {rows}", _BYTES_A_ROW, figures.bytes_per_row, True))
        goals.append(Goal(f"restart s, {rows}", _RESTART_S, figures.restart_s, True))
    return goals
