"""The scorer: rows that are removed under its hands cost themselves only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.demo.messages import Rollout
from penstock.demo.rows import group_keys
from penstock.demo.scorer import Scorer
from penstock.demo.spec import PARTITION, SCORE_TASK, RunSpec, TaskSpec
from penstock.errors import LeaseLost
from tests.demo.hall import Doomed, Hall, attempts

SMALL = RunSpec(task=TaskSpec(length=3, digits=4), group_size=4, groups_per_step=2, prompts_per_order=2)
LOST, KEPT = attempts(0, 1)


def hall_with_two_groups(root: Path) -> Hall:
    hall = Hall(root, SMALL)
    worker = next(peer for peer in hall.roles if peer.startswith("worker"))
    hall.roles[worker].roll_out(Rollout(0, [LOST, KEPT]))
    return hall


def scorer_with(hall: Hall, fate: Callable[[str], None]) -> Scorer:
    return Scorer(hall.files, Doomed(hall.plane.peer(), fate))  # type: ignore[arg-type]


@pytest.mark.parametrize(("moment", "scored"), [("get_data", 1), ("put_samples", 1), ("ack", 2)])
def test_a_group_that_is_evicted_meanwhile_costs_itself_only(tmp_path: Path, moment: str, scored: int) -> None:
    """Before the read, before the put, before the ack: the other group is scored and consumed."""
    hall = hall_with_two_groups(tmp_path)
    evicted: list[str] = []

    def evict(call: str) -> None:
        if call == moment and not evicted:
            evicted.extend(group_keys(LOST.group_id, SMALL.group_size))
            hall.plane.evict(evicted, PARTITION)

    assert scorer_with(hall, evict).score_next(wait_s=0.0) == scored * SMALL.group_size
    assert evicted
    (group,) = hall.plane.list_metadata(PARTITION)
    assert (group.group_id, group.tags["prev_version"]) == (KEPT.group_id, 0)
    assert hall.plane.check_consumption_status(PARTITION, [SCORE_TASK])


def test_nothing_ready_is_no_error(tmp_path: Path) -> None:
    """It says that it scored nothing; the next call may find something."""
    hall = Hall(tmp_path, SMALL)
    assert scorer_with(hall, lambda _call: None).score_next(wait_s=0.0) == 0


def test_an_unfinished_group_is_left_alone(tmp_path: Path) -> None:
    """What is not committed may still be withdrawn: it is not scored."""
    hall = hall_with_two_groups(tmp_path)
    hall.plane.put_samples(group_keys(LOST.group_id, 4), PARTITION, tags=[{"committed": False}] * 4)
    assert scorer_with(hall, lambda _call: None).score_next(wait_s=0.0) == SMALL.group_size


def test_a_refusal_that_names_none_of_its_rows_is_raised(tmp_path: Path) -> None:
    """It cannot be mended by leaving rows out; repeating it for ever would hide it."""
    hall = hall_with_two_groups(tmp_path)

    def refuse(call: str) -> None:
        if call == "ack":
            raise LeaseLost("who are you?")

    with pytest.raises(LeaseLost, match="who are you"):
        scorer_with(hall, refuse).score_next(wait_s=0.0)
