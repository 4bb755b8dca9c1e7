"""How a run ends: by itself, because somebody wants it, or because it cannot go on.

Invariants: every wait has a limit; a step that is out is waited for, then left to the next life, which asks the trainer
what became of it; what stays in the plane stays under way in the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.controller import events as ev
from penstock.controller.config import Role
from penstock.controller.effects import Cancel, Finish
from penstock.controller.lane import Lane
from penstock.controller.prompts import Where
from penstock.controller.run import Phase, Run
from penstock.controller.training import Training
from penstock.records import DataPlaneGroupMeta

__all__ = ["Ending"]


@dataclass
class Ending:
    """How far the end has come.

    Attributes:
        reason: why the run ends; None = it does not.
        since: when that was decided.
        swept: leftovers have been evicted, or may stay.
    """

    run: Run
    training: Training
    lane: Lane
    reason: str | None = None
    since: float = 0.0
    swept: bool = False

    def begin(self, reason: str, now: float) -> None:
        """The run is to end; a second reason changes nothing."""
        if self.reason is None:
            self.reason, self.since, self.swept = reason, now, self.run.config.leftovers == "keep"
            self.run.turn("finish")

    def break_off(self, why: str, *, went_back: bool = False) -> None:
        """The run cannot go on: nothing more is done, so that nothing is done wrongly."""
        if self.run.phase is Phase.OVER:
            return
        self.run.turn("broken")
        self.run.effects += [Cancel(self.run.prompts.group_id(prompt)) for prompt in self.run.prompts.at(Where.OUT)]
        self.run.tell(ev.Finished(reason=why, ok=False, step=self.run.step))
        self.run.do(Finish(why, ok=False, went_back=went_back))

    # -- does it end? -------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """End the run if what it was to do is done, or nobody is left to do it."""
        run, training = self.run, self.training
        if (reason := self._missing("trainer", now)) is not None:
            self.begin(reason, now)
        if run.phase is not Phase.RUNNING or not training.is_idle or run.published != run.step or self.lane.evictions:
            return
        if run.config.max_steps is not None and run.step >= run.config.max_steps:
            self.begin(f"{run.step} steps are made", now)
        elif run.config.policy.select(training.standing()):
            return
        elif (reason := self._missing("rollout", now)) is not None:
            self.begin(reason, now)
        elif run.prompts_are_used_up() and not self._something_comes():
            self.begin("the prompts are used up", now)

    def _something_comes(self) -> bool:
        """Whether a prompt is under way, or its group too old to be trained: the next listing lets that go again."""
        run = self.run
        oldest = run.config.policy.oldest_version(run.step)
        stale = oldest is not None and any(p.weight_version < oldest for p in run.prompts.at(Where.READY))
        return stale or run.prompts.count(Where.WAITING, Where.OUT, Where.LANDED) > 0

    def nobody_generates(self, now: float) -> bool:
        """Whether dispatching makes no sense any more."""
        return self._missing("rollout", now) is not None

    def _missing(self, role: Role, now: float) -> str | None:
        """Say that the run needs ``role`` and has nobody for it, beyond what may be waited for."""
        config, replicas = self.run.config, self.run.replicas
        since = replicas.vacant_since.get(role)
        if role not in config.needs:
            return None
        if since is not None and now - since > config.replica_grace_s:
            return f"the last {role} replica is gone"
        if not replicas.was_held(role) and now - self.run.began_at > config.startup_grace_s:
            return f"no {role} replica has registered within {config.startup_grace_s:g} s"
        return None

    # -- it does ------------------------------------------------------------------------------------------------------

    def wind_up(self, now: float) -> None:
        """Settle what can be settled; end when that is done, or the time for it is up."""
        run, training = self.run, self.training
        if now >= self.since + run.config.drain_s:  # compared as ``timers`` says it: rounding must not cost a tick
            self._cancel(now)
        gives_up = training.out is not None and training.recorded is None
        if gives_up and (not training.is_ordered or now >= self.since + run.config.step_stop_s):
            training.give_up()
        busy = run.prompts.count(Where.OUT) or not training.is_idle or training.releasing or self.lane.evictions
        if (not busy and self.swept) or now >= self.since + run.config.stop_s / 2 or self.lane.away is not None:
            run.turn("settled")
            self.over(now)

    def _cancel(self, now: float) -> None:
        for prompt in self.run.prompts.at(Where.OUT):
            self.run.do(Cancel(self.run.prompts.group_id(prompt)))
            self.run.prompts.land(prompt, now)
            self.lane.wants_list = True

    def sweep(self, groups: Sequence[DataPlaneGroupMeta]) -> None:
        """The run goes on in no other life: of what is listed, what nobody trained goes."""
        run = self.run
        unsettled = run.prompts.count(Where.OUT) or any(prompt.unseen for prompt in run.prompts.open.values())
        if self.reason is None or self.swept or unsettled or not self.training.is_idle:
            return
        self.swept = True
        kept = set(self.training.given_up)
        ours = [g for g in groups if run.prompts.parse(g.group_id) is not None and g.group_id not in kept]
        self.lane.evict([(group, "run over") for group in ours])
        for prompt in [p for p in run.prompts.open.values() if run.prompts.group_id(p) not in kept]:
            run.drop(prompt.index, "run over")

    def over(self, now: float) -> None:
        """All is done that will be done."""
        self._cancel(now)
        self.run.tell(ev.Finished(reason=self.reason or "", ok=True, step=self.run.step))
        self.run.do(Finish(self.reason or "", ok=True))

    def timers(self) -> list[float]:
        """When each wait of the end is over."""
        config = self.run.config
        waits = (config.drain_s, config.step_stop_s, config.stop_s / 2)
        return [] if self.reason is None else [self.since + wait for wait in waits]
