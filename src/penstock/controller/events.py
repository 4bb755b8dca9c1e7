"""What a run tells: one closed union of records, for metrics, logs, traces and whoever else listens.

Invariants: metadata only; each says what has happened, not what is wished; ``at`` is seconds since the epoch, stamped
by the shell, ``life`` counts the controller's starts. A group id names one attempt at one prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

__all__ = [
    "Again",
    "Claimed",
    "Committed",
    "Dispatched",
    "Dropped",
    "Evicted",
    "Finished",
    "Joined",
    "Missed",
    "Ordered",
    "Paused",
    "Popped",
    "Published",
    "Reaped",
    "Recovered",
    "RunEvent",
    "Stalled",
    "Started",
    "Trained",
]


class _Event(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    at: float = 0.0
    life: int = 0


class Started(_Event, frozen=True, tag=True, kw_only=True):
    """The controller has begun a life at ``step``: ``open_prompts`` are under way, the next new one is ``cursor``."""

    step: int
    cursor: int
    open_prompts: int


class Dispatched(_Event, frozen=True, tag=True, kw_only=True):
    """A prompt went out to be answered, with the weights of ``version``."""

    group_id: str
    prompt: int
    attempt: int
    version: int


class Committed(_Event, frozen=True, tag=True, kw_only=True):
    """A group is in the plane and fit to be trained. ``version`` is its oldest, ``end_version`` its newest."""

    group_id: str
    prompt: int
    keys: list[str]
    version: int
    end_version: int
    size_bytes: int
    partial: bool = False


class Again(_Event, frozen=True, tag=True, kw_only=True):
    """A prompt goes again, because of ``why``; its next attempt is number ``attempt``."""

    prompt: int
    attempt: int
    why: str


class Dropped(_Event, frozen=True, tag=True, kw_only=True):
    """A prompt is given up for good, for ``reason``."""

    prompt: int
    reason: str


class Claimed(_Event, frozen=True, tag=True, kw_only=True):
    """The rows of step ``step`` are leased."""

    step: int
    groups: list[str]
    keys: list[str]
    lease: list[str]
    staleness: int  # versions by which the oldest group lags


class Ordered(_Event, frozen=True, tag=True, kw_only=True):
    """The trainer was told to make ``step``; ``attempt`` counts from 1; ``why`` the one before it failed."""

    step: int
    attempt: int
    why: str = ""


class Trained(_Event, frozen=True, tag=True, kw_only=True):
    """Step ``step`` is durable; ``seconds``: since its last order. ``metrics``: None, read from a file: not finite."""

    step: int
    groups: list[str]
    rows: int
    seconds: float
    metrics: Mapping[str, float | None] = {}


class Popped(_Event, frozen=True, tag=True, kw_only=True):
    """The rows of ``step`` are removed from the plane as trained; ``lost``: those of them that were gone already."""

    step: int
    keys: list[str]
    lost: list[str] = []


class Published(_Event, frozen=True, tag=True, kw_only=True):
    """Generators may use the weights of ``version``."""

    version: int
    seconds: float


class Evicted(_Event, frozen=True, tag=True, kw_only=True):
    """The rows of a group were removed for ``reason``."""

    group_id: str
    keys: list[str]
    reason: str


class Paused(_Event, frozen=True, tag=True, kw_only=True):
    """Nothing is dispatched and the plane is not called, because of ``why``."""

    why: str


class Recovered(_Event, frozen=True, tag=True, kw_only=True):
    """The plane is back and the run goes on.

    Attributes:
        seconds: since the pause.
        plane_s: since the plane answered again.
        empty: it came back with nothing, under a new incarnation, and there had been groups in it.
        kept, again: groups that were there, prompts that go again.
    """

    seconds: float
    plane_s: float
    incarnation: int
    empty: bool
    kept: int
    again: int


class Joined(_Event, frozen=True, tag=True, kw_only=True):
    """A replica registered."""

    replica: str
    role: str


class Reaped(_Event, frozen=True, tag=True, kw_only=True):
    """A replica is gone; ``silent_s``: since it was last heard, 0 when it said goodbye."""

    replica: str
    role: str
    silent_s: float


class Stalled(_Event, frozen=True, tag=True, kw_only=True):
    """Nothing moved for ``seconds``; ``owed`` says what is missing and who owes it, a sentence each."""

    seconds: float
    owed: list[str]


class Finished(_Event, frozen=True, tag=True, kw_only=True):
    """The run is over; ``ok`` False: it could not go on."""

    reason: str
    ok: bool
    step: int


class Missed(_Event, frozen=True, tag=True, kw_only=True):
    """A listener did not keep so many ``events`` that belong here, because of ``why``; the run did not notice."""

    events: int
    why: str


RunEvent: TypeAlias = (
    Started
    | Dispatched
    | Committed
    | Again
    | Dropped
    | Claimed
    | Ordered
    | Trained
    | Popped
    | Published
    | Evicted
    | Paused
    | Recovered
    | Joined
    | Reaped
    | Stalled
    | Finished
    | Missed
)
