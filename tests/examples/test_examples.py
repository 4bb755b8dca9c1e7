"""The examples, run as a reader would run them, and killed as a cluster would kill them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.plane.local import LocalDataPlaneClient

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 200.0


def start(name: str, folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / name), "--folder", str(folder), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its end; return what it printed."""
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"not done within {LIMIT_S:g} s:\n{said}")
    assert process.returncode == 0, said
    return said


def books(folder: Path) -> dict[str, int]:
    """Return the run's record; the plane that it left must balance and hold nothing."""
    with LocalDataPlaneClient(folder / "plane") as client:
        audit = client.audit()
        assert audit.residue == 0
        assert client.depth("train") == 0
    record: dict[str, int] = json.loads((folder / "controller.json").read_text())
    return record


def test_the_torch_example_goes_on_after_kill_9(tmp_path: Path) -> None:
    """Killed in the middle and run again, the torch example makes the steps that were left, each once, and learns."""
    first = start("torch_grpo.py", tmp_path, "--steps", "40")
    assert first.stdout is not None
    lines = [next(first.stdout) for _ in range(12)]
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    made = int(lines[-1].split()[1])
    said = finish(start("torch_grpo.py", tmp_path, "--steps", "40"))
    steps = [int(line.split()[1]) for line in said.splitlines() if line.startswith("step")]
    assert made - 1 <= steps[0] - 1 < 40, "the second life began elsewhere than where the first ended"
    assert steps == list(range(steps[0], 41))
    assert float(said.splitlines()[-2].split()[-1]) > 0.8
    record = books(tmp_path)
    assert (record["step"], record["trained"], record["cursor"], record["life"]) == (40, 640, 640, 2)


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """A folder of Ray's own, with a short name: its sockets have long ones."""
    folder = tempfile.mkdtemp(prefix="r-")
    yield folder
    end = time.monotonic() + 10
    while Path(folder).exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(240)
def test_the_ray_example_survives_the_killing_of_its_actors(tmp_path: Path, ray_folder: str) -> None:
    """On real Ray, actors that are killed are restarted, and each prompt is trained once all the same."""
    limits = ("--steps", "10", "--kills", "2", "--workers", "1")
    said = finish(start("ray_grpo.py", tmp_path, *limits, RAY_TMPDIR=ray_folder))
    assert said.count("killed") >= 1, "no fault fired"
    record = books(tmp_path)
    assert (record["step"], record["trained"], record["cursor"]) == (10, 160, 160)
