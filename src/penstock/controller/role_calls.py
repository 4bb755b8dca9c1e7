"""The controller's calls of what a user brings: generator, trainer, weights. Every outcome becomes a piece of news.

Invariants: each call ends by its limit, whatever the user's code does; whatever that raises is a failure of the
machinery and goes again, except what names rows or rejects a prompt; an answer of the wrong type is such a failure.
"""

from __future__ import annotations

from typing import Any, TypeVar

from penstock.controller import news as nw
from penstock.controller.config import ControllerConfig
from penstock.controller.roles import Generator, StepRecord, Trainer, TrainResult, WeightSync
from penstock.controller.underway import Underway
from penstock.errors import DataPlaneReadError, FieldNotProduced, PromptRejected, UnknownName
from penstock.points import reached
from penstock.records import KVBatchMeta

__all__ = ["RoleCalls", "said"]

T = TypeVar("T")


class RoleCalls:
    """What a controller asks of the roles.

    Args:
        generator, trainer, weights: the user's.
        underway: where their work is remembered until it ends.
        config: of the run.
    """

    def __init__(
        self, generator: Generator, trainer: Trainer, weights: WeightSync, underway: Underway, config: ControllerConfig
    ) -> None:
        self._generator, self._trainer, self._weights = generator, trainer, weights
        self._underway = underway
        self._config = config

    async def generate(self, prompt: Any, group_id: str, version: int) -> nw.News:
        """Have a prompt answered."""
        name, limit_s = f"generate {group_id}", self._config.generate_timeout_s
        try:
            work = self._generator.generate(prompt, version, group_id)
            await self._underway.bounded(name, work, limit_s, "controller.dispatched")
        except PromptRejected as rejected:
            return nw.GenerationFailed(group_id, str(rejected), rejected=True)
        except Exception as error:  # noqa: BLE001  # top frame: of a user's generator; the prompt goes again
            return nw.GenerationFailed(group_id, said(error))
        return nw.Generated(group_id)

    async def ask_trainer(self) -> nw.News:
        """Ask where the trainer stands."""
        try:
            work = self._trainer.last_step()
            record = await self._underway.bounded("last step", work, self._config.train_timeout_s)
            return nw.TrainerStands(None if record is None else _is_a(StepRecord, record))
        except Exception as error:  # noqa: BLE001  # top frame: of a user's trainer; it is asked again
            return nw.TrainerSilent(said(error))

    async def train(self, step: int, meta: KVBatchMeta) -> nw.News:
        """Have a step made."""
        name, limit_s = f"train step {step}", self._config.train_timeout_s
        try:
            result = await self._underway.bounded(name, self._trainer.train(meta, step), limit_s, "controller.ordered")
            _is_a(StepRecord, _is_a(TrainResult, result).record)
        except (DataPlaneReadError, UnknownName, FieldNotProduced) as unreadable:
            if set(unreadable.keys) & set(meta.sample_ids):
                return nw.StepUnreadable(step, list(unreadable.keys), str(unreadable))
            return nw.StepFailed(step, str(unreadable))
        except Exception as error:  # noqa: BLE001  # top frame: of a user's trainer; the step goes again
            return nw.StepFailed(step, said(error))
        reached("controller.recorded")
        return nw.StepMade(result)

    async def publish(self, version: int) -> nw.News:
        """Have weights spread."""
        name, limit_s = f"publish {version}", self._config.publish_timeout_s
        try:
            await self._underway.bounded(name, self._weights.publish(version), limit_s)
        except Exception as error:  # noqa: BLE001  # top frame: of a user's weight sync; it is called again
            return nw.PublicationFailed(version, said(error))
        return nw.PublicationMade(version)


def said(error: Exception) -> str:
    """Return what ``error`` says, with its class."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_a(kind: type[T], answer: T) -> T:
    if not isinstance(answer, kind):
        raise TypeError(f"a trainer answers with a {kind.__name__}, this one did with a {type(answer).__name__}")
    return answer
