"""The train pump: chooses the groups of a step, leases them, has the step made, and settles it.

Invariants: one step at a time; a step that is out is settled before the next is chosen; rows are popped only after the
trainer said that the step is durable, under the tokens of its record; a step that failed goes again under the same
lease; the version grows by one, after the pop; a trainer that stands anywhere else than at the run's last step, or one
ahead of it, is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from penstock.controller import events as ev
from penstock.controller.effects import AskTrainer, Claim, Pop, Publish, Release, Train
from penstock.controller.policies import Candidate, Standing
from penstock.controller.prompts import Where
from penstock.controller.roles import StepRecord, TrainResult
from penstock.controller.run import Run
from penstock.records import DataPlaneGroupMeta, KVBatchMeta

__all__ = ["Training", "WrongStep"]


class WrongStep(Exception):
    """The trainer stands where it cannot: internal to the machine, which ends the run with it."""

    def __init__(self, message: str, *, back: bool) -> None:
        super().__init__(message)
        self.back = back


class Asking(enum.Enum):
    """What is known of the trainer."""

    UNKNOWN = "unknown"  # to be asked
    ASKED = "asked"
    KNOWN = "known"


@dataclass
class StepOut:
    """A step whose rows are leased.

    Attributes:
        ordered_at: of the last order; None while none is out.
        trouble: why the last order failed.
    """

    number: int
    meta: KVBatchMeta
    groups: list[str]
    attempts: int = 0
    ordered_at: float | None = None
    trouble: str = ""


@dataclass
class Training:
    """The pump's state.

    Attributes:
        recorded: a durable step whose rows are not popped yet.
        lost: rows of it that the plane says are gone.
        releasing: rows of a step that came to nothing.
        given_up: groups of a step that the end of the run did not wait for: it may yet become durable.
        not_before: when the trainer may be asked, or the weights be published, again.
    """

    run: Run
    asking: Asking = Asking.UNKNOWN
    out: StepOut | None = None
    recorded: StepRecord | None = None
    lost: list[str] = field(default_factory=list)
    releasing: list[KVBatchMeta] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    chosen: Sequence[Candidate] = ()
    publishing: int | None = None
    publishing_since: float = 0.0
    publish_trouble: str = ""
    ask_trouble: str = ""
    failures: int = 0
    not_before: float = 0.0

    # -- what is to be done -------------------------------------------------------------------------------------------

    @property
    def is_sure(self) -> bool:
        """Whether it is known which prompts have been trained: before that no listing can be judged."""
        return self.recorded is None and (self.asking is Asking.KNOWN or self.out is not None)

    @property
    def is_idle(self) -> bool:
        """Whether no step is under way in any way."""
        return self.out is None and self.recorded is None and not self.chosen

    @property
    def is_ordered(self) -> bool:
        """Whether the trainer owes the step that is out."""
        return self.out is not None and self.out.ordered_at is not None

    def pursue(self, now: float, *, retrying: bool) -> None:
        """Ask the trainer where it stands if that is due, and publish what is not published."""
        due = now >= self.not_before
        if self.asking is Asking.UNKNOWN and due and (retrying or self.out is None):
            self.asking = Asking.ASKED
            self.run.do(AskTrainer())
        settled = self.asking is Asking.KNOWN and self.recorded is None
        if settled and due and self.publishing is None and self.run.published != self.run.step:
            self.publishing, self.publishing_since = self.run.step, now
            self.run.do(Publish(self.run.step))

    def owed_call(self) -> Pop | Release | None:
        """Return the call of the plane that settles what is over."""
        if self.recorded is not None:
            keys = tuple(key for key in self.recorded.keys if key not in self.lost)
            return Pop(keys, self._tokens(self.recorded))
        return Release(self.releasing[0]) if self.releasing else None

    def _tokens(self, record: StepRecord) -> tuple[str, ...]:
        if not self.run.capabilities.supports_leases:
            return ()
        ours = () if self.out is None else self.out.meta.lease or ()
        return tuple(dict.fromkeys([*record.lease, *ours]))

    @property
    def may_choose(self) -> bool:
        """Whether the next step could begin, if there are groups for it."""
        run = self.run
        over = run.config.max_steps is not None and run.step >= run.config.max_steps
        return self.is_idle and self.asking is Asking.KNOWN and run.published == run.step and not over

    def choose(self) -> Claim | None:
        """Choose the groups of the next step; None = they are not there yet."""
        self.chosen = tuple(self.run.config.policy.select(self.standing()))
        keys = [key for one in self.chosen for key in self._keys(one)]
        if not keys:  # nothing, or nothing that is there any more: a policy may be the user's own
            self.chosen = ()
            return None
        return Claim(tuple(keys))

    def standing(self, batch: int | None = None) -> Standing:
        """Return where the run stands, as policies see it."""
        run, prompts = self.run, self.run.prompts
        coming = prompts.at(Where.WAITING, Where.OUT, Where.LANDED)
        return Standing(
            version=run.step,
            published=run.step if run.published is None else run.published,
            batch=batch or run.config.groups_per_step,
            minimum=run.config.minimum,
            training=prompts.count(Where.TRAINING),
            ready=sorted((p.candidate(prompts.group_id(p)) for p in prompts.at(Where.READY)), key=lambda c: c.arrived),
            coming=[(p.index, p.version) for p in coming],
        )

    def _keys(self, one: Candidate) -> list[str]:
        prompt = self.run.prompts.live(one.group_id)
        return [] if prompt is None or prompt.group is None else prompt.group.usable_keys

    # -- a step begins ------------------------------------------------------------------------------------------------

    def leased(self, meta: KVBatchMeta, now: float) -> None:
        """The claim was answered: order the step, or choose anew when the next listing is there."""
        chosen, self.chosen = self.chosen, ()
        if not meta.size:
            return
        run, number = self.run, self.run.step + 1
        for one in chosen:
            if (prompt := run.prompts.live(one.group_id)) is not None:
                run.prompts.train(prompt, now)
        groups = [one.group_id for one in chosen]
        self.out = StepOut(number, meta, groups)
        oldest = min(one.weight_version for one in chosen)
        run.tell(
            ev.Claimed(
                step=number,
                groups=groups,
                keys=list(meta.sample_ids),
                lease=list(meta.lease or ()),
                staleness=run.step - oldest,
            )
        )
        self._order(self.out, now)

    def returned(self, meta: KVBatchMeta) -> None:
        """The claim was answered with less than was asked for, or when no step begins any more: give its rows back."""
        self.chosen = ()
        if meta.size:
            self.releasing.append(meta)

    def refused(self) -> None:
        """The claim was refused: rows are gone; the next listing tells."""
        self.chosen = ()

    def _order(self, out: StepOut, now: float) -> None:
        out.attempts += 1
        self.run.tell(ev.Ordered(step=out.number, attempt=out.attempts, why=out.trouble))
        out.ordered_at, out.trouble = now, ""
        self.run.do(Train(out.number, out.meta))

    # -- the trainer answers ------------------------------------------------------------------------------------------

    def stands(self, record: StepRecord | None, now: float) -> None:
        """The trainer told its last durable step: at the start of a life, or after an order failed."""
        self.asking, self.failures, self.ask_trouble = Asking.KNOWN, 0, ""
        stand, run = 0 if record is None else record.step, self.run
        if run.step == 0 and run.prompts.cursor == 0 and stand > 0:
            run.step = stand - 1  # a new run on a trainer that has made steps: it goes on from there
        if record is not None and stand == run.step + 1:
            self._made(TrainResult(record=record), now)
        elif stand == run.step:
            self._check_settled(record)
            if self.out is not None:
                self._order(self.out, now)
        else:
            raise WrongStep(
                f"the trainer stands at step {stand}, the run at step {run.step}: its checkpoint is not this run's",
                back=stand < run.step,
            )

    def silent(self, why: str, now: float) -> None:
        """The trainer could not be asked."""
        self.asking, self.ask_trouble = Asking.UNKNOWN, why
        self._fail(now)

    def made(self, result: TrainResult, now: float) -> None:
        """A step is durable."""
        if result.record.step != self.run.step + 1:
            raise WrongStep(
                f"the trainer made step {result.record.step}, the run is at step {self.run.step}",
                back=result.record.step <= self.run.step,
            )
        self._made(result, now)

    def _check_known(self, record: StepRecord) -> None:
        """A run that does not know of a prompt that was trained, or takes it for over, would have it trained twice."""
        prompts = self.run.prompts
        named = {group_id: one[0] for group_id in record.groups if (one := prompts.parse(group_id)) is not None}
        if unknown := [group_id for group_id, index in named.items() if index >= prompts.cursor]:
            raise WrongStep(
                f"the trainer's step {record.step} has trained {unknown[0]!r}, and the run knows of {prompts.cursor} "
                "prompts: its controller.json was lost or is an older copy, and prompts would be trained twice; put "
                "the latest one back, or start a new run with another name (run=...) and folder",
                back=False,
            )
        if over := [group_id for group_id, index in named.items() if index not in prompts.open]:
            raise WrongStep(
                f"the trainer's step {record.step} has trained {over[0]!r}, and that prompt was over: a trainer must "
                "make the step of the rows that it was ordered to, and record those",
                back=False,
            )

    def _check_settled(self, record: StepRecord | None) -> None:
        """What the last settled step has trained is over: else it would be trained once more."""
        for group_id in [] if record is None else record.groups:
            if self.run.prompts.live(group_id) is not None:
                raise WrongStep(
                    f"{group_id!r} is under way, and the trainer has trained it in step {self.run.step}, which the run "
                    "has settled: its controller.json is not this run's; put the latest one back",
                    back=False,
                )

    def _made(self, result: TrainResult, now: float) -> None:
        self._check_known(result.record)
        ordered_at = None if self.out is None else self.out.ordered_at
        self.recorded, self.lost = result.record, []
        self.run.progress_at = now
        self.run.tell(
            ev.Trained(
                step=result.record.step,
                groups=list(result.record.groups),
                rows=len(result.record.keys),
                seconds=0.0 if ordered_at is None else now - ordered_at,
                metrics=dict(result.metrics),
            )
        )

    def failed(self, why: str, now: float) -> bool:
        """An order failed; return whether it may go again."""
        if self.out is None:
            return True
        self.out.ordered_at, self.out.trouble = None, why
        self.asking, self.failures = Asking.UNKNOWN, self.out.attempts - 1  # a trainer that answers has not made it yet
        self._fail(now)
        return self.out.attempts < self.run.config.max_attempts

    def _fail(self, now: float) -> None:
        self.failures += 1
        self.not_before = self.run.later(self.failures, now)

    def unreadable(self, keys: Sequence[str], why: str, now: float) -> list[DataPlaneGroupMeta]:
        """Rows of the step cannot be read: undo it. Returns their groups, each with such rows alone."""
        out, self.out = self.out, None
        if out is None:
            return []
        bad, torn = set(keys), []
        self.releasing.append(out.meta)  # all of them: an eviction that a dying plane forgets must not leave a lease
        for group_id in out.groups:
            if (prompt := self.run.prompts.live(group_id)) is None or prompt.group is None:
                continue
            rows = [key for key in prompt.group.keys if key in bad]
            if rows:
                torn.append(msgspec.structs.replace(prompt.group, keys=rows))
            self.run.prompts.land(prompt, now, why if rows else "")
        return torn

    # -- a step ends --------------------------------------------------------------------------------------------------

    def rows_lost(self, keys: Sequence[str]) -> bool:
        """Rows of the durable step were gone before they were popped: the rest is popped without them.

        Returns whether any of ``keys`` was to be popped: else the same pop would be refused for ever.
        """
        assert self.recorded is not None
        gone = [key for key in self.recorded.keys if key in set(keys) and key not in self.lost]
        self.lost += gone
        return bool(gone)

    def popped(self, now: float) -> None:
        """The rows of the durable step are gone: it is settled, and its prompts are trained."""
        run, record, out = self.run, self.recorded, self.out
        assert record is not None
        run.tell(ev.Popped(step=record.step, keys=list(record.keys), lost=self.lost))
        for group_id in record.groups:  # whichever attempt is live by now: the prompt has been trained
            named = run.prompts.parse(group_id)
            if named is not None and (prompt := run.prompts.open.get(named[0])) is not None:
                run.prompts.close(prompt, None)
        if out is not None:  # the trainer may have recorded another batch, of the controller's life before
            for prompt in run.prompts.at(Where.TRAINING):
                run.prompts.land(prompt, now)
            trained = set(record.keys)
            if rest := out.meta.drop([i for i, key in enumerate(out.meta.sample_ids) if key in trained]):
                self.releasing.append(rest)
        run.step, run.rows = record.step, run.rows + len(record.keys)
        self.recorded, self.out, self.lost = None, None, []
        self.failures, self.not_before, run.progress_at = 0, 0.0, now

    def released(self, gone: Sequence[str] = ()) -> None:
        """The rows of a step that came to nothing are free; some were ``gone``: then the others are yet to be freed."""
        meta = self.releasing.pop(0)
        rest = meta.drop([i for i, key in enumerate(meta.sample_ids) if key in set(gone)])
        if gone and rest is not None and rest.size < meta.size:
            self.releasing.insert(0, rest)

    def give_up(self) -> None:
        """The run ends and will not wait for the step that is out; the next life asks the trainer what became of it.

        Its prompts stay in training: whatever a listing says of their groups, the step may yet become durable.
        """
        out, self.out, self.chosen = self.out, None, ()
        self.given_up = [] if out is None else out.groups

    # -- publication --------------------------------------------------------------------------------------------------

    def published(self, version: int, now: float) -> None:
        """Generators may use ``version``."""
        self.publishing, self.publish_trouble, self.failures = None, "", 0
        self.run.published, self.run.progress_at = version, now
        self.run.tell(ev.Published(version=version, seconds=now - self.publishing_since))

    def not_published(self, why: str, now: float) -> None:
        """They may not yet."""
        self.publishing, self.publish_trouble = None, why
        self._fail(now)

    def next_timer(self) -> float | None:
        """When something is due again."""
        waits = self.asking is Asking.UNKNOWN or (self.publishing is None and self.run.published != self.run.step)
        return self.not_before if waits else None
