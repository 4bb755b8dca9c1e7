"""The run's configuration refuses what could not work."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.controller.config import ControllerConfig
from penstock.errors import BadArgument
from tests.controller.steering import config

TIMEOUTS = ("call", "generate", "train", "publish", "stall")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *(({"run": run}, "run must be 1 to 64") for run in ("", "a.b", "a b", "x" * 65, "é", "a\n")),
        ({"fields": ()}, "fields must be at least one name"),
        ({"tasks": ("train", "other")}, "must be the last of tasks"),
        *(({name: 0}, f"{name} must be at least 1") for name in ("group_size", "groups_per_step", "max_in_flight")),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"min_groups_per_step": 0}, "min_groups_per_step must lie in"),
        ({"min_groups_per_step": 3}, "min_groups_per_step must lie in"),
        ({"max_groups": 1}, "max_groups must be at least groups_per_step"),
        ({"over_sampling": 0.9}, "over_sampling must be at least 1"),
        ({"over_sampling": float("nan")}, "over_sampling must be at least 1"),
        ({"over_sampling": float("inf")}, "over_sampling must be at least 1, and finite"),
        ({"leftovers": "evcit"}, "leftovers must be one of keep, evict, got 'evcit'"),
        ({"on_stale": "dorp"}, "on_stale must be one of"),
        ({"on_stall": "abrot"}, "on_stall must be one of"),
        ({"needs": ("rollout", "trainers")}, "a role in needs must be one of rollout, trainer, got 'trainers'"),
        ({"max_steps": -1}, "max_steps must be 0 or more"),
        ({"max_prompts": -1}, "max_prompts must be 0 or more"),
        ({"recover_deadline_s": float("inf")}, "recover_deadline_s must be 0 or more and at most"),
        *(({f"{name}_timeout_s": 0.0}, f"{name}_timeout_s must be more than 0") for name in TIMEOUTS),
        ({"stop_s": -1.0}, "stop_s must be 0 or more"),
        ({"list_every_s": float("nan")}, "list_every_s must be 0 or more"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], match: str) -> None:
    """With the name of what is wrong."""
    with pytest.raises(BadArgument, match=match):
        config(**changes)


def test_an_unknown_option_is_an_error() -> None:
    """A misspelt limit is not silently the default."""
    with pytest.raises(TypeError):
        ControllerConfig(fields=("x",), group_size=1, groups_per_step=1, stop_sec=1.0)  # type: ignore[call-arg]


def test_the_defaults_are_the_strict_ones() -> None:
    """A step takes whole batches; one task; what does not say otherwise waits for stragglers."""
    plain = ControllerConfig(fields=("x",), group_size=4, groups_per_step=8)
    assert plain.minimum == 8
    assert config(min_groups_per_step=1).minimum == 1
    assert plain.consumers == ("train",)
    assert config(tasks=("logprobs", "train")).consumers == ("logprobs", "train")
    assert plain.drain_s + plain.step_stop_s < plain.stop_s


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": "x"}, "fields must be non-empty names"),
        ({"fields": ("x", "x")}, "each once"),
        ({"fields": ("",)}, "non-empty"),
        ({"fields": ()}, "at least one"),
        ({"partition": ""}, "partition"),
        ({"policy": None}, "policy must have admits"),
        ({"groups_per_step": 2.5}, "groups_per_step must be a whole number, got 2.5"),
        ({"group_size": "4"}, "group_size must be a whole number, got '4'"),
        ({"max_steps": True}, "max_steps must be a whole number"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(changes: dict[str, Any], said: str) -> None:
    """At once and by name, and not somewhere in the run."""
    options: dict[str, Any] = {"fields": ("x",), "group_size": 2, "groups_per_step": 3}
    with pytest.raises(BadArgument, match=said):
        ControllerConfig(**{**options, **changes})
