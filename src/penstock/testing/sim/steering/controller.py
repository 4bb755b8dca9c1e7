"""The simulated controller: the real machine, and a shell round it that does as the real one, and dies anywhere.

Invariants, the real shell's: effects are carried out in order, a record being durable before what follows it; one piece
of news is handled at a time; an effect that asks is answered by one piece of news. It may die before and after each
effect. What must be so before an act is checked when it is done (``watch``).
"""

from __future__ import annotations

import typing
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from penstock.controller import effects as do
from penstock.controller import news as nw
from penstock.controller.machine import ControllerMachine
from penstock.records import KVBatchMeta
from penstock.testing.sim.client import Answer, Ask, Pause, Program
from penstock.testing.sim.steering.cast import Cast, Member, Reply
from penstock.testing.sim.steering.plane_calls import PlaneCalls
from penstock.testing.sim.steering.watch import Watch

__all__ = ["POINTS", "Controller", "MachineFactory"]

MachineFactory: TypeAlias = Callable[..., ControllerMachine]

_KINDS: tuple[type[do.Effect], ...] = typing.get_args(do.Effect)
_OFTEN = (do.Save, do.Dispatch, do.Claim, do.Train, do.Pop, do.Publish, do.Evict, do.List)
POINTS = tuple(f"{when} {kind.__name__}" for when in ("before", "after") for kind in (*_KINDS, *_OFTEN, *_OFTEN))
_SLOW_SAVE, _SAVE_S = 0.1, (0.01, 0.3)
_PUBLISH_S = (0.01, 0.1, 0.5)


