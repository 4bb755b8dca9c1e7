"""The controller: steers the run from metadata alone. It never sees a tensor, and importing it never imports torch.

Invariants: rows are popped only after their step is durable, under the tokens of its record; a step that is out is
settled before the next is chosen; the version grows after the pop; what became of a worker's rows is read from the
plane's listing, never assumed. A plane that is away stops the loop and nothing else: every part may be repeated.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event
from typing import TypeAlias

from penstock.controller import events
from penstock.controller.events import RunEvent
from penstock.demo import messages as m
from penstock.demo.patience import await_plane, patiently
from penstock.demo.prompts import Prompts
from penstock.demo.spec import PARTITION, TRAIN_FIELDS, TRAIN_TASK, RunSpec
from penstock.demo.standing import Standing
from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable, LeaseLost, RowRemoved, UnknownName
from penstock.plane.contract import DataPlaneClient
from penstock.records import DataPlaneGroupMeta
from penstock.testing.checker import EventLog, Evicted

TICK_S = 0.02  # how often the plane is listed when nobody says anything
Send: TypeAlias = Callable[[str, m.Order], None]  # to a peer


class Controller:
    """Steers workers and a trainer, its peers, who are told by ``send`` and heard through ``inbox``."""

    def __init__(
        self, spec: RunSpec, client: DataPlaneClient, send: Send, log: EventLog, tell: Callable[[RunEvent], None]
    ) -> None:
        self.spec, self.client, self.send, self.log, self.tell = spec, client, send, log, tell
        self.inbox: queue.SimpleQueue[m.Heard | m.Left] = queue.SimpleQueue()
        self.now, self.prompts = Standing(), Prompts(spec.prompts_open)
        self.idle: list[str] = []  # workers
        self.trainer: str | None = None
        self.ordered: m.Train | None = None  # the step that is out; this session leases its rows
        self.outcome: m.StepRecord | m.Unreadable | None = None  # of that step

    def run(self, stop: Event) -> None:
        """Steer until ``stop``."""
        while not stop.is_set():
            try:
                self.turn()
            except (DataPlaneUnavailable, DataPlaneTimeout):
                self.now.notes["plane away"] += 1
                await_plane(self.client, self.spec.plane_patience_s, stop)

    def turn(self) -> None:
        """Hear the news, then bring the plane and the roles to where the news say they should be."""
        self._listen()
        self._settle()
        groups = self._weed(self.client.list_metadata(PARTITION))
        self.now.answered_at = time.monotonic()
        self._order_step([g for g in groups if g.committed and g.is_complete and "prev_version" in g.tags])
        self._dispatch()

    def finish(self, last: m.StepRecord | None, sleep: Callable[[float], object] | None = None) -> None:
        """The roles have ended: settle the step that was out (``last`` is durable), evict what nobody trained."""
        self._step_ended(last)
        patiently(self._close_books, self.spec.plane_patience_s, sleep)

    def _listen(self) -> None:
        with suppress(queue.Empty):
            self._hear(self.inbox.get(timeout=TICK_S))
            while True:
                self._hear(self.inbox.get_nowait())

    def _hear(self, news: m.Heard | m.Left) -> None:
        match news:
            case m.Left(peer):
                self.prompts.put_down(peer)
                self.idle = [worker for worker in self.idle if worker != peer]
                self.trainer = None if self.trainer == peer else self.trainer
            case m.Heard(peer, m.Here(record=None) | m.RolledOut()):
                self.prompts.put_down(peer)
                self.idle.append(peer)
            case m.Heard(peer, m.Here(record=m.StepRecord() as record)):
                self.trainer, self.now.version = peer, max(self.now.version, 0)
                self._step_ended(record)
                if self.ordered is not None and self.outcome is None:
                    self.send(peer, self.ordered)  # the trainer before died in it: the same step, the same lease
            case m.Heard(_, m.Trained(record=outcome) | (m.Unreadable() as outcome)):
                self._step_ended(outcome)

    def _step_ended(self, outcome: m.StepRecord | m.Unreadable | None) -> None:
        if self.ordered is not None and outcome is not None and outcome.step == self.ordered.step:
            self.outcome = outcome

    def _settle(self) -> None:
        if self.ordered is None or self.outcome is None:
            return
        if isinstance(self.outcome, m.StepRecord):
            record, now = self.outcome, time.time()
            self.tell(
                events.Trained(
                    at=now,
                    step=record.step,
                    groups=[],
                    rows=len(record.keys),
                    seconds=0.0,
                    metrics={"reward": record.reward},
                )
            )
            self.client.pop(self.outcome.keys, PARTITION, lease=self.outcome.lease)
            self.tell(events.Popped(at=time.time(), step=record.step, keys=record.keys))
            self.now.version = self.outcome.step
            self.now.rewards.append(self.outcome.reward)
            self.now.rows_trained += len(self.outcome.keys)
        else:
            self._evict(self.outcome.keys, "unreadable")
            gone = [i for i, key in enumerate(self.ordered.meta.sample_ids) if key in self.outcome.keys]
            with suppress(LeaseLost):  # it has ended by itself, with our session
                if rest := self.ordered.meta.drop(gone):
                    self.client.release(rest)
        self.prompts.end_training(trained=isinstance(self.outcome, m.StepRecord))
        self.ordered = self.outcome = None

    def _weed(self, groups: Sequence[DataPlaneGroupMeta]) -> list[DataPlaneGroupMeta]:
        """Evict what nobody will train, let prompts whose rows are gone go again; return what may be trained."""
        kept = []
        for group in groups:
            if reason := self.prompts.reason_to_evict(group, self.now.version - self.spec.max_staleness):
                self._evict(group.keys, reason)
            else:
                kept.append(group)
        self.now.notes["prompts again"] += self.prompts.go_again({group.group_id for group in kept})
        self.now.depth = len(kept)
        return [group for group in kept if not self.prompts.is_training(group)]

    def _order_step(self, groups: list[DataPlaneGroupMeta]) -> None:
        wanted, over = self.spec.groups_per_step, self.now.version == self.spec.max_steps
        if self.ordered is not None or self.trainer is None or over or len(groups) < wanted:
            return
        oldest = sorted(groups, key=lambda group: (group.weight_version or 0, group.created_at or 0.0))[:wanted]
        keys = [key for group in oldest for key in group.keys]
        with suppress(RowRemoved, UnknownName):  # gone since the listing; the next one tells
            meta = self.client.claim_meta(
                PARTITION, TRAIN_TASK, TRAIN_FIELDS, 1, blocking=False, timeout_s=None, keys=keys
            )
            if meta.size:
                self.prompts.begin_training(oldest)
                self.ordered = m.Train(self.now.version + 1, meta)
                self.send(self.trainer, self.ordered)

    def _dispatch(self) -> None:
        limit = self.spec.prompts_per_order if self.now.version >= 0 else 0
        while self.idle and (batch := self.prompts.take(self.idle[0], limit)):
            self.send(self.idle.pop(0), m.Rollout(self.now.version, batch))

    def _evict(self, keys: Sequence[str], reason: str) -> None:
        self.log.write([Evicted("before", key, reason) for key in keys])
        self.client.evict(keys, PARTITION, reason)
        self.log.write([Evicted("after", key, reason) for key in keys])
        self.now.notes[f"rows {reason}"] += len(keys)

    def _close_books(self) -> None:
        self._settle()
        self._evict([key for group in self.client.list_metadata(PARTITION) for key in group.keys], "run over")
