"""Bugs planted in the controller's machine, from outside: some world must catch each, or the worlds prove nothing.

Each is a machine whose news, effects or parts are tampered with. None of them touches the real machine's code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.machine import ControllerMachine
from penstock.controller.policies import Windowed
from penstock.controller.prompts import Where
from penstock.controller.record import ControllerRecord
from penstock.controller.roles import StepRecord, TrainResult

__all__ = ["PLANTED"]


class SaveAfterTheAct(ControllerMachine):
    """The record becomes durable after what it tells of was done."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        effects = super().handle(news, now)
        return sorted(effects, key=lambda effect: isinstance(effect, do.Save))


class SaveOneNewsLate(ControllerMachine):
    """The record is saved when the next news is there."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: list[do.Effect] = []

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        effects = super().handle(news, now)
        due, self._late = self._late, [effect for effect in effects if isinstance(effect, do.Save)]
        return [*due, *(effect for effect in effects if not isinstance(effect, do.Save))]


class PopBeforeRecorded(ControllerMachine):
    """A step counts as made when it is ordered."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        effects = super().handle(news, now)
        for order in [effect for effect in effects if isinstance(effect, do.Train)]:
            effects += super().handle(nw.StepMade(TrainResult(record=StepRecord.of(order.step, order.meta))), now)
        return effects


class RecordedStepNotPopped(ControllerMachine):
    """A new life takes the trainer's step for its own, and leaves the rows and the prompts where they are."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        if isinstance(news, nw.TrainerStands) and news.record is not None and self._training.out is None:
            self._run.step = news.record.step
        return super().handle(news, now)


class TrainsWithoutAsking(ControllerMachine):
    """After a failed order, and in a new life, nobody asks the trainer where it stands."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        if isinstance(news, nw.TrainerStands) and news.record is not None and news.record.step > self._run.step:
            stale = StepRecord(step=self._run.step)
            return super().handle(nw.TrainerStands(stale if self._run.step else None), now)
        return super().handle(news, now)


class AttemptNotBumped(ControllerMachine):
    """A prompt that goes again goes under the same group id."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        before = {index: prompt.attempt for index, prompt in self._run.prompts.open.items()}
        effects = super().handle(news, now)
        for index, prompt in self._run.prompts.open.items():
            prompt.attempt = before.get(index, prompt.attempt)
        return [_renamed(effect) for effect in effects]


def _renamed(effect: do.Effect) -> do.Effect:
    if isinstance(effect, do.Dispatch):
        run, prompt, _ = effect.group_id.split(".")
        return dataclasses.replace(effect, group_id=f"{run}.{prompt}.0")
    return effect


class OlderListingBelieved(ControllerMachine):
    """An absence is believed of a listing that was asked for before the attempt was over."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        for prompt in self._run.prompts.open.values():
            prompt.unseen = False
        return super().handle(news, now)


class NewLifeStartsOver(ControllerMachine):
    """A new life sends all open prompts out at once, without a look at what became of their attempts."""

    def __init__(self, config: Any, record: ControllerRecord | None, **options: Any) -> None:
        super().__init__(config, record, **options)
        for prompt in self._run.prompts.open.values():
            prompt.where, prompt.unseen = Where.WAITING, False


class CursorForgotten(ControllerMachine):
    """A new life begins with the prompts that are closed by now."""

    def __init__(self, config: Any, record: ControllerRecord | None, **options: Any) -> None:
        if record is not None:
            record = ControllerRecord(run=record.run, life=record.life, step=record.step)
        super().__init__(config, record, **options)


class PromptSkipped(ControllerMachine):
    """A new life begins behind the prompts that were open."""

    def __init__(self, config: Any, record: ControllerRecord | None, **options: Any) -> None:
        super().__init__(config, record, **options)
        prompts = self._run.prompts
        prompts.trained += len(prompts.open)
        prompts.open.clear()


class VersionPublishedEarly(ControllerMachine):
    """Weights are published when their step is ordered."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        effects = super().handle(news, now)
        return [*effects, *(do.Publish(effect.step) for effect in effects if isinstance(effect, do.Train))]


class StaleTrained(ControllerMachine):
    """The policy allows one version more than was asked for."""

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        if isinstance(config.policy, Windowed):
            lag = config.policy.max_staleness_versions + 1
            config = _with_policy(config, Windowed(lag, wait_for_stragglers=False))
        super().__init__(config, *args, **options)


class StragglerIgnored(ControllerMachine):
    """The version passes groups that are being generated, though the policy waits for them."""

    def __init__(self, config: Any, *args: Any, **options: Any) -> None:
        if isinstance(config.policy, Windowed):
            lag, freshest = config.policy.max_staleness_versions, config.policy.sample_freshest_first
            config = _with_policy(config, Windowed(lag, freshest, wait_for_stragglers=False))
        super().__init__(config, *args, **options)


class FilterIgnored(ControllerMachine):
    """What the dynamic filter refuses is trained."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "accept": None})


class DroppedSilently(ControllerMachine):
    """Nobody is told that a prompt was dropped."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        effects = super().handle(news, now)
        return [e for e in effects if not (isinstance(e, do.Tell) and isinstance(e.event, ev.Dropped))]


class EndsTooEarly(ControllerMachine):
    """The run is over with its prompts, though groups are still being generated."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        effects = super().handle(news, now)
        if self._run.prompts_are_used_up() and self._run.phase.value == "running":
            self._ending.begin("the prompts are used up", now)
        return effects


class _Pretends(ControllerMachine):
    """Some calls of the plane are not made, and taken for done."""

    skipped: tuple[type[do.PlaneCall], ...] = ()

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        effects = super().handle(news, now)
        for skipped in [effect for effect in effects if isinstance(effect, self.skipped)]:
            effects.remove(skipped)
            effects += self.handle(nw.RowsGone(), now)
        return effects


class OrphansKept(ControllerMachine):
    """What nobody will train stays in the plane."""

    def handle(self, news: nw.News, now: float) -> list[do.Effect]:
        if isinstance(news, nw.Listed):
            prompts = self._run.prompts
            alive = [g for g in news.groups if (p := prompts.live(g.group_id)) and p.where is not Where.WAITING]
            news = nw.Listed(alive)
        return super().handle(news, now)


class ForgetsToRelease(_Pretends):
    """Rows of a step that came to nothing stay leased."""

    skipped = (do.Release,)


class TrainedRowsStay(_Pretends):
    """What was trained is not removed."""

    skipped = (do.Pop,)


def _with_policy(config: Any, policy: Any) -> Any:
    return type(config)(**{name: getattr(config, name) for name in config.__struct_fields__} | {"policy": policy})


_BUGS: tuple[type[ControllerMachine], ...] = (
    SaveAfterTheAct,
    SaveOneNewsLate,
    PopBeforeRecorded,
    RecordedStepNotPopped,
    TrainsWithoutAsking,
    AttemptNotBumped,
    OlderListingBelieved,
    NewLifeStartsOver,
    CursorForgotten,
    PromptSkipped,
    VersionPublishedEarly,
    StaleTrained,
    StragglerIgnored,
    FilterIgnored,
    DroppedSilently,
    EndsTooEarly,
    OrphansKept,
    ForgetsToRelease,
    TrainedRowsStay,
)
PLANTED: dict[str, type[ControllerMachine]] = {bug.__name__: bug for bug in _BUGS}
