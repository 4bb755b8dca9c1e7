"""What a user brings to a run: who generates, who trains, who spreads weights, and where prompts come from.

Invariants: none of these sees the controller's insides; what passes through them is metadata (prompts are the user's
own objects and are only handed on); every method may be called again for the same work, after any failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from penstock.records import KVBatchMeta, group_id_of

__all__ = ["Generator", "PromptSource", "StepRecord", "TrainResult", "Trainer", "WeightSync"]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a training step consumed. The trainer saves it atomically with weights and optimizer.

    Attributes:
        step: its number, from 1; also the version of the weights that it made. 0 = the initial weights.
        keys: the rows.
        groups: the groups that they belong to, each once.
        lease: the tokens under which the controller leased them.
    """

    step: int
    keys: list[str] = []
    groups: list[str] = []
    lease: list[str] = []

    @classmethod
    def of(cls, step: int, meta: KVBatchMeta) -> StepRecord:
        """Return the record of step number ``step`` on the rows of ``meta``."""
        tags = meta.tags or [{} for _ in meta.sample_ids]
        groups = dict.fromkeys(group_id_of(key, tag) for key, tag in zip(meta.sample_ids, tags, strict=True))
        return cls(step=step, keys=list(meta.sample_ids), groups=list(groups), lease=list(meta.lease or ()))


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """A step that is durable. ``metrics``: what the trainer measured (reward, loss), for the run's events."""

    record: StepRecord
    metrics: Mapping[str, float] = {}


class PromptSource(Protocol):
    """Prompts by number, from 0. A number gives the same prompt in every life of the run: that is how it resumes."""

    def prompt(self, index: int) -> Any | None:
        """Return prompt number ``index``; None = there are no more. Called on the event loop: must not block."""


class Generator(Protocol):
    """Answers prompts."""

    async def generate(self, prompt: Any, weight_version: int, group_id: str) -> None:
        """Generate the group's rows with these weights, put them tagged ``group_id``, then commit them.

        Rows go in with ``committed`` false and the tags ``group_id``, ``expected_num_keys`` and ``weight_version``;
        one tag-only put then sets ``committed``. Return when that is done. ``group_id`` is new for every attempt.

        Raises:
            PromptRejected: this prompt can never be answered; it is dropped.
            Exception: anything else is a failure of the machinery; the prompt goes again under another group id.
        """


class Trainer(Protocol):
    """Makes steps, one at a time."""

    async def last_step(self) -> StepRecord | None:
        """Return the record of the last durable step, None before the first; wait for a step that is under way.

        Called when the run starts and after every failed ``train``. Once a controller was answered, no order of an
        earlier one may be begun: one that was still on its way is refused.
        """

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        """Make step number ``step`` out of the rows of ``meta``; return when weights, optimizer and record are durable.

        A step that is recorded already is not made again: its record is returned. One that is not the next after the
        last recorded is refused (raise): this trainer's checkpoint is not the run's.

        Raises:
            DataPlaneReadError, UnknownName, FieldNotProduced: rows cannot be read (``keys``); they are evicted, the
                other rows of the step are given back.
            Exception: anything else is a failure of the machinery; the step goes again under the same lease.
        """


class WeightSync(Protocol):
    """Spreads weights to the generators."""

    async def publish(self, version: int) -> None:
        """Let generators use the weights that step ``version`` made; called again after a failure or a restart."""
