"""What the logs and the events of a soak say beyond the checker's word. Pure.

Invariants that are checked, each broken one a sentence: the steps are numbered from 1 without a gap and none was made
twice, whoever wrote it down; all that the plane holds at the end is nobody's any more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from penstock.controller.events import Committed, Paused, Recovered, RunEvent, Started, Trained
from penstock.errors import abbreviate
from penstock.requests import AuditReport
from penstock.testing import checker

__all__ = ["Resumption", "Times", "alone", "held_findings", "resumptions", "step_findings"]


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Some durations in seconds, summed up."""

    count: int
    p50: float
    p95: float
    max: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Times | None:
        """Sum them up; None when there are none."""
        if not times:
            return None
        ordered = sorted(times)
        p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
        return cls(count=len(ordered), p50=round(p50, 3), p95=round(p95, 3), max=round(ordered[-1], 3))


def step_findings(entries: Iterable[checker.Entry], last_step: int, rows_per_step: int) -> list[str]:
    """Say which steps are missing or were made of other rows than one step's. ``last_step``: the newest checkpoint's.

    A new life of the trainer writes its last step down again: the same rows, so no more of them.
    """
    rows: defaultdict[int, set[str]] = defaultdict(set)
    for entry in entries:
        if isinstance(entry, checker.Trained) and entry.moment == "after":
            rows[entry.commit].add(entry.key)
    missing = [str(step) for step in range(1, last_step + 1) if step not in rows]
    beyond = [str(step) for step in sorted(rows) if step > last_step]
    twice = [str(step) for step, keys in sorted(rows.items()) if len(keys) > rows_per_step]
    in_part = [str(step) for step, keys in sorted(rows.items()) if len(keys) < rows_per_step]
    said = (("missing", missing), ("beyond the newest checkpoint", beyond), ("made twice", twice), ("partial", in_part))
    return [f"{len(steps)} steps {what}: {abbreviate(steps)}" for what, steps in said if steps]


class Resumption(NamedTuple):
    """The plane was away, and is back. Seconds since the epoch: its first answer, and the next work on it."""

    back_at: float
    work_at: float

    @property
    def seconds(self) -> float:
        return self.work_at - self.back_at


def resumptions(events: Iterable[RunEvent]) -> list[Resumption]:
    """Return each time that the plane was away and the run went on.

    Work is a group that was committed, or a step that was made. A controller that died meanwhile tells nothing.
    """
    found: list[Resumption] = []
    is_away, back_at = False, None
    for event in events:
        match event:
            case Started():
                is_away, back_at = False, None
            case Paused():
                is_away = True
            case Recovered(at=at, plane_s=plane_s) if is_away:
                is_away, back_at = False, at - plane_s
            case Trained(at=at) | Committed(at=at) if back_at is not None:
                found.append(Resumption(back_at, at))
                back_at = None
    return found


def alone(found: Iterable[Resumption], others: Sequence[tuple[float, float]]) -> list[Resumption]:
    """Return those at which nobody but the plane was missing. ``others``: from when until when somebody was."""
    return [r for r in found if not any(begin <= r.work_at and end >= r.back_at for begin, end in others)]


def held_findings(audit: AuditReport) -> list[str]:
    """Say what is still in the plane, or leased, though the run is over and settled."""
    return [
        f"{p.partition}: {p.in_flight} rows in flight and {p.leased} leased, {p.live_bytes} bytes, when all was settled"
        for p in audit.partitions
        if p.in_flight or p.leased or p.live_bytes
    ]
