"""The trainer by itself: a step is made once, whoever orders it however often."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penstock.demo.checkpoint import latest_step
from penstock.demo.messages import Rollout, Train, Trained, Unreadable
from penstock.demo.spec import PARTITION, TRAIN_FIELDS, TRAIN_TASK, RunSpec, TaskSpec
from penstock.demo.trainer import Trainer
from penstock.errors import BadArgument, CorruptPayload
from penstock.testing.checker import EventLog, read_log
from tests.demo.hall import Hall, attempts

SMALL = RunSpec(task=TaskSpec(length=3, digits=4), group_size=4, groups_per_step=2, prompts_per_order=2)


def first_order(hall: Hall) -> Train:
    """Bring the run up to the first step's order, which is not carried out."""
    hall.role("worker").roll_out(Rollout(0, attempts(0, 1)))
    hall.role("scorer").score_next(wait_s=0.0)
    rows = SMALL.groups_per_step * SMALL.group_size
    return Train(1, hall.plane.peer().claim_meta(PARTITION, TRAIN_TASK, list(TRAIN_FIELDS), rows))


def trainer_of(hall: Hall) -> Trainer:
    role = hall.role("trainer")
    assert isinstance(role, Trainer)
    return role


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer._policy.parameters()])


def test_a_step_ordered_again_is_not_made_again(tmp_path: Path) -> None:
    """The record answers: no second gradient step, no second line in the log."""
    hall = Hall(tmp_path, SMALL)
    order, trainer = first_order(hall), trainer_of(hall)
    first = trainer.train(order)
    after, lines = weights(trainer), [len(read_log(path)) for path in sorted(hall.files.journals.iterdir())]
    again = trainer.train(order)
    assert isinstance(first, Trained)
    assert isinstance(again, Trained)
    assert first.record == again.record
    assert torch.equal(weights(trainer), after)
    assert [len(read_log(path)) for path in sorted(hall.files.journals.iterdir())] == lines


def test_a_new_life_knows_the_step_of_the_one_before(tmp_path: Path) -> None:
    """It says so when it is ready, stands on the same weights, and completes the log."""
    hall = Hall(tmp_path, SMALL)
    order, trainer = first_order(hall), trainer_of(hall)
    trainer.train(order)
    log = EventLog(hall.files.journals / "next-life.jsonl")
    life = Trainer(hall.files, hall.plane.peer(), log)
    assert life.record == trainer.record
    assert torch.equal(weights(life), weights(trainer))
    assert len(read_log(log.path)) == len(order.meta.sample_ids)


def test_a_damaged_row_is_named_and_nothing_is_learnt(tmp_path: Path) -> None:
    """The controller is told which rows cannot be read; the weights stay what they were."""
    hall = Hall(tmp_path, SMALL)
    order, trainer = first_order(hall), trainer_of(hall)
    before, victim = weights(trainer), order.meta.sample_ids[3]

    def damage(call: str) -> None:
        if call == "get_data":
            raise CorruptPayload("checksum", keys=[victim])

    trainer._client._fate = damage  # type: ignore[attr-defined]
    assert trainer.train(order) == Unreadable(1, [victim], "checksum")
    assert torch.equal(weights(trainer), before)
    assert latest_step(hall.files.checkpoints) == 0


def test_a_step_that_was_not_saved_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies before the save is followed by a life on the old weights, which makes the very same step."""
    hall = Hall(tmp_path, SMALL)
    order, trainer = first_order(hall), trainer_of(hall)
    before = weights(trainer)
    with monkeypatch.context() as patch:
        patch.setattr("penstock.demo.trainer.save_training", lambda *_args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer.train(order)
    life = Trainer(hall.files, hall.plane.peer(), EventLog(hall.files.journals / "next-life.jsonl"))
    assert torch.equal(weights(life), before)
    assert isinstance(life.train(order), Trained)
    assert torch.equal(weights(life), weights(trainer))
    assert latest_step(hall.files.checkpoints) == 1


def test_a_step_out_of_turn_is_refused(tmp_path: Path) -> None:
    """A gap between steps would be a bug of the controller's."""
    hall = Hall(tmp_path, SMALL)
    order = first_order(hall)
    with pytest.raises(BadArgument, match="step 3 after step 0"):
        trainer_of(hall).train(Train(3, order.meta))
