"""What the launcher's controller and the roles say to each other: closed records, one JSON line each, over pipes.

Metadata only: indices, keys, versions, counts and lease tokens; never a tensor. Invariants: importing this never
imports torch; a line that is torn (its writer was killed) is no message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from penstock.records import KVBatchMeta

__all__ = [
    "Become",
    "Heard",
    "Left",
    "Order",
    "PromptRef",
    "Ready",
    "RolledOut",
    "Rollout",
    "Said",
    "StepRecord",
    "Train",
    "Trained",
    "Unreadable",
    "group_of",
    "prompt_of",
]


class PromptRef(msgspec.Struct, frozen=True, array_like=True):
    """One try at one prompt: the prompt's number, and which attempt this is."""

    index: int
    attempt: int


def group_of(ref: PromptRef) -> str:
    """Return the group id of an attempt; each attempt has its own, so a late one settles nothing."""
    return f"p{ref.index:06d}a{ref.attempt}"


def prompt_of(group_id: str) -> PromptRef:
    """Return the attempt that a group id names."""
    index, attempt = group_id.removeprefix("p").split("a")
    return PromptRef(int(index), int(attempt))


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a training step consumed; saved in the same file as the weights it made.

    Attributes:
        step: its number, which is also the version of the weights it made; 0 = the initial weights.
        keys, xxh3, weight_versions: the rows, aligned.
        lease: the tokens under which the controller holds them.
        reward: mean over the rows.
    """

    step: int
    keys: list[str] = []
    xxh3: list[str] = []
    weight_versions: list[int] = []
    lease: list[str] = []
    reward: float = 0.0


# -- orders, to a role ----------------------------------------------------------------------------------------------


class Rollout(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """To a worker: answer these prompts with the weights of this version."""

    version: int
    prompts: list[PromptRef]


class Train(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """To the trainer: make step number ``step`` out of the rows of ``meta``."""

    step: int
    meta: KVBatchMeta


class Become(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """To a spare process: be this peer from now on."""

    peer: str


Order: TypeAlias = Rollout | Train | Become


# -- answers, from a role -------------------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A role has started. ``record``: the trainer's last step, as its checkpoint tells."""

    record: StepRecord | None = None


class RolledOut(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A worker's groups are put and committed. ``at``: monotonic seconds, which all processes of a host share."""

    prompts: list[PromptRef]
    reward: float
    at: float


class Trained(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The step is durable, weights and record together."""

    record: StepRecord
    at: float


class Unreadable(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The step cannot be made: these rows cannot be read."""

    step: int
    keys: list[str]
    why: str


Said: TypeAlias = Ready | RolledOut | Trained | Unreadable


# -- news, to the controller ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """``peer`` said something. A peer is one life of a role ("worker-0.3"): its name is never used again."""

    peer: str
    message: Said


@dataclass(frozen=True)
class Left:
    """``peer`` will say nothing more: it has ended, and all it said has been heard."""

    peer: str
