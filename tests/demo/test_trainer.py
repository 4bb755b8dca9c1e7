"""The trainer by itself: a step is made once, whoever orders it however often."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penstock.demo.checkpoint import latest_step
from penstock.demo.messages import Heard, Here, Train, Trained
from penstock.demo.spec import RunSpec, TaskSpec
from penstock.demo.trainer import Trainer
from penstock.errors import BadArgument
from penstock.testing.checker import EventLog, read_log
from tests.demo.hall import Hall

SMALL = RunSpec(task=TaskSpec(length=3, digits=4), group_size=4, groups_per_step=2, prompts_per_order=2)


def first_order(hall: Hall) -> Train:
    """Let the run go on up to the first step's order, which is not carried out."""
    while True:
        hall.controller.turn()
        train = next((order for _, order in hall.orders if isinstance(order, Train)), None)
        if train is not None:
            return train
        hall.turn()


def trainer_of(hall: Hall) -> Trainer:
    return next(role for role in hall.roles.values() if isinstance(role, Trainer))


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


def test_the_controller_settles_a_step_from_the_record_of_a_new_life(tmp_path: Path) -> None:
    """A trainer that died between saving and answering costs nothing: its successor's record is the answer."""
    hall = Hall(tmp_path, SMALL)
    order, trainer = first_order(hall), trainer_of(hall)
    trainer.train(order)
    hall.orders.clear()
    hall.controller.inbox.put(Heard("trainer.99", Here(trainer.record)))
    hall.controller.turn()
    assert len(hall.controller.now.rewards) == 1
    assert not any(isinstance(order, Train) and order.step == 1 for _, order in hall.orders)


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
