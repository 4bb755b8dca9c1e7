"""The job: a plane, a controller and the roles, started, restarted when they die, killed when chaos says so, judged.

Invariants: the main thread alone starts and reaps processes; a signal only raises a flag, which every wait of the main
thread sees, so that nothing is ever half started; after ``close`` there is no process, no thread and no shared memory.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from penstock.controller.events import Claimed, Committed, Dispatched, Popped, Recovered, RunEvent, Trained
from penstock.demo.chaos import CABLE, KINDS, KINDS_OF_HOSTS, Chaos, FaultLedger
from penstock.demo.checkpoint import latest_step, read_record
from penstock.demo.interrupt import Interrupt
from penstock.demo.judging import entries_of, hear_witnesses, result_of
from penstock.demo.messages import Note, StepRecord, Worked
from penstock.demo.patience import patiently
from penstock.demo.processes import FROM_SPARE, MUTE, SPARES, Ended, Processes, kind_of, slot_of
from penstock.demo.progress import EventTail, Progress
from penstock.demo.ray_site import RaySite
from penstock.demo.reaching import beside
from penstock.demo.settling import settle
from penstock.demo.site import ON_SECOND, Cutter, Site
from penstock.demo.spec import (
    REWARD_WINDOW,
    DemoOptions,
    DemoResult,
    RunFiles,
    RunSpec,
    TaskSpec,
    window_mean,
)
from penstock.demo.switchboard import Switchboard
from penstock.demo.view import LifeLine, Snapshot, View
from penstock.demo.warehouse import Warehouse
from penstock.errors import DataPlaneError, DataPlaneUnavailable
from penstock.requests import AuditReport
from penstock.testing.checker import EventLog, Fault, Report
from penstock.testing.director import Director
from penstock.wire.paths import arena_files, served_path

if TYPE_CHECKING:
    from penstock.plane.client import PlaneClient

__all__ = ["Job", "Opponent", "Outcome"]

PLANE, CONTROLLER = "plane-0", "controller-0"
START_S = 20.0  # for a plane to serve
TICK_S = 0.05
GRACE_S = 5.0  # for a role to end by itself
STOP_S = 6.0  # for the controller, which has 4.5 s of its own for it
STALL_S = 45.0  # without a step: the run is stuck
MAX_DEATHS = 5  # not by our hand
HOSTS = ("host-0", "host-1")  # the workers', and the trainer's
PROOFS: dict[str, tuple[type[RunEvent], ...]] = {  # what only happens while a process of this slot is at work
    PLANE: (Committed, Claimed, Popped, Recovered),
    CONTROLLER: (Dispatched, Trained, Popped),
    HOSTS[0]: (Committed,),
    HOSTS[1]: (Trained,),
    CABLE: (Trained,),
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the two witnesses: the plane's books and the checker's report."""

    result: DemoResult
    audit: AuditReport
    report: Report


class Opponent(Protocol):
    """Who strikes at a run at points of its code, instead of the run's own chaos, and says when it has had enough."""

    director: Director

    def turn(self, job: Job, timeout_s: float) -> None:
        """Carry out what is due; what has fired is in the job's ledger of faults when this returns."""

    def strike(self, job: Job) -> None:
        """See to it that the next fault happens, if it is time."""

    def is_done(self, job: Job) -> bool: ...


