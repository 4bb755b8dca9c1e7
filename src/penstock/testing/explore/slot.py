"""Exhaustive exploration of the slot machine: every order of a few writes, reads, late ends and deaths.

Breadth first, so that what it finds is as short as can be. Each state is reached by running its path again on a fresh
machine: nothing is copied, and a path that is printed can be run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from penstock.payload.slots import Slots
from penstock.testing.explore.ledger import Exploration, ExploreReport, Finding
from penstock.testing.explore.slot_planted import PLANTED
from penstock.testing.explore.slot_world import Action, MakeSlots, SlotShape, SlotWorld

__all__ = ["LARGE", "SMALL", "explore", "run"]

Path: TypeAlias = tuple[Action, ...]

_HUNT_DEPTHS = (4, 6, 8)

SMALL = (
    SlotShape("consumed, used again", grants=2, attempts=2, modes=("consume",)),
    SlotShape("retained, used again", grants=2, attempts=2, modes=("retain",)),
    SlotShape("both, one death", grants=1, attempts=2, deaths=1),
    SlotShape("both, one pin", grants=1, attempts=2, pins=1, lates=0),
)
LARGE = (
    *SMALL,
    SlotShape("both, used twice again", grants=3, attempts=2),
    SlotShape("both, pins and deaths", grants=2, attempts=2, pins=1, deaths=1),
    SlotShape("consumed, three handlers", grants=2, attempts=3, deaths=1, modes=("consume",)),
    SlotShape("retained, three handlers", grants=2, attempts=3, deaths=1, modes=("retain",)),
    SlotShape("both, three handlers, a pin", grants=1, attempts=3, pins=1),
)


def run(*, shapes: Sequence[SlotShape] = LARGE, budget_s: float = 120.0) -> ExploreReport:
    """Hunt every planted bug in the small shapes, then explore the real machine in each of ``shapes``.

    Args:
        shapes: what to explore.
        budget_s: of processor time; after that it ends anyway, and is not ``complete``.
    """
    until, wall = time.process_time() + budget_s, time.perf_counter()
    planted = {name: _hunt(bug, until) for name, bug in PLANTED.items()}
    real = [explore(shape, Slots, until) for shape in shapes]
    findings = [e.finding for e in real if e.finding is not None]
    return ExploreReport(
        states=sum(e.states for e in real),
        transitions=sum(e.transitions for e in real),
        violations=len(findings),
        findings=findings,
        planted=planted,
        planted_found=sum(finding is not None for finding in planted.values()),
        planted_total=len(PLANTED),
        complete=all(e.complete for e in real),
        elapsed_s=time.perf_counter() - wall,
    )


def _hunt(bug: MakeSlots, until: float) -> Finding | None:
    """Return a path to the bug: within a few steps in any of the small shapes, else within more."""
    findings = (explore(shape, bug, until, depth=depth).finding for depth in _HUNT_DEPTHS for shape in SMALL)
    return next((finding for finding in findings if finding is not None), None)


def explore(shape: SlotShape, make_slots: MakeSlots, until: float, depth: int | None = None) -> Exploration:
    """Visit every state of ``shape``, until something is found, or until that much processor time is used.

    With ``depth`` only so many actions from the beginning.
    """
    seen: set[object] = {SlotWorld(shape, make_slots).canonical()}
    queue: deque[Path] = deque([()])
    transitions = 0

    def end(complete: bool, path: Path = (), what: str = "") -> Exploration:
        told = [" ".join(map(str, step)) for step in path]
        finding = Finding(shape.name, told, what) if what else None
        return Exploration(shape.name, len(seen), transitions, complete, finding)

    while queue:
        path = queue.popleft()
        for action in list(_after(shape, make_slots, path).enabled()):
            if time.process_time() > until:
                return end(False)
            transitions += 1
            what, state = _step(shape, make_slots, path, action)
            if what:
                return end(False, (*path, action), what)
            if state not in seen:
                seen.add(state)
                if depth is None or len(path) + 1 < depth:
                    queue.append((*path, action))
    return end(True)


def _after(shape: SlotShape, make_slots: MakeSlots, path: Path) -> SlotWorld:
    """Walk a path that has been checked before."""
    world = SlotWorld(shape, make_slots)
    for action in path:
        world.apply(action, checked=False)
    return world


def _step(shape: SlotShape, make_slots: MakeSlots, path: Path, action: Action) -> tuple[str, object]:
    """Take one step more, checked; return what broke, or the state it led to."""
    world = _after(shape, make_slots, path)
    try:
        world.apply(action)
    except Exception as broken:  # noqa: BLE001  # top frame of a step: whatever broke is the finding
        return f"{' '.join(map(str, action))}: {type(broken).__name__}: {broken}", None
    return "", world.canonical()
