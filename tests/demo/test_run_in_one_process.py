"""Controller and roles together, on the reference plane, killed and cut off wherever they touch the world."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from penstock.controller.events import Again, Evicted
from penstock.demo.checkpoint import read_record
from penstock.demo.messages import Rollout
from penstock.demo.rows import group_keys
from penstock.demo.spec import PARTITION, RunSpec, TaskSpec, window_mean
from penstock.errors import CorruptPayload, DataPlaneTimeout, DataPlaneUnavailable
from tests.demo.hall import Hall, Killed, attempts

SMALL = RunSpec(task=TaskSpec(length=3, digits=4), group_size=4, groups_per_step=2, prompts_per_order=2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("penstock.demo.patience.time.sleep", lambda _seconds: None)


def at_call(number: int, fault: Callable[[str], BaseException] = Killed) -> Callable[[str], None]:
    """A fate that strikes once, at the call ``number`` (each call counts twice: before and after)."""
    calls = 0

    def fate(call: str) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise fault(call)

    return fate


def assert_accounted_for(hall: Hall) -> None:
    """The books balance and the logs tell the same story as the books, row by row and prompt by prompt."""
    report, (books,), prompts = hall.verdict(), hall.plane.audit(PARTITION).partitions, hall.prompts()
    assert report.ok, report.verdict()
    assert (books.residue, books.in_flight, books.leased, books.lost) == (0, 0, 0, {})
    assert books.trained == report.trained == hall.last_record().step * SMALL.groups_per_step * SMALL.group_size
    assert prompts.wrong == []
    assert prompts.dispatched == prompts.trained + prompts.dropped + prompts.open
    assert prompts.trained * SMALL.group_size == report.trained


@pytest.mark.slow
def test_the_policy_learns(tmp_path: Path) -> None:
    """From chance to mastery, by nothing but the rewards of its own answers."""
    hall = Hall(tmp_path, RunSpec(task=TaskSpec(length=3, digits=4), learning_rate=3e-3))
    hall.go(60, limit_s=90.0)
    rewards = hall.progress.curve()
    assert window_mean(rewards[:5]) < 0.4  # chance is 1/4
    assert window_mean(rewards[-5:]) > 0.8


def test_a_quiet_run_accounts_for_every_row(tmp_path: Path) -> None:
    """Nobody dies, nothing is evicted before the end, no prompt goes twice."""
    hall = Hall(tmp_path, SMALL)
    hall.go(3)
    assert_accounted_for(hall)
    assert not [event for event in hall.events if isinstance(event, Again | Evicted)]
    assert set(hall.verdict().evicted) <= {"run over"}


@pytest.mark.parametrize("number", range(1, 17))
def test_a_worker_killed_anywhere_costs_no_row(tmp_path: Path, number: int) -> None:
    """At any of its calls and log lines: its prompts go again, its half-written group is never trained."""
    hall = Hall(tmp_path, SMALL, {"worker": at_call(number)})
    hall.go(3)
    assert hall.deaths == 1
    assert_accounted_for(hall)


@pytest.mark.parametrize("number", range(1, 13))
def test_a_trainer_killed_anywhere_trains_no_step_twice(tmp_path: Path, number: int) -> None:
    """At any of its calls and log lines: a step that was not recorded is made again, one that was is not."""
    hall = Hall(tmp_path, SMALL, {"trainer": at_call(number)})
    hall.go(4)
    assert hall.deaths == 1
    assert_accounted_for(hall)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_scorer_killed_anywhere_holds_nothing_up(tmp_path: Path, number: int) -> None:
    """Its lease ends with its session; the next life scores the same rows."""
    hall = Hall(tmp_path, SMALL, {"scorer": at_call(number)})
    hall.go(3)
    assert hall.deaths == 1
    assert_accounted_for(hall)


@pytest.mark.parametrize("call", ["register_partition", "list_metadata", "claim_meta", "pop"])
@pytest.mark.parametrize("moment", ["", " done"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_controller_killed_at_any_call_loses_no_prompt(tmp_path: Path, call: str, moment: str, nth: int) -> None:
    """Before and after each kind of call: its next life asks plane and roles, pops what is recorded, and goes on."""
    seen = 0

    def fate(name: str) -> None:
        nonlocal seen
        seen += name == call + moment
        if seen == nth and name == call + moment:
            raise Killed(name)

    hall = Hall(tmp_path, SMALL, {"controller": fate})
    if call == "register_partition" and nth == 2:
        fate("register_partition" + moment)  # it is called once: strike the first
    hall.go(4)
    assert hall.deaths == 1
    assert_accounted_for(hall)


@pytest.mark.parametrize("number", [2, 4, 6, 8])
def test_a_controller_and_a_trainer_killed_at_once_train_no_step_twice(tmp_path: Path, number: int) -> None:
    """Whether the step was saved or not: nobody who knew of it is left, and its record or its rows tell."""
    calls = 0

    def fate(call: str) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            hall.is_struck = True
            raise Killed(call)

    hall = Hall(tmp_path, SMALL, {"trainer": fate})
    hall.go(4)
    assert hall.deaths == 2
    assert_accounted_for(hall)


@pytest.mark.parametrize("role", ["worker", "trainer", "scorer", "controller"])
@pytest.mark.parametrize("fault", [DataPlaneUnavailable, DataPlaneTimeout])
@pytest.mark.parametrize("every", [4, 5])  # not what a recovery takes: it would never get further
def test_a_plane_that_is_away_now_and_then_changes_nothing(
    tmp_path: Path, role: str, fault: type[Exception], every: int
) -> None:
    """Calls that did not happen, and calls that happened and were not answered, are repeated without harm."""
    calls = raised = 0

    def fate(call: str) -> None:
        nonlocal calls, raised
        before = not call.endswith("done")
        if call.startswith(("write", "ping", "get_capabilities")) or before != (fault is DataPlaneUnavailable):
            return  # a log is no plane; unavailable is raised before the call, a timeout after it
        calls += 1
        if calls % every == 0:
            raised += 1
            raise fault("away")

    hall = Hall(tmp_path, SMALL, {role: fate})
    hall.go(6)
    assert raised > 0
    assert_accounted_for(hall)


def test_rows_that_cannot_be_read_are_evicted_and_their_prompts_go_again(tmp_path: Path) -> None:
    """One damaged row costs its group; the others of its step are given back and trained later."""
    victims: list[str] = []

    def damage(call: str) -> None:
        if call == "get_data" and not victims:
            victims.append(hall.plane.list_metadata(PARTITION)[0].keys[0])
            raise CorruptPayload("checksum", partition=PARTITION, keys=victims)

    hall = Hall(tmp_path, SMALL)
    hall.role("trainer")._client._fate = damage
    hall.go(3)
    assert victims
    assert_accounted_for(hall)
    assert hall.verdict().evicted["unreadable"] == 1


def test_a_late_attempt_settles_nothing(tmp_path: Path) -> None:
    """A group of an attempt that was given up is put after all: it is evicted, and the new attempt is trained."""
    hall = Hall(tmp_path, SMALL, {"worker": at_call(3)})
    late: list[str] = []

    def put_late() -> None:
        again = next(event for event in hall.events if isinstance(event, Again))
        old = attempts(again.prompt, number=again.attempt - 1)
        late.extend(group_keys(old[0].group_id, SMALL.group_size))
        hall.role("worker").roll_out(Rollout(hall.progress.steps, old))

    hall.go(4, also=put_late)
    assert_accounted_for(hall)
    trained = {key for step in range(1, 5) for key in read_record(hall.files.checkpoints, step).keys}
    assert late
    assert not trained & set(late)
    assert {key.replace(".0_g", ".1_g") for key in late} <= trained


def test_neither_launcher_nor_controller_needs_torch() -> None:
    """They steer from metadata alone: in a fresh process neither of them loads torch."""
    code = (
        "import sys, penstock.demo.steering, penstock.demo.launcher, penstock.demo.role, penstock.demo.reaching\n"
        "assert not {'torch', 'tensordict'} & sys.modules.keys(), 'torch is loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
