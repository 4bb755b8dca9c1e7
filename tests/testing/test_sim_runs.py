"""Worlds of whole runs: the real controller's machine over the real ledger, and everything dies."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import get_args

import msgspec
import pytest

from penstock.controller.effects import Effect
from penstock.testing import sim
from penstock.testing.sim import steering
from penstock.testing.sim.steering.controller import POINTS, MachineFactory
from penstock.testing.sim.steering.faults import KINDS
from penstock.testing.sim.steering.planted import PLANTED

WORLDS = 250


def test_runs_keep_every_promise_whatever_dies() -> None:
    """In 250 seeded runs steps are made once, prompts are trained once, none is skipped, all end; each fault fired."""
    report = sim.run_controller(WORLDS, seed=0)
    assert [(f.seed, f.violations) for f in report.failures] == []
    assert report.ok
    assert report.faults.keys() == set(KINDS)
    assert min(report.faults.values()) >= 5
    assert report.run["lives"] > 1.5 * WORLDS
    assert report.run["steps"] > 2 * WORLDS
    assert report.run["prompts_trained"] > 3 * WORLDS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_runs_keep_every_promise() -> None:
    """The nightly ring: 20,000 worlds without a violation."""
    report = sim.run_controller(20_000, seed=1_000_000)
    assert [(f.seed, f.violations) for f in report.failures] == []


def test_a_life_may_end_before_and_after_every_effect() -> None:
    """The points at which a controller dies are all effects of its machine."""
    assert set(POINTS) == {f"{when} {kind.__name__}" for when in ("before", "after") for kind in get_args(Effect)}


_TRACE = """
from penstock.testing.sim import steering
for seed in range(30, 45):
    print("\\n".join(steering.run_world(seed, traced=True).trace))
"""


def test_a_run_replays_exactly() -> None:
    """The same seeds tell the same story, line by line, in processes that hash differently."""
    told = [
        subprocess.run(
            [sys.executable, "-c", _TRACE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0].count("\n") > 3000
    assert told[0] == told[1]


def test_checks_and_traces_do_not_disturb_a_run() -> None:
    """A world goes the same way whether it is watched or not."""
    for seed in range(6):
        plain = steering.run_world(seed)
        watched = steering.run_world(seed, checked=True, traced=True)
        assert msgspec.structs.replace(watched, trace=[]) == plain
        assert watched.trace


@pytest.mark.parametrize("bug", PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_bug_fails_some_run(bug: MachineFactory) -> None:
    """A machine with one bug breaks a promise in some of 150 worlds, and the world is told with its last steps."""
    for seed in range(150):
        outcome = steering.run_world(seed, make_machine=bug)
        if outcome.violations:
            told = sim.run_controller(1, seed, make_machine=bug)
            assert not told.ok
            assert told.violations == len(outcome.violations)
            assert told.failures[0].violations == outcome.violations
            assert len(told.failures[0].trace) > 20
            return
    pytest.fail(f"{bug} was not found in 150 worlds")


def test_a_stuck_run_says_who_owes_what() -> None:
    """A world that does not end tells where the machine stands and what it waits for."""
    for seed in range(150):
        outcome = steering.run_world(seed, make_machine=PLANTED["OrphansKept"])
        stuck = [told for told in outcome.violations if told.startswith("stuck: ")]
        if stuck:
            assert "owed: " in stuck[0]
            return
    pytest.fail("no world was stuck")


def test_a_report_of_runs_is_json() -> None:
    """What the command prints can be read by a program, numbers as numbers."""
    told = msgspec.json.decode(msgspec.json.encode(sim.run_controller(3, seed=5)))
    assert (told["kind"], told["worlds"], told["failed"], told["violations"]) == ("run", 3, 0, 0)
    assert told["run"]["lives"] >= 3
