"""The whole run in one process, on the reference plane: controller and roles that may be killed at any call they make.

A role that dies is made anew from its files, exactly as the launcher would; its session on the plane ends. Letters go
through the real switchboard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from penstock.controller.events import RunEvent
from penstock.controller.record import RecordFile
from penstock.controller.single import RunResult, SingleController
from penstock.demo.adapters import Checkpoints, PromptNumbers, TrainerProcess, WorkerPool
from penstock.demo.checkpoint import latest_step, read_record
from penstock.demo.crew import Crew
from penstock.demo.messages import (
    LAUNCHER,
    RUN,
    Answer,
    Attempt,
    Hello,
    Here,
    Letter,
    Order,
    Ready,
    Rollout,
    Train,
    letter,
)
from penstock.demo.processes import kind_of, slot_of
from penstock.demo.progress import Progress
from penstock.demo.prompt_books import PromptBooks, prompt_books
from penstock.demo.scorer import Scorer
from penstock.demo.settling import settle
from penstock.demo.spec import PARTITION, SCORE_TASK, TRAIN_FIELDS, TRAIN_TASK, RunFiles, RunSpec
from penstock.demo.steering import settings
from penstock.demo.switchboard import Switchboard
from penstock.demo.trainer import Trainer
from penstock.demo.worker import Worker
from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane.contract import DataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.testing.checker import Entry, EventLog, Evicted, Report, check, read_log

QUICK = {"list_every_s": 0.01, "retry_base_s": 0.002, "retry_cap_s": 0.01, "orphan_grace_s": 0.05, "step_stop_s": 0.2}


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


class Witness:
    """A client that writes down what it evicts, as the controller's does."""

    def __init__(self, inner: Any, log: EventLog) -> None:
        self._inner = inner
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def evict(self, keys: list[str], partition: str, reason: str, **options: Any) -> None:
        self._log.write([Evicted("before", key, reason) for key in keys])
        self._inner.evict(keys, partition, reason, **options)
        self._log.write([Evicted("after", key, reason) for key in keys])


def no_fate(call: str) -> None:
    """Nobody dies."""


