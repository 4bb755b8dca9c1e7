"""The task: repeatable questions and a reward by rule."""

from __future__ import annotations

import torch

from penstock.demo.spec import TaskSpec
from penstock.demo.task import prompt_digits, prompt_tokens, rewards

SPEC = TaskSpec(length=4, digits=10, seed=3)


def test_a_question_is_always_the_same() -> None:
    """Index and seed name a question; that is why only indices travel."""
    assert torch.equal(prompt_digits(SPEC, 7), prompt_digits(SPEC, 7))
    assert not torch.equal(prompt_digits(SPEC, 7), prompt_digits(SPEC, 8))
    assert not torch.equal(prompt_digits(SPEC, 7), prompt_digits(TaskSpec(length=4, seed=4), 7))


def test_questions_use_all_digits() -> None:
    """Over many questions every digit occurs, and nothing else."""
    digits = torch.cat([prompt_digits(SPEC, index) for index in range(100)])
    assert set(digits.tolist()) == set(range(10))


def test_a_question_ends_with_the_separator() -> None:
    """The last token says that the answer begins; no digit looks like it."""
    tokens = prompt_tokens(SPEC, 0)
    assert tokens.tolist() == [*prompt_digits(SPEC, 0).tolist(), SPEC.separator]
    assert SPEC.separator == SPEC.digits


def test_the_reward_is_the_share_of_right_digits() -> None:
    """Backwards and right everywhere is 1, each wrong digit costs its share, forwards is no answer."""
    prompts = torch.tensor([[1, 2, 3, 4, 10]] * 4)
    answers = torch.tensor([[4, 3, 2, 1], [4, 3, 2, 9], [9, 9, 9, 9], [1, 2, 3, 4]])
    assert rewards(SPEC, prompts, answers).tolist() == [1.0, 0.75, 0.0, 0.0]
