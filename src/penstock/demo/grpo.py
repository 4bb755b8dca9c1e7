"""Group-relative policy optimisation: advantages within a group, a clipped ratio, off-policy correction.

The objective is the decoupled one of asynchronous training (AReaL, arXiv:2505.24298): the ratio is clipped round the
*proximal* policy that scored the rows (``prev_logprobs``), and each token is weighted by how far that policy had moved
from the one that generated it (``generation_logprobs``), truncated. No KL term, no value model.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["advantages", "grpo_loss"]

CLIP_LOW, CLIP_HIGH = 0.2, 0.28  # asymmetric, as in DAPO (arXiv:2503.14476): unlikely tokens may grow
WEIGHT_CAP = 2.0  # truncation of the importance weight, as in IMPALA's rho-bar


def advantages(rewards: Tensor, group_size: int, eps: float = 1e-4) -> Tensor:
    """Normalise ``rewards`` [rows] within consecutive groups; a group of equal rewards teaches nothing (zeros)."""
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True, unbiased=False) + eps)).reshape(-1)


def grpo_loss(logprobs: Tensor, prev: Tensor, behaviour: Tensor, advantage: Tensor) -> Tensor:
    """The loss to minimise.

    Args:
        logprobs: of the policy in training, [rows, tokens], with gradient.
        prev: of the proximal policy, from the logprob stage.
        behaviour: of the policy that generated, stored at generation.
        advantage: [rows].
    """
    gain = advantage.unsqueeze(1)
    ratio = (logprobs - prev).exp()
    clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    weight = (prev - behaviour).exp().clamp(max=WEIGHT_CAP)
    return -(weight * torch.minimum(ratio * gain, clipped * gain)).mean()