class Hall:
    """Everything there is. ``fates``: by role ("worker", "trainer", "scorer", "controller"), who dies when.

    Letters are queued and orders carried out by ``turn``, one role after another.
    """

    def __init__(self, root: Path, spec: RunSpec, fates: dict[str, Callable[[str], None]] | None = None) -> None:
        self.spec, self.files = spec, RunFiles(root)
        self.files.create(spec)
        self.plane = NoOpDataPlaneClient()
        rows = spec.groups_per_step * spec.group_size
        self.plane.register_partition(PARTITION, TRAIN_FIELDS, rows, [SCORE_TASK, TRAIN_TASK], spec.group_size)
        self.fates = fates or {}
        self.deaths = 0
        self.lives = 0
        self.letters: list[tuple[str, bytes]] = []
        self.board = Switchboard(self._tell, lambda _peer, _note: None)
        self.events: list[RunEvent] = []
        self.progress = Progress()
        self.roles: dict[str, Any] = {}
        self.sessions: dict[str, NoOpDataPlaneClient] = {}
        self.me = ""
        self.crew: Crew | None = None
        self.controller: SingleController | None = None
        self.run: asyncio.Task[RunResult] | None = None
        self.is_struck = False  # the controller
        for slot in ("trainer-0", "scorer-0", "worker-0", "worker-1"):
            self.start(slot)

    def _log(self, name: str) -> EventLog:
        return EventLog(self.files.journals / f"{name}.jsonl")

    # -- roles --------------------------------------------------------------------------------------------------------

    def start(self, slot: str) -> None:
        """Begin a new life of ``slot``."""
        self.lives += 1
        peer, kind = f"{slot}.{self.lives}", kind_of(slot)
        fate = self.fates.get(kind, no_fate)
        session = self.sessions[peer] = self.plane.peer()
        client: DataPlaneClient = Doomed(session, fate)  # type: ignore[assignment]
        log: EventLog = Doomed(self._log(peer), fate)  # type: ignore[assignment]
        try:
            self.roles[peer] = self._make(kind, client, log)
        except Killed:
            self.bury(peer)
        else:
            self.board.heard(peer, letter(LAUNCHER, peer, Ready()))

    def _make(self, kind: str, client: DataPlaneClient, log: EventLog) -> Any:
        if kind == "trainer":
            return Trainer(self.files, client, log)
        return Worker(self.files, client, log) if kind == "worker" else Scorer(self.files, client)

    def role(self, kind: str) -> Any:
        """Return one that is of ``kind``."""
        return next(role for peer, role in self.roles.items() if kind_of(peer) == kind)

    def bury(self, peer: str) -> None:
        """The role of ``peer`` has died: its session ends, the controller hears of it, a new life begins."""
        self.deaths += 1
        self.roles.pop(peer, None)
        self.sessions.pop(peer).close()
        self.board.left(peer)
        self.start(slot_of(peer))

    def _tell(self, peer: str, line: bytes) -> None:
        if kind_of(peer) != "controller":
            self.letters.append((peer, line))
        elif peer == self.me and self.crew is not None:
            self.crew.receive(line)

    def _carry_out(self, peer: str, line: bytes) -> None:
        found = msgspec.json.decode(line, type=Letter)
        order: Order = msgspec.json.decode(found.body, type=Order)
        answer: Answer = self._obey(self.roles[peer], order)
        self.board.heard(peer, letter(found.sender, peer, answer, found.number))

    def _obey(self, role: Any, order: Order) -> Any:
        match order:
            case Hello():
                return Here(role.record if isinstance(role, Trainer) else None)
            case Rollout():
                return role.roll_out(order)
            case Train():
                return role.train(order)
        raise AssertionError(order)

    def _alive(self, peer: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Killed:
            self.bury(peer)

    # -- the controller -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a life of the controller."""
        self.lives += 1
        self.is_struck = False
        self.me = f"controller-0.{self.lives}"
        self.crew = Crew(self.me, lambda line: self._tell(msgspec.json.decode(line, type=Letter).to, line))
        self.controller = SingleController(
            Witness(Doomed(self.plane.peer(), self._fate_of_the_controller()), self._log(self.me)),  # type: ignore[arg-type]
            msgspec.structs.replace(settings(self.spec), needs=(), **QUICK),
            prompts=PromptNumbers(),
            generator=WorkerPool(self.crew, self.spec.prompts_per_order),
            trainer=TrainerProcess(self.crew),
            weights=Checkpoints(self.files.checkpoints),
            folder=self.files.root,
            listeners=[self.events.append, self.progress.note],
        )
        self.run = asyncio.create_task(self.controller.run())
        self.board.heard(self.me, letter(LAUNCHER, self.me, Ready()))

    def _fate_of_the_controller(self) -> Callable[[str], None]:
        """Its calls are made in threads, so it is struck first and buried by the next turn."""
        fate, is_dead = self.fates.get("controller", no_fate), False

        def strike(call: str) -> None:
            nonlocal is_dead
            if call.startswith("close"):
                return
            try:
                if not is_dead:
                    fate(call)
            except Killed:
                is_dead = self.is_struck = True
            if is_dead:
                raise DataPlaneUnavailable("who calls is dead")

        return strike

    async def kill_controller(self) -> None:
        """Bury the controller, and begin its next life."""
        self.deaths += 1
        self.board.left(self.me)
        self.me = ""
        await self._end_run()
        self.begin()

    async def _end_run(self) -> None:
        assert self.run is not None
        self.run.cancel()
        with suppress(asyncio.CancelledError):
            await self.run

    # -- the run ------------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Let everybody do what is to be done, once."""
        if self.is_struck:
            await self.kill_controller()
        letters, self.letters = self.letters, []
        for peer, line in letters:
            if peer in self.roles:
                self._alive(peer, lambda peer=peer, line=line: self._carry_out(peer, line))  # type: ignore[misc]
        for peer in [peer for peer in self.roles if kind_of(peer) == "scorer"]:
            with suppress(DataPlaneUnavailable):
                self._alive(peer, lambda peer=peer: self.roles[peer].score_next(wait_s=0.0))  # type: ignore[misc]
        await asyncio.sleep(0.001)

    async def steps(self, count: int, limit_s: float = 30.0) -> None:
        """Turn until ``count`` steps are settled."""
        deadline = time.monotonic() + limit_s
        while self.progress.rows_trained < count * self.spec.groups_per_step * self.spec.group_size:
            assert self.run is not None
            assert not self.run.done(), self.run.result()
            assert time.monotonic() < deadline, f"{self.progress.steps} of {count} steps after {limit_s:g} s"
            await self.turn()

    def go(self, count: int, also: Callable[[], None] = lambda: None, limit_s: float = 30.0) -> None:
        """A whole run: ``count`` steps, ``also``, and the end as the launcher brings it about."""

        async def run() -> None:
            self.begin()
            try:
                await self.steps(count, limit_s)
                also()
                assert self.controller is not None
                assert self.run is not None
                self.controller.stop()
                while not self.run.done():
                    await self.turn()
            finally:
                await self._end_run()

        asyncio.run(run())
        settle(self.plane, self._log("launcher"), self.last_record(), self.entries())

    def last_record(self) -> Any:
        newest = latest_step(self.files.checkpoints)
        return None if newest is None else read_record(self.files.checkpoints, newest)

    def entries(self) -> list[Entry]:
        return [entry for path in sorted(self.files.journals.iterdir()) for entry in read_log(path)]

    def verdict(self) -> Report:
        """What the checker makes of the logs."""
        return check(self.entries(), max_staleness=self.spec.max_staleness)

    def prompts(self) -> PromptBooks:
        """What became of the prompts."""
        return prompt_books(RecordFile(self.files.root).load(RUN), self.entries(), self.spec.group_size)


def attempts(*prompts: int, number: int = 0) -> list[Attempt]:
    """Return attempts at ``prompts``, as the controller names them."""
    return [Attempt(prompt, f"{RUN}.{prompt}.{number}") for prompt in prompts]
