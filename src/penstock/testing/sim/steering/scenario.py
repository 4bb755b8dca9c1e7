"""The shape of one run, drawn from its seed: a small run with short deadlines, under every policy and option.

Invariant: every scenario can be finished: a prompt that nobody can answer is rejected, capacity holds a step.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from penstock.config import PlaneConfig
from penstock.controller.config import ControllerConfig
from penstock.controller.policies import StalenessPolicy, in_order, ready_first, weight_fifo, windowed
from penstock.controller.run import Accept
from penstock.records import DataPlaneGroupMeta, GroupPolicy, as_int

__all__ = ["RunScenario", "draw"]

_FILTERED, _REJECTED, _POISONED = (5, 3), (7, 4), (6, 2)  # every 5th prompt from 3, ...
_FEW_ATTEMPTS = 3
_ROW_BYTES = 2000


class RunScenario(msgspec.Struct, frozen=True, kw_only=True):
    """One run and its surroundings.

    Attributes:
        prompts: how many the source has; None = no end.
        bound: versions by which a trained group may lag; None = not bounded.
        workers: rollout processes.
        is_filtered, is_rejecting: the controller's filter, and the generators, refuse some prompts.
        is_poisoned: some prompts make every generator fail.
        is_untagged: generators do not say with which weights they generated.
        is_short: generators leave a row out now and then, as the group policy lets them.
        page: groups of one page of a listing.
    """

    config: ControllerConfig
    plane: PlaneConfig
    prompts: int | None
    bound: int | None
    workers: int
    is_filtered: bool
    is_rejecting: bool
    is_poisoned: bool
    is_untagged: bool
    is_short: bool
    page: int

    def filters(self, prompt: int) -> bool:
        """Whether the dynamic filter lets nobody train this prompt."""
        return self.is_filtered and prompt % _FILTERED[0] == _FILTERED[1]

    def rejects(self, prompt: int) -> bool:
        """Whether no generator can answer this prompt."""
        return self.is_rejecting and prompt % _REJECTED[0] == _REJECTED[1]

    def poisons(self, prompt: int) -> bool:
        """Whether every attempt at this prompt fails."""
        return self.is_poisoned and prompt % _POISONED[0] == _POISONED[1]

    @property
    def accept(self) -> Accept | None:
        return self._accepts if self.is_filtered else None

    def _accepts(self, group: DataPlaneGroupMeta) -> bool:
        return not self.filters(as_int(group.tags.get("prompt")) or 0)


def draw(rng: random.Random) -> RunScenario:
    """Draw a scenario."""
    policy, bound = _policy(rng)
    per_step, group_size = rng.randint(1, 3), rng.choice((1, 2, 2, 3))
    group_policy = _group_policy(rng, group_size)
    max_steps = rng.choice((None, 2, 3, 4))
    max_groups = per_step + rng.randint(0, 2) if rng.random() < 0.4 else None
    config = ControllerConfig(
        fields=("ids",),
        group_size=group_size,
        groups_per_step=per_step,
        min_groups_per_step=rng.choice((None, None, 1)),
        policy=policy,
        group_policy=group_policy,
        max_steps=max_steps,
        max_prompts=rng.choice((None, 8)) if max_steps is None else None,
        over_sampling=rng.choice((1.0, 1.0, 1.5, 2.0)),
        ready_tag="scored" if rng.random() < 0.25 else None,
        max_in_flight=rng.choice((1, 3, 64)),
        max_groups=max_groups,
        max_attempts=rng.choice((_FEW_ATTEMPTS, 20, 20)),
        on_stale=rng.choice(("again", "drop")),
        on_stall=rng.choice(("warn", "warn", "abort")),
        leftovers=rng.choice(("keep", "evict")),
        needs=rng.choice(((), (), ("rollout", "trainer"))),
        **_times(rng),
    )
    return RunScenario(
        config=config,
        plane=_plane(rng, config),
        prompts=rng.randint(2, 7) if max_steps is None else None,
        bound=bound,
        workers=rng.randint(1, 3),
        is_filtered=rng.random() < 0.3,
        is_rejecting=rng.random() < 0.3,
        is_poisoned=config.max_attempts <= _FEW_ATTEMPTS and rng.random() < 0.5,
        is_untagged=rng.random() < 0.1,
        is_short=group_policy is not None and group_policy.on_deadline == "partial",
        page=rng.choice((2, 1000)),
    )


def _policy(rng: random.Random) -> tuple[StalenessPolicy, int | None]:
    """Return a policy, and the staleness that it allows."""
    lag = rng.randint(0, 2)
    match rng.randrange(5):
        case 0:
            return in_order(lag), None
        case 1:
            return ready_first(rng.choice((None, lag)), max_lookahead_versions=1), None
        case 2:
            return weight_fifo(lag), lag
        case _:
            return windowed(lag, sample_freshest_first=rng.random() < 0.5, wait_for_stragglers=rng.random() < 0.5), lag


def _group_policy(rng: random.Random, group_size: int) -> GroupPolicy | None:
    match rng.randrange(5):
        case 0 if group_size > 1:
            return GroupPolicy(min_ready=group_size - 1, deadline_s=0.5, on_deadline="partial")
        case 1:
            return GroupPolicy(deadline_s=3.0, on_deadline="drop")
        case _:
            return None


def _times(rng: random.Random) -> dict[str, Any]:
    """Short ones: a world is to be over in seconds of its time."""
    return {
        "list_every_s": rng.choice((0.5, 2.0)),
        "call_timeout_s": 3.0,
        "generate_timeout_s": 5.0,
        "train_timeout_s": 6.0,
        "publish_timeout_s": 3.0,
        "retry_base_s": 0.05,
        "retry_cap_s": 1.0,
        "orphan_grace_s": 1.0,
        "recover_deadline_s": 30.0,
        "stall_timeout_s": 12.0,
        "startup_grace_s": 15.0,
        "replica_dead_s": 3.0,
        "replica_grace_s": 6.0,
        "drain_s": rng.choice((0.0, 1.0)),
        "step_stop_s": rng.choice((0.2, 2.0)),
    }


def _plane(rng: random.Random, config: ControllerConfig) -> PlaneConfig:
    """A plane that is just large enough for what the run may hold, or one with room."""
    rows = 10_000
    if config.max_groups is not None and rng.random() < 0.5:
        rows = config.max_groups * config.group_size
    return PlaneConfig(
        durability="memory" if rng.random() < 0.2 else "process",
        max_rows=rows,
        max_bytes=rows * _ROW_BYTES,
        abandon_grace_s=5.0,
        max_deliveries=rng.choice((3, 20)),
    )
