"""The rollout pump: how many prompts go out now, and which.

Invariants: admission by the staleness policy, then capacity, then the limit of what is in flight, then the user's gate;
prompts that go again go before new ones, and take no admission (they had theirs).
"""

from __future__ import annotations

import math

from penstock.controller.effects import Dispatch
from penstock.controller.prompts import Prompt, Where
from penstock.controller.run import Run
from penstock.controller.training import Training

__all__ = ["dispatch", "next_timer", "room"]


def dispatch(run: Run, training: Training, now: float) -> None:
    """Send out what may go."""
    oldest = run.config.policy.oldest_version(run.step)
    if run.gate is not None or run.published is None or (oldest is not None and run.published < oldest):
        return  # with weights that lag so far a group would be born stale
    for prompt in [one for one in run.prompts.at(Where.WAITING) if one.not_before <= now][: _free(run)]:
        _send(run, prompt, now)
    if free := _free(run, run.prompts.count(Where.WAITING)):
        for _ in range(min(free, room(run, training))):
            _send(run, run.prompts.begin(now), now)


def _free(run: Run, kept: int = 0) -> int:
    """Return how many groups may go out; of the plane's room, ``kept`` places are for prompts that wait to go again.

    Else new prompts could fill the plane, and a policy that goes by order wait for ever for one that has no place.
    """
    free = run.config.max_in_flight - run.prompts.count(Where.OUT)
    if run.config.max_groups is not None:
        free = min(free, run.config.max_groups - run.in_plane - kept)
    return max(0, free)


def room(run: Run, training: Training) -> int:
    """Return how many new prompts may be opened."""
    config = run.config
    if run.prompts_are_used_up():
        return 0
    batch = math.ceil(config.groups_per_step * config.over_sampling)
    most = config.policy.admits(training.standing(batch))
    if config.max_steps is not None:
        most = min(most, (config.max_steps - run.step) * batch - len(run.prompts.open))
    if config.max_prompts is not None:
        most = min(most, config.max_prompts - run.prompts.cursor)
    return max(0, most)


def _send(run: Run, prompt: Prompt, now: float) -> None:
    assert run.published is not None
    run.prompts.send_out(prompt, run.published, now)
    run.do(Dispatch(run.prompts.group_id(prompt), prompt.index, prompt.attempt, run.published))


def next_timer(run: Run) -> float | None:
    """When a prompt that waits may go."""
    return min((prompt.not_before for prompt in run.prompts.at(Where.WAITING)), default=None)