class Controller(Member):
    """One life.

    Attributes:
        finish: how it ended by itself; None = it has not.
    """

    def __init__(self, cast: Cast, make_machine: MachineFactory) -> None:
        self.finish: do.Finish | None = None
        self._inbox: deque[nw.News] = deque()
        self._todo: deque[do.Effect] = deque()
        self._out: dict[str, tuple[Any, Reply]] = {}  # attempts, by group id
        self._busy = False
        self._tick = 0
        super().__init__(cast, "controller")
        scenario = cast.scenario
        self.machine = make_machine(
            scenario.config, cast.book.record, rng=cast.world.rng, now=cast.world.now, accept=scenario.accept
        )
        self.life = self.machine.statistics().life
        self._watch = Watch(cast, self.life)
        self._calls = PlaneCalls(cast.world, scenario)

    def begin(self) -> None:
        """The first news, and who is there."""
        self.hear(nw.Begun())

    # -- news in, effects out -----------------------------------------------------------------------------------------

    def hear(self, news: nw.News) -> None:
        """Take one piece of news in, when its turn has come."""
        if self.alive and self.finish is None:
            self._watch.hears(news)
            self._inbox.append(news)
            if not self._busy:
                self._work()

    def _work(self) -> None:
        self._busy = True
        while self._carry_out_all():
            if not self._inbox:
                self._busy = False
                self._wind_clock()
                return
            news = self._inbox.popleft()
            if self.world.traced:
                self.world.say(f"life {self.life}", "hears", news)
            self._todo += self.machine.handle(news, self.world.now)
            self.machine.check_invariants()

    def _carry_out_all(self) -> bool:
        """Do what is to be done; False = the process is dead, is over, or waits for its disk."""
        while self._todo:
            effect = self._todo.popleft()
            name = type(effect).__name__
            if self._dies(f"before {name}"):
                return False
            if self.world.traced:
                self.world.say(f"life {self.life}", "does ", effect)
            self._carry_out(effect)
            if self._dies(f"after {name}") or self.finish is not None:
                return False
            if isinstance(effect, do.Save) and self.world.chance(_SLOW_SAVE):
                self.world.after(self.world.rng.choice(_SAVE_S), self.awake, self._resume)
                return False
        return self.alive

    def _resume(self) -> None:
        if self.alive and self.finish is None:
            self._work()

    def _dies(self, point: str) -> bool:
        return not self.alive or self.cast.dies(self, point)

    def _wind_clock(self) -> None:
        self._tick += 1
        self.world.at(self.machine.next_timer(), self.awake, self._ticked, self._tick)

    def _ticked(self, tick: int) -> None:
        if tick == self._tick:
            self.hear(nw.Ticked())

    def kill(self, noticed_s: float) -> None:
        super().kill(noticed_s)
        self._todo.clear()
        self._inbox.clear()

    # -- effects ------------------------------------------------------------------------------------------------------

    def _carry_out(self, effect: do.Effect) -> None:
        self._watch.sees(effect)
        match effect:
            case do.Save(record):
                self.cast.book.save(record)
            case do.Tell(event):
                self.cast.book.events.append((self.life, event))
            case do.Dispatch(group_id, prompt, _, version):
                self._dispatch(group_id, prompt, version)
            case do.Cancel(group_id):
                self._cancel(group_id)
            case do.AskTrainer():
                self._ask_trainer()
            case do.Train(step, meta):
                self._order(step, meta)
            case do.Publish(version):
                self._publish(version)
            case do.AwaitPlane():
                self.run(self._telling(self._calls.await_plane()))
            case do.AskWhy():
                self.run(self._telling(self._calls.why()))
            case do.Finish():
                self._end(effect)
            case _:
                self.run(self._telling(self._calls.carry_out(effect)))

    def _telling(self, asking: Generator[Ask | Pause, Answer, nw.News]) -> Program:
        news = yield from asking
        self.hear(news)

    def _end(self, finish: do.Finish) -> None:
        self.finish = finish
        self.cast.book.finishes.append(finish)
        self.close()
        self.world.after(self.world.rng.choice((0.1, 1.0)), self.cast.start, self.name)

    # -- generators ---------------------------------------------------------------------------------------------------

    def _dispatch(self, group_id: str, prompt: int, version: int) -> None:
        book, scenario = self.cast.book, self.cast.scenario
        if scenario.prompts is not None and prompt >= scenario.prompts:
            self.world.after(0.0, self.awake, self.hear, nw.NoSuchPrompt(group_id))
            return
        book.dispatched[group_id] = self.life
        late = nw.GenerationFailed(group_id, "no answer in time")
        reply = Reply(self, late, scenario.config.generate_timeout_s)
        workers = self.cast.member("worker")
        if not workers:
            reply.send(nw.GenerationFailed(group_id, "no worker is there"))
            return
        worker = self.world.rng.choice(workers)
        self._out[group_id] = worker, reply
        self.cast.post(worker, worker.generate, group_id, prompt, version, reply)

    def _cancel(self, group_id: str) -> None:
        if group_id in self._out:
            worker, reply = self._out.pop(group_id)
            reply.cancel()
            self.cast.post(worker, worker.stop_generating, group_id)

    # -- the trainer, and its weights ---------------------------------------------------------------------------------

    def _ask_trainer(self) -> None:
        trainer: Any = self.cast.clients["trainer"]
        reply = Reply(self, nw.TrainerSilent("no answer in time"), self.cast.scenario.config.train_timeout_s)
        self.cast.post(trainer, trainer.stands, reply, self.life)

    def _order(self, step: int, meta: KVBatchMeta) -> None:
        trainer: Any = self.cast.clients["trainer"]
        reply = Reply(self, nw.StepFailed(step, "no answer in time"), self.cast.scenario.config.train_timeout_s)
        self.cast.post(trainer, trainer.train, step, meta, reply, self.life)

    def _publish(self, version: int) -> None:
        late = nw.PublicationFailed(version, "no answer in time")
        reply = Reply(self, late, self.cast.scenario.config.publish_timeout_s)
        self.world.after(self.world.rng.choice(_PUBLISH_S), self.awake, self._published, version, reply)

    def _published(self, version: int, reply: Reply) -> None:
        if not self.alive:
            return
        failure = self.cast.traps.pop("weights", "")
        if failure:
            self.world.fault("publish_fails", failure)
        if failure != "before":
            self.cast.version = version
            self.cast.book.published.append(version)
        late = nw.PublicationFailed(version, "a worker did not answer")
        reply.send(late if failure else nw.PublicationMade(version))
