"""Drives the controller's machine in virtual time: a plane, generators and a trainer that answer its effects by rule.

Watches, at every piece of news, what must hold always: books balance, at most one call of the plane is out, the record
is saved before what it tells of is done, nothing is done after the end, time never stands still.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.config import ControllerConfig
from penstock.controller.machine import ControllerMachine
from penstock.controller.record import ControllerRecord
from penstock.controller.roles import StepRecord, TrainResult
from penstock.controller.run import Accept
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, KVBatchMeta, group_meta

E = TypeVar("E")
CALL_S = 0.01  # an answer of the plane takes this long
CALLS = (do.Register, do.List, do.Claim, do.Release, do.Pop, do.Evict)
SPIN = 200  # so many news at one instant are a spin
GROUP = 2


def config(**changes: Any) -> ControllerConfig:
    """Return a small run's configuration."""
    options: dict[str, Any] = {"fields": ("x",), "group_size": GROUP, "groups_per_step": 2, "max_steps": 3}
    return ControllerConfig(**{**options, **changes})


@dataclass
class Plane:
    """The plane's rows, by key. Outlives controllers; ``restart`` is its next life."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)  # key -> token
    popped: dict[str, str] = field(default_factory=dict)  # key -> token
    evicted: dict[str, str] = field(default_factory=dict)  # key -> reason
    partial: dict[str, list[str]] = field(default_factory=dict)  # group -> keys that its policy released
    capabilities: DataPlaneCapabilities = field(
        default_factory=lambda: DataPlaneCapabilities(supports_leases=True, incarnation=1)
    )
    up: bool = True
    tokens: int = 0

    def put(
        self, group_id: str, version: int | None, *, rows: int = GROUP, committed: bool = True, **tags: Any
    ) -> None:
        for i in range(rows):
            tag = {"group_id": group_id, "expected_num_keys": GROUP, "committed": committed, **tags}
            self.rows[f"{group_id}_g{i}"] = tag if version is None else {**tag, "weight_version": version}

    def groups(self) -> list[DataPlaneGroupMeta]:
        by_group: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for key, tag in self.rows.items():
            by_group.setdefault(tag["group_id"], []).append((key, tag))
        return [
            group_meta("train", group, rows, partial_keys=self.partial.get(group, ()))
            for group, rows in sorted(by_group.items())
        ]

    def restart(self, *, keep: bool = True) -> None:
        """Be another incarnation; without ``keep`` nothing is left."""
        number = self.capabilities.incarnation + 1
        self.capabilities = DataPlaneCapabilities(supports_leases=True, incarnation=number)
        if not keep:
            self.rows, self.held = {}, {}

    def answer(self, call: do.PlaneCall) -> nw.News:
        match call:
            case do.Register():
                return nw.Registered()
            case do.List():
                return nw.Listed(self.groups())
            case do.Claim(keys):
                return self._claim(keys)
            case do.Pop(keys, lease):
                return self._pop(keys, lease)
            case do.Evict(keys, reason):
                for key in self._remove(keys):
                    self.evicted[key] = reason
            case do.Release(meta):
                if lost := [key for key in meta.sample_ids if self.held.get(key) not in (meta.lease or ())]:
                    return nw.Refused(lost, "not held")
                for key in meta.sample_ids:
                    del self.held[key]
        return nw.RowsGone()

    def _claim(self, keys: tuple[str, ...]) -> nw.News:
        if gone := [key for key in keys if key not in self.rows]:
            return nw.Refused(gone, "unknown")
        tags = [dict(self.rows[key]) for key in keys]
        if any(key in self.held for key in keys):
            return nw.Leased(KVBatchMeta("train", "train", []))
        if not self.capabilities.supports_leases:
            return nw.Leased(KVBatchMeta("train", "train", list(keys), tags=tags))
        self.tokens += 1
        token = f"t{self.tokens}"
        self.held.update(dict.fromkeys(keys, token))
        return nw.Leased(KVBatchMeta("train", "train", list(keys), tags=tags, lease=(token,)))

    def _pop(self, keys: tuple[str, ...], lease: tuple[str, ...]) -> nw.News:
        lost = [
            key
            for key in keys
            if (key in self.rows and self.held.get(key, "") not in ("", *lease))
            or (key not in self.rows and lease and self.popped.get(key) not in lease)
        ]
        if lost:
            return nw.Refused(lost, "not held under these tokens")
        for key in self._remove(keys):
            self.popped[key] = lease[0] if lease else ""
        return nw.RowsGone()

    def _remove(self, keys: tuple[str, ...]) -> list[str]:
        found = [key for key in keys if self.rows.pop(key, None) is not None]
        for key in found:
            self.held.pop(key, None)
        return found


@dataclass
class Shop:
    """The trainer's checkpoint, and what it trained."""

    record: StepRecord | None = None
    trained: Counter[int] = field(default_factory=Counter)  # by prompt
    steps: list[StepRecord] = field(default_factory=list)

    def make(self, step: int, meta: KVBatchMeta) -> TrainResult:
        if self.record is None or self.record.step != step:
            self.record = StepRecord.of(step, meta)
            self.steps.append(self.record)
            self.trained.update(prompt_of(group) for group in self.record.groups)
        return TrainResult(record=self.record)


