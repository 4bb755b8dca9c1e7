"""The job's judgement: when a run is done, when it is in trouble, and what stands against it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.demo.interrupt import Interrupt
from penstock.demo.job import MAX_DEATHS, STALL_S, Job, _findings
from penstock.demo.launcher import run
from penstock.demo.processes import Ended
from penstock.demo.spec import DemoOptions, RunFiles
from penstock.demo.standing import Standing
from penstock.errors import DataPlaneUnavailable
from penstock.requests import AuditReport, PartitionAudit
from penstock.testing.checker import Report


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
    job.controller = SimpleNamespace(now=Standing(rewards=rewards))  # type: ignore[assignment]
    for pid in range(faults):
        job.faults.killed("plane-0", pid, 1.0)
        job.faults.ended(Ended("plane-0.1", pid, -9))
    if recovered:
        job.faults.progress("plane", None, 2.0, 3.0)
    return job


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
    job._note_progress()
    clock.now += STALL_S
    assert job._trouble() == ""
    clock.now += 1
    assert "stuck" in job._trouble()
    assert "worker-0: ValueError: no" in job._trouble()
    assert job.controller is not None
    job.controller.now.rewards.append(0.2)
    job._note_progress()
    assert job._trouble() == ""


def test_a_run_ends_at_its_time_limit(tmp_path: Path, clock: Clock) -> None:
    """It says how far it came."""
    job = job_at(tmp_path, DemoOptions(chaos=True, time_limit_s=30.0), BAD, faults=4)
    clock.now += 31
    assert job._trouble() == "not done within 30 s (10 steps, reward 0.500, 4 of 10 faults)"


def test_processes_that_keep_dying_by_themselves_end_the_run(tmp_path: Path) -> None:
    """Deaths by our hand are faults and do not count."""
    job = job_at(tmp_path, CHAOS, BAD, faults=20)
    for pid in range(1000, 1000 + MAX_DEATHS):
        job._note_death(Ended("trainer-0.3", pid, 1))
    assert job._trouble() == ""
    job._note_death(Ended("trainer-0.3", 2000, 1))
    assert "trainer-0 ended with status 1" in job._trouble()


def test_a_fault_is_written_down_for_the_checker_and_for_the_curve(tmp_path: Path) -> None:
    """The checker reads of it in a log, as of everything else; a death by another hand is no fault."""
    job = job_at(tmp_path, CHAOS, BAD)
    job.faults.killed("worker-1", 7, 1.0)
    job._note_death(Ended("worker-1.5", 7, -9))
    job._note_death(Ended("worker-0.4", 8, -9))
    assert job.judge().faults == {"worker": 1}
    assert job.fault_steps == [(len(BAD), "worker")]


def test_a_crash_of_the_controller_ends_the_run(tmp_path: Path) -> None:
    """Its error is the reason, its traceback is in the logs."""
    job = job_at(tmp_path, DemoOptions(), [])

    def crash(_stop: object) -> None:
        raise ZeroDivisionError("oops")

    job.controller.run = crash  # type: ignore[union-attr,method-assign]
    job._steer()
    assert "ZeroDivisionError('oops')" in job._trouble()
    assert "oops" in (job.files.logs / "controller.log").read_text()


@pytest.mark.parametrize(
    ("audit", "report", "words"),
    [
        (PartitionAudit(partition="p", trained=4), Report(trained=4), []),
        (PartitionAudit(partition="p", trained=4, residue=1), Report(trained=4), ["do not balance: residue 1"]),
        (PartitionAudit(partition="p", trained=4), Report(trained=4, lost=["a"]), ["1 lost: 'a'"]),
        (PartitionAudit(partition="p", trained=5), Report(trained=4), ["counts 5 trained rows, the trainer's log 4"]),
    ],
)
def test_both_witnesses_are_heard_and_must_agree(audit: PartitionAudit, report: Report, words: list[str]) -> None:
    """The plane's books, the checker's logs, and a difference between the two."""
    found = _findings(AuditReport(1, [audit]), report)
    assert len(found) == len(words)
    assert all(word in finding for word, finding in zip(words, found, strict=True))


def test_a_plane_that_does_not_start_fails_the_run_and_its_logs_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error holds the plane's last words and the place of its logs; nothing else is left."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "penstock.demo.processes.role_command", lambda *_args: [sys.executable, "-c", "exit('not today')"]
    )
    with pytest.raises(DataPlaneUnavailable, match="not today; logs: ") as caught:
        run(DemoOptions())
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(caught.value)
    assert sorted(path.name for path in kept.iterdir()) == ["journals", "logs", "spec.json"]
