"""The controller's shell: feeds the machine with what happens and carries its effects out, on one event loop.

Invariants: nothing here blocks the loop: the plane is called in threads, the record is written in one; effects are
carried out in order, a record being durable before what follows it; every wait has a limit; when ``run`` has ended, in
whatever way, nothing of it is left but work of others that hangs, which ``stacks.txt`` names.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.calls import MetadataCalls
from penstock.controller.config import ControllerConfig, Role, check_word
from penstock.controller.events import RunEvent
from penstock.controller.folder_lock import FolderLock
from penstock.controller.machine import ControllerMachine, ControllerStatistics
from penstock.controller.record import ControllerRecord, RecordFile
from penstock.controller.role_calls import RoleCalls, said
from penstock.controller.roles import Generator, PromptSource, Trainer, WeightSync
from penstock.controller.run import Accept
from penstock.controller.shutdown import Shutdown
from penstock.controller.underway import Underway, in_thread
from penstock.errors import ControllerError, DataPlaneError, VersionWentBack
from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient
from penstock.points import reached
from penstock.retry import Deadline, reconnect_delays

__all__ = ["Listener", "RunResult", "SingleController"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Listener = Callable[[RunEvent], None]

PING_S = 2.0  # one look at a plane that may be away
CANCEL_S = 1.0  # for cancelled work to end
CLOSE_S = 1.5  # for the plane to be told goodbye
DISK_S = 0.25  # for the record to be written when nothing else is waited for any more


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. ``dispatched`` = ``trained`` + the sum of ``dropped`` + ``open``: prompts, all of them.

    Attributes:
        reason: why it ended.
        step: the last settled step.
        rows: that were trained.
    """

    reason: str
    step: int
    dispatched: int
    trained: int
    rows: int
    dropped: dict[str, int]
    open: int


