"""The verifiable task: write a short sequence of digits backwards.

Invariants: prompt ``i`` of seed ``s`` is always the same, so an index is all that travels and a resumed run repeats
and skips none; the reward is the fraction of right digits, computed by rule, in 0..1.
"""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor

from penstock.demo.spec import TaskSpec

__all__ = ["prompt_digits", "prompt_tokens", "randomness", "rewards"]


def randomness(*names: str | int) -> torch.Generator:
    """Return the source of randomness that ``names`` name.

    They are hashed to 32 bits: torch's CPU generator silently ignores the upper half of a longer seed.
    """
    return torch.Generator().manual_seed(xxhash.xxh32_intdigest(repr(names).encode()))


def prompt_digits(spec: TaskSpec, index: int) -> Tensor:
    """Return question ``index`` as int64 ``[length]``."""
    return torch.randint(spec.digits, (spec.length,), generator=randomness("prompt", spec.seed, index))


def prompt_tokens(spec: TaskSpec, index: int) -> Tensor:
    """Return question ``index`` as the model reads it: int64 ``[length + 1]``, separator last."""
    return torch.cat([prompt_digits(spec, index), torch.tensor([spec.separator])])


def rewards(spec: TaskSpec, prompts: Tensor, answers: Tensor) -> Tensor:
    """Return float32 ``[rows]``: the share of digits that are where the reversed question has them.

    Args:
        spec: the task.
        prompts: int64 ``[rows, length + 1]``.
        answers: int64 ``[rows, length]``.
    """
    wanted = prompts[:, : spec.length].flip(1)
    return (answers == wanted).float().mean(dim=1)