def prompt_of(group_id: str) -> int:
    return int(group_id.split(".")[1])


Rule = Callable[[Any], nw.News | None]


class Died(Exception):
    """The controller was killed."""


class Steering:
    """One life of a run.

    Args:
        settings: of the run.
        last: the life before, whose plane, shop and record this one finds.
        rules: by effect: what answers it instead; None = nothing does, until the test itself does.
        fate: of a dispatched group: good, fail, torn (put, uncommitted, failed), late (committed, then failed),
            rejected, no prompt, empty (nothing is put), orphan (never committed), short (a row less), hang.
        length: how long a group is generated, seconds.
    """

    def __init__(
        self,
        settings: ControllerConfig | None = None,
        *,
        last: Steering | None = None,
        record: ControllerRecord | None = None,
        rules: Mapping[type, Rule] | None = None,
        fate: Callable[[do.Dispatch], str] = lambda one: "good",
        length: Callable[[do.Dispatch], float] = lambda one: 0.1,
        train_s: float = 0.2,
        accept: Accept | None = None,
        seed: int = 0,
    ) -> None:
        self.config = settings or config()
        self.plane: Plane = last.plane if last else Plane()
        self.shop: Shop = last.shop if last else Shop()
        self.now: float = last.now + 1.0 if last else 100.0
        self.saved: ControllerRecord | None = last.saved if last else record
        self.saves: list[ControllerRecord] = []
        self.machine = ControllerMachine(self.config, self.saved, rng=random.Random(seed), now=self.now, accept=accept)
        self.rules, self.fate, self.length, self.train_s = dict(rules or {}), fate, length, train_s
        self.events: list[ev.RunEvent] = []
        self.effects: list[do.Effect] = []
        self.trail: list[str] = []  # effects by name, news by name after ">"
        self.calls_out = 0
        self.waits_for_plane = False
        self.cancelled: set[str] = set()
        self.attempts: Counter[int] = Counter()  # by prompt
        self.finish: do.Finish | None = None
        self.dies_after: int | None = None  # so many effects
        self.why: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._instant = (self.now, 0)

    # -- time ---------------------------------------------------------------------------------------------------------

    def at(self, when: float, work: Callable[[], object]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), work))

    def later(self, news: nw.News, delay: float = CALL_S) -> None:
        self.at(self.now + delay, lambda: self.tell(news))

    def begin(self) -> Steering:
        self.tell(nw.Begun())
        return self

    def run(self, seconds: float = 1000.0) -> Steering:
        """Let time pass until the run is over, or ``seconds``."""
        end = self.now + seconds
        while self.finish is None:
            tick = self.machine.next_timer()
            assert tick > self.now, "a timer that is due already: the shell would spin"
            due = self._queue[0][0] if self._queue else tick
            if min(due, tick) > end:
                self.now = end
                break
            if due <= tick and self._queue:
                self.now, _, work = heapq.heappop(self._queue)
                work()
            else:
                self.now = tick
                self.tell(nw.Ticked())
        return self

    def until(self, kind: type[E], nth: int = 1, seconds: float = 100.0) -> E:
        """Let time pass until the ``nth`` effect or event of ``kind`` from now on; return it."""
        had = len(self.of(kind))
        end = self.now + seconds
        while len(self.of(kind)) < had + nth:
            assert self.finish is None, f"the run is over without {kind.__name__}: {self.finish}"
            assert self.now < end, f"no {kind.__name__} within {seconds} s: {self.trail[-20:]}"
            self._one_thing()
        return self.of(kind)[had + nth - 1]

    def _one_thing(self) -> None:
        tick = self.machine.next_timer()
        if self._queue and self._queue[0][0] <= tick:
            self.now, _, work = heapq.heappop(self._queue)
            work()
        else:
            self.now = tick
            self.tell(nw.Ticked())

    # -- news and effects ---------------------------------------------------------------------------------------------

    def tell(self, news: nw.News) -> list[do.Effect]:
        """Give the machine a piece of news now; carry out what it wants."""
        when, count = self._instant
        self._instant = (self.now, count + 1 if when == self.now else 1)
        assert count < SPIN, f"{count} news at one instant: {self.trail[-20:]}"
        self.trail.append(f"> {type(news).__name__}")
        was_over = self.finish is not None
        effects = self.machine.handle(news, self.now)
        assert not (was_over and effects), f"after the end: {effects}"
        self.machine.check_invariants()
        for effect in effects:
            assert self.finish is None, f"{effect} after the end"
            self._carry_out(effect)
        return effects

    def _carry_out(self, effect: do.Effect) -> None:
        if len(self.effects) == self.dies_after:
            raise Died
        self.effects.append(effect)
        self.trail.append(type(effect.event).__name__ if isinstance(effect, do.Tell) else type(effect).__name__)
        self._watch(effect)
        if (rule := self.rules.get(type(effect))) is not None:
            if (news := rule(effect)) is not None:
                self._answer(effect, news)
            return
        match effect:
            case do.Save(record):
                self.saved = record
                self.saves.append(record)
            case do.Tell(event):
                self.events.append(event)
            case do.Cancel(group_id):
                self.cancelled.add(group_id)
            case do.Finish():
                self.finish = effect
            case _:
                self._ask(effect)

    def _ask(self, effect: do.Effect) -> None:
        """Have the others do what is asked."""
        match effect:
            case do.Dispatch():
                self._generate(effect)
            case do.AwaitPlane():
                self.waits_for_plane = True
                self._look()
            case do.AskWhy():
                self.later(nw.Explained(self.why))
            case do.AskTrainer():
                self.at(self.now + CALL_S, lambda: self.tell(nw.TrainerStands(self.shop.record)))
            case do.Train(step, meta):
                self.at(self.now + self.train_s, lambda: self.tell(nw.StepMade(self.shop.make(step, meta))))
            case do.Publish(version):
                self.later(nw.PublicationMade(version))
            case do.Register() | do.List() | do.Claim() | do.Release() | do.Pop() | do.Evict():
                self.at(self.now + CALL_S, lambda: self._call(effect))

    def _answer(self, effect: do.Effect, news: nw.News) -> None:
        def tell() -> None:
            self.calls_out -= isinstance(effect, CALLS)
            self.tell(news)

        self.at(self.now + CALL_S, tell)

    def _call(self, call: do.PlaneCall) -> None:
        self.calls_out -= 1
        if self.plane.up:
            self.tell(self.plane.answer(call))
        else:
            self.tell(nw.CallFailed("the plane does not answer"))

    def answered(self, news: nw.News) -> list[do.Effect]:
        """The test answers a call that a rule left unanswered."""
        self.calls_out -= 1
        return self.tell(news)

    def _look(self) -> None:
        if self.waits_for_plane and self.plane.up:
            self.waits_for_plane = False
            self.later(nw.PlaneBack(self.plane.capabilities))

    def plane_up(self) -> None:
        """The plane is there again."""
        self.plane.up = True
        self._look()

    def _watch(self, effect: do.Effect) -> None:
        """What must hold of every effect, whatever the test is about."""
        if isinstance(effect, CALLS):
            self.calls_out += 1
            assert self.calls_out == 1, f"two calls of the plane are out: {self.trail[-20:]}"
        if isinstance(effect, do.Save):
            record = effect.record
            assert record.cursor == record.trained + sum(record.dropped.values()) + len(record.open)
        if isinstance(effect, do.Dispatch):
            assert self.saved is not None
            known = {f"{self.config.run}.{one.index}.{one.attempt}" for one in self.saved.open}
            assert effect.group_id in known, "dispatched before it was saved"
            dispatched = [e.group_id for e in self.of(do.Dispatch)]
            assert dispatched.count(effect.group_id) == 1, "a group id was used twice"
        if isinstance(effect, do.Publish):
            assert self.saved is not None
            assert self.saved.step == effect.version, "published before it was saved"

    def _generate(self, one: do.Dispatch) -> None:
        self.attempts[one.prompt] += 1
        fate = self.fate(one)
        if fate == "no prompt":
            self.at(self.now, lambda: self.tell(nw.NoSuchPrompt(one.group_id)))
        elif fate != "hang":
            self.at(self.now + self.length(one), lambda: self._generated(one, fate))

    def _generated(self, one: do.Dispatch, fate: str) -> None:
        if one.group_id in self.cancelled:
            return
        if fate in ("good", "late", "torn", "orphan", "short"):
            whole = fate not in ("torn", "orphan")
            self.plane.put(one.group_id, one.version, rows=GROUP - (fate == "short"), committed=whole)
        if fate in ("good", "empty", "orphan", "short"):
            self.tell(nw.Generated(one.group_id))
        else:
            self.tell(nw.GenerationFailed(one.group_id, f"it was {fate}", rejected=fate == "rejected"))

    # -- looking ------------------------------------------------------------------------------------------------------

    def of(self, kind: type[E]) -> list[E]:
        """Return the effects, or events, of a kind, in order."""
        told = [e.event for e in self.effects if isinstance(e, do.Tell)]
        return [one for one in [*self.effects, *told] if isinstance(one, kind)]

    def clear(self) -> None:
        """Forget what was done until now."""
        self.trail.clear()
        self.effects = [e for e in self.effects if isinstance(e, do.Dispatch)]

    def moves(self, *without: str) -> list[str]:
        """Return the trail less what is named."""
        return [step for step in self.trail if step not in without]

    @property
    def state(self) -> Any:
        return self.machine.statistics()

    @property
    def prompts(self) -> Any:
        return self.machine._run.prompts
