"""The job's judgement: when a run is done, when it is in trouble, and what stands against it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from penstock.controller.events import Committed, Dispatched, Popped, RunEvent, Started, Trained
from penstock.demo.interrupt import Interrupt
from penstock.demo.job import MAX_DEATHS, STALL_S, Job
from penstock.demo.judging import hear_witnesses
from penstock.demo.launcher import run
from penstock.demo.messages import Ready, Worked
from penstock.demo.processes import Ended
from penstock.demo.spec import DemoOptions, RunFiles
from penstock.errors import DataPlaneUnavailable
from penstock.requests import AuditReport


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slots that were started, none of which was."""
    slots: list[str] = []
    monkeypatch.setattr(Job, "_start", lambda _job, slot: slots.append(slot))
    return slots


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("penstock.demo.job.time.monotonic", lambda: clock.now)
    return clock  # type: ignore[return-value]


def job_at(root: Path, options: DemoOptions, rewards: list[float], faults: int = 0, recovered: bool = True) -> Job:
    """A job without processes that stands where it is said to stand."""
    job = Job(options, RunFiles(root), Interrupt())
    for reward in rewards:
        make_step(job, reward)
    for pid in range(faults):
        job.faults.killed("plane-0", pid, 1.0)
        job.faults.ended(Ended("plane-0.1", pid, -9))
    if recovered:
        job.faults.progress("plane-0", 2.0, 3.0)
    return job


def make_step(job: Job, reward: float) -> None:
    """One more, as the event stream tells it."""
    step = job.progress.steps + 1
    with job.files.events.open("ab") as file:
        file.write(msgspec.json.encode(Trained(step=step, groups=[], rows=8, seconds=0.1, metrics={"reward": reward})))
        file.write(b"\n")
    job._look()


GOOD, BAD = [0.9] * 10, [0.5] * 10
CHAOS = DemoOptions(chaos=True)


@pytest.mark.parametrize(
    ("options", "rewards", "faults", "recovered", "done"),
    [
        (DemoOptions(), GOOD, 0, True, True),
        (DemoOptions(), BAD, 0, True, False),
        (DemoOptions(), GOOD[:9], 0, True, False),
        (DemoOptions(steps=3), BAD[:3], 0, True, True),
        (DemoOptions(steps=3), BAD[:2], 0, True, False),
        (CHAOS, GOOD, 10, True, True),
        (CHAOS, GOOD, 9, True, False),
        (CHAOS, BAD, 10, True, False),
        (CHAOS, GOOD, 10, False, False),
        (DemoOptions(chaos=True, steps=20), GOOD, 10, True, False),
        (DemoOptions(chaos=True, steps=20), GOOD * 2, 10, True, True),
    ],
)
def test_a_run_is_done_when_it_did_what_was_asked(
    tmp_path: Path, options: DemoOptions, rewards: list[float], faults: int, recovered: bool, done: bool
) -> None:
    """So many steps, or the goal; with chaos the goal and enough faults, each recovered from."""
    assert job_at(tmp_path, options, rewards, faults, recovered)._is_done() is done


def test_a_run_without_steps_for_long_is_stuck(tmp_path: Path, clock: Clock) -> None:
    """It is told, with the last words of each process; a step in time starts the clock again."""
    job = job_at(tmp_path, DemoOptions(), [0.1])
    (job.files.logs / "worker-0.log").write_text("Traceback\nValueError: no\n\n")
    clock.now += STALL_S
    assert job._trouble() == ""
    clock.now += 1
    assert "stuck" in job._trouble()
    assert "worker-0: ValueError: no" in job._trouble()
    make_step(job, 0.2)
    assert job._trouble() == ""


def test_a_run_ends_at_its_time_limit(tmp_path: Path, clock: Clock) -> None:
    """It says how far it came."""
    job = job_at(tmp_path, DemoOptions(chaos=True, time_limit_s=30.0), BAD, faults=4)
    clock.now += 31
    assert job._trouble() == "not done within 30 s (10 steps, reward 0.500, 4 of 10 faults)"


