"""The simulated controller's calls of the plane: as ``controller.calls`` makes them, as programs of its courier.

Invariants, the real ones': every outcome becomes one piece of news; a plane that came back between two calls is noticed
by its incarnation.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

from penstock.controller import effects as do
from penstock.controller import news as nw
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
from penstock.testing.sim.client import Answer, Ask, Pause
from penstock.testing.sim.habits import PARTITION
from penstock.testing.sim.steering.scenario import RunScenario
from penstock.testing.sim.world import World

__all__ = ["PlaneCalls"]

_PING_S = 2.0
_AGAIN_S = (0.05, 0.2, 0.5)
_UNKNOWN_OUTCOME = ("DataPlaneUnavailable", "DataPlaneTimeout", "DataPlaneClearError")
_REFUSALS = ("LeaseLost", "RowRemoved", "UnknownName")

_Telling: TypeAlias = Generator[Ask | Pause, Answer, nw.News]


class PlaneCalls:
    """Of one life."""

    def __init__(self, world: World, scenario: RunScenario) -> None:
        self._world = world
        self._config = scenario.config
        self._page = scenario.page
        self._incarnation = 0

    def carry_out(self, effect: do.PlaneCall) -> _Telling:
        """Make one call; return its answer, whatever it is."""
        if isinstance(effect, do.List):
            return (yield from self._list())
        answer = yield Ask(self._request(effect), self._config.call_timeout_s)
        if isinstance(answer, Failed):
            return _failure(effect, answer)
        if isinstance(answer, Claimed):
            return nw.Leased(self._meta(answer))
        if not isinstance(answer, Done):
            return nw.CallFailed(f"{type(effect).__name__.lower()}: {answer}")
        return nw.Registered() if isinstance(effect, do.Register) else nw.RowsGone()

    def _request(self, effect: do.PlaneCall) -> RegisterPartition | Claim | Release | Pop | Evict:
        config = self._config
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
        config = self._config
        lease = (claimed.token,) if claimed.token else ()
        return KVBatchMeta(
            PARTITION, config.task, claimed.keys, list(config.fields), tags=list(claimed.tags), lease=lease
        )

    def _list(self) -> _Telling:
        timeout_s = self._config.call_timeout_s
        groups: list[DataPlaneGroupMeta] = []
        after: str | None = None
        while True:
            answer = yield Ask(ListMetadata(PARTITION, limit=self._page, after=after), timeout_s)
            if not isinstance(answer, Groups):
                return _not_listed(answer)
            groups += answer.groups
            if len(answer.groups) < self._page:
                break
            after = groups[-1].group_id
        now = yield Ask(Capabilities(), timeout_s)
        if not isinstance(now, CapabilitiesAre):
            return _not_listed(now)
        if now.value.incarnation != self._incarnation:
            return nw.CallFailed("the plane was restarted")
        return nw.Listed(groups)

    def await_plane(self) -> _Telling:
        """Look for the plane until it answers, or the time for that is up."""
        deadline = self._world.now + self._config.recover_deadline_s
        while self._world.now < deadline:
            there = isinstance((yield Ask(Ping(), _PING_S)), Done)
            answer = (yield Ask(Capabilities(), _PING_S)) if there else None
            if isinstance(answer, CapabilitiesAre):
                self._incarnation = answer.value.incarnation
                return nw.PlaneBack(answer.value)
            yield Pause(self._world.rng.choice(_AGAIN_S))
        return nw.PlaneGone("the plane did not come back in time")

    def why(self) -> _Telling:
        """Ask what the task waits for."""
        answer = yield Ask(Why(PARTITION, task=self._config.task), self._config.call_timeout_s)
        told = [*answer.waits, *map(str, answer.owed)] if isinstance(answer, WhyReport) else [f"not asked: {answer}"]
        return nw.Explained(told)


def _failure(effect: do.PlaneCall, answer: Failed) -> nw.News:
    why = f"{type(effect).__name__.lower()}: {answer.code}: {answer.message}"
    if answer.code in _UNKNOWN_OUTCOME or (answer.code == "UnknownName" and not answer.keys):
        return nw.CallFailed(why)
    if answer.code in _REFUSALS and isinstance(effect, do.Claim | do.Pop | do.Release):
        return nw.Refused(list(answer.keys), answer.message)
    return nw.CallBroken(why)


def _not_listed(answer: Answer) -> nw.News:
    return _failure(do.List(), answer) if isinstance(answer, Failed) else nw.CallFailed(f"list: {answer}")