class Job:
    """One run, from its first process to its last.

    Args:
        options: what the user asks for.
        files: where it lies.
        interrupt: the user's signals.
        opponent: strikes at it, if ``options.chaos``; None = by time alone.
        plane: options of the plane, "name=value".
    """

    def __init__(
        self,
        options: DemoOptions,
        files: RunFiles,
        interrupt: Interrupt,
        opponent: Opponent | None = None,
        plane: tuple[str, ...] = (),
    ) -> None:
        self.options, self.files, self.interrupt, self.opponent = options, files, interrupt, opponent
        steps = None if options.chaos else options.steps
        self.site = RaySite(options.hosts, files) if options.engine == "ray" else Site(options.hosts, files.root)
        self.warehouse = Warehouse(options.store, files.root / "mooncake")
        self.kinds = KINDS_OF_HOSTS if self.site.hosts else KINDS
        self.spec = RunSpec(
            task=TaskSpec(seed=options.seed),
            max_steps=steps,
            plane=(*plane, *self.warehouse.options),
            port=self.site.port,
            hosts=self.site.hosts,
            engine=options.engine,
            store=options.store,
        )
        self.files.create(self.spec)
        self.started_at = time.monotonic()
        self.switchboard = Switchboard(self._tell, self._note)
        director = None if opponent is None else opponent.director
        self.processes = Processes(
            files,
            self.switchboard.heard,
            self.switchboard.left,
            self.site.command,
            director,
            from_spare=ON_SECOND if len(self.site.hosts) > 1 else FROM_SPARE,
            spawn=self.site.spawn,
        )
        self.tail, self.progress = EventTail(files.events), Progress()
        self.faults = FaultLedger(self.kinds)
        self.fault_steps: list[tuple[int, str]] = []
        self.deaths: Counter[str] = Counter()  # not by our hand
        self.lives: Counter[str] = Counter()
        self.chaos: Chaos | None = None
        self.cutter: Cutter | None = None
        self.client: PlaneClient | None = None
        self.log = EventLog(files.journals / "launcher.jsonl")
        self.over: Ended | None = None  # the controller, which has ended by itself
        self.unsettled: list[str] = []  # what went wrong at the end
        self.last_step = (0, self.started_at)  # steps made, and since when it has been so many

    # -- the beginning ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start everything."""
        self._start(PLANE)
        self._await_plane()
        workers = [f"worker-{i}" for i in range(self.options.rollout_workers)]
        for slot in [*self._hosts(), CONTROLLER, "trainer-0", "scorer-0", *workers]:
            self._start(slot)
        self.last_step = (0, time.monotonic())  # an engine of somebody else's takes its time to begin

    def _hosts(self) -> list[str]:
        return list(HOSTS[: len(self.site.hosts)])

    def _start(self, slot: str) -> None:
        self.processes.start(slot)
        self.lives[slot] += 1

    def _await_plane(self) -> None:
        deadline = time.monotonic() + START_S
        while not served_path(self.files.plane).exists():
            self.interrupt.sleep(TICK_S)
            said = _last_line(self.processes.log_path(PLANE))
            if self.processes.reap():
                raise DataPlaneUnavailable(f"the plane ended before it served: {said}")
            if time.monotonic() > deadline:
                raise DataPlaneUnavailable(f"the plane did not serve within {START_S:g} s: {said}")

    def _tell(self, peer: str, line: bytes) -> None:
        self.processes.tell(peer, line)

    def _note(self, peer: str, note: Note) -> None:
        """Called by each peer's own thread."""
        life = self.processes.life(slot_of(peer))
        if isinstance(note, Worked) and life is not None and life.peer == peer:
            self.faults.progress(slot_of(peer), life.started_at, note.at)

    # -- the middle ---------------------------------------------------------------------------------------------------

    def supervise(self, view: View) -> str:
        """Keep the run going until it is done. Returns why it cannot succeed, "" if nothing stands against it."""
        while True:
            for ended in self._reap():
                self._replace(ended)
            self._look()
            view.show(self.snapshot())
            why = self._trouble()
            if why or self._is_done():
                return why
            self._disturb()
            self._wait()

    def _wait(self) -> None:
        if self.opponent is None:
            self.interrupt.sleep(TICK_S)
            return
        self.opponent.turn(self, TICK_S)
        self.interrupt.check()

    def _reap(self) -> list[Ended]:
        ended = self.processes.reap()
        if ended and self.opponent is not None:
            self.opponent.turn(self, 0.0)  # by whose hand, it knows
        return ended

    def _replace(self, ended: Ended) -> None:
        """Note a death, and begin the slot's next life; a controller that ends by itself has the last word."""
        slot, fault = slot_of(ended.peer), self.faults.ended(ended)
        if fault is not None:
            self.log.write([fault])
            self.fault_steps.append((self.progress.steps, fault.kind))
        elif slot == CONTROLLER:
            self.over = ended
            return
        else:
            self.deaths[f"{slot} ended with status {ended.status}"] += 1
        self._start(slot)

    def _look(self) -> None:
        """Read what the run has told since the last look."""
        before = self.progress.steps
        for event in self.tail.read():
            self.progress.note(event)
            self._credit(event)
        if self.progress.steps > before:
            self.last_step = (self.progress.steps, time.monotonic())

    def _credit(self, event: RunEvent) -> None:
        """``event`` proves that the plane, or the controller, is at work, if it happened in its present life."""
        at = event.at - time.time() + time.monotonic()
        for slot, proofs in PROOFS.items():
            life = self.processes.life(slot)
            if isinstance(event, proofs) and (slot == CABLE or (life is not None and at > life.started_at)):
                self.faults.progress(slot, 0.0 if life is None else life.started_at, at)

    def _trouble(self) -> str:
        now = time.monotonic()
        if self.over is not None and (self.over.status or not self._is_done()):
            return f"the controller ended with status {self.over.status}; {self._last_words()}"
        if sum(self.deaths.values()) > MAX_DEATHS:
            return f"processes keep dying: {dict(self.deaths)}; {self._last_words()}"
        if now - self.last_step[1] > STALL_S:
            return f"stuck: no training step for {STALL_S:g} s; {self._last_words()}"
        if now - self.started_at > self.options.time_limit_s:
            return f"not done within {self.options.time_limit_s:g} s ({self._standing()})"
        return ""

    def _is_done(self) -> bool:
        options, rewards = self.options, self.rewards
        if self.opponent is not None:
            return self.opponent.is_done(self)
        if self.progress.steps < (options.steps or REWARD_WINDOW):
            return False
        if options.steps is not None and not options.chaos:
            return True
        learned = window_mean(rewards[-REWARD_WINDOW:]) > options.goal
        if not options.chaos:
            return learned
        return learned and self.faults.fired() >= options.min_faults and not self.faults.unrecovered()

    def _disturb(self) -> None:
        now = time.monotonic()
        if not self.options.chaos or not self.progress.steps:
            return  # the first fault comes after the first step: before it there is nothing to disturb
        for spare in SPARES:
            if self.processes.life(spare) is None:
                self._start(spare)  # importing torch takes seconds; a replacement should not
        if self.opponent is not None:
            self.opponent.strike(self)
            return
        if self.chaos is None:
            self.chaos = Chaos(self.options.seed, self.options.chaos_period_s, now, self.kinds)
        self._cut(now)
        for victim in self.chaos.due(now, self._victims(), is_recovering=bool(self.faults.unrecovered())):
            self.faults.killed(victim, self.processes.kill(victim), now)

    def _cut(self, now: float) -> None:
        """Cut the cable between two hosts, or mend it, if it is time."""
        if not self.site.has_cable:
            return
        if self.cutter is None:
            self.cutter = Cutter(self.site, self.options.seed, self.options.chaos_period_s, now)
        cut = self.cutter.due(now)
        if cut is not None:
            self.faults.struck(CABLE, 0, *cut)
            self.log.write([Fault(CABLE, 0)])
            self.fault_steps.append((self.progress.steps, CABLE))

    def _victims(self) -> list[str]:
        """The slots whose life is at work: killing what only starts proves little."""
        lives = {slot: self.processes.life(slot) for slot in self.processes.slots()}
        return [slot for slot, life in lives.items() if life and (life.ready_at or kind_of(slot) in MUTE)]

    # -- how it stands ------------------------------------------------------------------------------------------------

    @property
    def rewards(self) -> list[float]:
        """Mean reward of each step so far."""
        return self.progress.curve()

    def snapshot(self) -> Snapshot:
        """Return the run at this moment."""
        return Snapshot(
            seconds=time.monotonic() - self.started_at,
            rewards=self.rewards,
            rows_trained=self.progress.rows_trained,
            depth=len(self.progress.groups),
            prompts=len(self.progress.prompts),
            version=self.progress.steps,
            faults=self.faults.counts(),
            notes=dict(self.progress.notes),
            lives=[self._life_line(slot) for slot in sorted(self.processes.slots())],
        )

    def _life_line(self, slot: str) -> LifeLine:
        life = self.processes.life(slot)
        assert life is not None
        silent = {"plane": "at work", "host": "at work", "spare": "standing by"}  # these say nothing
        state = "at work" if life.ready_at else silent.get(kind_of(slot), "starting")
        return LifeLine(slot, life.process.pid, self.lives[slot], state)

    def _standing(self) -> str:
        faults = f", {self.faults.fired()} of {self.options.min_faults} faults" if self.options.chaos else ""
        return f"{self.progress.steps} steps, reward {window_mean(self.rewards[-REWARD_WINDOW:]):.3f}{faults}"

    def _last_words(self) -> str:
        words = {path.stem: _last_line(path) for path in sorted(self.files.logs.glob("*.log"))}
        return "last words: " + ("; ".join(f"{slot}: {line}" for slot, line in words.items() if line) or "none")

    # -- the end ------------------------------------------------------------------------------------------------------

    def conclude(self, why: str) -> Outcome:
        """Bring the run to rest and judge it; ``why``: what stands against its success already."""
        seconds = time.monotonic() - self.started_at
        try:
            self._rest()
        except DataPlaneError as error:
            self.unsettled.append(f"the run could not be brought to rest: {error}")
        client = self._client()
        audit = client.audit()
        self._end_plane()
        witnesses = hear_witnesses(self.files, self.spec, audit)
        reasons = [why, *self.unsettled, *witnesses.findings()]
        return Outcome(result_of(reasons, seconds, witnesses, self.progress, self.faults), audit, witnesses.report)

    def _rest(self) -> None:
        """End controller and roles, then settle what they left in the plane, and end the hosts."""
        if self.cutter is not None:
            self.cutter.mend()
        self._rest_controller()
        self.processes.end(list(SPARES), 0.0)
        roles = [slot for slot in self.processes.slots() if kind_of(slot) not in MUTE]
        self.processes.end(roles, GRACE_S, self.interrupt.hurry)
        self.interrupt.check()
        self._look()
        if self.processes.reap():
            self._start(PLANE)
        record, client = self._last_record(), self._client()
        if record is not None and record.step:
            self.progress.steps, self.progress.rewards[record.step] = record.step, record.reward
        patiently(
            lambda: settle(client, self.log, record, entries_of(self.files)),
            self.spec.plane_patience_s,
            self.interrupt.sleep,
        )

    def _rest_controller(self) -> None:
        """Let the controller end in order: it settles the step that is out, and writes down where it stands."""
        life = self.processes.life(CONTROLLER)
        has_begun = life is not None and life.ready_at is not None  # else nothing is to be settled
        for ended in self.processes.end([CONTROLLER], STOP_S, self.interrupt.hurry):
            if has_begun and self.faults.ended(ended) is None and ended.status:
                self.unsettled.append(f"the controller was told to end, and ended with status {ended.status}")

    def _last_record(self) -> StepRecord | None:
        newest = latest_step(self.files.checkpoints)
        return None if newest is None else read_record(self.files.checkpoints, newest)

    def _client(self) -> PlaneClient:
        if self.client is None:
            self.client = beside(self.files, "launcher", "demo", self.interrupt.sleep)
        return self.client

    def close(self) -> None:
        """End and remove whatever is left, in whatever state it is. Idempotent."""
        with ExitStack() as ends:  # each happens, whatever becomes of those before it; the last one first
            ends.callback(self._remove_arenas)
            ends.callback(self.warehouse.close)
            ends.callback(self.site.close)
            ends.callback(self.log.close)
            ends.callback(self.processes.close)
            ends.callback(self._end_plane)
            self.processes.end([slot for slot in self.processes.slots() if slot != PLANE], 0.0)

    def _remove_arenas(self) -> None:
        for folder in self.site.folders(self.files):
            for path, _ in arena_files(folder) if folder.exists() else ():  # only if it could not end by itself
                path.unlink(missing_ok=True)

    def _end_plane(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            with suppress(DataPlaneError):
                client.close(timeout_s=1.0)  # whoever is in a call of it is told at once
        self.processes.end(self._hosts(), GRACE_S, self.interrupt.hurry)
        self.processes.end([PLANE], 2 * GRACE_S, self.interrupt.hurry)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
