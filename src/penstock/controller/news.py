"""What the controller's machine is told: one closed union. Every effect that asks for something is answered by one.

Invariant: plain records, no I/O, no clock: the shell says when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from penstock.controller.config import Role
from penstock.controller.roles import StepRecord, TrainResult
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, KVBatchMeta

__all__ = [
    "Begun",
    "CallBroken",
    "CallFailed",
    "Explained",
    "GateClosed",
    "GateOpened",
    "Generated",
    "GenerationFailed",
    "Heard",
    "Leased",
    "Left",
    "Listed",
    "News",
    "NoSuchPrompt",
    "PlaneBack",
    "PlaneGone",
    "PublicationFailed",
    "PublicationMade",
    "Refused",
    "Registered",
    "ReplicaJoined",
    "RowsGone",
    "StepFailed",
    "StepMade",
    "StepUnreadable",
    "StopAsked",
    "Ticked",
    "TrainerSilent",
    "TrainerStands",
]


@dataclass(frozen=True, slots=True)
class Begun:
    """The first news of a life."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The user wants the run to end."""

    why: str


@dataclass(frozen=True, slots=True)
class GateClosed:
    """The user forbids dispatching."""

    why: str


@dataclass(frozen=True, slots=True)
class GateOpened:
    """The user permits dispatching again."""


# -- the plane ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlaneBack:
    """The plane answers."""

    capabilities: DataPlaneCapabilities


@dataclass(frozen=True, slots=True)
class PlaneGone:
    """The plane did not come back in time."""

    why: str


@dataclass(frozen=True, slots=True)
class Registered:
    """The partition is registered."""


@dataclass(frozen=True, slots=True)
class Listed:
    """The groups of the partition."""

    groups: Sequence[DataPlaneGroupMeta]


@dataclass(frozen=True, slots=True)
class Leased:
    """The answer to a claim: the rows, or an empty meta where one was not ready or leased."""

    meta: KVBatchMeta


@dataclass(frozen=True, slots=True)
class RowsGone:
    """The rows of a pop, an evict or a release are gone or free, as asked."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The call was refused because of ``keys``: removed, unknown, or not held under the token. Nothing changed."""

    keys: Sequence[str]
    why: str


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The plane did not answer; whether it happened is unknown."""

    why: str


@dataclass(frozen=True, slots=True)
class CallBroken:
    """The plane refused what it should not have, or its client raised what is none of ours: going on is guessing."""

    why: str


@dataclass(frozen=True, slots=True)
class Explained:
    """The plane's own answer to why nothing moves, a sentence each."""

    owed: Sequence[str]


# -- those who generate, train and publish -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generated:
    """An attempt returned: its group is committed."""

    group_id: str


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    """An attempt failed. ``rejected``: its prompt can never be answered."""

    group_id: str
    why: str
    rejected: bool = False


@dataclass(frozen=True, slots=True)
class NoSuchPrompt:
    """The source has no prompt of this number, nor of any higher one."""

    group_id: str


@dataclass(frozen=True, slots=True)
class TrainerStands:
    """The trainer's last durable step; None = it has made none."""

    record: StepRecord | None


@dataclass(frozen=True, slots=True)
class TrainerSilent:
    """The trainer could not be asked."""

    why: str


@dataclass(frozen=True, slots=True)
class StepMade:
    """The step is durable."""

    result: TrainResult


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The step failed."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class StepUnreadable:
    """Rows of the step cannot be read."""

    step: int
    keys: Sequence[str]
    why: str


@dataclass(frozen=True, slots=True)
class PublicationMade:
    """Generators may use this version."""

    version: int


@dataclass(frozen=True, slots=True)
class PublicationFailed:
    """They may not yet."""

    version: int
    why: str


# -- replicas ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaJoined:
    """A replica registered. ``beats``: it will be heard from; False = somebody watches it and tells when it left."""

    replica: str
    role: Role
    beats: bool = True


@dataclass(frozen=True, slots=True)
class Heard:
    """A replica's heartbeat."""

    replica: str


@dataclass(frozen=True, slots=True)
class Left:
    """A replica is gone, and somebody knows it."""

    replica: str


News: TypeAlias = (
    Begun
    | Ticked
    | StopAsked
    | GateClosed
    | GateOpened
    | PlaneBack
    | PlaneGone
    | Registered
    | Listed
    | Leased
    | RowsGone
    | Refused
    | CallFailed
    | CallBroken
    | Explained
    | Generated
    | GenerationFailed
    | NoSuchPrompt
    | TrainerStands
    | TrainerSilent
    | StepMade
    | StepFailed
    | StepUnreadable
    | PublicationMade
    | PublicationFailed
    | ReplicaJoined
    | Heard
    | Left
)
