"""Exhaustive exploration of the ledger: leases and commits, and hosts, by every path of a few actions.

Breadth first, so that what it finds is as short as can be; two paths that lead to the same state up to the names of
tokens are followed once. Each state is reached by running its path again on a fresh ledger: nothing is copied, and a
path that is printed can be run.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TypeAlias

import msgspec

from penstock.ledger.machine import Ledger
from penstock.testing.explore.hosts import HostRig, HostShape
from penstock.testing.explore.hosts_planted import PLANTED_ON_HOSTS
from penstock.testing.explore.planted import PLANTED
from penstock.testing.explore.rig import Rig, Shape
from penstock.testing.explore.shell import Action, LedgerFactory

__all__ = ["HOST_SHAPES", "SHAPES", "AnyShape", "ExploreReport", "Finding", "explore", "run"]

AnyShape: TypeAlias = Shape | HostShape
Path: TypeAlias = tuple[Action, ...]

SHAPES = (
    Shape("one row, quarantine", rows=1, tasks=("train",), max_deliveries=1, depth=5),
    Shape("one row, two tasks", rows=1, tasks=("logp", "train"), max_deliveries=2, depth=4),
    Shape("one row, slow puts", rows=1, tasks=("train",), max_deliveries=9, depth=4, slow_puts=True),
    Shape("two rows, one task", rows=2, tasks=("train",), max_deliveries=2, depth=4),
)
HOST_SHAPES = (
    HostShape("a put on one host", puts=("one",), depth=8),
    HostShape("a put on two hosts if there are two", puts=("two",), depth=8),
    HostShape("a put that needs two hosts", puts=("both",), depth=7),
    HostShape("one put after the other", puts=("two", "one"), depth=6),
)
_PLANTED: tuple[tuple[type[AnyShape], dict[str, LedgerFactory]], ...] = (
    (Shape, PLANTED),
    (HostShape, PLANTED_ON_HOSTS),
)


class Finding(msgspec.Struct, frozen=True):
    """A path to a state that must not be."""

    shape: str
    path: list[str]
    what: str


class Exploration(msgspec.Struct, frozen=True):
    """One configuration, explored. ``complete``: to its full depth, within the time."""

    shape: str
    states: int
    transitions: int
    complete: bool
    finding: Finding | None


class ExploreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was explored and found.

    Attributes:
        violations: how many of the configurations of the real ledger broke a promise; 0 is the promise.
        findings: the shortest path to each of them.
        planted: for each planted bug, the shortest path to it; None = it was not found.
        complete: every configuration was explored to its depth.
    """

    states: int
    transitions: int
    violations: int
    findings: list[Finding]
    planted: dict[str, Finding | None]
    planted_found: int
    planted_total: int
    complete: bool
    elapsed_s: float

    @property
    def ok(self) -> bool:
        """No violation, and every planted bug was found."""
        return self.violations == 0 and self.planted_found == self.planted_total


def run(*, shapes: tuple[AnyShape, ...] = (*SHAPES, *HOST_SHAPES), budget_s: float = 120.0) -> ExploreReport:
    """Explore the real ledger in each of ``shapes``, then hunt every bug planted in what such shapes are about.

    Args:
        shapes: what to explore; the defaults take about 40 s of one core.
        budget_s: of processor time; after that it ends anyway, and is not ``complete``.
    """
    begun, wall = time.process_time(), time.perf_counter()
    real = [explore(shape, Ledger, _left(begun, budget_s)) for shape in shapes]
    planted: dict[str, Finding | None] = {}
    for kind, bugs in _PLANTED:
        of_kind = tuple(shape for shape in shapes if isinstance(shape, kind))
        for name, bug in bugs.items() if of_kind else ():
            planted[name] = _hunt(of_kind, bug, _left(begun, budget_s))
    found = sum(finding is not None for finding in planted.values())
    return ExploreReport(
        states=sum(e.states for e in real),
        transitions=sum(e.transitions for e in real),
        violations=sum(e.finding is not None for e in real),
        findings=[e.finding for e in real if e.finding is not None],
        planted=planted,
        planted_found=found,
        planted_total=len(planted),
        complete=all(e.complete for e in real),
        elapsed_s=time.perf_counter() - wall,
    )


def _left(begun: float, budget_s: float) -> float:
    return max(0.0, begun + budget_s - time.process_time())


def _hunt(shapes: tuple[AnyShape, ...], bug: LedgerFactory, budget_s: float) -> Finding | None:
    """Return the shortest path to the bug, over all shapes."""
    begun = time.process_time()
    for depth in range(1, max(shape.depth for shape in shapes) + 1):
        for shape in shapes:
            if depth <= shape.depth:
                finding = explore(replace(shape, depth=depth), bug, _left(begun, budget_s)).finding
                if finding is not None:
                    return finding
    return None


def explore(shape: AnyShape, make_ledger: LedgerFactory, budget_s: float) -> Exploration:
    """Follow every path of ``shape.depth`` actions, or until something is found or the time is over."""
    until = time.process_time() + budget_s
    seen: set[object] = set()
    transitions = 0

    def end(complete: bool, path: Path = (), what: str = "") -> Exploration:
        told = [" ".join(map(str, step)) for step in (*shape.start, *path)]
        return Exploration(
            shape.name, len(seen), transitions, complete, Finding(shape.name, told, what) if what else None
        )

    what = _broken_by(shape, make_ledger, (), seen)
    if what:
        return end(False, (), what)
    queue: deque[Path] = deque([()])
    while queue:
        path = queue.popleft()
        for action in _after(shape, make_ledger, path).enabled():
            if time.process_time() > until:
                return end(False)
            transitions += 1
            known = len(seen)
            what = _broken_by(shape, make_ledger, (*path, action), seen)
            if what:
                return end(False, (*path, action), what)
            if len(seen) > known and len(path) + 1 < shape.depth:
                queue.append((*path, action))
    return end(True)


def _after(shape: AnyShape, make_ledger: LedgerFactory, path: Path) -> Rig | HostRig:
    """Walk a path that has been checked before."""
    rig = shape.rig(make_ledger)
    for action in (*shape.start, *path):
        rig.apply(action, checked=False)
    return rig


def _broken_by(shape: AnyShape, make_ledger: LedgerFactory, path: Path, seen: set[object]) -> str:
    """Take the last step of ``path``, checked; note a new state, which must survive a crash. Return what went wrong."""
    try:
        rig = _after(shape, make_ledger, path[:-1])
        for action in path[-1:]:
            rig.apply(action)
        state = rig.canonical()
        if state not in seen:
            rig.check_recovery()
            seen.add(state)
    except Exception as broken:  # noqa: BLE001  # top frame of a step: whatever broke is the finding
        return f"{type(broken).__name__}: {broken}"
    return ""
