"""Says when a run was stuck: everybody it needs was well, and nothing happened for ``STUCK_S``.

Invariant: time in which somebody was dead, stopped or only starting does not count; an episode is told once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock.demo.processes import kind_of
from penstock.demo.progress import Progress
from penstock.demo.soak.places import ROLES

if TYPE_CHECKING:
    from penstock.demo.job import Job

__all__ = ["STUCK_S", "StuckWatch", "is_well"]

STUCK_S = 10.0
PLANE_START_S = 3.0  # a plane says nothing: so long after it was started it counts as well


class StuckWatch:
    """Looks now and then.

    Attributes:
        episodes: a sentence for each time that the run was stuck.
    """

    def __init__(self) -> None:
        self.episodes: list[str] = []
        self._since: float | None = None  # everybody is well, and nothing has happened
        self._mark: tuple[int, ...] = ()
        self._told = False

    def look(self, job: Job, stopped: Sequence[int], now: float) -> None:
        """See how ``job`` stands; ``stopped``: the processes that are."""
        self.note(_mark(job.progress), is_well(job, stopped, now), now)

    def note(self, mark: tuple[int, ...], well: bool, now: float) -> None:
        """``mark`` changes with every progress; ``well``: nothing stands against it."""
        if not well or mark != self._mark or self._since is None:
            self._mark, self._since, self._told = mark, now, False
        elif now - self._since >= STUCK_S and not self._told:
            self._told = True
            self.episodes.append(f"nothing happened for {STUCK_S:g} s after step {mark[0]}, and everybody was well")


def _mark(progress: Progress) -> tuple[int, ...]:
    counts = (len(progress.groups), len(progress.prompts), sum(progress.notes.values()))
    return (progress.steps, progress.rows_trained, *counts)


def is_well(job: Job, stopped: Sequence[int], now: float) -> bool:
    """Whether one of each role lives, has said so, and is not stopped."""
    well = set()
    for slot in job.processes.slots():
        life = job.processes.life(slot)
        if life is None or life.process.pid in stopped or life.process.poll() is not None:
            continue
        if life.ready_at is not None or (kind_of(slot) == "plane" and now - life.started_at > PLANE_START_S):
            well.add(kind_of(slot))
    return well >= set(ROLES)
