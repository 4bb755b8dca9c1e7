"""The plane's calls, one at a time, in the order of what they are good for; and what is known of the plane.

Invariants: at most one call is out; what settles goes before what looks; no listing is asked for before it is known
which prompts the trainer has trained; after a failure nothing is assumed: the next listing decides evictions anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from penstock.controller import events as ev
from penstock.controller.effects import AwaitPlane, Claim, Evict, List, PlaneCall, Register
from penstock.controller.run import Phase, Run
from penstock.controller.training import Training
from penstock.controller.weighing import Eviction
from penstock.errors import IllegalTransition
from penstock.records import DataPlaneCapabilities

__all__ = ["Lane"]

C = TypeVar("C", bound=PlaneCall)


@dataclass
class Lane:
    """What is known of the plane.

    Attributes:
        call: the one that is out.
        away: why the plane is away; None = it is there.
        paused_at: since when the run has been without it.
        back_at: when it answered again; None = the run has recovered since.
        registered: the partition, since the plane came back.
        fresh: the last listing has not been used to choose a step yet.
        incarnation, is_new_life: of the plane; whether it is another one than when the run last went on.
        failures, not_before: calls that failed since the plane answered again; when the next may be made.
        evictions: groups that are to go, and why.
    """

    run: Run
    training: Training
    paused_at: float
    call: PlaneCall | None = None
    away: str | None = "not reached yet"
    back_at: float | None = None
    registered: bool = False
    fresh: bool = False
    wants_list: bool = True
    listed_at: float = 0.0
    incarnation: int = 0
    is_new_life: bool = False
    recoveries: int = 0
    failures: int = 0
    not_before: float = 0.0
    evictions: list[Eviction] = field(default_factory=list)

    # -- the plane goes and comes -------------------------------------------------------------------------------------

    def failed(self, why: str, now: float) -> None:
        """The call that is out was not answered."""
        if self.call is None:
            raise IllegalTransition("controller: a failure of no call", history=list(self.run.history))
        if isinstance(self.call, Claim):
            self.training.refused()
        if self.back_at is None:
            self.paused_at = now
        else:  # it answers and does not serve: no reason to hurry
            self.failures += 1
            self.not_before = self.run.later(self.failures, now)
        self.call, self.away, self.fresh, self.evictions = None, why, False, []
        self.run.tell(ev.Paused(why=why))
        self.run.turn("plane away")
        if self.run.phase is not Phase.OVER:
            self.run.do(AwaitPlane())

    def back(self, capabilities: DataPlaneCapabilities, now: float) -> None:
        """The plane answers: everything about it is to be learned anew."""
        self.is_new_life = self.is_new_life or self.incarnation not in (0, capabilities.incarnation)
        self.incarnation, self.back_at, self.away = capabilities.incarnation, now, None
        self.registered, self.fresh, self.wants_list = False, False, True
        self.run.capabilities = capabilities

    def rebuilt(self, kept: int, again: int, *, came_empty: bool, now: float) -> None:
        """The first listing since the plane came back has been read: the run goes on."""
        assert self.back_at is not None
        self.run.turn("rebuilt")
        self.recoveries += 1
        self.run.tell(
            ev.Recovered(
                seconds=now - self.paused_at,
                plane_s=now - self.back_at,
                incarnation=self.incarnation,
                empty=came_empty,
                kept=kept,
                again=again,
            )
        )
        self.back_at, self.run.progress_at = None, now
        self.is_new_life, self.failures = False, 0

    # -- calls --------------------------------------------------------------------------------------------------------

    def answered(self, *kinds: type[C]) -> C:
        """The call that is out was answered; return it."""
        call, self.call = self.call, None
        if not isinstance(call, kinds):
            raise IllegalTransition(f"controller: an answer to {call}", history=list(self.run.history))
        return call

    def proceed(self, now: float) -> None:
        """Make the next call, if there is one to make."""
        if self.call is None and self.away is None and now >= self.not_before:
            self.call = self._next_call(now)
            if self.call is not None:
                self.run.do(self.call)

    def _next_call(self, now: float) -> PlaneCall | None:
        if not self.registered:
            return Register()
        if (owed := self.training.owed_call()) is not None:
            return owed
        if self.evictions:
            group, reason = self.evictions[0]
            return Evict(tuple(group.keys), reason)
        if self.fresh and self.run.phase is Phase.RUNNING and self.training.may_choose:
            self.fresh = False
            if (claim := self.training.choose()) is not None:
                return claim
        due = self.wants_list or now >= self.listed_at + self.run.config.list_every_s
        if due and self.training.is_sure:
            self.wants_list = False
            self.run.prompts.listing_asked()
            return List()
        return None

    def listed(self, now: float) -> bool:
        """A listing came; return whether it says that the plane came back with nothing, if nothing is in it."""
        self.answered(List)
        self.fresh, self.listed_at = True, now
        return self.is_new_life and self.back_at is not None

    def evict(self, evictions: Sequence[Eviction]) -> None:
        """Let groups go, each once."""
        known = {group.group_id for group, _ in self.evictions}
        self.evictions += [one for one in evictions if one[0].group_id not in known]

    def evicted(self, call: Evict) -> None:
        """The first of them is gone."""
        (group, reason), *self.evictions = self.evictions
        self.run.tell(ev.Evicted(group_id=group.group_id, keys=list(call.keys), reason=reason))

    def next_timer(self) -> float | None:
        """When the next call is due."""
        due = max(self.not_before, self.listed_at + self.run.config.list_every_s)
        return due if self.call is None and self.away is None else None
