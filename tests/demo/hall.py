"""The whole run in one process and one thread, on the reference plane: roles that may be killed at any call they make.

A role that dies is made anew from its files, exactly as the launcher would; its session on the plane ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from penstock.controller.events import RunEvent
from penstock.demo.checkpoint import latest_step, read_record
from penstock.demo.controller_loop import Controller
from penstock.demo.messages import Answer, Heard, Here, Left, Order, Rollout
from penstock.demo.processes import kind_of, slot_of
from penstock.demo.scorer import Scorer
from penstock.demo.spec import PARTITION, SCORE_TASK, TRAIN_FIELDS, TRAIN_TASK, RunFiles, RunSpec
from penstock.demo.trainer import Trainer
from penstock.demo.worker import Worker
from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane.contract import DataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.testing.checker import EventLog, Report, check, read_log


class Killed(BaseException):
    """A kill -9: nothing in the victim may catch it."""


class Doomed:
    """A client, or a log, whose user dies at a call of the test's choosing: ``fate(call name)`` raises or not.

    The fate is asked before and after each call: ``put_samples`` and ``put_samples done``.
    """

    def __init__(self, inner: Any, fate: Callable[[str], None]) -> None:
        self._inner = inner
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fate(name)
            result = method(*args, **kwargs)
            try:
                self._fate(f"{name} done")
            except DataPlaneTimeout:
                if name == "claim_meta" and result.size:
                    self._inner.release(result)  # the plane releases what was not handed to the caller
                raise
            return result

        return call


def no_fate(call: str) -> None:
    """Nobody dies."""


def no_listener(event: RunEvent) -> None:
    """Nobody listens."""


class Hall:
    """Everything there is. ``fates``: by role ("worker", "trainer", "scorer"), who dies when.

    Orders are queued and carried out by ``turn``, one role after another, so that runs are repeatable.
    """

    def __init__(self, root: Path, spec: RunSpec, fates: dict[str, Callable[[str], None]] | None = None) -> None:
        self.files = RunFiles(root)
        self.files.create(spec)
        self.plane = NoOpDataPlaneClient()
        self.plane.register_partition(PARTITION, TRAIN_FIELDS, 0, [SCORE_TASK, TRAIN_TASK], spec.group_size)
        self.fates = fates or {}
        self.deaths = 0
        self.lives = 0
        self.orders: list[tuple[str, Order]] = []
        client: DataPlaneClient = Doomed(self.plane.peer(), self.fates.get("controller", no_fate))  # type: ignore[assignment]
        self.controller = Controller(
            spec, client, lambda peer, order: self.orders.append((peer, order)), self._log("controller"), no_listener
        )
        self.roles: dict[str, Any] = {}
        self.sessions: dict[str, NoOpDataPlaneClient] = {}
        for slot in ("trainer", "scorer", "worker-0", "worker-1"):
            self.start(slot)

    def _log(self, name: str) -> EventLog:
        return EventLog(self.files.journals / f"{name}.jsonl")

    def start(self, slot: str) -> None:
        """Begin a new life of ``slot``."""
        self.lives += 1
        peer, kind = f"{slot}.{self.lives}", kind_of(slot)
        fate = self.fates.get(kind, no_fate)
        session = self.sessions[peer] = self.plane.peer()
        client: DataPlaneClient = Doomed(session, fate)  # type: ignore[assignment]
        log: EventLog = Doomed(self._log(peer), fate)  # type: ignore[assignment]
        try:
            self._begin(peer, kind, client, log)
        except Killed:
            self.bury(peer)

    def _begin(self, peer: str, kind: str, client: DataPlaneClient, log: EventLog) -> None:
        if kind == "trainer":
            self.roles[peer] = trainer = Trainer(self.files, client, log)
            self.say(peer, Here(trainer.record))
        elif kind == "worker":
            self.roles[peer] = Worker(self.files, client, log)
            self.say(peer, Here())
        else:
            self.roles[peer] = Scorer(self.files, client)

    def say(self, peer: str, message: Answer) -> None:
        self.controller.inbox.put(Heard(peer, message))

    def bury(self, peer: str) -> None:
        """The role of ``peer`` has died: its session ends, the controller hears of it, a new life begins."""
        self.deaths += 1
        self.roles.pop(peer, None)
        self.sessions.pop(peer).close()
        self.controller.inbox.put(Left(peer))
        self.start(slot_of(peer))

    def turn(self) -> None:
        """Let everybody do what is to be done, once."""
        with suppress(DataPlaneUnavailable, DataPlaneTimeout):  # as its ``run`` does, which waits and goes on
            self.controller.turn()
        orders, self.orders = self.orders, []
        for peer, order in orders:
            if peer in self.roles:
                self._alive(peer, lambda peer=peer, order=order: self._carry_out(peer, order))  # type: ignore[misc]
        for peer in [peer for peer in self.roles if peer.startswith("scorer")]:
            with suppress(DataPlaneUnavailable):
                self._alive(peer, lambda peer=peer: self.roles[peer].score_next(wait_s=0.0))  # type: ignore[misc]

    def _carry_out(self, peer: str, order: Order) -> None:
        role = self.roles[peer]
        self.say(peer, role.roll_out(order) if isinstance(order, Rollout) else role.train(order))

    def _alive(self, peer: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Killed:
            self.bury(peer)

    def steps(self, count: int, most_turns: int = 200) -> None:
        """Turn until ``count`` steps are made."""
        for _ in range(most_turns):
            if len(self.controller.now.rewards) >= count:
                return
            self.turn()
        raise AssertionError(f"{len(self.controller.now.rewards)} of {count} steps after {most_turns} turns")

    def finish(self) -> None:
        """End the run as the launcher does: no role lives, the controller settles and evicts."""
        newest = latest_step(self.files.checkpoints)
        self.controller.finish(None if newest is None else read_record(self.files.checkpoints, newest))

    def verdict(self) -> Report:
        """What the checker makes of the logs."""
        entries = [entry for path in self.files.journals.iterdir() for entry in read_log(path)]
        return check(entries, max_staleness=self.controller.spec.max_staleness)
