"""The job: a plane and the roles round it, started, restarted when they die, killed when chaos says so, and judged.

Invariants: the main thread alone starts and reaps processes; a signal only raises a flag, which every wait of the main
thread sees, so that nothing is ever half started; after ``close`` there is no process, no thread and no shared memory.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.demo.chaos import Chaos, FaultLedger
from penstock.demo.checkpoint import latest_step, read_record
from penstock.demo.controller_loop import Controller
from penstock.demo.interrupt import Interrupt
from penstock.demo.messages import Heard, Left, RolledOut, Trained
from penstock.demo.processes import SPARE, Ended, Processes, kind_of, slot_of
from penstock.demo.role import connect
from penstock.demo.spec import (
    PARTITION,
    REWARD_WINDOW,
    SCORE_TASK,
    TRAIN_FIELDS,
    TRAIN_TASK,
    DemoOptions,
    DemoResult,
    RunFiles,
    RunSpec,
    TaskSpec,
    window_mean,
)
from penstock.demo.view import LifeLine, Snapshot, View
from penstock.errors import DataPlaneError, DataPlaneUnavailable
from penstock.requests import AuditReport
from penstock.testing.checker import EventLog, Report, check, read_log
from penstock.wire.paths import arena_files, served_path

if TYPE_CHECKING:
    from penstock.plane.local import LocalDataPlaneClient

__all__ = ["Job", "Outcome"]

PLANE = "plane-0"
START_S = 20.0  # for a plane to serve
TICK_S = 0.05
GRACE_S = 5.0  # for a role to end by itself
STALL_S = 45.0  # without a step: the run is stuck
MAX_DEATHS = 5  # not by our hand


@dataclass(frozen=True)
class Outcome:
    """How a run ended, and the two witnesses: the plane's books and the checker's report."""

    result: DemoResult
    audit: AuditReport
    report: Report


class Job:
    """One run, from its first process to its last."""

    def __init__(self, options: DemoOptions, files: RunFiles, interrupt: Interrupt) -> None:
        self.options, self.files, self.interrupt = options, files, interrupt
        self.spec = RunSpec(task=TaskSpec(seed=options.seed), max_steps=None if options.chaos else options.steps)
        self.files.create(self.spec)
        self.started_at = time.monotonic()
        self.processes = Processes(files, self._listen)
        self.faults = FaultLedger()
        self.fault_steps: list[tuple[int, str]] = []
        self.deaths: Counter[str] = Counter()  # not by our hand
        self.lives: Counter[str] = Counter()
        self.chaos: Chaos | None = None
        self.client: LocalDataPlaneClient | None = None
        self.controller: Controller | None = None
        self.log = EventLog(files.journals / "launcher.jsonl")
        self.stop = threading.Event()
        self.crash: str | None = None  # of the controller
        self.thread = threading.Thread(target=self._steer, name="controller")
        self.last_step = (0, self.started_at)  # steps made, and since when it has been so many

    # -- the beginning ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start everything."""
        self._start(PLANE)
        self._await_plane()
        self.client = connect(self.files, "controller", "demo", self.interrupt.sleep)
        self.client.register_partition(
            PARTITION, TRAIN_FIELDS, 0, [SCORE_TASK, TRAIN_TASK], grpo_group_size=self.spec.group_size
        )
        self.controller = Controller(self.spec, self.client, self.processes.tell, self.log)
        for slot in ["trainer-0", "scorer-0", *(f"worker-{i}" for i in range(self.options.rollout_workers))]:
            self._start(slot)
        self.thread.start()

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

    # -- the threads --------------------------------------------------------------------------------------------------

    def _steer(self) -> None:
        assert self.controller is not None
        try:
            self.controller.run(self.stop)
        except Exception as error:  # noqa: BLE001  # top frame: the main thread ends the run
            self.crash = f"the controller failed: {error!r}"
            (self.files.logs / "controller.log").write_text(traceback.format_exc())

    def _listen(self, news: Heard | Left) -> None:
        """Called by each peer's own thread."""
        if self.controller is not None:
            self.controller.inbox.put(news)
        life = self.processes.life(slot_of(news.peer))
        if isinstance(news, Left) or life is None or life.peer != news.peer:
            return
        if isinstance(news.message, RolledOut):
            self.faults.progress("worker", slot_of(news.peer), life.started_at, news.message.at)
        elif isinstance(news.message, Trained):
            self.faults.progress("trainer", None, life.started_at, news.message.at)

    # -- the middle ---------------------------------------------------------------------------------------------------

    def supervise(self, view: View) -> str:
        """Keep the run going until it is done. Returns why it cannot succeed, "" if nothing stands against it."""
        while True:
            for ended in self.processes.reap():
                self._note_death(ended)
                self._start(slot_of(ended.peer))
            self._note_progress()
            view.show(self.snapshot())
            why = self._trouble()
            if why or self._is_done():
                return why
            self._disturb()
            self.interrupt.sleep(TICK_S)

    def _note_death(self, ended: Ended) -> None:
        fault = self.faults.ended(ended)
        if fault is None:
            self.deaths[f"{slot_of(ended.peer)} ended with status {ended.status}"] += 1
            return
        self.log.write([fault])
        self.fault_steps.append((len(self.rewards), fault.kind))

    def _note_progress(self) -> None:
        if len(self.rewards) > self.last_step[0]:
            self.last_step = (len(self.rewards), time.monotonic())
        plane = self.processes.life(PLANE)
        if plane is not None and self.controller is not None and self.controller.now.answered_at > plane.started_at:
            self.faults.progress("plane", None, plane.started_at, time.monotonic())

    def _trouble(self) -> str:
        now = time.monotonic()
        if self.crash is not None:
            return self.crash
        if sum(self.deaths.values()) > MAX_DEATHS:
            return f"processes keep dying: {dict(self.deaths)}; {self._last_words()}"
        if now - self.last_step[1] > STALL_S:
            return f"stuck: no training step for {STALL_S:g} s; {self._last_words()}"
        if now - self.started_at > self.options.time_limit_s:
            return f"not done within {self.options.time_limit_s:g} s ({self._standing()})"
        return ""

    def _is_done(self) -> bool:
        options, rewards = self.options, self.rewards
        if len(rewards) < (options.steps or REWARD_WINDOW):
            return False
        if options.steps is not None and not options.chaos:
            return True
        learned = window_mean(rewards[-REWARD_WINDOW:]) > options.goal
        if not options.chaos:
            return learned
        return learned and self.faults.fired() >= options.min_faults and not self.faults.unrecovered()

    def _disturb(self) -> None:
        now = time.monotonic()
        if not self.options.chaos or not self.rewards:
            return  # the first fault comes after the first step: before it there is nothing to disturb
        if self.chaos is None:
            self.chaos = Chaos(self.options.seed, self.options.chaos_period_s, now)
        if self.processes.life(SPARE) is None:
            self._start(SPARE)  # importing torch takes seconds; a replacement should not
        victim = self.chaos.due(now, self._victims())
        if victim is not None:
            self.faults.killed(victim, self.processes.kill(victim), now)

    def _victims(self) -> list[str]:
        """The slots whose life is at work: killing what only starts proves little."""
        lives = {slot: self.processes.life(slot) for slot in self.processes.slots()}
        return [slot for slot, life in lives.items() if life and (life.ready_at or kind_of(slot) == "plane")]

    # -- how it stands ------------------------------------------------------------------------------------------------

    @property
    def rewards(self) -> list[float]:
        """Mean reward of each step so far."""
        return self.controller.now.rewards if self.controller is not None else []

    def snapshot(self) -> Snapshot:
        """Return the run at this moment."""
        controller = self.controller
        assert controller is not None
        return Snapshot(
            seconds=time.monotonic() - self.started_at,
            rewards=list(controller.now.rewards),
            rows_trained=controller.now.rows_trained,
            depth=controller.now.depth,
            prompts=len(controller.prompts),
            version=max(controller.now.version, 0),
            faults=self.faults.counts(),
            notes=dict(controller.now.notes),
            lives=[self._life_line(slot) for slot in sorted(self.processes.slots())],
        )

    def _life_line(self, slot: str) -> LifeLine:
        life = self.processes.life(slot)
        assert life is not None
        silent = {"plane": "at work", "scorer": "at work", "spare": "standing by"}  # these say nothing
        state = "at work" if life.ready_at else silent.get(kind_of(slot), "starting")
        return LifeLine(slot, life.process.pid, self.lives[slot], state)

    def _standing(self) -> str:
        faults = f", {self.faults.fired()} of {self.options.min_faults} faults" if self.options.chaos else ""
        return f"{len(self.rewards)} steps, reward {window_mean(self.rewards[-REWARD_WINDOW:]):.3f}{faults}"

    def _last_words(self) -> str:
        words = {path.stem: _last_line(path) for path in sorted(self.files.logs.glob("*.log"))}
        return "last words: " + ("; ".join(f"{slot}: {line}" for slot, line in words.items() if line) or "none")

    # -- the end ------------------------------------------------------------------------------------------------------

    def conclude(self, why: str) -> Outcome:
        """Bring the run to rest and judge it; ``why``: what stands against its success already."""
        seconds = time.monotonic() - self.started_at
        reasons = [why]
        try:
            self._rest()
        except DataPlaneError as error:
            reasons.append(f"the run could not be brought to rest: {error}")
        assert self.client is not None
        audit = self.client.audit()
        self._end_plane()
        report = self.judge()
        return Outcome(self._result([*reasons, *_findings(audit, report)], seconds, audit, report), audit, report)

    def _rest(self) -> None:
        """End the roles, then settle and evict what they left in the plane."""
        self._stop_controller()
        self.processes.end([SPARE], 0.0)
        self.processes.end([slot for slot in self.processes.slots() if slot != PLANE], GRACE_S, self.interrupt.hurry)
        self.interrupt.check()
        if self.processes.reap():
            self._start(PLANE)
        assert self.controller is not None
        newest = latest_step(self.files.checkpoints)
        last = None if newest is None else read_record(self.files.checkpoints, newest)
        self.controller.finish(last, self.interrupt.sleep)

    def judge(self) -> Report:
        """Let the checker read all logs."""
        entries = [entry for path in sorted(self.files.journals.iterdir()) for entry in read_log(path)]
        return check(entries, max_staleness=self.spec.max_staleness)

    def _result(self, reasons: list[str], seconds: float, audit: AuditReport, report: Report) -> DemoResult:
        why = "; ".join(filter(None, reasons))
        return DemoResult(
            audit_residue=audit.residue,
            lost=len(report.lost),
            duplicated=len(report.duplicated),
            corrupted=len(report.corrupted),
            faults_fired=self.faults.fired(),
            faults=self.faults.counts(),
            first_reward=round(window_mean(self.rewards[:REWARD_WINDOW]), 4),
            final_reward=round(window_mean(self.rewards[-REWARD_WINDOW:]), 4),
            steps=len(self.rewards),
            seconds=round(seconds, 2),
            rows_trained=report.trained,
            recovery_s=self.faults.recovery(),
            ok=not why,
            why=why,
        )

    def close(self) -> None:
        """End and remove whatever is left, in whatever state it is. Idempotent."""
        self.stop.set()
        self.processes.end([slot for slot in self.processes.slots() if slot != PLANE], 0.0)
        self._end_plane()
        self._stop_controller()
        self.processes.close()
        self.log.close()
        for path, _ in arena_files(self.files.plane):  # only if the plane could not end by itself
            path.unlink(missing_ok=True)

    def _stop_controller(self) -> None:
        self.stop.set()
        if self.thread.ident is not None:
            self.thread.join()

    def _end_plane(self) -> None:
        client, self.client = self.client, None
        if client is not None:
            with suppress(DataPlaneError):
                client.close(timeout_s=1.0)  # whoever is in a call of it is told at once
        self.processes.end([PLANE], 2 * GRACE_S, self.interrupt.hurry)


def _findings(audit: AuditReport, report: Report) -> list[str]:
    """Say what the two witnesses hold against the run: each by itself, and where they disagree."""
    found = [] if report.ok else [report.verdict()]
    if audit.residue:
        found.append(f"the plane's books do not balance: residue {audit.residue}")
    trained = sum(partition.trained for partition in audit.partitions)
    if trained != report.trained:
        found.append(f"the plane counts {trained} trained rows, the trainer's log {report.trained}")
    return found


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