def test_processes_that_keep_dying_by_themselves_end_the_run(tmp_path: Path, started: list[str]) -> None:
    """Deaths by our hand are faults and do not count."""
    job = job_at(tmp_path, CHAOS, BAD, faults=20)
    for pid in range(1000, 1000 + MAX_DEATHS):
        job._replace(Ended("trainer-0.3", pid, 1))
    assert job._trouble() == ""
    job._replace(Ended("trainer-0.3", 2000, 1))
    assert "trainer-0 ended with status 1" in job._trouble()
    assert started == ["trainer-0"] * (MAX_DEATHS + 1)


def test_a_fault_is_written_down_for_the_checker_and_for_the_curve(tmp_path: Path, started: list[str]) -> None:
    """The checker reads of it in a log, as of everything else; a death by another hand is no fault."""
    job = job_at(tmp_path, CHAOS, BAD)
    job.faults.killed("worker-1", 7, 1.0)
    job._replace(Ended("worker-1.5", 7, -9))
    job._replace(Ended("worker-0.4", 8, -9))
    assert hear_witnesses(job.files, job.spec, AuditReport(1, [])).report.faults == {"worker": 1}
    assert job.fault_steps == [(len(BAD), "worker")]
    assert started == ["worker-1", "worker-0"]


def at_work(job: Job, monkeypatch: pytest.MonkeyPatch, **born_at: float) -> None:
    """Let slots have a life that began so many seconds from now, monotonic."""
    lives = {
        f"{kind}-0": SimpleNamespace(peer=f"{kind}-0.9", started_at=time.monotonic() + seconds)
        for kind, seconds in born_at.items()
    }
    monkeypatch.setattr(job.processes, "life", lives.get)


@pytest.mark.parametrize(
    ("event", "recovered"),
    [
        (Dispatched(group_id="run.0.0", prompt=0, attempt=0, version=0), ["controller-0"]),
        (Committed(group_id="run.0.0", prompt=0, keys=[], version=0, end_version=0, size_bytes=0), ["plane-0"]),
        (Popped(step=1, keys=["run.0.0_g0"]), ["plane-0", "controller-0"]),
        (Started(step=1, cursor=8, open_prompts=4), []),
    ],
)
def test_what_the_run_tells_proves_that_controller_and_plane_are_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: RunEvent, recovered: list[str]
) -> None:
    """Each kind of event proves what it needs; one from before the present life proves nothing."""
    job, slots = job_at(tmp_path, CHAOS, BAD), ["plane-0", "controller-0"]
    for pid, slot in enumerate(slots):
        job.faults.killed(slot, pid, time.monotonic() - 100)
        job.faults.ended(Ended(f"{slot}.1", pid, -9))
    at_work(job, monkeypatch, plane=-5.0, controller=-5.0)
    job._credit(msgspec.structs.replace(event, at=time.time() - 10))
    assert job.faults.unrecovered() == slots
    job._credit(msgspec.structs.replace(event, at=time.time()))
    assert [slot for slot in slots if slot not in job.faults.unrecovered()] == recovered


@pytest.mark.parametrize(("peer", "recovers"), [("scorer-0.9", True), ("scorer-0.8", False)])
def test_a_role_has_recovered_when_its_present_life_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: str, recovers: bool
) -> None:
    """That it is ready is not enough, and what the dead one said last comes late."""
    job = job_at(tmp_path, CHAOS, BAD)
    job.faults.killed("scorer-0", 1, time.monotonic() - 10)
    job.faults.ended(Ended("scorer-0.8", 1, -9))
    at_work(job, monkeypatch, scorer=-5.0)
    job._note(peer, Ready())
    assert job.faults.unrecovered() == ["scorer-0"]
    job._note(peer, Worked(time.monotonic()))
    assert job.faults.unrecovered() == ([] if recovers else ["scorer-0"])


