"""The slot explorer: the real machine keeps every promise in small worlds, and planted bugs are found."""

from __future__ import annotations

import time

import msgspec
import pytest

from penstock.payload.slots import Slots, State
from penstock.testing.explore.slot import SMALL, explore, run
from penstock.testing.explore.slot_planted import PLANTED, OrphanReleases, StateAlone
from penstock.testing.explore.slot_world import Action, SlotDisagreement, SlotShape, SlotWorld

PLENTY_S = 300.0
TINY = SlotShape("tiny", grants=1, attempts=1, lates=0, modes=("consume",))


def walk(world: SlotWorld, *path: Action) -> None:
    for action in path:
        world.apply(action)


def test_the_real_machine_keeps_every_promise_and_every_planted_bug_is_found() -> None:
    """Every order of what the small shapes allow, to its end; the report says so as JSON."""
    report = run(shapes=SMALL, budget_s=PLENTY_S)
    assert (report.violations, report.findings) == (0, [])
    assert [name for name, finding in report.planted.items() if finding is None] == []
    assert report.planted_found == report.planted_total == len(PLANTED) >= 8
    assert report.ok
    assert report.complete
    assert report.states > 4000
    told = msgspec.json.decode(msgspec.json.encode(report))
    assert {"states", "transitions", "violations", "planted_found", "planted_total"} <= told.keys()


def test_a_late_end_after_the_slot_was_used_again_changes_nothing() -> None:
    """The recorded history of the trap: a handler is stuck, its successor consumes, the slot is granted anew."""
    world = SlotWorld(SMALL[0])
    walk(world, ("grant",), ("fill", 1), ("begin", 1, 2, "consume"), ("begin", 1, 3, "consume"), ("send", 1))
    walk(world, ("consumed", 1), ("grant",), ("released", 0))
    assert world.slots.state_of(7) is State.WRITING
    walk(world, ("fill", 2), ("begin", 2, 3, "consume"), ("released", 0))
    assert world.slots.state_of(7) is State.READING


def test_an_orphan_that_sends_late_sends_what_its_reader_refuses() -> None:
    """Its token is superseded and its slot used again: the bytes are another's, and not acknowledged."""
    world = SlotWorld(SMALL[0])
    walk(world, ("grant",), ("fill", 1), ("begin", 1, 2, "consume"), ("begin", 1, 2, "consume"), ("send", 1))
    walk(world, ("consumed", 1), ("grant",), ("fill", 2), ("send", 0))
    assert world.attempts[0].sent == 2
    assert ("consumed", 0) not in set(world.enabled())
    assert ("released", 0) in set(world.enabled())


def test_a_printed_path_can_be_run() -> None:
    """What the explorer says of a bug leads to it, step by step, and no step less does."""
    finding = explore(SMALL[0], OrphanReleases, time.process_time() + PLENTY_S).finding
    assert finding is not None
    assert [step.split()[0] for step in finding.path] == ["grant", "fill", "begin", "begin", "released"]
    world = SlotWorld(SMALL[0], OrphanReleases)
    walk(world, ("grant",), ("fill", 1), ("begin", 1, 2, "consume"), ("begin", 1, 2, "consume"))
    with pytest.raises(SlotDisagreement, match="expected no change"):
        world.apply(("released", 0))


def test_a_tiny_world_is_as_large_as_it_looks() -> None:
    """One grant, one attempt: exploring it is exact, and a bug that needs two attempts is not in it."""
    until = time.process_time() + PLENTY_S
    real = explore(TINY, Slots, until)
    assert (real.complete, real.finding) == (True, None)
    assert real.states == explore(TINY, StateAlone, until).states


def test_a_spent_budget_is_not_called_complete() -> None:
    """An exploration that ran out of time says so, and a bug that was not looked for is not found."""
    report = run(shapes=SMALL[:1], budget_s=0.0)
    assert not report.complete
    assert not report.ok
    assert report.planted_found == 0
