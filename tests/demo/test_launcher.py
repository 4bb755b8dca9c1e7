"""The whole job, in processes, on the real engine: it accounts for every row, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from penstock.demo.launcher import run
from penstock.demo.spec import DemoOptions, RunFiles
from penstock.errors import BadArgument, MissingExtra
from penstock.wire.paths import SHM_DIR, plane_id

SCRIPT = """
import sys, msgspec
from penstock.demo.launcher import run
from penstock.demo.spec import DemoOptions
try:
    result = run(msgspec.json.decode(sys.argv[1], type=DemoOptions))
except KeyboardInterrupt:
    sys.exit(130)
print(msgspec.json.encode(result).decode())
"""


class Launched:
    """A launcher in its own process and folder, and every trace that it and its children leave."""

    def __init__(self, folder: Path, options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, options],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.children: dict[int, psutil.Process] = {}
        self.planes: set[str] = set()

    def watch_begin(self) -> None:
        """Wait until it has made its folder: from then on there is something to leave behind."""
        deadline = time.monotonic() + 30
        while not list(self.folder.iterdir()):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def watch(self, seconds: float) -> None:
        """Note what appears, for ``seconds`` or until it ends."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(psutil.Error, OSError):
                found = psutil.Process(self.process.pid).children(recursive=True)
                self.children |= {child.pid: child for child in found}
                self.planes |= {plane_id(path) for path in self.folder.glob("penstock-demo-*/plane")}
            time.sleep(0.02)

    def traces(self) -> list[str]:
        """What is left of it, after a moment's grace for the kernel."""
        _, living = psutil.wait_procs(list(self.children.values()), timeout=20)
        shm = [path.name for plane in self.planes for path in SHM_DIR.glob(f"penstock-{plane}-*")]
        return [f"process {p.pid}" for p in living] + shm + [path.name for path in self.folder.iterdir()]


@contextmanager
def launched(folder: Path, options: str) -> Iterator[Launched]:
    launch = Launched(folder, options)
    try:
        yield launch
    finally:
        launch.process.kill()
        launch.process.communicate()
        for child in launch.children.values():
            with suppress(psutil.Error):
                child.kill()


def test_a_short_run_accounts_for_every_row(tmp_path: Path) -> None:
    """Exactly the steps asked for, all books at zero, the curve and the logs where they were asked for."""
    out = tmp_path / "out"
    result = run(DemoOptions(steps=3, out=out, rollout_workers=1))
    assert result.ok, result.why
    assert (result.steps, result.rows_trained) == (3, 3 * 64)
    assert (result.audit_residue, result.lost, result.duplicated, result.corrupted) == (0, 0, 0, 0)
    assert (result.faults_fired, result.recovery_s) == (0, None)
    assert (result.prompts.dispatched, result.prompts.trained, result.prompts.wrong) == (24, 24, [])
    assert 0 < result.first_reward < 0.3
    assert (out / "reward.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "result.json").read_bytes())["steps"] == 3
    assert list(SHM_DIR.glob(f"penstock-{plane_id(RunFiles(out).plane)}-*")) == []


@pytest.mark.parametrize("after_s", [3.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 0.3, 1.5, 9.0))])
def test_an_interrupt_at_any_moment_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    """Ctrl-C while it starts or while it works: no process, no shared memory, no file."""
    with launched(tmp_path, '{"chaos":true}') as launch:
        launch.watch_begin()
        launch.watch(after_s)
        launch.process.send_signal(signal.SIGINT)
        launch.watch(30)
        assert launch.process.wait(timeout=1) == 130
        assert launch.traces() == []


def test_a_launcher_that_is_killed_takes_its_processes_with_it(tmp_path: Path) -> None:
    """Even kill -9 of the launcher leaves no process and no shared memory; only its folder stays."""
    with launched(tmp_path, "{}") as launch:
        launch.watch_begin()
        launch.watch(4.0)
        assert len(launch.children) >= 4
        launch.process.kill()
        launch.process.wait(timeout=10)
        assert [trace for trace in launch.traces() if not trace.startswith("penstock-demo-")] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_chaos_costs_no_row_and_the_policy_learns(tmp_path: Path) -> None:
    """Ten kills or more, of everybody; the reward still exceeds 0.8, every row and every prompt is accounted for."""
    with launched(tmp_path, '{"chaos":true,"json":true}') as launch:
        said, progress = launch.process.communicate(timeout=280)
        result = json.loads(said)
        assert result["ok"], progress
        assert (result["audit_residue"], result["lost"], result["duplicated"], result["corrupted"]) == (0, 0, 0, 0)
        assert sum(result["faults"].values()) == result["faults_fired"] >= 10
        assert all(result["faults"].values())
        assert result["faults"].keys() == result["recovery_by_kind_s"].keys()
        prompts = result["prompts"]
        assert prompts["dispatched"] == prompts["trained"] + prompts["dropped"] + prompts["open"]
        assert (prompts["wrong"], prompts["trained"] * 8) == ([], result["rows_trained"])
        assert result["first_reward"] < 0.3 < 0.8 < result["final_reward"]
        assert [path.name for path in tmp_path.iterdir()] == ["penstock-demo.png"]


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    """Results never mix with what was there."""
    (tmp_path / "precious").write_text("x")
    with pytest.raises(BadArgument, match="not empty"):
        run(DemoOptions(out=tmp_path))


def test_a_curve_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    """Not after minutes of training."""
    with pytest.raises(BadArgument, match="curve"):
        run(DemoOptions(curve=tmp_path / "nowhere" / "curve.png"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the command to run."""
    monkeypatch.setattr("penstock.demo.launcher.PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(MissingExtra, match=r"no_such_package.*penstock\[demo\]"):
        run(DemoOptions())


@pytest.mark.parametrize("bad", [{"steps": 0}, {"rollout_workers": 0}, {"goal": 1.0}, {"time_limit_s": 0.0}])
def test_options_are_checked(bad: dict[str, int]) -> None:
    """A number that makes no sense is a ``ValueError`` that names it."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        DemoOptions(**bad)  # type: ignore[arg-type]
