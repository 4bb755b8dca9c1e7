"""The policy: what it samples is what it scores."""

from __future__ import annotations

import torch

from penstock.demo.model import Policy, answer_logprobs, generate
from penstock.demo.spec import ModelSpec

SPEC = ModelSpec(vocab=11, context=9, width=16, layers=2, heads=2)


def policy() -> Policy:
    torch.manual_seed(0)
    return Policy(SPEC)


def test_sampled_logprobs_are_those_of_scoring() -> None:
    """The behaviour log-probabilities that generation stores equal those of a scoring pass with the same weights."""
    model, prompts = policy(), torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(1))
    answers, logprobs = generate(model, prompts, 4, torch.Generator().manual_seed(2))
    assert answers.shape == logprobs.shape == (6, 4)
    with torch.no_grad():
        torch.testing.assert_close(logprobs, answer_logprobs(model, prompts, answers))


def test_sampling_follows_its_seed() -> None:
    """The same source of randomness gives the same answers, another one others."""
    model, prompts = policy(), torch.zeros(8, 5, dtype=torch.int64)
    first, again, other = (generate(model, prompts, 4, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_token_sees_what_comes_after_it() -> None:
    """Changing the last token changes the last logits only."""
    model, tokens = policy(), torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])
