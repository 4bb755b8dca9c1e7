"""How a run is steered: one frozen object, every limit named with its unit and a default."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from penstock.controller.policies import StalenessPolicy, Windowed
from penstock.errors import BadArgument
from penstock.records import GroupPolicy

__all__ = ["ControllerConfig", "Role", "check_word"]

Role = Literal["rollout", "trainer"]
_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_WORDS = {"on_stale": ("again", "drop"), "leftovers": ("keep", "evict"), "on_stall": ("warn", "abort")}
_MAX_S = 1e9  # thirty years: nothing waits for ever
_TAKE_TIME = ("call_timeout_s", "generate_timeout_s", "train_timeout_s", "publish_timeout_s", "stall_timeout_s")


_COUNTS = (
    "group_size",
    "groups_per_step",
    "min_groups_per_step",
    "max_steps",
    "max_prompts",
    "max_in_flight",
    "max_groups",
    "max_attempts",
)


class ControllerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a run does. Seconds, groups and rows as the names say.

    Attributes:
        fields: the columns a row must have to be trained.
        group_size: rows of a group.
        groups_per_step: groups that a step takes.
        min_groups_per_step: a step may be made of fewer groups, down to this many; None = ``groups_per_step``.
        policy: the staleness policy.
        partition, task: the flow, and the consumer under whose name rows are leased: its final task.
        tasks: all consumers of the partition, in order; () = only ``task``.
        group_policy: what becomes of groups that stay incomplete; None = they wait.
        run: names the run; its group ids begin with it. Groups of other names are left alone.
        max_steps, max_prompts: the run is over after so many; None = no such end.
        over_sampling: admit this times the groups that steps take; the surplus may go stale.
        ready_tag: only groups that carry this tag are trained (a later stage sets it); None = committed ones are.
        max_in_flight: groups that are generated at one time.
        max_groups: groups of the run that the plane may hold; None = what the policy admits.
        max_attempts: a prompt that failed so often is dropped; a step that failed so often ends the run.
        on_stale: a prompt whose group went stale goes ``again`` with new weights, or is ``drop``-ped.
        leftovers: what becomes, at the end, of groups that were not trained: ``keep`` them, for the next life of the
            run, or ``evict`` them.
        needs: the run finalises when the last replica of one of these roles is gone; () = replicas are not watched.
        list_every_s: the plane is listed this often when nobody says anything.
        call_timeout_s, generate_timeout_s, train_timeout_s, publish_timeout_s: deadlines of one call.
        retry_base_s, retry_cap_s: back-off of prompts, steps and publications that failed: full jitter.
        orphan_grace_s: a group whose attempt is over, and that is not committed or lacks rows (and no ``group_policy``
            with a deadline decides on it), is evicted as abandoned after this long.
        recover_deadline_s: a plane that is away, or answers and does not serve, for longer ends the run.
        stall_timeout_s, on_stall: without progress for this long the run says why, and then goes on (``warn``) or ends
            (``abort``).
        startup_grace_s: replicas that ``needs`` names must register within this.
        replica_dead_s: a replica that is silent for this long is reaped.
        replica_grace_s: how long a role that the run needs may be without a replica (it may be restarting).
        stop_s: the whole shutdown: half of it for what is under way, half for closing what was used.
        drain_s, step_stop_s: of its first half, how long groups may go on being generated, and a step that is out.
    """

    fields: tuple[str, ...]
    group_size: int
    groups_per_step: int
    min_groups_per_step: int | None = None
    policy: StalenessPolicy = Windowed()
    partition: str = "train"
    task: str = "train"
    tasks: tuple[str, ...] = ()
    group_policy: GroupPolicy | None = None
    run: str = "run"
    max_steps: int | None = None
    max_prompts: int | None = None
    over_sampling: float = 1.0
    ready_tag: str | None = None
    max_in_flight: int = 64
    max_groups: int | None = None
    max_attempts: int = 20
    on_stale: Literal["again", "drop"] = "again"
    leftovers: Literal["keep", "evict"] = "keep"
    needs: tuple[Role, ...] = ()
    list_every_s: float = 0.25
    call_timeout_s: float = 10.0
    generate_timeout_s: float = 600.0
    train_timeout_s: float = 1800.0
    publish_timeout_s: float = 300.0
    retry_base_s: float = 0.1
    retry_cap_s: float = 5.0
    orphan_grace_s: float = 5.0
    recover_deadline_s: float = 120.0
    stall_timeout_s: float = 120.0
    on_stall: Literal["warn", "abort"] = "warn"
    startup_grace_s: float = 300.0
    replica_dead_s: float = 10.0
    replica_grace_s: float = 30.0
    stop_s: float = 4.5
    drain_s: float = 0.0
    step_stop_s: float = 2.0

    def __post_init__(self) -> None:
        if not _RUN.fullmatch(self.run):
            raise BadArgument(f"run must be 1 to 64 letters, digits, - or _, got {self.run!r}")
        _check_names("fields", self.fields)
        _check_names("tasks", self.consumers)
        _check_names("partition", (self.partition,))
        if not all(hasattr(self.policy, name) for name in ("admits", "oldest_version", "select")):
            raise BadArgument(f"policy must have admits, oldest_version and select, got {self.policy!r}")
        if self.tasks and self.tasks[-1] != self.task:
            raise BadArgument(f"task {self.task!r} must be the last of tasks, got {list(self.tasks)}")
        self._check_counts()
        for name in [name for name in self.__struct_fields__ if name.endswith("_s")]:
            _check_seconds(name, getattr(self, name))
        for name, words in _WORDS.items():
            check_word(name, getattr(self, name), words)
        for role in self.needs:
            check_word("a role in needs", role, get_args(Role))

    def _check_counts(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise BadArgument(f"{name} must be a whole number, got {value!r}")
        for name in ("group_size", "groups_per_step", "max_in_flight", "max_attempts"):
            if getattr(self, name) < 1:
                raise BadArgument(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.minimum <= self.groups_per_step:
            raise BadArgument(f"min_groups_per_step must lie in 1..{self.groups_per_step}, got {self.minimum}")
        if self.max_groups is not None and self.max_groups < self.groups_per_step:
            raise BadArgument(f"max_groups must be at least groups_per_step ({self.groups_per_step})")
        for name in ("max_steps", "max_prompts"):
            if (getattr(self, name) or 0) < 0:
                raise BadArgument(f"{name} must be 0 or more, or None, got {getattr(self, name)}")
        if not 1.0 <= self.over_sampling < math.inf:
            raise BadArgument(f"over_sampling must be at least 1, and finite, got {self.over_sampling!r}")

    @property
    def minimum(self) -> int:
        """The fewest groups of a step."""
        return self.groups_per_step if self.min_groups_per_step is None else self.min_groups_per_step

    @property
    def consumers(self) -> tuple[str, ...]:
        """All tasks of the partition."""
        return self.tasks or (self.task,)


def check_word(name: str, word: str, words: Sequence[str]) -> None:
    """Raise ``BadArgument`` unless ``word`` is one of ``words``: a misspelt one would silently mean another."""
    if word not in words:
        raise BadArgument(f"{name} must be one of {', '.join(words)}, got {word!r}")


def _check_names(what: str, names: Sequence[str]) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise BadArgument(f"{what} must be non-empty names, got {names!r}")
    if not names or len(set(names)) < len(names):
        raise BadArgument(f"{what} must be at least one name, each once, got {names!r}")


def _check_seconds(name: str, value: float) -> None:
    if not 0 <= value <= _MAX_S:
        raise BadArgument(f"{name} must be 0 or more and at most {_MAX_S:g} seconds, got {value!r}")
    if not value and name in _TAKE_TIME:
        raise BadArgument(f"{name} must be more than 0: nothing is done in no time")
