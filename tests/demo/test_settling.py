"""Settling: whatever is left in the plane when nobody lives any more is trained or evicted, and written down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penstock.demo.messages import StepRecord
from penstock.demo.settling import settle
from penstock.demo.spec import PARTITION, SCORE_TASK, TRAIN_FIELDS, TRAIN_TASK
from penstock.errors import LeaseLost
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.testing.checker import Entry, EventLog, Evicted, Trained, read_log

TRAINED = Trained("after", "a", "ff", 0, 1, 0)


class World:
    """A plane that holds ``keys``, and the launcher's log."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self.plane = NoOpDataPlaneClient()
        self.plane.register_partition(PARTITION, TRAIN_FIELDS, 0, [SCORE_TASK, TRAIN_TASK], 1)
        if keys:
            columns = {name: torch.zeros(len(keys)) for name in TRAIN_FIELDS}
            self.plane.put_samples(keys, PARTITION, columns, [{"group_id": key} for key in keys])
        self.log = EventLog(folder / "launcher.jsonl")

    def settle(self, record: StepRecord | None, entries: list[Entry]) -> list[Entry]:
        settle(self.plane, self.log, record, entries)
        return read_log(self.log.path)

    def books(self) -> tuple[int, dict[str, int], int]:
        (books,) = self.plane.audit(PARTITION).partitions
        return books.trained, books.evicted, books.in_flight


def test_the_rows_of_a_step_that_nobody_popped_are_popped_and_the_rest_is_evicted(tmp_path: Path) -> None:
    """The controller was gone when the trainer saved its last step."""
    world = World(tmp_path, ["a", "b"])
    log = world.settle(StepRecord(step=1, keys=["a"]), [TRAINED])
    assert world.books() == (1, {"run over": 1}, 0)
    assert log == [Evicted("before", "b", "run over"), Evicted("after", "b", "run over")]


@pytest.mark.parametrize("record", [None, StepRecord(step=0), StepRecord(step=1, keys=["z"])])
def test_a_step_that_was_popped_is_not_popped_again(tmp_path: Path, record: StepRecord | None) -> None:
    """Nothing of it is there: nothing is counted."""
    world = World(tmp_path, ["b"])
    world.settle(record, [])
    assert world.books() == (0, {"run over": 1}, 0)


def test_an_eviction_that_its_controller_died_in_is_completed_in_the_log(tmp_path: Path) -> None:
    """The row is gone, so it was evicted; one that is still there is evicted now; one that was trained was not."""
    world = World(tmp_path, ["b"])
    begun: list[Entry] = [Evicted("before", key, "stale") for key in ("a", "b", "c", "d")]
    log = world.settle(None, [*begun, TRAINED, Evicted("after", "d", "stale")])
    assert log == [
        Evicted("before", "b", "run over"),
        Evicted("after", "b", "run over"),
        Evicted("after", "c", "stale"),
    ]


def test_rows_that_somebody_else_leases_are_not_popped(tmp_path: Path) -> None:
    """That nobody lives is what the launcher sees to; if it is not so, it is told."""
    world = World(tmp_path, ["a"])
    other = world.plane.peer()
    meta = other.claim_meta(PARTITION, TRAIN_TASK, list(TRAIN_FIELDS), 1, blocking=False)
    assert meta.size == 1
    with pytest.raises(LeaseLost):
        world.settle(StepRecord(step=1, keys=["a"], lease=["0:0"]), [])
