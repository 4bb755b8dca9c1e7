"""The simulated controller: the real machine, and a shell round it that does as the real one, and dies anywhere.

Invariants, the real shell's: effects are carried out in order, a record being durable before what follows it; one piece
of news is handled at a time; an effect that asks is answered by one piece of news. It may die before and after each
effect. What the record must know before an act is checked here, when the act is done.
"""

from __future__ import annotations

import math
import typing
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from penstock.controller import effects as do
from penstock.controller import news as nw
from penstock.controller.events import Again, Reaped, Recovered, RunEvent
from penstock.controller.machine import ControllerMachine
from penstock.controller.policies import Windowed
from penstock.records import DataPlaneGroupMeta, KVBatchMeta
from penstock.requests import (
    Capabilities,
    CapabilitiesAre,
    Claim,
    Claimed,
    Done,
    Evict,
    Failed,
    Groups,
    ListMetadata,
    Ping,
    Pop,
    RegisterPartition,
    Release,
    Tokens,
    Why,
    WhyReport,
)
from penstock.testing.sim.client import Answer, Ask, Pause, Program
from penstock.testing.sim.habits import PARTITION, Sub
from penstock.testing.sim.steering.cast import Cast, Member, Reply

__all__ = ["POINTS", "Controller", "MachineFactory"]

MachineFactory: TypeAlias = Callable[..., ControllerMachine]

