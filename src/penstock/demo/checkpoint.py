"""A step's weights, optimizer and record in one safetensors file.

Invariants: a file appears whole or not at all (written aside, fsync'd, renamed, folder fsync'd), so weights and the
record of what made them are never apart; the newest file is the run's state; old files go, the last few stay for
workers that are loading them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from safetensors import safe_open

from penstock.demo.messages import StepRecord

__all__ = ["latest_step", "load_policy", "load_training", "read_record", "save_training", "step_path"]

KEPT = 8  # files; a worker is at most a few versions behind
_POLICY, _ADAM = "policy.", "adam."


def step_path(folder: Path, step: int) -> Path:
    """Return the file of step ``step``."""
    return folder / f"step-{step:06d}.safetensors"


def latest_step(folder: Path) -> int | None:
    """Return the newest step there is."""
    return max((int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors")), default=None)


def read_record(folder: Path, step: int) -> StepRecord:
    """Return what step ``step`` consumed; reads no tensor."""
    with safe_open(step_path(folder, step), framework="numpy") as file:
        return msgspec.json.decode(file.metadata()["record"], type=StepRecord)


def save_training(folder: Path, policy: Any, optimizer: Any, record: StepRecord) -> None:
    """Save the state after step ``record.step``; on return it is durable."""
    from safetensors.torch import save_file

    tensors = {_POLICY + name: tensor for name, tensor in policy.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{_ADAM}{number}.{name}": tensor for name, tensor in state.items()}
    final = step_path(folder, record.step)
    aside = final.with_suffix(".tmp")
    save_file(tensors, aside, metadata={"record": msgspec.json.encode(record).decode()})
    _sync(aside)
    aside.replace(final)
    _sync(folder)
    step_path(folder, record.step - KEPT).unlink(missing_ok=True)


def load_policy(folder: Path, step: int, policy: Any) -> None:
    """Load the weights that step ``step`` made."""
    with safe_open(step_path(folder, step), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(_POLICY)]  # noqa: SIM118 - not a mapping
        policy.load_state_dict({name.removeprefix(_POLICY): file.get_tensor(name) for name in names})


def load_training(folder: Path, step: int, policy: Any, optimizer: Any) -> StepRecord:
    """Load the weights and the optimizer's state after step ``step``; return the step's record."""
    load_policy(folder, step, policy)
    states: dict[int, dict[str, Any]] = {}
    with safe_open(step_path(folder, step), framework="pt") as file:
        for full in file.keys():  # noqa: SIM118 - not a mapping
            if full.startswith(_ADAM):
                number, name = full.removeprefix(_ADAM).split(".")
                states.setdefault(int(number), {})[name] = file.get_tensor(full)
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return read_record(folder, step)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
