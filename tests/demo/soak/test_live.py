"""Live soaks: a short one keeps every promise, planted damage to its logs is found, Ctrl-C still brings a verdict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.controller.record import RecordFile
from penstock.demo.checkpoint import latest_step
from penstock.demo.messages import RUN
from penstock.demo.prompt_books import prompt_books
from penstock.demo.soak.launcher import run
from penstock.demo.soak.options import SoakOptions, SoakResult
from penstock.demo.soak.places import PLACES, ROLES
from penstock.demo.soak.verdict import step_findings
from penstock.demo.spec import RunFiles
from penstock.testing.checker import Entry, Put, Trained, check, read_log

SEED = 1179  # of a schedule whose first faults are of all kinds, for all roles, and cheap
FAULTS = 11
LATER = 10_000  # a step that no soak gets to


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> tuple[SoakResult, RunFiles, list[str]]:
    out = tmp_path_factory.mktemp("soak") / "out"
    said: list[str] = []
    return run(SoakOptions(seed=SEED, faults=FAULTS, out=out), said.append), RunFiles(out), said


Soaked = tuple[SoakResult, RunFiles, list[str]]


@pytest.mark.timeout(240)
def test_a_short_soak_keeps_every_promise(soaked: Soaked) -> None:
    """Every role is struck, all three kinds fire, and each book balances."""
    result, files, said = soaked
    assert result.ok, result.findings
    assert result.fired >= FAULTS
    assert {role for roles in result.faults.values() for role in roles} == set(ROLES)
    assert all(roles for roles in result.faults.values())
    assert (result.residue, result.died, result.left, result.stuck) == (0, {}, [], [])
    assert result.trained == 64 * result.steps > 0
    assert result.prompts.dispatched == 8 * result.steps + result.prompts.dropped + result.prompts.open
    assert set(result.recovery_s) == {"trainer", "controller", "plane"}
    assert {"worker", "scorer"} <= set(result.after_stop_s)
    assert result.resume_s is not None
    assert "faults: " in said[-2]
    strikes = [json.loads(line) for line in (files.root / "strikes.jsonl").read_text().splitlines()]
    assert sum(len(strike["fired"]) for strike in strikes) == result.fired
    assert json.loads((files.root / "soak.json").read_text())["seed"] == SEED


def entries_of(files: RunFiles) -> list[Entry]:
    return [entry for path in sorted(files.journals.iterdir()) for entry in read_log(path)]


def found(files: RunFiles, entries: list[Entry]) -> str:
    """All that checker, prompt books and steps hold against a run of these logs."""
    books = prompt_books(RecordFile(files.root).load(RUN), entries, 8)
    steps = step_findings(entries, latest_step(files.checkpoints) or 0, 64)
    return "; ".join([*check(entries, max_staleness=3).violations, *books.wrong, *steps])


def again(entry: Trained) -> list[Entry]:
    """The row is trained in another step, too."""
    return [Trained("after", entry.key, entry.xxh3, entry.weight_version, LATER, entry.policy_version)]


def altered(entry: Trained) -> list[Entry]:
    """What was read is not what was put."""
    return [Trained("after", entry.key, "f" * 16, entry.weight_version, entry.commit, entry.policy_version)]


def invented(entry: Trained) -> list[Entry]:
    """A row that nobody put is trained instead."""
    return [Trained("after", "run.9999.0_g0", entry.xxh3, entry.weight_version, entry.commit, entry.policy_version)]


def old(entry: Trained) -> list[Entry]:
    """It was trained long after it was generated."""
    return [Trained("after", entry.key, entry.xxh3, entry.weight_version, entry.commit, entry.weight_version + 9)]


def gone(_entry: Trained) -> list[Entry]:
    """It was put, acknowledged, and never seen again."""
    return []


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (again, ["duplicated", "prompts trained twice", "steps beyond the newest checkpoint"]),
        (altered, ["corrupted"]),
        (invented, ["phantom", "lost", "not in the controller's record"]),
        (old, ["stale"]),
        (gone, ["lost", "trained in part", "steps partial"]),
    ],
)
def test_planted_damage_to_its_logs_is_found(
    soaked: Soaked, plant: Callable[[Trained], list[Entry]], says: list[str]
) -> None:
    """One row of one step, doctored: the verdict of the very same run changes, and names what is wrong."""
    _, files, _ = soaked
    entries = entries_of(files)
    assert found(files, entries) == ""
    victim = next(e for e in entries if isinstance(e, Trained) and e.moment == "after")
    kept = [e for e in entries if not (isinstance(e, Trained) and e.key == victim.key and plant is not again)]
    verdict = found(files, [*kept, *plant(victim)])
    assert [word for word in says if word not in verdict] == []


@pytest.mark.timeout(240)
def test_a_prompt_that_is_skipped_is_found(soaked: Soaked) -> None:
    """Its rows are in no log: the record knows that it went out."""
    _, files, _ = soaked
    entries = [e for e in entries_of(files) if not (isinstance(e, Put | Trained) and e.key.startswith("run.0."))]
    assert "prompts skipped" in found(files, entries)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ctrl_c_ends_the_faults_and_still_brings_a_verdict(tmp_path: Path) -> None:
    """The run gets over what was done, is judged, and leaves nothing; the exit code says that it was interrupted."""
    words = [sys.executable, "-m", "penstock", "chaos", "--seed", str(SEED), "--seconds", "900", "--json"]
    soak = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert soak.stderr is not None
    assert soak.stdout is not None
    limit = threading.Timer(200, soak.kill)
    limit.start()
    try:
        while " 0 faults: none" in (line := soak.stderr.readline()):
            pass
        assert " faults: " in line
        soak.send_signal(signal.SIGINT)
        told, rest = soak.stdout.read(), soak.stderr.read()
        assert soak.wait() == 130, rest
    finally:
        limit.cancel()
        soak.kill()
        soak.wait()
        soak.stdout.close()
        soak.stderr.close()
    result = json.loads(told)
    assert result["interrupted"]
    assert (result["ok"], result["findings"], result["residue"], result["left"]) == (True, [], 0, [])
    assert 0 < result["fired"] < len(PLACES)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [{"faults": 200, "seed": 11}, {"pairs": True, "seed": 11}], ids=str)
def test_a_long_soak_keeps_every_promise(options: dict[str, int], tmp_path: Path) -> None:
    """Two hundred faults; and all pairs of roles."""
    result = run(SoakOptions(**options, out=tmp_path / "out"), lambda _: None)  # type: ignore[arg-type]
    assert result.ok, (result.replay, result.findings)
    assert result.fired >= min(200, 2 * result.strikes - len(result.never_fired))
