"""The verifiable task: write a short sequence of digits backwards.

Invariants: prompt ``i`` of seed ``s`` is always the same, so an index is all that travels and a resumed run repeats
and skips none; the reward is the fraction of right digits, computed by rule, in 0..1.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor

__all__ = ["TaskSpec", "prompt_digits", "prompt_tokens", "rewards"]


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: ``length`` digits out of ``digits``; one more token, the last, says "now answer"."""

    length: int = 5
    digits: int = 10
    seed: int = 0

    @property
    def vocab(self) -> int:
        """Tokens the model knows: the digits and the separator."""
        return self.digits + 1

    @property
    def separator(self) -> int:
        """The token between question and answer."""
        return self.digits

    @property
    def prompt_length(self) -> int:
        """Tokens of a question, separator included."""
        return self.length + 1


def prompt_digits(spec: TaskSpec, index: int) -> Tensor:
    """Return question ``index`` as int64 ``[length]``."""
    source = torch.Generator().manual_seed(((spec.seed & 0xFFFF) << 32) | (index & 0xFFFFFFFF))
    return torch.randint(spec.digits, (spec.length,), generator=source)


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
