"""The verdict: planted faults in logs and events are found, and what is right is not."""

from __future__ import annotations

import pytest

from penstock.controller.events import Committed, Paused, Recovered, RunEvent, Started, Trained
from penstock.demo.soak.verdict import Resumption, Times, alone, held_findings, resumptions, step_findings
from penstock.requests import AuditReport, PartitionAudit
from penstock.testing import checker


def told(step: int, *keys: str) -> list[checker.Entry]:
    return [checker.Trained("after", key, "00", 0, step, step - 1) for key in keys]


RIGHT = [*told(1, "a", "b"), *told(2, "c", "d"), *told(2, "c", "d")]  # a new life writes its last step down again


def test_steps_in_order_are_right() -> None:
    """Also when a new life of the trainer told the last one again, and when one was begun in vain."""
    begun = [checker.Trained("before", key, "00", 0, 3, 2) for key in ("e", "f")]
    assert step_findings([*RIGHT, *begun], 2, 2) == []
    assert step_findings([], 0, 2) == []


@pytest.mark.parametrize(
    ("planted", "last_step", "says"),
    [
        (told(4, "g", "h"), 4, "1 steps missing: '3'"),
        (told(3, "e", "f"), 2, "1 steps beyond the newest checkpoint: '3'"),
        (told(2, "x", "y"), 2, "1 steps made twice: '2'"),
        (told(3, "e"), 3, "1 steps partial: '3'"),
    ],
)
def test_planted_steps_are_found(planted: list[checker.Entry], last_step: int, says: str) -> None:
    """A gap, one that no checkpoint knows of, one that was made of two sets of rows, one of too few."""
    assert step_findings([*RIGHT, *planted], last_step, 2) == [says]


def committed(at: float) -> Committed:
    return Committed(at=at, group_id="g", prompt=0, keys=[], version=0, end_version=0, size_bytes=0)


def back(at: float, plane_s: float) -> Recovered:
    return Recovered(at=at, seconds=9.0, plane_s=plane_s, incarnation=2, empty=False, kept=0, again=0)


def test_a_plane_that_is_back_is_followed_by_work() -> None:
    """From its first answer to the next group or step; a second group counts no more; each time anew."""
    first: list[RunEvent] = [committed(1.0), Paused(at=2.0, why=""), back(5.0, 0.5), committed(5.25), committed(7.0)]
    second: list[RunEvent] = [
        Paused(at=8.0, why=""),
        back(10.0, 0.0),
        Trained(at=12.0, step=1, groups=[], rows=8, seconds=1.0),
    ]
    assert resumptions([*first, *second]) == [Resumption(4.5, 5.25), Resumption(10.0, 12.0)]


@pytest.mark.parametrize(
    "events",
    [
        [back(5.0, 0.0), committed(6.0)],
        [Paused(at=2.0, why=""), Started(at=4.0, step=1, cursor=8, open_prompts=0), back(5.0, 0.0), committed(6.0)],
        [Paused(at=2.0, why=""), back(3.0, 0.0), Started(at=4.0, step=1, cursor=8, open_prompts=0), committed(6.0)],
        [Paused(at=2.0, why=""), back(3.0, 0.0)],
    ],
)
def test_a_controllers_own_return_is_not_the_planes(events: list[RunEvent]) -> None:
    """The first look of a new life is no return of the plane; nor does a controller that died tell how long it took."""
    assert resumptions(events) == []


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [1.0, 2.0]),
        ([(0.0, 4.0)], [1.0, 2.0]),
        ([(0.0, 5.5)], [2.0]),
        ([(5.5, 5.6)], [2.0]),
        ([(5.5, 99.0)], []),
        ([(20.0, 99.0)], [1.0, 2.0]),
    ],
)
def test_a_return_with_somebody_else_missing_is_told_apart(
    others: list[tuple[float, float]], left: list[float]
) -> None:
    """Who was struck before and is not at work, or is struck in between, is why it takes so long."""
    both = [Resumption(5.0, 6.0), Resumption(10.0, 12.0)]
    assert [one.seconds for one in alone(both, others)] == left


def test_what_is_still_held_when_all_was_settled_is_found() -> None:
    """Rows in flight, leases, bytes: each by name of the partition; books that are empty say nothing."""
    clean = PartitionAudit(partition="val", put=8, trained=8)
    left = PartitionAudit(partition="train", put=8, trained=4, in_flight=3, leased=1, live_bytes=512)
    assert held_findings(AuditReport(incarnation=1, partitions=[clean])) == []
    (said,) = held_findings(AuditReport(incarnation=1, partitions=[clean, left]))
    assert said.startswith("train: 3 rows in flight and 1 leased, 512 bytes")


def test_durations_are_summed_up_by_rank() -> None:
    """Percentiles are times that were measured, never ones in between; of none there is nothing to say."""
    assert Times.of([]) is None
    assert Times.of([2.0]) == Times(count=1, p50=2.0, p95=2.0, max=2.0)
    assert Times.of([float(i) for i in range(100, 0, -1)]) == Times(count=100, p50=50.0, p95=95.0, max=100.0)
    assert Times.of([1.0, 3.0, 2.0]) == Times(count=3, p50=2.0, p95=3.0, max=3.0)
