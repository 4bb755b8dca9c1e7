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

_record = dataclass(frozen=True, slots=True)


@_record
class Begun:
    """The first news of a life."""


@_record
class Ticked:
    """Time has passed."""


@_record
class StopAsked:
    """The user wants the run to end."""

    why: str


@_record
class GateClosed:
    """The user forbids dispatching."""

    why: str


@_record
class GateOpened:
    """The user permits dispatching again."""


# -- the plane ---------------------------------------------------------------------------------------------------------


@_record
class PlaneBack:
    """The plane answers."""

    capabilities: DataPlaneCapabilities


@_record
class PlaneGone:
    """The plane did not come back in time."""

    why: str


@_record
class Registered:
    """The partition is registered."""


@_record
class Listed:
    """The groups of the partition."""

    groups: Sequence[DataPlaneGroupMeta]


@_record
class Leased:
    """The answer to a claim: the rows, or an empty meta where one was not ready or leased."""

    meta: KVBatchMeta


@_record
class RowsGone:
    """The rows of a pop, an evict or a release are gone or free, as asked."""


@_record
class Refused:
    """The call was refused because of ``keys``: removed, unknown, or not held under the token. Nothing changed."""

    keys: Sequence[str]
    why: str


@_record
class CallFailed:
    """The plane did not answer; whether it happened is unknown."""

    why: str


@_record
class CallBroken:
    """The plane refused what it should not have: going on would be guessing."""

    why: str


@_record
class Explained:
    """The plane's own answer to why nothing moves, a sentence each."""

    owed: Sequence[str]


# -- those who generate, train and publish -----------------------------------------------------------------------------


@_record
class Generated:
    """An attempt returned: its group is committed."""

    group_id: str


@_record
class GenerationFailed:
    """An attempt failed. ``rejected``: its prompt can never be answered."""

    group_id: str
    why: str
    rejected: bool = False


@_record
class NoSuchPrompt:
    """The source has no prompt of this number, nor of any higher one."""

    group_id: str


@_record
class TrainerStands:
    """The trainer's last durable step; None = it has made none."""

    record: StepRecord | None


@_record
class TrainerSilent:
    """The trainer could not be asked."""

    why: str


@_record
class StepMade:
    """The step is durable."""

    result: TrainResult


@_record
class StepFailed:
    """The step failed."""

    step: int
    why: str


@_record
class StepUnreadable:
    """Rows of the step cannot be read."""

    step: int
    keys: Sequence[str]
    why: str


@_record
class PublicationMade:
    """Generators may use this version."""

    version: int


@_record
class PublicationFailed:
    """They may not yet."""

    version: int
    why: str


# -- replicas ----------------------------------------------------------------------------------------------------------


@_record
class ReplicaJoined:
    """A replica registered. ``beats``: it will be heard from; False = somebody watches it and tells when it left."""

    replica: str
    role: Role
    beats: bool = True


@_record
class Heard:
    """A replica's heartbeat."""

    replica: str


@_record
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
