"""The rings' batch script, on a stub Slurm of one node: it runs the steps, collects, and tells where they hang."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0

SBATCH = f"""#!{sys.executable}
# A stub: one node, one job, run in the foreground. Time is short: --time is taken as seconds of $STUB_TIME_S.
import os, re, signal, subprocess, sys, threading
script, *args = [word for word in sys.argv[1:] if not word.startswith("-")]
options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", open(script).read(), re.M))
warn, ahead = re.fullmatch(r"B:(USR1)@([0-9]+)", options["signal"]).groups()
assert re.fullmatch("[0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}", options["time"])
output = options["output"].replace("%j", "4711")
env = {{**os.environ, "SLURM_JOB_ID": "4711", "SLURM_SUBMIT_DIR": os.getcwd(), "SLURM_JOB_NODELIST": "stub[1]"}}
spooled = os.path.join(os.environ["STUB_SPOOL"], "slurm_script")  # Slurm runs a copy, from its own folder
open(spooled, "w").write(open(script).read())
print("Submitted batch job 4711", flush=True)
with open(output, "w") as log:
    job = subprocess.Popen(["bash", spooled, *args], stdout=log, stderr=log, env=env)
    timer = threading.Timer(float(os.environ["STUB_TIME_S"]), job.send_signal, [signal.SIGUSR1])
    timer.start()
    code = job.wait()
    timer.cancel()
sys.exit(code)
"""
SRUN = """#!/usr/bin/env bash
while [[ "$1" == -* ]]; do shift; done
exec "$@"
"""
HANGS = """
import threading, time
def waits_for_a_lock_for_ever():
    time.sleep(1000)
threading.Thread(target=waits_for_a_lock_for_ever).start()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose steps are quick: ``check`` passes, ``test`` fails, ``hardware`` passes, ``nightly`` hangs."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "tools" / "slurm", folder / "tools" / "slurm")
    (folder / "hangs.py").write_text(HANGS)
    (folder / "Makefile").write_text(
        "check:\n\t@echo all clean\n"
        "test:\n\t@echo one failed; exit 3\n"
        "hardware:\n\t@echo no such device\n"
        f"nightly:\n\t@{sys.executable} hangs.py\n"
    )
    stub = tmp_path / "stub"
    stub.mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        (stub / name).write_text(text)
        (stub / name).chmod(0o755)
    (tmp_path / "spool").mkdir()
    return folder


def submit(checkout: Path, *args: str, time_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    stub = checkout.parent
    env = {
        **os.environ,
        "PATH": f"{stub / 'stub'}:{os.environ['PATH']}",
        "STUB_SPOOL": str(stub / "spool"),
        "STUB_TIME_S": str(time_s),
    }
    argv = ["sbatch", "tools/slurm/ring.sbatch", *args]
    return subprocess.run(argv, cwd=checkout, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_steps_run_and_are_collected(checkout: Path) -> None:
    """All steps run though one fails; the job fails; logs, exit codes and the node's description are in one archive."""
    done = submit(checkout)
    out = checkout / "out" / "ring-4711"
    log = (checkout / "penstock-ring-4711.log").read_text()
    assert done.returncode == 1, log
    assert [(out / f"{step}.code").read_text().strip() for step in ("check", "test", "hardware")] == ["0", "2", "0"]
    assert (out / "check.log").read_text() == "all clean\n"
    assert "one failed" in (out / "test.log").read_text()
    assert "FAIL" in log
    (machine,) = out.glob("machine-*.txt")
    assert "$ nproc" in machine.read_text()
    listed = subprocess.run(["tar", "-tzf", f"{out}.tar.gz"], capture_output=True, text=True, check=True).stdout
    assert "ring-4711/test.log" in listed
    assert not list((out / "stacks").iterdir())  # of processes that nobody asked


def test_a_job_without_failures_passes(checkout: Path) -> None:
    """With a folder and steps of one's own."""
    done = submit(checkout, "elsewhere", "check", "hardware")
    assert done.returncode == 0
    assert "PASS" in (checkout / "elsewhere" / "ring.log").read_text()
    assert not (checkout / "elsewhere" / "test.log").exists()


def test_a_step_that_hangs_is_cut_and_says_where(checkout: Path) -> None:
    """Before the time limit every Python process writes its stacks; the step is ended, and no later one begins."""
    done = submit(checkout, "out/x", "nightly", "check", time_s=2.0)
    out = checkout / "out" / "x"
    assert done.returncode == 1
    assert (out / "nightly.code").read_text().strip() == "124"
    assert not (out / "check.code").exists()
    (stacks,) = (path for path in (out / "stacks").iterdir() if "waits_for_a_lock_for_ever" in path.read_text())
    (processes,) = out.glob("processes-*.txt")
    told = processes.read_text()
    assert f"{stacks.name.rpartition('-')[2]} {sys.executable} hangs.py" in told
    assert "writes no stacks" in told  # make, and the shells: SIGUSR1 would have ended them


def test_the_script_asks_slurm_for_a_warning(checkout: Path) -> None:
    """It has a time limit, and is warned well before it."""
    lines = (checkout / "tools" / "slurm" / "ring.sbatch").read_text().splitlines()
    assert "#SBATCH --time=01:00:00" in lines
    assert "#SBATCH --signal=B:USR1@180" in lines
    assert subprocess.run(["bash", "-n", "tools/slurm/ring.sbatch"], cwd=checkout, check=False).returncode == 0
