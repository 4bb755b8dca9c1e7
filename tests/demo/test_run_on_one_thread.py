"""The roles and the controller together, on the reference plane, killed and cut off wherever they touch the world."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from penstock.demo.checkpoint import read_record
from penstock.demo.messages import Left, Rollout
from penstock.demo.rows import group_keys
from penstock.demo.spec import PARTITION, RunSpec, TaskSpec, window_mean
from penstock.errors import CorruptPayload, DataPlaneTimeout, DataPlaneUnavailable, LeaseLost
from tests.demo.hall import Hall, Killed

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
    """The books balance and the logs tell the same story as the books."""
    hall.finish()
    report, (books,) = hall.verdict(), hall.plane.audit(PARTITION).partitions
    assert report.ok, report.verdict()
    assert (books.residue, books.in_flight, books.leased, books.lost) == (0, 0, 0, {})
    assert books.trained == report.trained
    assert books.trained == len(hall.controller.now.rewards) * SMALL.groups_per_step * SMALL.group_size


def test_the_policy_learns(tmp_path: Path) -> None:
    """From chance to mastery, by nothing but the rewards of its own answers."""
    spec = RunSpec(task=TaskSpec(length=3, digits=4), learning_rate=3e-3)
    hall = Hall(tmp_path, spec)
    hall.steps(60, most_turns=400)
    rewards = hall.controller.now.rewards
    assert window_mean(rewards[:5]) < 0.4  # chance is 1/4
    assert window_mean(rewards[-5:]) > 0.8


def test_a_quiet_run_accounts_for_every_row(tmp_path: Path) -> None:
    """Nobody dies, nothing is evicted before the end, no prompt goes twice."""
    hall = Hall(tmp_path, SMALL)
    hall.steps(3)
    assert not hall.controller.now.notes["prompts again"]
    assert_accounted_for(hall)
    assert set(hall.verdict().evicted) <= {"run over"}


@pytest.mark.parametrize("number", range(1, 17))
def test_a_worker_killed_anywhere_costs_no_row(tmp_path: Path, number: int) -> None:
    """At any of its calls and log lines: its prompts go again, its half-written group is never trained."""
    hall = Hall(tmp_path, SMALL, {"worker": at_call(number)})
    hall.steps(3)
    assert hall.deaths == 1
    assert_accounted_for(hall)


@pytest.mark.parametrize("number", range(1, 15))
def test_a_trainer_killed_anywhere_trains_no_row_twice(tmp_path: Path, number: int) -> None:
    """Before the step is saved it is made again from the same lease, afterwards it is settled from its record."""
    hall = Hall(tmp_path, SMALL, {"trainer": at_call(number)})
    hall.steps(4)
    assert hall.deaths == 1
    assert_accounted_for(hall)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_scorer_killed_anywhere_holds_nothing_up(tmp_path: Path, number: int) -> None:
    """Its lease ends with its session; the next life scores the same rows."""
    hall = Hall(tmp_path, SMALL, {"scorer": at_call(number)})
    hall.steps(3)
    assert hall.deaths == 1
    assert_accounted_for(hall)


@pytest.mark.parametrize("role", ["worker", "trainer", "scorer", "controller"])
@pytest.mark.parametrize("fault", [DataPlaneUnavailable, DataPlaneTimeout])
@pytest.mark.parametrize("every", [3, 5])
def test_a_plane_that_is_away_now_and_then_changes_nothing(
    tmp_path: Path, role: str, fault: type[Exception], every: int
) -> None:
    """Calls that did not happen, and calls that happened and were not answered, are repeated without harm."""
    calls = raised = 0

    def fate(call: str) -> None:
        nonlocal calls, raised
        before = not call.endswith("done")
        if call.startswith("write") or before != (fault is DataPlaneUnavailable):
            return  # a log is no plane; unavailable is raised before the call, a timeout after it
        calls += 1
        if calls % every == 0:
            raised += 1
            raise fault("away")

    hall = Hall(tmp_path, SMALL, {role: fate})
    hall.steps(6)
    assert raised > 0
    assert_accounted_for(hall)


@pytest.mark.parametrize("lease_lost", [False, True])
def test_rows_that_cannot_be_read_are_evicted_and_their_prompts_go_again(tmp_path: Path, lease_lost: bool) -> None:
    """One damaged row costs its group; the others are given back and trained later, if only by a lost lease."""

    def lose(call: str) -> None:
        if lease_lost and call == "release done":
            raise LeaseLost("the session has ended")

    hall = Hall(tmp_path, SMALL, {"controller": lose})
    victims: list[str] = []

    def damage(call: str) -> None:
        if call == "get_data" and not victims and hall.controller.ordered is not None:
            victims.append(hall.controller.ordered.meta.sample_ids[0])
            raise CorruptPayload("checksum", partition=PARTITION, keys=victims)

    hall.roles[next(p for p in hall.roles if p.startswith("trainer"))]._client._fate = damage
    hall.steps(3)
    assert victims
    assert hall.controller.now.notes["rows unreadable"] == 1
    assert_accounted_for(hall)
    assert hall.verdict().evicted["unreadable"] == 1


def test_a_late_attempt_settles_nothing(tmp_path: Path) -> None:
    """A worker that was given up puts its groups after all: they are evicted, and the new attempts are trained."""
    hall = Hall(tmp_path, SMALL)
    hall.controller.turn()
    peer, order = next((peer, order) for peer, order in hall.orders if isinstance(order, Rollout))
    hall.orders.remove((peer, order))
    hall.controller.inbox.put(Left(peer))  # so the controller believes
    hall.controller.turn()
    hall.say(peer, hall.roles[peer].roll_out(order))
    hall.steps(3)
    late = [key for ref in order.prompts for key in group_keys(ref, SMALL.group_size)]
    assert hall.controller.now.notes["rows superseded"] == len(late)
    assert_accounted_for(hall)
    trained = {key for step in (1, 2, 3) for key in read_record(hall.files.checkpoints, step).keys}
    assert not trained & set(late)
    assert trained & {key.replace(".0_g", ".1_g") for key in late}


@pytest.mark.parametrize(("behind", "stale"), [(SMALL.max_staleness, False), (SMALL.max_staleness + 1, True)])
def test_groups_that_are_too_old_are_evicted(tmp_path: Path, behind: int, stale: bool) -> None:
    """Groups beyond the bound are evicted as stale and their prompts go again; at the bound they are still fresh."""
    hall = Hall(tmp_path, SMALL)
    hall.controller.turn()
    hall.controller.trainer = None  # so that groups wait
    for _ in range(6):
        hall.turn()
    waiting = hall.controller.now.depth
    assert waiting > 0
    hall.controller.now.version = behind
    hall.controller.turn()
    assert hall.controller.now.notes["rows stale"] == (waiting * SMALL.group_size if stale else 0)
    assert hall.controller.now.notes["prompts again"] == (waiting if stale else 0)


def test_no_step_beyond_the_last_is_made(tmp_path: Path) -> None:
    """With ``max_steps`` the run makes exactly that many."""
    hall = Hall(tmp_path, msgspec.structs.replace(SMALL, max_steps=2))
    hall.steps(2)
    for _ in range(5):
        hall.turn()
    assert len(hall.controller.now.rewards) == 2
    assert hall.controller.ordered is None


def test_the_controller_needs_no_torch() -> None:
    """It steers from metadata alone: in a fresh process neither it nor the launcher loads torch."""
    code = (
        "import sys, penstock.demo.steering, penstock.demo.launcher, penstock.demo.role, penstock.plane.local\n"
        "assert not {'torch', 'tensordict'} & sys.modules.keys(), 'torch is loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
