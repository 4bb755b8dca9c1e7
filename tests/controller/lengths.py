"""How a staleness policy treats short and long rollouts: a seeded run in virtual time. ``python -m`` prints a table."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller.policies import StalenessPolicy, in_order, ready_first, weight_fifo, windowed
from tests.controller.steering import Steering, config, prompt_of

SHORT_S, LONG_S, LONG_PART = 1.0, 10.0, 0.2
STEP_S = 1.0
BATCH = 4


@dataclass
class Kind:
    """The prompts of one length: how many, how many of them were trained, how often one was generated."""

    prompts: int
    trained: int
    attempts: float


@dataclass
class Told:
    """How a run went."""

    short: Kind
    long: Kind
    prompts: int
    trained: int
    dropped: int
    left: int
    stale: int  # groups that were generated in vain
    oldest_staleness: int
    seconds: float


def play(policy: StalenessPolicy, *, steps: int, seed: int = 7, prompts: int | None = None, **changes: Any) -> Told:
    """Run with one rollout in five ten times as long as the others, each spread by half."""
    rng = random.Random(seed)
    kinds = [rng.random() < LONG_PART for _ in range(100_000)]
    spread = [rng.uniform(0.5, 1.5) for _ in kinds]

    def length(one: do.Dispatch) -> float:
        return spread[one.prompt] * (LONG_S if kinds[one.prompt] else SHORT_S)

    settings = config(policy=policy, groups_per_step=BATCH, max_steps=None if prompts else steps, max_prompts=prompts)
    settings = type(settings)(**{**{f: getattr(settings, f) for f in settings.__struct_fields__}, **changes})
    s = Steering(settings, length=length, train_s=STEP_S)
    began = s.now
    s.begin().run(1e6)
    assert s.finish is not None
    return Told(
        short=_kind(s, kinds, long=False),
        long=_kind(s, kinds, long=True),
        prompts=s.state.dispatched,
        trained=s.state.trained,
        dropped=sum(s.state.dropped.values()),
        left=sum(s.state.places.values()),
        stale=sum(event.reason == "stale" for event in s.of(ev.Evicted)),
        oldest_staleness=max(event.staleness for event in s.of(ev.Claimed)),
        seconds=s.now - began,
    )


def _kind(s: Steering, kinds: list[bool], *, long: bool) -> Kind:
    mine = {one.prompt: 0 for one in s.of(do.Dispatch) if kinds[one.prompt] is long}
    for one in s.of(do.Dispatch):
        if one.prompt in mine:
            mine[one.prompt] += 1
    trained = {prompt_of(group) for step in s.shop.steps for group in step.groups}
    return Kind(len(mine), len(trained & mine.keys()), sum(mine.values()) / len(mine))


def table(steps: int = 300) -> str:
    """Compare the policies, as markdown."""
    rows: list[tuple[str, StalenessPolicy, dict[str, Any]]] = [
        ("windowed(1)", windowed(1), {}),
        ("windowed(1, wait_for_stragglers=False)", windowed(1, wait_for_stragglers=False), {}),
        ('the same, on_stale="drop"', windowed(1, wait_for_stragglers=False), {"on_stale": "drop"}),
        ("windowed(3)", windowed(3), {}),
        ("in_order(1)", in_order(1), {}),
        ("weight_fifo(1)", weight_fifo(1), {}),
        ("ready_first()", ready_first(), {}),
    ]
    lines = [
        "| policy | attempts, short | attempts, long | trained, short | trained, long | stale groups | oldest | time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, policy, changes in rows:
        told = play(policy, steps=steps, prompts=steps * BATCH, **changes)
        short, long = told.short, told.long
        lines.append(
            f"| `{name}` | {short.attempts:.2f} | {long.attempts:.2f} | {short.trained / short.prompts:.0%} "
            f"| {long.trained / long.prompts:.0%} | {told.stale} | {told.oldest_staleness} | {told.seconds:.0f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
