"""The story of one sample: nothing that names it is left out, and its end is where it is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.controller import events as ev
from penstock.controller.lineage import Lineage, lineage
from penstock.errors import UnknownName
from tests.controller.histories import histories, history, torn_histories
from tests.controller.test_trace import STARTED, claimed, committed, dispatched, told, trained

STEP = (claimed(1, 0), ev.Ordered(step=1, attempt=1), trained(1, 0))
RECOVERED = ev.Recovered(seconds=1.0, plane_s=0.5, incarnation=2, empty=False, kept=0, again=0)


def popped(step: int, *prompts: int, lost: tuple[str, ...] = ()) -> ev.Popped:
    return ev.Popped(step=step, keys=[f"run.{prompt}.0_g0" for prompt in prompts], lost=list(lost))


def kinds(story: Lineage) -> list[str]:
    return [line.event for line in story.lines]


def names_of(event: ev.RunEvent) -> set[str]:
    """Every name in an event: of rows, of groups, of prompts."""
    named = {str(event.prompt)} if isinstance(event, ev.Dispatched | ev.Committed | ev.Again | ev.Dropped) else set()
    if isinstance(event, ev.Dispatched | ev.Committed | ev.Evicted):
        named.add(event.group_id)
    if isinstance(event, ev.Claimed | ev.Trained):
        named |= set(event.groups)
    if isinstance(event, ev.Committed | ev.Claimed | ev.Popped | ev.Evicted):
        named |= set(event.keys)
    return named


@settings(max_examples=100)
@given(st.one_of(histories, torn_histories), st.integers(0))
def test_no_event_that_names_it_is_left_out(events: list[ev.RunEvent], seed: int) -> None:
    """Whatever happened, with or without holes: each event that names the key is told, in order, and is its own."""
    names = sorted({name for event in events for name in names_of(event)})
    if not names:
        return
    key = random.Random(seed).choice(names)
    story = lineage(events, key)
    naming = [(event.at, type(event).__name__) for event in events if key in names_of(event)]
    own = [(line.at, line.event) for line in story.lines if line.own]
    told_of = iter((line.at, line.event) for line in story.lines)
    assert all(one in told_of for one in naming), "in order, each once"
    if story.what != "prompt":
        assert set(naming) <= set(own)
    assert len(story.lines) <= len(events)


@settings(max_examples=100)
@given(histories)
def test_where_it_is_agrees_with_the_last_word_on_it(events: list[ev.RunEvent]) -> None:
    """For every prompt of a run: the last of its own events decides where it is."""
    ends = {
        "Dispatched": "is being generated",
        "Committed": "is in the plane",
        "Again": "waits to be dispatched again",
        "Dropped": "dropped",
        "Claimed": "is leased",
        "Ordered": "is being trained",
        "Trained": "was trained",
        "Popped": "was trained",
    }
    for prompt in {event.prompt for event in events if isinstance(event, ev.Dispatched)}:
        story = lineage(events, str(prompt))
        last = [line.event for line in story.lines if line.own][-1]
        assert story.now.startswith(ends[last])


def test_a_row_is_told_from_dispatch_to_pop() -> None:
    """Each event with its time since the one before; the time from first to last."""
    events = told(STARTED, dispatched(0), dispatched(1), committed(0), *STEP, popped(1, 0), committed(1))
    story = lineage(events, "run.0.0_g0")
    assert (story.what, story.prompt, story.groups, story.keys) == ("row", 0, ["run.0.0"], ["run.0.0_g0"])
    assert kinds(story) == ["Dispatched", "Committed", "Claimed", "Ordered", "Trained", "Popped"]
    assert [line.after_s for line in story.lines] == [0, 2, 1, 1, 1, 1]
    assert story.seconds == 6
    assert story.now == "was trained in step 1 and removed"


@pytest.mark.parametrize(
    ("count", "now"),
    [
        (1, "is being generated, as attempt 0, with the weights of version 0"),
        (2, "is in the plane and waits to be trained"),
        (3, "is leased for step 1"),
        (4, "is being trained, in step 1"),
        (5, "was trained in step 1; its rows are not removed yet"),
    ],
)
@pytest.mark.parametrize("key", ["run.0.0_g0", "run.0.0", "0"])
def test_a_story_that_is_not_over_says_where_it_is(count: int, now: str, key: str) -> None:
    """A row, its group and its prompt are in the same place. (A row has no name before it is committed.)"""
    events = told(STARTED, dispatched(0), committed(0), *STEP)[: count + 1]
    if count > 1 or key != "run.0.0_g0":
        assert lineage(events, key).now == now


def test_another_attempt_is_told_and_is_not_its_own() -> None:
    """Who asks for the group of the first attempt learns that it was given up, and what came of the prompt."""
    events = told(
        STARTED,
        dispatched(0),
        committed(0),
        ev.Again(prompt=0, attempt=1, why="stale"),
        dispatched(0, 1),
        ev.Evicted(group_id="run.0.0", keys=["run.0.0_g0"], reason="stale"),
        committed(0, 1),
    )
    first = lineage(events, "run.0.0_g0")
    assert first.now == "evicted: stale; its prompt went again, as attempt 1"
    assert first.groups == ["run.0.0", "run.0.1"]
    assert [line.own for line in first.lines] == [True, True, True, False, True, False]
    assert lineage(events, "run.0.1").now == lineage(events, "0").now == "is in the plane and waits to be trained"
    waiting = lineage(events[:4], "0")
    assert waiting.now == "waits to be dispatched again, as attempt 1: stale"
    assert lineage(events[:4], "run.0.0").now == "given up: stale; its prompt went again, as attempt 1"


def test_the_steps_of_another_attempt_are_told_and_are_not_its_own() -> None:
    """Who asks for the first attempt sees the second one being trained."""
    events = told(STARTED, dispatched(0, 1), ev.Again(prompt=0, attempt=2, why="x"), dispatched(0), committed(0), *STEP)
    story = lineage([*events, *told(popped(1, 0))], "run.0.1")
    assert kinds(story)[-4:] == ["Claimed", "Ordered", "Trained", "Popped"]
    assert not any(line.own for line in story.lines[-4:])


def test_what_was_trained_stays_trained() -> None:
    """The trainer had recorded the old attempt when the prompt went again: the new one changes nothing."""
    again = (ev.Again(prompt=0, attempt=1, why="lost"), dispatched(0, 1))
    events = told(STARTED, dispatched(0), committed(0), *STEP[:2], *again, STEP[2], popped(1, 0), committed(0, 1))
    assert lineage(events, "0").now == "was trained in step 1 and removed"
    assert lineage(events, "run.0.0").now == "was trained in step 1 and removed; its prompt went again, as attempt 1"


def test_what_happened_to_all_stands_between() -> None:
    """A pause and a new life are told as long as the story goes on, marked as not its own; not before, not after."""
    first = told(STARTED, ev.Paused(why="early"), RECOVERED, dispatched(0), ev.Paused(why="away"), RECOVERED)
    second = told(STARTED, RECOVERED, committed(0), *STEP, popped(1, 0), ev.Paused(why="late"), life=2)
    story = lineage([*first, *second], "0")
    assert kinds(story)[:6] == ["Dispatched", "Paused", "Recovered", "Started", "Recovered", "Committed"]
    assert [line.own for line in story.lines][:6] == [True, False, False, False, False, True]
    assert kinds(story)[-1] == "Popped"
    assert [line.life for line in story.lines][2:4] == [1, 2]


@pytest.mark.parametrize("length", [2, 4, 5])
def test_a_life_that_ended_leaves_open_what_it_was_doing(length: int) -> None:
    """In flight, leased or in training when the controller died: nobody has said yet, and the story says that."""
    first = told(STARTED, dispatched(0), committed(0), *STEP)[:length]
    second = told(STARTED, life=2)
    story = lineage([*first, *second], "0")
    assert "nothing has said since what became of it" in story.now
    over = lineage([*first, *told(ev.Finished(reason="stopped", ok=True, step=0))], "0")
    assert over.now.endswith("when life 1 ended; nothing has said since what became of it")
    back = lineage([*first, *second, *told(committed(0), life=2)], "0")
    assert back.now == "is in the plane and waits to be trained"


def test_an_order_of_another_claim_is_not_ours() -> None:
    """The step number that once was ours was claimed anew by others."""
    events = told(STARTED, dispatched(0), committed(0), claimed(1, 0), committed(0), claimed(1, 7))
    story = lineage([*events, *told(ev.Ordered(step=1, attempt=1))], "0")
    assert story.now == "is in the plane and waits to be trained"
    anew = told(STARTED, ev.Ordered(step=1, attempt=1), life=2)
    assert "Ordered" not in kinds(lineage([*events[:4], *anew], "0"))


def test_rows_that_were_lost_or_unreadable_say_so() -> None:
    """A row that was gone before the pop, and one that was evicted alone, out of its group."""
    events = told(STARTED, dispatched(0), committed(0), *STEP, popped(1, 0, lost=("run.0.0_g0",)))
    assert "was gone from the plane" in lineage(events, "run.0.0_g0").now
    assert lineage(events, "run.0.0").now == "was trained in step 1 and removed"
    unreadable = ev.Evicted(group_id="unreadable: checksum", keys=["run.0.0_g0"], reason="unreadable")
    story = lineage(told(STARTED, dispatched(0), committed(0), unreadable), "run.0.0_g0")
    assert story.now == "evicted: unreadable"


def test_a_row_of_which_only_a_claim_tells_is_found() -> None:
    """Events may be missing: the key itself says its group."""
    story = lineage(told(STARTED, claimed(1, 0)), "run.0.0_g0")
    assert (story.groups, story.now) == (["run.0.0"], "is leased for step 1")


def test_an_unknown_key_is_offered_its_neighbours() -> None:
    """The error names rows and groups that are spelled nearly so."""
    events = history(random.Random(3), 2000)
    with pytest.raises(UnknownName, match=r"run\.10\.0") as caught:
        lineage(events, "run.10.O")
    assert 1 <= len(caught.value.missing) <= 5
    with pytest.raises(UnknownName, match="none at all"):
        lineage([], "x")
    with pytest.raises(UnknownName):
        lineage(events, "²")  # a digit, and no number
