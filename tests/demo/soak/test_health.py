"""Stuck: nothing happens for ten seconds, and nothing stands against it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import pytest

from penstock.demo.job import Job
from penstock.demo.soak.health import STUCK_S, StuckWatch, is_well


def test_ten_seconds_without_anything_are_told_once() -> None:
    """Then again when something had happened in between."""
    watch = StuckWatch()
    for second in range(int(STUCK_S) * 3):
        watch.note((4,), True, float(second))
    assert [said.split(",")[0] for said in watch.episodes] == ["nothing happened for 10 s after step 4"]
    watch.note((5,), True, 100.0)
    watch.note((5,), True, 100.0 + STUCK_S)
    assert len(watch.episodes) == 2


@pytest.mark.parametrize(("mark", "well"), [((5,), True), ((4,), False)])
def test_progress_and_illness_begin_the_count_anew(mark: tuple[int, ...], well: bool) -> None:
    """Whatever moves is progress; while somebody is dead or stopped nothing is expected."""
    watch = StuckWatch()
    watch.note((4,), True, 0.0)
    watch.note(mark, well, STUCK_S - 1)
    watch.note(mark, True, 2 * STUCK_S - 2)
    assert watch.episodes == []


@dataclass
class FakeProcess:
    pid: int
    status: int | None = None

    def poll(self) -> int | None:
        return self.status


@dataclass
class FakeLife:
    process: FakeProcess
    ready_at: float | None = 1.0
    started_at: float = 0.0


@dataclass
class FakeJob:
    lives: dict[str, FakeLife] = field(default_factory=dict)

    @property
    def processes(self) -> FakeJob:
        return self

    def slots(self) -> list[str]:
        return list(self.lives)

    def life(self, slot: str) -> FakeLife | None:
        return self.lives.get(slot)


def run_of(**changed: FakeLife | None) -> Job:
    slots = ["plane-0", "controller-0", "trainer-0", "scorer-0", "worker-0", "worker-1"]
    lives: dict[str, FakeLife | None] = {slot: FakeLife(FakeProcess(pid)) for pid, slot in enumerate(slots)}
    lives |= {f"{name[:-1]}-{name[-1]}": life for name, life in changed.items()}
    return cast("Job", FakeJob({slot: life for slot, life in lives.items() if life is not None}))


def test_one_of_each_role_is_enough() -> None:
    """One worker of two may be away."""
    assert is_well(run_of(), [], 100.0)
    assert is_well(run_of(worker0=None), [], 100.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"trainer0": None},
        {"trainer0": FakeLife(FakeProcess(7, status=-9))},
        {"scorer0": FakeLife(FakeProcess(7), ready_at=None)},
        {"worker0": None, "worker1": None},
        {"plane0": FakeLife(FakeProcess(7), ready_at=None, started_at=99.0)},
        {"controller0": FakeLife(FakeProcess(99))},  # stopped
    ],
)
def test_who_is_dead_starting_or_stopped_is_not_well(changed: dict[str, FakeLife | None]) -> None:
    """And so nothing is expected of the run."""
    assert not is_well(run_of(**changed), [99], 100.0)


def test_a_plane_counts_a_while_after_its_start() -> None:
    """It says nothing that could be waited for."""
    assert is_well(run_of(plane0=FakeLife(FakeProcess(7), ready_at=None, started_at=90.0)), [], 100.0)
