from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest

from penstock.ledger import losses, timers
from penstock.ledger.machine import Ledger
from penstock.testing import sim
from penstock.testing.explore import hosts_planted, planted
from penstock.testing.sim.faults import HOST_KINDS, KINDS
from penstock.testing.sim.plane import LedgerFactory

WORLDS = 120


def test_worlds_of_faults_keep_every_promise() -> None:
    """In 120 seeded worlds nothing is lost, trained twice, corrupted, stuck or leaked; every kind of fault fired."""
    report = sim.run(WORLDS, seed=0)
    assert [(f.seed, f.violations) for f in report.failures] == []
    assert report.ok
    assert report.faults.keys() == {*KINDS, *HOST_KINDS}
    assert min(report.faults.values()) >= 5
    assert report.acknowledged > 5 * WORLDS
    assert report.trained + report.evicted >= report.acknowledged
    assert report.operations > 30 * WORLDS


def test_a_report_is_json() -> None:
    """What the command prints can be read by a program."""
    told = msgspec.json.decode(msgspec.json.encode(sim.run(2, seed=5)))
    assert told["worlds"] == 2
    assert told["seed"] == 5
    assert told["failed"] == 0


def test_what_is_left_of_groups_does_not_hold_a_full_planes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """World 1124858: groups lost a row each, their producers waited for the room of what nobody could take."""
    assert sim.run_world(1124858).violations == []
    monkeypatch.setattr(timers, "stuck", lambda partition, group: False)
    assert "stuck" in sim.run_world(1124858).violations[0]


_TRACE = """
from penstock.testing import sim
for seed in range(30, 50):
    print("\\n".join(sim.run_world(seed, traced=True).trace))
"""


def test_a_seed_replays_exactly() -> None:
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
    assert told[0].count("\n") > 500
    assert told[0] == told[1]


def test_checks_and_traces_do_not_disturb_a_world() -> None:
    """A world goes the same way whether it is watched or not."""
    for seed in range(8):
        plain = sim.run_world(seed, checked=False)
        watched = sim.run_world(seed, checked=True, traced=True)
        assert msgspec.structs.replace(watched, trace=[]) == plain
        assert watched.trace


@pytest.mark.parametrize(
    "bug",
    [
        planted.ConsumedAtClaim,
        planted.AckBeforeJournal,
        planted.LeaseNotJournaled,
        planted.NoIdempotencyKey,
        planted.TombstoneForgotten,
        planted.UnfencedAck,
        planted.ReplayOutOfOrder,
    ],
    ids=lambda bug: bug.__name__,
)
def test_a_planted_bug_fails_some_world(bug: LedgerFactory) -> None:
    """The simulator, too, finds bugs: a world that fails is told with its seed, its faults and its last steps."""
    for seed in range(120):
        outcome = sim.run_world(seed, make_ledger=bug)
        if outcome.violations:
            told = sim.run(1, seed, make_ledger=bug)
            assert not told.ok
            assert told.failures[0].violations == outcome.violations
            assert len(told.failures[0].trace) > 20
            return
    pytest.fail(f"{bug} was not found in 120 worlds")


@pytest.mark.parametrize(
    "bug",
    [
        hosts_planted.FreeOrderLost,
        hosts_planted.OrdersForgotten,
        hosts_planted.LateHostKeepsBlocks,
        hosts_planted.EnlistedForgetsBlocks,
        hosts_planted.ReplicaNotUsed,
        hosts_planted.SilenceIsDeath,
    ],
    ids=lambda bug: bug.__name__,
)
def test_a_bug_planted_in_what_is_done_about_hosts_fails_some_world(bug: LedgerFactory) -> None:
    """Worlds whose machines have agents: what leaks on a host, or is given up too early, is noticed."""
    hosts = range(1, 200, 4)
    assert any(sim.run_world(seed, make_ledger=bug).violations for seed in hosts)


def test_worlds_with_hosts_lose_nothing_that_some_host_still_has() -> None:
    """Agents die, stop and are cut off, machines lose their memory; second places are used, and puts begin anew."""
    worlds = [sim.run_world(seed) for seed in range(1, 400, 4)]
    assert [(world.seed, world.violations) for world in worlds if world.violations] == []
    assert sum(world.faults.get("machine_lost", 0) for world in worlds) > 10
    assert sum(world.hosts.get("rows lost", 0) for world in worlds) > 0
    assert sum(world.hosts.get("blocks saved by their second place", 0) for world in worlds) > 5
    assert sum(world.hosts.get("commits begun anew", 0) for world in worlds) > 5
    assert sum(world.hosts.get("sealed twice", 0) for world in worlds) > 100


@pytest.mark.slow
def test_hosts_that_are_given_up_row_by_row_are_given_up_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crashes, returns of hosts and commits come between the steps; a real plane takes five hundred rows in one."""
    monkeypatch.setattr(losses, "SLICE", 1)
    worlds = [sim.run_world(seed) for seed in range(1, 240, 4)]
    assert [(world.seed, world.violations) for world in worlds if world.violations] == []
    assert sum(world.hosts.get("rows lost", 0) for world in worlds) > 0


def test_the_real_ledger_is_what_is_judged() -> None:
    """A world without faults ends with every row trained or evicted."""
    outcome = sim.run_world(3, make_ledger=Ledger)
    assert outcome.violations == []
    assert outcome.acknowledged > 0
