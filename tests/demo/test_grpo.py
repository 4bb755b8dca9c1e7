"""The objective: advantages within a group, clipping, and the weight of stale tokens."""

from __future__ import annotations

import pytest
import torch

from penstock.demo.grpo import CLIP_HIGH, CLIP_LOW, WEIGHT_CAP, advantages, grpo_loss


def gradient(logprob: float, prev: float, behaviour: float, advantage: float) -> float:
    value = torch.tensor([[logprob]], requires_grad=True)
    grpo_loss(value, torch.tensor([[prev]]), torch.tensor([[behaviour]]), torch.tensor([advantage])).backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None
    return float(value.grad.item())


def test_advantages_are_normalised_within_each_group() -> None:
    """Each group has mean 0 and deviation 1, whatever the level of its rewards."""
    gains = advantages(torch.tensor([0.0, 0.5, 1.0, 0.5, 8.0, 9.0, 9.0, 10.0]), 4).view(2, 4)
    torch.testing.assert_close(gains.mean(dim=1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(gains.std(dim=1, unbiased=False), torch.ones(2), atol=1e-3, rtol=0)
    assert gains[0, 2] > 0 > gains[0, 0]


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    """Without a difference there is no signal, and no division by zero."""
    assert advantages(torch.full((4,), 0.25), 4).tolist() == [0.0] * 4


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_good_answer_becomes_likelier_and_a_bad_one_less_likely(advantage: float) -> None:
    """The loss falls when the log-probability moves the advantage's way."""
    assert gradient(-1.0, -1.0, -1.0, advantage) == pytest.approx(-advantage)


def test_a_ratio_beyond_the_clip_pulls_no_further() -> None:
    """Once the policy has moved far enough from the proximal one, the gradient ends; the way back stays open."""
    far_up, far_down = 2 * CLIP_HIGH, -2 * CLIP_LOW
    assert gradient(-1.0 + far_up, -1.0, -1.0, 1.0) == 0.0
    assert gradient(-1.0 + far_down, -1.0, -1.0, -1.0) == 0.0
    assert gradient(-1.0 + far_up, -1.0, -1.0, -1.0) > 0.0
    assert gradient(-1.0 + far_down, -1.0, -1.0, 1.0) < 0.0


def test_tokens_are_weighted_by_how_the_policy_moved_since_they_were_sampled() -> None:
    """A token that the proximal policy likes more counts more, up to the cap; one that it likes less counts less."""
    assert gradient(-1.0, -1.0, -1.5, 1.0) == pytest.approx(-(2.718281828**0.5))
    assert gradient(-1.0, -1.0, -9.0, 1.0) == pytest.approx(-WEIGHT_CAP)
    assert gradient(-1.0, -1.0, -0.5, 1.0) == pytest.approx(-(2.718281828**-0.5))
