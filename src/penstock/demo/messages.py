"""What launcher, controller and roles say to each other: closed records in addressed letters, over pipes, a line each.

Metadata only: indices, keys, versions, counts and lease tokens; never a tensor. Invariants: importing this never
imports torch; a line that is torn (its writer was killed) is no letter; a peer's name is one life's, so what is
addressed to the dead reaches nobody; an answer carries the number of its order.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from penstock.records import KVBatchMeta

__all__ = [
    "LAUNCHER",
    "RUN",
    "Answer",
    "Attempt",
    "Become",
    "Hello",
    "Here",
    "Joined",
    "Left",
    "Letter",
    "News",
    "Note",
    "Order",
    "Ready",
    "RolledOut",
    "Rollout",
    "StepRecord",
    "Train",
    "Trained",
    "Unreadable",
    "Worked",
    "group_of_key",
    "letter",
    "prompt_of",
]

RUN = "run"  # every group id begins with it
LAUNCHER = "launcher"  # the one address that is not a peer's


class Letter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels: a message between two peers, or a peer and the launcher.

    Attributes:
        to, sender: addresses.
        body: the message, which nobody on the way reads.
        number: of an order, its sender's choice; its answer repeats it.
    """

    to: str
    sender: str
    body: msgspec.Raw
    number: int = 0


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One try at prompt number ``prompt``; ``group_id`` names it and no other."""

    prompt: int
    group_id: str


def group_of_key(key: str) -> str:
    """Return the group that a row's key names."""
    return key.rpartition("_g")[0]


def prompt_of(group_id: str) -> int:
    """Return the number of the prompt that a group answers."""
    return int(group_id.split(".")[1])


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


class Hello(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """To a worker or the trainer: say, as soon as you are free, where you stand."""


class Rollout(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """To a worker: answer these prompts with the weights of this version."""

    version: int
    prompts: list[Attempt]


class Train(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """To the trainer: make step number ``step`` out of the rows of ``meta``."""

    step: int
    meta: KVBatchMeta


class Become(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The launcher's, to a spare process: be this peer from now on."""

    peer: str


Order: TypeAlias = Hello | Rollout | Train | Become


# -- answers, of a role to whoever ordered --------------------------------------------------------------------------


class Here(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Free, with nothing under way. ``record``: the trainer's last step, as its checkpoint tells."""

    record: StepRecord | None = None


class RolledOut(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A worker's groups are put and committed."""


class Trained(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The step is durable, weights and record together."""

    record: StepRecord


class Unreadable(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The step cannot be made: these rows cannot be read."""

    step: int
    keys: list[str]
    why: str


Answer: TypeAlias = Here | RolledOut | Trained | Unreadable


# -- notes, of a peer to the launcher -------------------------------------------------------------------------------


class Ready(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The first thing that a peer says: it has started."""


class Worked(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A piece of work is done. ``at``: monotonic seconds, which all processes of a host share."""

    at: float


Note: TypeAlias = Ready | Worked


# -- news, of the launcher to the controller ------------------------------------------------------------------------


class Joined(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """``peer`` is there and takes orders. A peer is one life of a role ("worker-0.3"): its name is never used again."""

    peer: str


class Left(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """``peer`` will say nothing more: it has ended, and all it said has been passed on."""

    peer: str


News: TypeAlias = Joined | Left


def letter(to: str, sender: str, message: Order | Answer | Note | News, number: int = 0) -> bytes:
    """Return a letter as the line that travels."""
    return msgspec.json.encode(Letter(to, sender, msgspec.Raw(msgspec.json.encode(message)), number)) + b"\n"
