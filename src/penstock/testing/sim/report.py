"""Runs many worlds and sums up what they showed. A world that fails is run again, with a trace."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from penstock.controller.machine import ControllerMachine
from penstock.ledger.machine import Ledger
from penstock.testing.sim import stage, steering
from penstock.testing.sim.outcome import Outcome
from penstock.testing.sim.plane import LedgerFactory
from penstock.testing.sim.steering.controller import MachineFactory

__all__ = ["Kind", "SimReport", "run", "run_controller"]

_MAX_SHOWN = 5  # failing worlds with their traces
_ROWS = ("operations", "acknowledged", "trained", "evicted", "recovered")

Kind: TypeAlias = Literal["plane", "run"]
_Play: TypeAlias = Callable[[int, bool], Outcome]  # seed, traced


class SimReport(msgspec.Struct, frozen=True, kw_only=True):
    """All worlds.

    Attributes:
        kind: ``plane``: clients use a plane; ``run``: a controller steers a run over one.
        failed: worlds in which a promise was broken; ``violations``: how often, over all of them.
        acknowledged, trained, evicted, recovered: rows.
        run: of worlds of runs: steps, prompts, lives of the controller.
        failures: the first few, with their traces; ``penstock sim --kind K --worlds 1 --seed S`` replays one.
    """

    kind: Kind
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
    run: dict[str, int]
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
    """Run ``worlds`` worlds of a plane and its clients, of seeds ``seed``, ``seed + 1``, ...

    Args:
        worlds: how many.
        seed: of the first.
        make_ledger: what to judge; the real ledger, or one with a planted bug.
        checked: check the ledger's invariants after each event.
        traces: run the first failing worlds again to get their traces.
    """

    def play(number: int, traced: bool) -> Outcome:
        return stage.run_world(number, make_ledger=make_ledger, checked=checked, traced=traced)

    return _sum_up("plane", play, worlds, seed, traces)


def run_controller(
    worlds: int,
    seed: int = 0,
    *,
    make_machine: MachineFactory = ControllerMachine,
    checked: bool = False,
    traces: bool = True,
) -> SimReport:
    """Run ``worlds`` worlds of whole runs, of seeds ``seed``, ``seed + 1``, ...

    Args:
        worlds: how many.
        seed: of the first.
        make_machine: what to judge; the real controller's machine, or one with a planted bug.
        checked: check the ledger's invariants, too, after each of its events.
        traces: run the first failing worlds again to get their traces.
    """

    def play(number: int, traced: bool) -> Outcome:
        return steering.run_world(number, make_machine=make_machine, checked=checked, traced=traced)

    return _sum_up("run", play, worlds, seed, traces)


def _sum_up(kind: Kind, play: _Play, worlds: int, seed: int, traces: bool) -> SimReport:
    begun = time.perf_counter()
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    failures: list[Outcome] = []
    for number in range(seed, seed + worlds):
        outcome = play(number, False)
        faults.update(outcome.faults)
        runs.update(outcome.run)
        totals.update({name: getattr(outcome, name) for name in _ROWS})
        if outcome.violations:
            totals["failed"] += 1
            totals["violations"] += len(outcome.violations)
            if len(failures) < _MAX_SHOWN:
                failures.append(play(number, True) if traces else outcome)
    elapsed = time.perf_counter() - begun
    return SimReport(
        kind=kind,
        worlds=worlds,
        seed=seed,
        failed=totals["failed"],
        violations=totals["violations"],
        **{name: totals[name] for name in _ROWS},
        faults=dict(sorted(faults.items())),
        run=dict(runs),
        elapsed_s=elapsed,
        worlds_per_s=worlds / elapsed if elapsed else 0.0,
        failures=failures,
    )
