"""The controller's machine: ``handle(news, now) -> effects``. Decides everything of a run and does nothing.

It is composed of the prompt ledger, the rollout pump (``dispatching``), the train pump (``training``), the plane's
calls (``lane``), the reading of listings (``weighing``), the watchdog's view (``stalls``) and the end (``ending``);
here news are dealt out.

Invariants: before anything is done that the record tells of, the record is saved; no listing is judged before it is
known which prompts the trainer has trained; once over, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.config import ControllerConfig
from penstock.controller.dispatching import dispatch
from penstock.controller.dispatching import next_timer as next_dispatch
from penstock.controller.effects import AskWhy, AwaitPlane, Claim, Effect, Evict, Pop, Register, Release, Save, Tell
from penstock.controller.ending import Ending
from penstock.controller.lane import Lane
from penstock.controller.prompts import PromptLedger, Where
from penstock.controller.record import ControllerRecord
from penstock.controller.replicas import Replicas
from penstock.controller.run import Accept, Phase, Run
from penstock.controller.stalls import owed
from penstock.controller.training import Training, WrongStep
from penstock.controller.weighing import weigh
from penstock.retry.backoff import RandomSource

__all__ = ["ControllerMachine", "ControllerStatistics"]

MAX_TICK_S = 1.0  # the shell ticks at least this often; what is more was spent stopped


@dataclass(frozen=True, slots=True)
class ControllerStatistics:
    """A run at one moment. ``places``: open prompts by where they are."""

    phase: str
    life: int
    step: int
    published: int | None
    dispatched: int
    trained: int
    rows: int
    dropped: dict[str, int]
    places: dict[str, int]
    replicas: dict[str, str]
    recoveries: int


class ControllerMachine:
    """One life of a run's controller.

    Args:
        config: of the run.
        record: what the life before left; None = there was none.
        rng: for back-off.
        now: seconds, monotonic.
        accept: the dynamic filter: whether a group, by its metadata, is worth training; None = all are.
    """

    def __init__(
        self,
        config: ControllerConfig,
        record: ControllerRecord | None,
        *,
        rng: RandomSource,
        now: float,
        accept: Accept | None = None,
    ) -> None:
        left = record or ControllerRecord(run=config.run)
        prompts, replicas = PromptLedger(left, now), Replicas(config.replica_dead_s)
        self._run = Run(config, prompts, replicas, rng, accept, left.life + 1, left.step, left.rows, now)
        self._run.progress_at = now
        self._training = Training(self._run)
        self._lane = Lane(self._run, self._training, now)
        self._ending = Ending(self._run, self._training, self._lane)
        self._warned_at = now
        self._asked_why = False
        self._last_now = now
        self._saved: ControllerRecord | None = None
        self._handlers = self._table()

    # -- the machine --------------------------------------------------------------------------------------------------

    def handle(self, news: nw.News, now: float) -> list[Effect]:
        """Take one piece of news; return what is to be done, in order."""
        run = self._run
        run.history.append(f"{type(news).__name__} at {now:.3f}")
        self._notice_a_stop(now)
        if run.phase is Phase.OVER:
            return []
        try:
            self._handlers[type(news)](news, now)
            if not isinstance(news, nw.Heard):  # nothing follows from it, and there are many
                self._proceed(now)
        except WrongStep as wrong:
            self._ending.break_off(str(wrong), went_back=wrong.back)
        effects, run.effects = run.effects, []
        return self._save_first(effects)

    def _table(self) -> dict[type, Callable[[Any, float], None]]:
        """News -> who deals with it. Where a word is enough, it stands here."""
        run, training, ending = self._run, self._training, self._ending
        return {
            nw.Begun: self._begun,
            nw.Ticked: self._ticked,
            nw.StopAsked: lambda news, now: ending.begin(news.why, now),
            nw.GateClosed: self._gate_closed,
            nw.GateOpened: self._gate_opened,
            nw.PlaneBack: lambda news, now: self._lane.back(news.capabilities, now),
            nw.PlaneGone: lambda news, _: ending.break_off(news.why),
            nw.Registered: self._registered,
            nw.Listed: self._listed,
            nw.Leased: self._leased,
            nw.RowsGone: self._rows_gone,
            nw.Refused: self._refused,
            nw.CallFailed: self._call_failed,
            nw.CallBroken: lambda news, _: ending.break_off(news.why),
            nw.Explained: lambda news, now: self._explained(list(news.owed), now),
            nw.Generated: self._generated,
            nw.GenerationFailed: self._generation_failed,
            nw.NoSuchPrompt: self._no_such_prompt,
            nw.TrainerStands: lambda news, now: training.stands(news.record, now),
            nw.TrainerSilent: lambda news, now: training.silent(news.why, now),
            nw.StepMade: lambda news, now: training.made(news.result, now),
            nw.StepFailed: self._step_failed,
            nw.StepUnreadable: self._step_unreadable,
            nw.PublicationMade: lambda news, now: training.published(news.version, now),
            nw.PublicationFailed: lambda news, now: training.not_published(news.why, now),
            nw.ReplicaJoined: self._replica_joined,
            nw.Heard: lambda news, now: run.replicas.hear(news.replica, now),
            nw.Left: lambda news, now: self._reap(news.replica, now, 0.0),
        }

    def _save_first(self, effects: list[Effect]) -> list[Effect]:
        record = self._run.record()
        if record == self._saved:
            return effects
        self._saved = record
        return [Save(record), *effects]

    def _notice_a_stop(self, now: float) -> None:
        """We were stopped ourselves: the time that passed is nobody's fault."""
        gap = now - self._last_now - MAX_TICK_S
        self._last_now = now
        if gap > 0:
            self._run.replicas.shift(gap)
            self._run.progress_at += gap
            self._run.began_at += gap

    def _proceed(self, now: float) -> None:
        """Do what follows from how things stand."""
        run = self._run
        if run.phase is Phase.OVER:
            return
        self._training.pursue(now, retrying=run.phase is Phase.RUNNING)
        self._watch(now)
        self._lane.proceed(now)
        if run.phase is not Phase.FINISHING:
            self._ending.look(now)
        if run.phase is Phase.RUNNING and not self._ending.nobody_generates(now):
            dispatch(run, self._training, now)
        elif run.phase is Phase.FINISHING:
            self._ending.wind_up(now)

    def next_timer(self) -> float:
        """When the next ``Ticked`` is useful. What was due by the last news has been seen to, or waits for others."""
        due = [
            self._last_now + MAX_TICK_S,
            self._training.next_timer(),
            self._lane.next_timer(),
            *self._ending.timers(),
            next_dispatch(self._run),
            self._run.replicas.next_timer(),
        ]
        return min(when for when in due if when is not None and when > self._last_now)

    # -- news: beginning ----------------------------------------------------------------------------------------------

    def _begun(self, _news: nw.Begun, _now: float) -> None:
        run = self._run
        run.tell(ev.Started(step=run.step, cursor=run.prompts.cursor, open_prompts=len(run.prompts.open)))
        run.do(AwaitPlane())

    def _ticked(self, _news: nw.Ticked, now: float) -> None:
        for one in self._run.replicas.silent(now):
            self._reap(one.name, now, now - one.heard_at)

    def _gate_closed(self, news: nw.GateClosed, _now: float) -> None:
        self._run.gate = news.why

    def _gate_opened(self, _news: nw.GateOpened, now: float) -> None:
        self._run.gate, self._run.progress_at = None, now

    # -- news: the plane ----------------------------------------------------------------------------------------------

    def _registered(self, _news: nw.Registered, _now: float) -> None:
        self._lane.answered(Register)
        self._lane.registered = True

    def _call_failed(self, news: nw.CallFailed, now: float) -> None:
        lane, limit = self._lane, self._run.config.recover_deadline_s
        lane.failed(news.why, now)
        if self._run.phase is Phase.OVER:
            self._ending.over(now)
        elif now - lane.paused_at > limit:
            self._ending.break_off(f"the plane answers, and its calls have failed for {limit:g} s: {news.why}")

    def _listed(self, news: nw.Listed, now: float) -> None:
        held = self._run.prompts.count(Where.READY, Where.TRAINING)  # that we know of
        came_empty = self._lane.listed(now) and not news.groups
        evictions = weigh(self._run, news.groups, now, came_empty=came_empty)
        self._lane.evict(evictions)
        if self._run.phase is Phase.RECOVERING:
            again = sum(isinstance(e, Tell) and isinstance(e.event, ev.Again) for e in self._run.effects)
            ours = sum(self._run.prompts.parse(group.group_id) is not None for group in news.groups)
            self._lane.rebuilt(ours - len(evictions), again, came_empty=came_empty and held > 0, now=now)
        self._ending.sweep(news.groups)

    def _leased(self, news: nw.Leased, now: float) -> None:
        asked, meta = self._lane.answered(Claim), news.meta
        # A reply that outlived its plane lacks the rows that were lost meanwhile.
        is_whole = set(asked.keys) == set(meta.sample_ids)
        if self._run.phase is Phase.FINISHING or not is_whole:
            self._training.returned(meta)
            self._lane.wants_list |= meta.size > 0
        else:
            self._training.leased(meta, now)

    def _refused(self, news: nw.Refused, _now: float) -> None:
        call = self._lane.answered(Claim, Pop, Release)
        self._lane.wants_list = True
        if isinstance(call, Claim):
            self._training.refused()
        elif isinstance(call, Release):
            self._training.released(news.keys)
        elif not self._training.rows_lost(news.keys):
            self._ending.break_off(f"a pop was refused, and no row of it named: {news.why}")

    def _rows_gone(self, _news: nw.RowsGone, now: float) -> None:
        call = self._lane.answered(Pop, Release, Evict)
        self._lane.wants_list = True
        if isinstance(call, Pop):
            self._training.popped(now)
        elif isinstance(call, Release):
            self._training.released()
        elif isinstance(call, Evict):
            self._lane.evicted(call)

    # -- news: generators and the trainer -----------------------------------------------------------------------------

    def _generated(self, news: nw.Generated, now: float) -> None:
        prompt = self._run.prompts.live(news.group_id)
        if prompt is not None and prompt.where is Where.OUT:
            self._run.prompts.land(prompt, now)
            self._lane.wants_list = True

    def _generation_failed(self, news: nw.GenerationFailed, now: float) -> None:
        prompt = self._run.prompts.live(news.group_id)
        if prompt is None or prompt.where is not Where.OUT:
            return
        if news.rejected:
            self._run.drop(prompt.index, "rejected")
        else:
            self._run.prompts.land(prompt, now, news.why or "generation failed")
        self._lane.wants_list = True

    def _no_such_prompt(self, news: nw.NoSuchPrompt, _now: float) -> None:
        prompts = self._run.prompts
        prompt = prompts.live(news.group_id)
        if prompt is None:
            return
        prompts.exhausted = True
        if prompts.is_news(prompt):
            prompts.unbegin(prompt)
        else:  # it was there once, or a later one is: a source that does not keep its word
            self._run.drop(prompt.index, "no such prompt")

    def _step_failed(self, news: nw.StepFailed, now: float) -> None:
        if not self._training.failed(news.why, now):
            self._ending.break_off(f"step {news.step} failed {self._run.config.max_attempts} times: {news.why}")

    def _step_unreadable(self, news: nw.StepUnreadable, now: float) -> None:
        torn = self._training.unreadable(news.keys, news.why, now)
        self._lane.evict([(group, "unreadable") for group in torn])

    # -- news: replicas -----------------------------------------------------------------------------------------------

    def _replica_joined(self, news: nw.ReplicaJoined, now: float) -> None:
        if self._run.replicas.join(news.replica, news.role, now, beats=news.beats):
            self._run.tell(ev.Joined(replica=news.replica, role=news.role))

    def _reap(self, name: str, now: float, silent_s: float) -> None:
        gone = self._run.replicas.leave(name, now)
        if gone is not None:
            self._run.tell(ev.Reaped(replica=name, role=gone.role, silent_s=silent_s))

    # -- the watchdog -------------------------------------------------------------------------------------------------

    def _watch(self, now: float) -> None:
        run, limit = self._run, self._run.config.stall_timeout_s
        is_paused = run.gate is not None and self._training.is_idle  # a step that is out is owed, gate or no gate
        if run.phase is Phase.FINISHING or is_paused or self._asked_why:
            return
        if now - max(run.progress_at, self._warned_at) < limit:
            return
        self._warned_at = now
        if self._lane.away is None:
            self._asked_why = True
            run.do(AskWhy())
        else:
            self._explained([], now)

    def _explained(self, by_plane: list[str], now: float) -> None:
        run, self._asked_why = self._run, False
        seconds = now - run.progress_at
        if seconds < run.config.stall_timeout_s:
            return  # it moved meanwhile
        sentences = [*self.owed(now), *by_plane]
        run.tell(ev.Stalled(seconds=seconds, owed=sentences))
        if run.config.on_stall == "abort":
            self._ending.break_off(f"nothing moved for {seconds:.0f} s: {'; '.join(sentences)}")

    # -- looking ------------------------------------------------------------------------------------------------------

    def owed(self, now: float) -> list[str]:
        """Return what the run waits for, and who owes it, in sentences."""
        return owed(self._run, self._training, self._lane.away, now)

    def statistics(self) -> ControllerStatistics:
        """Return the run at this moment."""
        run, prompts = self._run, self._run.prompts
        return ControllerStatistics(
            phase=run.phase.value,
            life=run.life,
            step=run.step,
            published=run.published,
            dispatched=prompts.cursor,
            trained=prompts.trained,
            rows=run.rows,
            dropped=dict(prompts.dropped),
            places={where.value: prompts.count(where) for where in Where},
            replicas={one.name: one.role for one in run.replicas.living.values()},
            recoveries=self._lane.recoveries,
        )

    def check_invariants(self) -> None:
        """Raise if the books do not balance."""
        run, training = self._run, self._training
        run.prompts.check_invariants()
        in_training = {run.prompts.group_id(prompt) for prompt in run.prompts.at(Where.TRAINING)}
        out = set(training.given_up if training.out is None else training.out.groups)
        assert in_training <= out, f"{in_training - out} are in training and in no step"
        assert run.published is None or run.published <= run.step
