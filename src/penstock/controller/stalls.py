"""The watchdog's own view: what the run waits for, and who owes it, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from penstock.controller.dispatching import room
from penstock.controller.prompts import Prompt, Where
from penstock.controller.run import Phase, Run
from penstock.controller.training import Asking, Training
from penstock.errors import abbreviate

__all__ = ["owed"]


def owed(run: Run, training: Training, away: str | None, now: float) -> list[str]:
    """Say what is missing and who owes it; ``away``: why the plane is not there."""
    if away is not None and run.phase is Phase.RECOVERING:
        return [f"the plane is away: {away}"]
    return [
        *_of_training(run, training, now),
        *_of_prompts(run, now),
        *_of_dispatch(run, training),
        *_of_roles(run, now),
    ]


def _of_training(run: Run, training: Training, now: float) -> Iterator[str]:
    out = training.out
    if training.asking is Asking.ASKED:
        yield f"the trainer owes an answer to where it stands{_lately(training.ask_trouble)}"
    elif training.ask_trouble:
        yield f"the trainer could not be asked where it stands{_lately(training.ask_trouble)}"
    elif out is not None and out.ordered_at is not None:
        yield f"the trainer owes step {out.number}: ordered {now - out.ordered_at:.1f} s ago, attempt {out.attempts}"
    elif out is not None:
        yield f"step {out.number} failed {out.attempts} times{_lately(out.trouble)}"
    if run.published != run.step:
        yield f"the weights of version {run.step} are not published{_lately(training.publish_trouble)}"
    ready = run.prompts.count(Where.READY)
    if out is None and ready < run.config.minimum:
        yield f"{ready} of {run.config.minimum} groups that a step needs are ready"


def _lately(trouble: str) -> str:
    return f", lately because of: {trouble}" if trouble else ""


def _of_prompts(run: Run, now: float) -> Iterator[str]:
    out = run.prompts.at(Where.OUT)
    if out:
        oldest = min(out, key=lambda prompt: prompt.since)
        name = run.prompts.group_id(oldest)
        yield f"generators owe {len(out)} groups; the oldest is {name!r}, sent out {now - oldest.since:.1f} s ago"
    landed = [run.prompts.group_id(prompt) for prompt in run.prompts.at(Where.LANDED)]
    if landed:
        lack = (
            ""
            if run.config.ready_tag is None
            else f" (that may be the tag {run.config.ready_tag!r}, which a later stage sets)"
        )
        yield f"{len(landed)} groups are generated and not fit to be trained{lack}: {abbreviate(landed)}"
    failed: list[Prompt] = [prompt for prompt in run.prompts.at(Where.WAITING) if prompt.trouble]
    for trouble, count in Counter(prompt.trouble for prompt in failed).most_common(3):
        yield f"{count} prompts wait to go again after: {trouble}"


def _of_dispatch(run: Run, training: Training) -> Iterator[str]:
    if run.gate is not None:
        yield f"dispatch is paused by the user: {run.gate}"
    elif run.config.max_groups is not None and run.in_plane >= run.config.max_groups:
        yield f"the run holds all of its max_groups = {run.config.max_groups} groups in the plane"
    elif _is_held_back(run, training):
        yield f"the policy {type(run.config.policy).__name__} admits no more prompts at version {run.step}"


def _is_held_back(run: Run, training: Training) -> bool:
    """Whether more could be dispatched, nobody is at work on anything, and the policy says no."""
    at_work = run.prompts.count(Where.WAITING, Where.OUT, Where.TRAINING)
    return not at_work and not run.prompts_are_used_up() and not room(run, training)


def _of_roles(run: Run, now: float) -> Iterator[str]:
    for one in run.replicas.living.values():
        if one.beats and now - one.heard_at > run.replicas.dead_after_s / 2:
            yield f"the {one.role} replica {one.name!r} has been silent for {now - one.heard_at:.1f} s"
    for role in run.config.needs:
        if not run.replicas.count(role):
            yield f"there is no {role} replica"