@pytest.mark.parametrize("status", [0, 1])
def test_a_controller_that_ends_by_itself_ends_the_run(tmp_path: Path, started: list[str], status: int) -> None:
    """Its last words are the reason, in order or not; a controller that was killed is followed by another."""
    job = job_at(tmp_path, CHAOS, BAD)
    job.faults.killed("controller-0", 7, 1.0)
    job._replace(Ended("controller-0.2", 7, -9))
    assert (started, job._trouble()) == (["controller-0"], "")
    (job.files.logs / "controller-0.log").write_text("Traceback\nZeroDivisionError: oops\n")
    job._replace(Ended("controller-0.3", 8, status))
    assert started == ["controller-0"]
    assert f"the controller ended with status {status}" in job._trouble()
    assert "ZeroDivisionError: oops" in job._trouble()


def test_a_controller_that_is_done_ends_a_run_that_is(tmp_path: Path, started: list[str]) -> None:
    """It made the steps that were asked for: nothing stands against the run."""
    job = job_at(tmp_path, DemoOptions(steps=3), BAD[:3])
    job._replace(Ended("controller-0.2", 7, 0))
    assert (started, job._trouble(), job._is_done()) == ([], "", True)


def test_a_plane_that_does_not_start_fails_the_run_and_its_logs_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error holds the plane's last words and the place of its logs; nothing else is left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("penstock.demo.site.role_command", lambda *_args: [sys.executable, "-c", "exit('not today')"])
    with pytest.raises(DataPlaneUnavailable, match="not today; logs: ") as caught:
        run(DemoOptions())
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(caught.value)
    assert sorted(path.name for path in kept.iterdir()) == ["journals", "logs", "spec.json"]


class Cable:
    """A site whose cable swallows something in every cut."""

    hosts: tuple[str, ...] = ("10.0.0.1", "10.0.0.2")
    has_cable = True

    def __init__(self) -> None:
        self.cuts = 0
        self.is_cut = False

    def cut(self) -> None:
        self.cuts, self.is_cut = self.cuts + 1, True

    def mend(self) -> None:
        self.is_cut = False

    def swallowed(self) -> int:
        return self.cuts

    def folders(self, files: RunFiles) -> list[Path]:
        return [files.plane]

    def close(self) -> None:
        """Nothing to take down."""


def test_a_cable_that_was_cut_is_a_fault_until_the_next_step(tmp_path: Path) -> None:
    """It has fired when it is mended and something went into it; the next trained step is the recovery."""
    job = Job(DemoOptions(hosts=2, chaos=True, chaos_period_s=0.1), RunFiles(tmp_path), Interrupt())
    job.site.close()
    cable = Cable()
    job.site = cable  # type: ignore[assignment]
    now = time.monotonic()
    for later in (0.0, 1.0, 10.0):
        job._cut(now + later)
    assert (cable.cuts, cable.is_cut) == (1, False)
    assert (job.faults.counts()["cable"], job.faults.unrecovered()) == (1, ["cable"])
    assert [kind for _, kind in job.fault_steps] == ["cable"]
    assert hear_witnesses(job.files, job.spec, AuditReport(1, [])).report.faults == {"cable": 1}
    job._credit(Trained(at=time.time() + 60, life=1, step=1, groups=[], rows=0, seconds=0.0, metrics={}))
    assert job.faults.unrecovered() == []
    job.close()


def test_everything_is_closed_whatever_becomes_of_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the close that fails takes none of the others with it, and is told."""
    job = job_at(tmp_path, DemoOptions(), [])
    closed: list[str] = []

    def broken(*_arguments: object) -> None:
        raise RuntimeError("cannot be ended")

    monkeypatch.setattr(job.processes, "end", broken)
    monkeypatch.setattr(job.processes, "close", lambda: closed.append("processes"))
    monkeypatch.setattr(job.site, "close", lambda: closed.append("site"))
    monkeypatch.setattr(job.warehouse, "close", lambda: closed.append("warehouse"))
    with pytest.raises(RuntimeError, match="cannot be ended"):
        job.close()
    assert closed == ["processes", "site", "warehouse"]
