from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from penstock.ledger.machine import Ledger
from penstock.testing.explore.hosts import HostRig, HostShape
from penstock.testing.explore.hosts_planted import PLANTED_ON_HOSTS, OrdersForgotten
from penstock.testing.explore.ledger import HOST_SHAPES, SHAPES, explore, run
from penstock.testing.explore.model import Model
from penstock.testing.explore.planted import PLANTED, UnfencedAck
from penstock.testing.explore.rig import Rig, Shape
from penstock.testing.explore.shell import Action, Disagreement

SMALL = tuple(replace(shape, depth=3) for shape in SHAPES)
PLENTY_S = 300.0


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.name)
def test_the_real_ledger_agrees_with_the_model(shape: Shape) -> None:
    """Every path of three actions in every configuration: same replies, same state, same state after recovery."""
    found = explore(shape, Ledger, PLENTY_S)
    assert found.finding is None
    assert found.complete
    assert found.states > 100
    assert found.transitions > 3 * found.states


def test_every_planted_bug_is_found() -> None:
    """Each planted bug has a path that shows it; the real ledger has none; the report says so as JSON."""
    shapes = (replace(SHAPES[0], depth=4), replace(SHAPES[-1], depth=3))
    report = run(shapes=shapes, budget_s=PLENTY_S)
    assert (report.violations, report.findings) == (0, [])
    assert [name for name, finding in report.planted.items() if finding is None] == []
    assert report.planted_found == report.planted_total == len(PLANTED) >= 8
    assert report.ok
    assert report.complete
    told = msgspec.json.decode(msgspec.json.encode(report))
    assert {"states", "transitions", "violations", "planted_found", "planted_total"} <= told.keys()


@pytest.mark.parametrize("shape", HOST_SHAPES, ids=lambda shape: shape.name)
def test_blocks_lie_where_rows_need_them_and_nowhere_else(shape: HostShape) -> None:
    """Every path of five actions of agents, a writer, time and crashes: all of them come to rest with nothing amiss."""
    found = explore(replace(shape, depth=5), Ledger, PLENTY_S)
    assert found.finding is None
    assert found.complete
    assert found.states > 200


@pytest.mark.slow
def test_every_bug_planted_in_what_is_done_about_hosts_is_found() -> None:
    """Orders that are lost or forgotten, replicas that are not used, grants that outlive their memory, and others."""
    shapes = (replace(HOST_SHAPES[1], depth=6),)
    report = run(shapes=shapes, budget_s=PLENTY_S)
    assert (report.violations, report.findings) == (0, [])
    assert [name for name, finding in report.planted.items() if finding is None] == []
    assert report.planted.keys() == PLANTED_ON_HOSTS.keys()
    assert len(report.planted) >= 8


def test_an_order_that_was_not_heard_of_is_given_again() -> None:
    """An answer that was lost with its connection: the next one frees the block; a forgotten order leaks it."""
    path: list[Action] = [*HOST_SHAPES[0].start, ("grant",), ("seal",), ("commit",), ("report", 1), ("pop", "k1")]
    for factory in (Ledger, OrdersForgotten):
        rig = HostRig(HOST_SHAPES[0], factory)
        for action in (*path, ("report_unheard", 1)):
            rig.apply(action)
        if factory is Ledger:
            rig.check_recovery()
        else:
            with pytest.raises(Disagreement, match="rest"):
                rig.check_recovery()


def test_a_finding_is_as_short_as_can_be_and_can_be_run() -> None:
    """The unfenced ack needs two claims of one row and the older token; the printed path is that, and runs."""
    finding = explore(replace(SHAPES[0], depth=4), UnfencedAck, PLENTY_S).finding
    assert finding is not None
    assert len(finding.path) == 5
    assert [step.split()[0] for step in finding.path].count("claim") == 2
    path: list[Action] = [
        ("put", 0),
        ("claim", "A", "train"),
        ("expire",),
        ("claim", "B", "train"),
        ("ack", "A", 0, ("k0",)),
    ]
    rig = Rig(SHAPES[0], UnfencedAck)
    for action in path[:-1]:
        rig.apply(action)
    with pytest.raises(Disagreement, match="expected lease_lost"):
        rig.apply(path[-1])


def test_a_spent_budget_is_not_called_complete() -> None:
    """An exploration that ran out of time says so, and a bug that was not looked for is not found."""
    report = run(shapes=SMALL[:1], budget_s=0.0)
    assert not report.complete
    assert not report.ok
    assert report.planted_found < report.planted_total


def test_equal_states_are_followed_once() -> None:
    """Two ways to the same state up to the names of tokens have the same canonical form; other states another."""
    claimed, again = Rig(SHAPES[0]), Rig(SHAPES[0])
    path: list[Action] = [("put", 0), ("claim", "B", "train"), ("release", "B", 0, ("k0",)), ("claim", "B", "train")]
    for action in path[:2]:
        claimed.apply(action)
    for action in path:
        again.apply(action)
    assert claimed.model.rows["k0"].holds["train"].token != again.model.rows["k0"].holds["train"].token
    ended = Rig(SHAPES[0])
    ended.apply(("put", 0))
    assert ended.canonical() != claimed.canonical()
    assert claimed.canonical()[0] == again.canonical()[0]  # type: ignore[index]


def test_the_model_fences_by_the_newest_token() -> None:
    """A token outlives its lease until another claim supersedes it; a released one is good for nothing."""
    model = Model(["train"], 2)
    assert model.put(["k"], 1) == "done"
    model.claimed("train", ["k"], "t1", "A", timed=True)
    model.expire()
    assert model.claimable("train") == ["k"]
    model.claimed("train", ["k"], "t2", "B", timed=False)
    assert model.ack("train", ["k"], "t1") == "lease_lost"
    assert model.release("train", ["k"], "t2") == "done"
    assert model.ack("train", ["k"], "t2") == "lease_lost"
    assert model.pop(["k"], "") == "done"
    assert model.put(["k"], 2) == "row_removed"
    assert model.put(["k"], 1) == "done"