class SingleController:
    """Drives one run. See the package for what it promises.

    Args:
        client: of the plane; it is closed at the end of the run. Only its metadata methods are used.
        config: of the run.
        prompts: where prompts come from.
        generator: answers them.
        trainer: makes steps.
        weights: spreads them.
        folder: where the run's record is kept, made if it is not there; the same folder continues the run.
        accept: the dynamic filter: whether a group, by its metadata, is worth training; None = all are.
        listeners: are told each event, on the event loop; must not block. One that raises is told nothing more.
        rng: for back-off.
    """

    def __init__(
        self,
        client: DataPlaneClient,
        config: ControllerConfig,
        *,
        prompts: PromptSource,
        generator: Generator,
        trainer: Trainer,
        weights: WeightSync,
        folder: Path,
        accept: Accept | None = None,
        listeners: Sequence[Listener] = (),
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self._prompts = prompts
        self._accept, self._listeners = accept, list(listeners)
        self._folder, self._file = FolderLock(folder), RecordFile(folder)
        self._rng = rng or random.Random()
        self._calls = MetadataCalls(AsyncDataPlaneClient(client), config)
        self._underway = Underway()
        self._roles = RoleCalls(generator, trainer, weights, self._underway, config)
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._inbox: asyncio.Queue[nw.News] = asyncio.Queue()
        self._lock = threading.RLock()  # on the machine; a signal handler may speak while it is held
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hurry: asyncio.Future[None]  # done when a stop has taken too long
        self._early: list[nw.News] = []  # said before the run began
        self._machine: ControllerMachine | None = None
        self._finish: do.Finish | None = None
        self._life = 0

    # -- the run ------------------------------------------------------------------------------------------------------

    async def run(self) -> RunResult:
        """Drive the run to its end, once.

        Returns:
            How it ended: its steps are made, its prompts used up, the last replica gone, or ``stop`` was called.

        Raises:
            ControllerError: it cannot go on: the plane stayed away, a step kept failing, the record cannot be written,
                another controller drives it, a policy or a filter of the user's raised (it is the cause).
            VersionWentBack: the trainer stands at an earlier step than the run.
            BadArgument: the folder holds the record of another run.
        """
        with self._lock:
            if self._loop is not None:
                raise ControllerError("a controller runs once; make another one for the next life")
            self._loop = asyncio.get_running_loop()
        self._hurry = self._loop.create_future()
        try:
            for news in self._early:
                self._hear(news)
            await self._steer()
        except (asyncio.CancelledError, DataPlaneError) as error:
            self._tell_broken(str(error) or "cancelled")
            raise
        except Exception as error:  # top frame: of a user's policy or filter, and of our own bugs
            why = f"the policy, the filter or the controller itself failed: {said(error)}"
            self._tell_broken(why)
            raise ControllerError(why) from error
        finally:
            await self._close()
        return self._result()

    def _tell_broken(self, why: str) -> None:
        """A life that ends without its machine's word ends in the events, too: else it would seem to run for ever."""
        if self._machine is not None and self._finish is None:
            self._tell(ev.Finished(reason=why, ok=False, step=self._machine.statistics().step))

    async def _steer(self) -> None:
        record = await self._on_disk("loading", self._begin)
        now = time.monotonic()
        self._machine = ControllerMachine(self.config, record, rng=self._rng, now=now, accept=self._accept)
        self._life = self._machine.statistics().life
        await self._take(nw.Begun())
        while self._finish is None:
            await self._take(await self._next_news())

    def _begin(self) -> ControllerRecord | None:
        self._folder.take()
        return self._file.load(self.config.run)

    async def _next_news(self) -> nw.News:
        assert self._machine is not None
        if not self._inbox.empty():
            return self._inbox.get_nowait()
        left = max(0.0, self._machine.next_timer() - time.monotonic())
        tick = asyncio.get_running_loop().call_later(left, self._inbox.put_nowait, nw.Ticked())
        try:
            return await self._inbox.get()
        finally:
            tick.cancel()

    async def _take(self, news: nw.News) -> None:
        assert self._machine is not None
        with self._lock:
            effects = self._machine.handle(news, time.monotonic())
        for effect in effects:
            await self._carry_out(effect)

    async def _carry_out(self, effect: do.Effect) -> None:
        match effect:
            case do.Save(record):
                await self._on_disk("saving", lambda: self._file.save(record))
                reached("controller.saved")
            case do.Tell(event):
                self._tell(event)
            case do.Dispatch():
                self._dispatch(effect)
            case do.Cancel(group_id):
                if (task := self._attempts.pop(group_id, None)) is not None:
                    task.cancel()
            case do.AskTrainer():
                self._start("ask trainer", self._roles.ask_trainer())
            case do.Train(step, meta):
                self._start(f"step {step}", self._roles.train(step, meta))
            case do.Publish(version):
                reached("controller.settled")
                self._start(f"publish {version}", self._roles.publish(version))
            case do.AwaitPlane():
                self._start("await plane", self._await_plane())
            case do.AskWhy():
                self._start("ask why", self._ask_why())
            case do.Finish():
                self._finish = effect
            case _:
                self._start(type(effect).__name__.lower(), self._calls.carry_out(effect))

    def _tell(self, event: RunEvent) -> None:
        stamped = msgspec.structs.replace(event, at=time.time(), life=self._life)
        for listener in list(self._listeners):
            try:
                listener(stamped)
            except Exception:  # top frame: of a user's listener; a run does not end because nobody can watch it
                log.exception("the listener %r failed and is told nothing more", listener)
                self._listeners.remove(listener)

    def _start(self, name: str, work: Coroutine[Any, Any, nw.News]) -> asyncio.Task[None]:
        task = self._underway.start(f"await {name}", self._report(name, work))
        task.add_done_callback(lambda _: work.close())  # cancelled before it began
        return task

    async def _report(self, name: str, work: Coroutine[Any, Any, nw.News]) -> None:
        try:
            news = await work
        except Exception as error:  # top frame: of a client that raises what is not ours, of our own bugs; the run ends
            log.exception("%s failed as nothing should", name)
            news = nw.CallBroken(f"{name}: {said(error)}")
        self._inbox.put_nowait(news)

    async def _on_disk(self, what: str, work: Callable[[], T]) -> T:
        """Read or write the record. Nothing else goes on meanwhile, so a disk that hangs is told like any stall."""
        done = in_thread(what, lambda: self._folder.use(work))
        began, limit_s = time.monotonic(), self.config.stall_timeout_s
        either: list[asyncio.Future[Any]] = [done, self._hurry]
        while not done.done():
            await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if self._hurry.done():
                await asyncio.wait([done], timeout=DISK_S)  # a disk that is well needs no more: the end stays in order
            if done.done():
                break
            seconds = time.monotonic() - began
            owed = f"the disk owes the run's record {self._file.path}: {what} has taken {seconds:.1f} s so far"
            if self._hurry.done() or self.config.on_stall == "abort":
                raise ControllerError(f"{owed}; nothing that it tells of was done")
            self._tell(ev.Stalled(seconds=seconds, owed=[owed]))
        return done.result()

    # -- those who do the work ----------------------------------------------------------------------------------------

    def _dispatch(self, one: do.Dispatch) -> None:
        group_id, version = one.group_id, one.version
        try:
            prompt = self._prompts.prompt(one.prompt)
        except Exception as error:  # noqa: BLE001  # top frame: of a user's source; the prompt goes again
            self._inbox.put_nowait(nw.GenerationFailed(group_id, f"the prompt source: {said(error)}"))
            return
        if prompt is None:
            self._inbox.put_nowait(nw.NoSuchPrompt(group_id))
            return
        self._tell(ev.Dispatched(group_id=group_id, prompt=one.prompt, attempt=one.attempt, version=version))
        task = self._start(f"generate {group_id}", self._roles.generate(prompt, group_id, version))
        self._attempts[group_id] = task
        task.add_done_callback(lambda _: self._attempts.pop(group_id, None))

    async def _await_plane(self) -> nw.News:
        deadline = Deadline(self.config.recover_deadline_s)
        delays = reconnect_delays(deadline, self._rng)
        while True:
            try:
                return nw.PlaneBack(await self._calls.look(min(PING_S, max(0.1, deadline.remaining()))))
            except DataPlaneError as error:
                last = error
            delay = next(delays, None)
            if delay is None:
                return nw.PlaneGone(
                    f"the plane did not come back within {self.config.recover_deadline_s:g} s ({last}); "
                    "start it again and run this controller again: it goes on where it stood"
                )
            await asyncio.sleep(delay)

    async def _ask_why(self) -> nw.News:
        return nw.Explained(await self._calls.why())

    # -- said from outside --------------------------------------------------------------------------------------------

    def stop(self, why: str = "stopped") -> None:
        """End the run in order; from any thread or signal handler. ``run`` returns within about ``stop_s``."""
        self._say(nw.StopAsked(why))

    def pause(self, why: str = "paused") -> None:
        """Dispatch nothing until ``resume``; training goes on. From any thread."""
        self._say(nw.GateClosed(why))

    def resume(self) -> None:
        """Dispatch again. From any thread."""
        self._say(nw.GateOpened())

    def register(self, replica: str, role: Role, *, beats: bool = True) -> None:
        """A replica has begun to take part. From any thread.

        Args:
            replica: its name, unique.
            role: what it does.
            beats: it will be ``heard`` from, and is reaped when it is not; False = the caller tells when it ``left``.

        Raises:
            BadArgument: there is no such role.
        """
        check_word("role", role, get_args(Role))
        self._say(nw.ReplicaJoined(replica, role, beats))

    def heard(self, replica: str) -> None:
        """A replica gave a sign of life. From any thread."""
        self._say(nw.Heard(replica))

    def left(self, replica: str) -> None:
        """A replica is gone. From any thread."""
        self._say(nw.Left(replica))

    def _say(self, news: nw.News) -> None:
        with self._lock:
            if self._loop is None:
                self._early.append(news)
                return
        with suppress(RuntimeError):  # the loop is closed: the run is over
            self._loop.call_soon_threadsafe(self._hear, news)

    def _hear(self, news: nw.News) -> None:
        self._inbox.put_nowait(news)
        if isinstance(news, nw.StopAsked):
            asyncio.get_running_loop().call_later(self.config.stop_s / 2, self._be_quick)

    def _be_quick(self) -> None:
        """The time for an end in order is up: what cannot be interrupted is not waited for."""
        if not self._hurry.done():
            self._hurry.set_result(None)

    def statistics(self) -> ControllerStatistics | None:
        """Return the run at this moment, its books balanced; None before it has begun. From any thread."""
        with self._lock:
            return None if self._machine is None else self._machine.statistics()

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _close(self) -> None:
        """End in order: what is under way, then the session. A cancelled run ends so too."""
        shutdown = Shutdown(self._file.path.parent, self.config.stop_s / 2)
        try:
            await shutdown.all_of("work under way", self._underway.tasks, CANCEL_S)
            await shutdown.step("the plane's session", self._calls.close(CLOSE_S), CLOSE_S + 0.25)
        finally:
            self._folder.leave()

    def _result(self) -> RunResult:
        assert self._machine is not None
        assert self._finish is not None
        if not self._finish.ok:
            raise (VersionWentBack if self._finish.went_back else ControllerError)(self._finish.reason)
        now = self._machine.statistics()
        return RunResult(
            reason=self._finish.reason,
            step=now.step,
            dispatched=now.dispatched,
            trained=now.trained,
            rows=now.rows,
            dropped=now.dropped,
            open=sum(now.places.values()),
        )

    def __repr__(self) -> str:
        now = self.statistics()
        where = "not begun" if now is None else f"{now.phase}, step {now.step}, {now.dispatched} dispatched"
        return f"SingleController({self.config.run!r}, {where})"