_KINDS: tuple[type[do.Effect], ...] = typing.get_args(do.Effect)
_OFTEN = (do.Save, do.Dispatch, do.Claim, do.Train, do.Pop, do.Publish, do.Evict, do.List)
POINTS = tuple(f"{when} {kind.__name__}" for when in ("before", "after") for kind in (*_KINDS, *_OFTEN, *_OFTEN))
_PING_S = 2.0
_MUTE = 3  # so many signs of life in a row must be lost
_AGAIN_S = (0.05, 0.2, 0.5)
_SLOW_SAVE, _SAVE_S = 0.1, (0.01, 0.3)
_PUBLISH_S = (0.01, 0.1, 0.5)
_UNKNOWN_OUTCOME = ("DataPlaneUnavailable", "DataPlaneTimeout", "DataPlaneClearError")
_REFUSALS = ("LeaseLost", "RowRemoved", "UnknownName")


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
        self._versions: dict[str, int] = {}  # of those that have not been answered
        self._generated: set[str] = set()
        self._busy = False
        self._tick = 0
        self._incarnation = 0
        self._went_on = 0  # the incarnation with which the run last went on
        self._listed = 0  # groups, when last listed
        super().__init__(cast, "controller")
        scenario = cast.scenario
        self.machine = make_machine(
            scenario.config, cast.book.record, rng=cast.world.rng, now=cast.world.now, accept=scenario.accept
        )
        self.life = self.machine.statistics().life

    def begin(self) -> None:
        """The first news, and who is there."""
        self.hear(nw.Begun())

    # -- news in, effects out -----------------------------------------------------------------------------------------

    def hear(self, news: nw.News) -> None:
        """Take one piece of news in, when its turn has come."""
        if self.alive and self.finish is None:
            if isinstance(news, nw.Generated | nw.GenerationFailed):
                self._versions.pop(news.group_id, None)
            if isinstance(news, nw.Generated):
                self._generated.add(news.group_id)
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
        match effect:
            case do.Save(record):
                self.cast.book.save(record)
            case do.Tell(event):
                self._check_word(event)
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
                self.run(self._await_plane())
            case do.AskWhy():
                self.run(self._ask_why())
            case do.Finish():
                self._end(effect)
            case _:
                self._check_call(effect)
                self.run(self._call(effect))

    def _wrong(self, what: str) -> None:
        self.cast.book.wrong.append(f"life {self.life} at {self.world.now:.3f}: {what}")

    def _end(self, finish: do.Finish) -> None:
        self.finish = finish
        self.cast.book.finishes.append(finish)
        self.close()
        self.world.after(self.world.rng.choice((0.1, 1.0)), self.cast.start, self.name)

    # -- generators ---------------------------------------------------------------------------------------------------

    def _dispatch(self, group_id: str, prompt: int, version: int) -> None:
        book, scenario = self.cast.book, self.cast.scenario
        if group_id in book.dispatched:
            self._wrong(f"{group_id!r} is dispatched again; life {book.dispatched[group_id]} did so first")
        if not book.knows_attempt(prompt, int(group_id.rpartition(".")[2])):
            self._wrong(f"{group_id!r} is dispatched, and the durable record does not know")
        if group_id.endswith(".0") and (room := self._room()) < 0:
            self._wrong(f"{group_id!r} is opened, {-room} more than the steps to come take")
        if version > book.stand:
            self._wrong(f"{group_id!r} is dispatched with version {version}; the trainer stands at {book.stand}")
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
        self._versions[group_id] = version
        self.cast.post(worker, worker.generate, group_id, prompt, version, reply)

    def _room(self) -> int:
        """How many prompts more the steps to come could take than are open."""
        config, record = self.cast.scenario.config, self.cast.book.record
        if config.max_steps is None or record is None:
            return 0
        batch = math.ceil(config.groups_per_step * config.over_sampling)
        return (config.max_steps - record.step) * batch - len(record.open)

    def _cancel(self, group_id: str) -> None:
        if group_id in self._out:
            worker, reply = self._out.pop(group_id)
            self._versions.pop(group_id, None)
            reply.cancel()
            self.cast.post(worker, worker.stop_generating, group_id)

    # -- the trainer, and its weights ---------------------------------------------------------------------------------

    def _ask_trainer(self) -> None:
        trainer: Any = self.cast.clients["trainer"]
        reply = Reply(self, nw.TrainerSilent("no answer in time"), self.cast.scenario.config.train_timeout_s)
        self.cast.post(trainer, trainer.stands, reply, self.life)

    def _order(self, step: int, meta: KVBatchMeta) -> None:
        record, ready_tag = self.cast.book.record, self.cast.scenario.config.ready_tag
        if record is None or record.step != step - 1:
            self._wrong(f"step {step} is ordered on the record {record}")
        if not self.cast.book.published or self.cast.book.published[-1] != step - 1:
            self._wrong(f"step {step} is ordered before version {step - 1} was published")
        if ready_tag is not None and any(ready_tag not in tags for tags in meta.tags or ()):
            self._wrong(f"step {step} is ordered of rows without the tag {ready_tag!r}")
        trainer: Any = self.cast.clients["trainer"]
        reply = Reply(self, nw.StepFailed(step, "no answer in time"), self.cast.scenario.config.train_timeout_s)
        self.cast.post(trainer, trainer.train, step, meta, reply, self.life)

    def _publish(self, version: int) -> None:
        book, rng = self.cast.book, self.world.rng
        if book.record is None or book.record.step != version or version > book.stand:
            self._wrong(f"version {version} is published; record {book.record}, trainer at step {book.stand}")
        late = nw.PublicationFailed(version, "no answer in time")
        reply = Reply(self, late, self.cast.scenario.config.publish_timeout_s)
        self.world.after(rng.choice(_PUBLISH_S), self.awake, self._published, version, reply)

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

    # -- the plane ----------------------------------------------------------------------------------------------------

    def _check_call(self, effect: do.PlaneCall) -> None:
        if isinstance(effect, do.Pop):
            steps = self.cast.book.steps
            durable = set(steps[-1].keys) if steps else set()
            if not durable.issuperset(effect.keys):
                self._wrong(f"rows are popped that no durable step names: {sorted(set(effect.keys) - durable)}")
        if isinstance(effect, do.Evict):
            self.cast.book.evicted.update(dict.fromkeys(effect.keys, effect.reason))
        policy = self.cast.scenario.config.policy
        if isinstance(effect, do.Claim) and isinstance(policy, Windowed) and policy.wait_for_stragglers:
            oldest = self.cast.book.stand - policy.max_staleness_versions
            if left := [group for group, version in self._versions.items() if version == oldest]:
                self._wrong(f"the version passes {left}, which are being generated")

    def _check_word(self, event: RunEvent) -> None:
        """What listeners are told is so."""
        if isinstance(event, Recovered):
            is_new = self._went_on not in (0, self._incarnation)
            if self._went_on and event.empty != (is_new and not self._listed):
                self._wrong(f"it is told that the plane came back empty={event.empty}, with {self._listed} groups")
            self._went_on = self._incarnation
        elif isinstance(event, Reaped) and event.silent_s:
            self._check_burial(event)
        elif isinstance(event, Again) and event.why == "its rows are gone":
            self._check_gone(event)

    def _check_burial(self, event: Reaped) -> None:
        """Who says that he lives, and is heard, is not taken for dead; not even by one who was stopped himself."""
        one, now = self.cast.clients[event.replica], self.world.now
        assert isinstance(one, Member)
        awake_since = max(one.born_at, one.frozen_until)
        mute = sum(self.world.faults[kind] for kind in ("message_lost", "message_late"))
        if one.alive and now - awake_since > self.cast.scenario.config.replica_dead_s + 1.0 and mute < _MUTE:
            self._wrong(f"{event.replica!r} is buried alive: {event}")

    def _check_gone(self, event: Again) -> None:
        """A group that its generator has committed, and that nobody removed, is not said to be gone."""
        group_id = f"{self.cast.scenario.config.run}.{event.prompt}.{event.attempt - 1}"
        keys = self.cast.book.attempts[group_id].keys if group_id in self._generated else []
        gone = self.plane.removed.keys() | self.plane.forgotten
        if keys and not gone.intersection(keys):
            self._wrong(f"prompt {event.prompt} goes again, though {keys} are there")

    def _call(self, effect: do.PlaneCall) -> Program:
        news = yield from self._answer(effect)
        self.hear(news)

    def _answer(self, effect: do.PlaneCall) -> Sub:
        if isinstance(effect, do.List):
            return (yield from self._list())
        answer = yield Ask(self._request(effect), self.cast.scenario.config.call_timeout_s)
        name = type(effect).__name__.lower()
        if isinstance(answer, Failed):
            return _failure(effect, answer)
        if isinstance(answer, Claimed):
            return nw.Leased(self._meta(answer))
        if not isinstance(answer, Done):
            return nw.CallFailed(f"{name}: {answer}")
        return nw.Registered() if isinstance(effect, do.Register) else nw.RowsGone()

    def _request(self, effect: do.PlaneCall) -> RegisterPartition | Claim | Release | Pop | Evict:
        config = self.cast.scenario.config
        match effect:
            case do.Claim(keys):
                fields = list(config.fields)
                return Claim(PARTITION, config.task, fields, 0, blocking=False, keys=list(keys), whole_groups=True)
            case do.Release(meta):
                return Release(PARTITION, config.task, meta.sample_ids, Tokens(list(meta.lease or ()), []))
            case do.Pop(keys, lease):
                return Pop(PARTITION, list(keys), Tokens(list(lease), []))
            case do.Evict(keys, reason):
                return Evict(PARTITION, list(keys), reason)
        rows = config.groups_per_step * config.group_size
        return RegisterPartition(
            PARTITION, list(config.fields), rows, list(config.consumers), config.group_size, policy=config.group_policy
        )

    def _meta(self, claimed: Claimed) -> KVBatchMeta:
        config = self.cast.scenario.config
        lease = (claimed.token,) if claimed.token else ()
        return KVBatchMeta(
            PARTITION, config.task, claimed.keys, list(config.fields), tags=list(claimed.tags), lease=lease
        )

    def _list(self) -> Sub:
        timeout_s, page = self.cast.scenario.config.call_timeout_s, self.cast.scenario.page
        groups: list[DataPlaneGroupMeta] = []
        after: str | None = None
        while True:
            answer = yield Ask(ListMetadata(PARTITION, limit=page, after=after), timeout_s)
            if not isinstance(answer, Groups):
                return _not_listed(answer)
            groups += answer.groups
            if len(answer.groups) < page:
                break
            after = groups[-1].group_id
        now = yield Ask(Capabilities(), timeout_s)
        if not isinstance(now, CapabilitiesAre):
            return _not_listed(now)
        if now.value.incarnation != self._incarnation:
            return nw.CallFailed("the plane was restarted")
        self._listed = len(groups)
        return nw.Listed(groups)

    def _await_plane(self) -> Program:
        deadline = self.world.now + self.cast.scenario.config.recover_deadline_s
        while self.world.now < deadline:
            there = isinstance((yield Ask(Ping(), _PING_S)), Done)
            answer = (yield Ask(Capabilities(), _PING_S)) if there else None
            if isinstance(answer, CapabilitiesAre):
                self._incarnation = answer.value.incarnation
                self.hear(nw.PlaneBack(answer.value))
                return
            yield Pause(self.world.rng.choice(_AGAIN_S))
        self.hear(nw.PlaneGone("the plane did not come back in time"))

    def _ask_why(self) -> Program:
        config = self.cast.scenario.config
        answer = yield Ask(Why(PARTITION, task=config.task), config.call_timeout_s)
        told = [*answer.waits, *map(str, answer.owed)] if isinstance(answer, WhyReport) else [f"not asked: {answer}"]
        self.hear(nw.Explained(told))


def _failure(effect: do.PlaneCall, answer: Failed) -> nw.News:
    why = f"{type(effect).__name__.lower()}: {answer.code}: {answer.message}"
    if answer.code in _UNKNOWN_OUTCOME or (answer.code == "UnknownName" and not answer.keys):
        return nw.CallFailed(why)
    if answer.code in _REFUSALS and isinstance(effect, do.Claim | do.Pop | do.Release):
        return nw.Refused(list(answer.keys), answer.message)
    return nw.CallBroken(why)


def _not_listed(answer: Answer) -> nw.News:
    return _failure(do.List(), answer) if isinstance(answer, Failed) else nw.CallFailed(f"list: {answer}")
