"""Runs many worlds and sums up what they showed. A world that fails is run again, with a trace."""

from __future__ import annotations

import time
from collections import Counter

import msgspec

from penstock.ledger.machine import Ledger
from penstock.testing.sim.outcome import Outcome
from penstock.testing.sim.plane import LedgerFactory
from penstock.testing.sim.stage import run_world

__all__ = ["SimReport", "run"]

_MAX_SHOWN = 5  # failing worlds with their traces


class SimReport(msgspec.Struct, frozen=True, kw_only=True):
    """All worlds.

    Attributes:
        failed: worlds in which a promise was broken; ``violations``: how often, over all of them.
        failures: the first few, with their traces; ``penstock sim --worlds 1 --seed S`` replays one.
    """

    worlds: int
    seed: int
    failed: int
    violations: int
    operations: int
    acknowledged: int
    trained: int
    evicted: int
    recovered: int
    faults: dict[str, int]
    elapsed_s: float
    worlds_per_s: float
    failures: list[Outcome]

    @property
    def ok(self) -> bool:
        """Whether every world kept every promise."""
        return self.failed == 0


def run(
    worlds: int, seed: int = 0, *, make_ledger: LedgerFactory = Ledger, checked: bool = True, traces: bool = True
) -> SimReport:
    """Run ``worlds`` worlds of seeds ``seed``, ``seed + 1``, ...

    Args:
        worlds: how many.
        seed: of the first.
        make_ledger: what to judge; the real ledger, or one with a planted bug.
        checked: check the ledger's invariants after each event.
        traces: run the first failing worlds again to get their traces.
    """
    begun = time.perf_counter()
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    failures: list[Outcome] = []
    failed = 0
    for number in range(seed, seed + worlds):
        outcome = run_world(number, make_ledger=make_ledger, checked=checked)
        faults.update(outcome.faults)
        for name in ("operations", "acknowledged", "trained", "evicted", "recovered"):
            totals[name] += getattr(outcome, name)
        if outcome.violations:
            failed += 1
            totals["violations"] += len(outcome.violations)
            if len(failures) < _MAX_SHOWN:
                failures.append(
                    run_world(outcome.seed, make_ledger=make_ledger, checked=checked, traced=True)
                    if traces
                    else outcome
                )
    elapsed = time.perf_counter() - begun
    return SimReport(
        worlds=worlds,
        seed=seed,
        failed=failed,
        violations=totals["violations"],
        operations=totals["operations"],
        acknowledged=totals["acknowledged"],
        trained=totals["trained"],
        evicted=totals["evicted"],
        recovered=totals["recovered"],
        faults=dict(sorted(faults.items())),
        elapsed_s=elapsed,
        worlds_per_s=worlds / elapsed if elapsed else 0.0,
        failures=failures,
    )
