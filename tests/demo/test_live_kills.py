"""Live runs in which the controller is killed, alone and together with another: everything is accounted for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from penstock.demo.interrupt import Interrupt
from penstock.demo.job import CONTROLLER, HOSTS, PLANE, Job
from penstock.demo.progress import EventTail
from penstock.demo.spec import DemoOptions, RunFiles
from penstock.demo.view import Snapshot
from penstock.testing import network
from penstock.wire.paths import arena_files

TRAINER = "trainer-0"


class Striker:
    """A view that sees to it that ``victims`` die at once, as soon as ``at`` steps are made; and again, and again."""

    def __init__(self, job: Job, strikes: list[tuple[int, tuple[str, ...]]]) -> None:
        self.job = job
        self.strikes = strikes
        self.maps: set[str] = set()  # what the controller had mapped

    def show(self, now: Snapshot) -> None:
        if self.strikes and self.job.progress.steps >= self.strikes[0][0] and not self.job.faults.unrecovered():
            _, victims = self.strikes.pop(0)
            self.maps |= mapped(self.job)
            for victim in victims:
                self.job.faults.killed(victim, self.job.processes.kill(victim), time.monotonic())

    def close(self) -> None:
        """Nothing to undo."""


def mapped(job: Job) -> set[str]:
    """The files that the controller's process has in its memory."""
    life = job.processes.life(CONTROLLER)
    assert life is not None
    lines = Path(f"/proc/{life.process.pid}/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines}


def lives_of_the_controller(job: Job) -> int:
    return max(event.life for event in EventTail(job.files.events).read())


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_controllers_that_are_killed_are_followed_by_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, with the trainer, with the plane: nothing is lost, trained twice or skipped; the last ends in order."""
    job = Job(DemoOptions(rollout_workers=1), RunFiles(tmp_path / "run"), Interrupt())
    striker = Striker(job, [(2, (CONTROLLER,)), (4, (CONTROLLER, TRAINER)), (6, (PLANE, CONTROLLER))])
    monkeypatch.setattr(job, "_is_done", lambda: job.progress.steps >= 10 and not job.faults.unrecovered())
    try:
        job.begin()
        outcome = job.conclude(job.supervise(striker))
    finally:
        job.close()
    result, kills = outcome.result, {"trainer": 1, "controller": 3, "plane": 1}
    assert result.ok, result.why
    assert {kind: count for kind, count in result.faults.items() if count} == kills
    assert result.recovery_by_kind_s.keys() == kills.keys()
    assert lives_of_the_controller(job) == 4
    assert (result.rows_trained, result.audit_residue) == (result.steps * 64, 0)
    prompts = result.prompts
    assert (prompts.trained, prompts.dropped) == (result.steps * 8, 0)
    assert prompts.open == prompts.dispatched - prompts.trained > 0  # what was under way stays under way
    assert "the run is over: the launcher said so" in job.processes.log_path(CONTROLLER).read_text()
    assert not [file for file in striker.maps if "torch" in file]
    assert any("python" in file for file in striker.maps)


class Cutting(Striker):
    """Also cuts the cable once, from the step ``cut_at`` on for a second and a half, if there is one."""

    def __init__(self, job: Job, strikes: list[tuple[int, tuple[str, ...]]], cut_at: int) -> None:
        super().__init__(job, strikes)
        self.cut_at = cut_at
        self.cut_since: float | None = None
        self.was_felt = False

    def show(self, now: Snapshot) -> None:
        super().show(now)
        site = self.job.site
        if self.cut_since is None and now.version >= self.cut_at:
            self.cut_since, self.before = time.monotonic(), site.swallowed()
            site.cut()
        elif self.cut_since is not None and not self.was_felt and time.monotonic() > self.cut_since + 1.5:
            self.was_felt = site.swallowed() > self.before
            site.mend()


@pytest.mark.timeout(240)
def test_two_hosts_whose_agents_are_killed_and_whose_cable_is_cut(tmp_path: Path) -> None:
    """Rows that lie on two hosts: nothing is lost, trained twice or skipped, and no memory is left behind."""
    why = network.unavailable()
    if why:
        pytest.skip(why)
    job = Job(DemoOptions(rollout_workers=1, hosts=2, time_limit_s=220.0), RunFiles(tmp_path / "run"), Interrupt())
    striker = Cutting(job, [(2, (HOSTS[0],)), (6, (HOSTS[1], CONTROLLER)), (9, (PLANE, HOSTS[0]))], cut_at=4)
    job._is_done = lambda: job.progress.steps >= 13 and not job.faults.unrecovered()  # type: ignore[method-assign]
    try:
        job.begin()
        outcome = job.conclude(job.supervise(striker))
    finally:
        job.close()
    assert outcome.result.ok, outcome.result.why
    assert striker.was_felt
    assert not striker.strikes
    assert (outcome.result.faults["host"], outcome.result.faults["plane"]) == (3, 1)
    assert outcome.result.audit_residue == 0
    assert [len(arena_files(job.files.host(number))) for number in (0, 1)] == [0, 0]
