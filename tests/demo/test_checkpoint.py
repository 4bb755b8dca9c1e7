"""Checkpoints: weights, optimizer and record in one file, whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from penstock.demo.checkpoint import (
    KEPT,
    latest_step,
    load_policy,
    load_training,
    read_record,
    save_training,
    step_path,
)
from penstock.demo.messages import StepRecord
from penstock.demo.model import Policy
from penstock.demo.spec import ModelSpec

SPEC = ModelSpec(vocab=5, context=4, width=8, layers=1, heads=2)


def fresh(seed: int) -> tuple[Policy, torch.optim.Adam]:
    torch.manual_seed(seed)
    policy = Policy(SPEC)
    return policy, torch.optim.Adam(policy.parameters(), lr=0.1)


def step(policy: Policy, adam: torch.optim.Adam) -> None:
    adam.zero_grad()
    policy(torch.tensor([[1, 2, 3]])).square().sum().backward()
    adam.step()


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    """The optimizer's memory is saved too: two steps with a death between them equal two steps without."""
    policy, adam = fresh(0)
    step(policy, adam)
    save_training(tmp_path, policy, adam, StepRecord(step=1, keys=["a"], lease=["t"], reward=0.5))
    step(policy, adam)
    again, adam_again = fresh(1)
    record = load_training(tmp_path, 1, again, adam_again)
    step(again, adam_again)
    torch.testing.assert_close(weights(policy), weights(again), rtol=0, atol=0)
    assert record == StepRecord(step=1, keys=["a"], lease=["t"], reward=0.5)


def test_a_step_without_optimizer_state_loads(tmp_path: Path) -> None:
    """The initial weights have no optimizer state yet."""
    policy, adam = fresh(0)
    save_training(tmp_path, policy, adam, StepRecord(step=0))
    other, adam_other = fresh(1)
    assert load_training(tmp_path, 0, other, adam_other).step == 0
    torch.testing.assert_close(weights(policy), weights(other), rtol=0, atol=0)


def test_a_worker_loads_the_weights_alone(tmp_path: Path) -> None:
    """``load_policy`` takes what generation needs."""
    policy, adam = fresh(0)
    step(policy, adam)
    save_training(tmp_path, policy, adam, StepRecord(step=1))
    other, _ = fresh(1)
    load_policy(tmp_path, 1, other)
    torch.testing.assert_close(weights(policy), weights(other), rtol=0, atol=0)


def test_a_half_written_file_is_no_step(tmp_path: Path) -> None:
    """Whoever dies while writing leaves a file under another name; the newest step stays what it was."""
    assert latest_step(tmp_path) is None
    policy, adam = fresh(0)
    save_training(tmp_path, policy, adam, StepRecord(step=3))
    step_path(tmp_path, 4).with_suffix(".tmp").write_bytes(b"half")
    assert latest_step(tmp_path) == 3
    assert read_record(tmp_path, 3).step == 3


def test_a_death_while_writing_leaves_the_step_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing appears under the step's name before it is complete and on disk."""
    policy, adam = fresh(0)
    save_training(tmp_path, policy, adam, StepRecord(step=1))

    def die(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("penstock.demo.checkpoint._sync", die)
    with pytest.raises(KeyboardInterrupt):
        save_training(tmp_path, policy, adam, StepRecord(step=2))
    assert latest_step(tmp_path) == 1


def test_old_files_go(tmp_path: Path) -> None:
    """Only the last few steps stay."""
    policy, adam = fresh(0)
    for number in range(KEPT + 3):
        save_training(tmp_path, policy, adam, StepRecord(step=number))
    assert len(list(tmp_path.iterdir())) == KEPT
    assert latest_step(tmp_path) == KEPT + 2
