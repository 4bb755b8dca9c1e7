"""The simulated trainer: one step at a time, durable with its record, as ``controller.roles.Trainer`` asks.

Its disk is the book's ``steps``. Invariants: a step is made once; an order for a recorded step is answered with its
record; where it stands is told only when no step is under way; an order waits for the one before it; once a life of the
controller has asked, no order of an earlier one is begun.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from penstock.controller.news import (
    StepFailed,
    StepMade,
    StepUnreadable,
    StopAsked,
    TrainerSilent,
    TrainerStands,
)
from penstock.controller.roles import StepRecord, TrainResult
from penstock.records import KVBatchMeta
from penstock.testing import checker
from penstock.testing.sim.client import Pause, Program
from penstock.testing.sim.habits import Sub, read
from penstock.testing.sim.steering.cast import NOTICE, Cast, Member, Reply

__all__ = ["POINTS", "Trainer"]

POINTS = ("before read", "before save", "after save")
_SPEED_S = (0.01, 0.05, 0.3, 1.0)
_LONG_S = 1.5
_FAILS = 0.03

_Order: TypeAlias = tuple[int, KVBatchMeta, Reply, int]  # the last: by which life of the controller


class Trainer(Member):
    """One life of the trainer."""

    def __init__(self, cast: Cast, name: str) -> None:
        self._orders: deque[_Order] = deque()
        self._asking: list[Reply] = []
        self._busy = False
        self._newest = 0  # life of the controller that has asked
        super().__init__(cast, name)
        if cast.scenario.config.needs:
            self.beat_as("trainer")

    def stands(self, reply: Reply, life: int) -> None:
        """Tell the last durable step, once none is under way."""
        if not self.alive:
            if self.world.chance(NOTICE):
                reply.send(TrainerSilent("nobody listens"))
            return
        self._newest = max(self._newest, life)
        self._asking.append(reply)
        self._go_on()

    def train(self, step: int, meta: KVBatchMeta, reply: Reply, life: int) -> None:
        """Make a step."""
        if not self.alive:
            if self.world.chance(NOTICE):
                reply.send(StepFailed(step, "nobody listens"))
            return
        if life < self._newest:
            self.world.say(self.name, "refuses an order of life", life)
            return
        self._orders.append((step, meta, reply, life))
        self._go_on()

    def kill(self, noticed_s: float) -> None:
        super().kill(noticed_s)
        orders = [(reply, StepFailed(step, "the trainer died")) for step, _, reply, _ in self._orders]
        self.tell_death([*orders, *((reply, TrainerSilent("the trainer died")) for reply in self._asking)])

    def _go_on(self) -> None:
        if self._busy or not self.alive:
            return
        if self._orders:
            self._busy = True
            step, meta, reply, _ = self._orders[0]
            self.run(self._make(step, meta, reply))
            return
        for reply in self._asking:
            steps = self.cast.book.steps
            reply.send(TrainerStands(steps[-1] if steps else None))
        self._asking.clear()

    # -- one step -----------------------------------------------------------------------------------------------------

    def _make(self, step: int, meta: KVBatchMeta, reply: Reply) -> Program:
        steps = self.cast.book.steps
        stand = self.cast.book.stand
        if steps and stand == step:
            answer: StepMade | StepFailed | StepUnreadable | None = StepMade(TrainResult(record=steps[-1]))
        elif stand != step - 1:
            answer = StepFailed(step, f"this trainer stands at step {stand}")
        else:
            answer = yield from self._train(step, meta)
        if self.alive and answer is not None:
            self._orders.popleft()
            self._busy = False
            reply.send(answer)
            self.world.after(0.0, self.awake, self._go_on)

    def _train(self, step: int, meta: KVBatchMeta) -> Sub:
        """Read, compute, save; return what to answer."""
        if self.cast.dies(self, "before read"):
            return None
        if self.cast.traps.pop("rows", ""):
            self.world.fault("step_unreadable", step)
            self.plane.work(self.plane.upkeep.lose_block)
        values, bad = yield from read(self, self.cast, meta.sample_ids, ["ids"])
        if values is None:
            ours = [key for key in bad if key in meta.sample_ids]
            return StepUnreadable(step, ours, "rows cannot be read") if ours else StepFailed(step, "cannot read")
        yield Pause(self.world.rng.choice(_SPEED_S))
        controller = self.cast.controller
        if controller.alive and self.cast.traps.pop("stop", ""):
            self.world.fault("stop_in_step", step)
            self.cast.post(controller, controller.hear, StopAsked("the user wants it in the middle of a step"))
            yield Pause(_LONG_S)
        if self.world.chance(_FAILS):
            self.world.fault("step_fails", step)
            return StepFailed(step, "out of memory")
        if self.cast.dies(self, "before save"):
            return None
        record = StepRecord.of(step, meta)
        self._save(record, values)
        if self.cast.dies(self, "after save"):
            return None
        return StepMade(TrainResult(record=record, metrics={"rows": float(len(values))}))

    def _save(self, record: StepRecord, values: list[int]) -> None:
        """Step and record become durable, in one moment."""
        book = self.cast.book
        book.steps.append(record)
        self.world.say(self.name, "saves step", record.step, record.groups)
        for key, value in zip(record.keys, values, strict=True):
            attempt = book.attempts.get(key.rpartition("_g")[0])
            version = -1 if attempt is None else attempt.version
            book.log.append(checker.Trained("after", key, f"{value:016x}", version, record.step, record.step - 1))
