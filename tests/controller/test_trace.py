"""A run's trace: valid for every history, and it shows what happened."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from penstock.controller import events as ev
from penstock.controller.trace import chrome_trace
from tests.controller.histories import histories, history, torn_histories
from tests.controller.perfetto import lane_names, of_phase, problems

Json = dict[str, Any]


def told(*events: ev.RunEvent, life: int = 1) -> list[ev.RunEvent]:
    """Events a second apart, of one life."""
    return [replace(event, at=1000.0 + second, life=life) for second, event in enumerate(events)]


def committed(prompt: int, attempt: int = 0) -> ev.Committed:
    group_id = f"run.{prompt}.{attempt}"
    return ev.Committed(
        group_id=group_id, prompt=prompt, keys=[f"{group_id}_g0"], version=0, end_version=0, size_bytes=8
    )


def dispatched(prompt: int, attempt: int = 0) -> ev.Dispatched:
    return ev.Dispatched(group_id=f"run.{prompt}.{attempt}", prompt=prompt, attempt=attempt, version=0)


def claimed(step: int, *prompts: int) -> ev.Claimed:
    groups = [f"run.{prompt}.0" for prompt in prompts]
    return ev.Claimed(step=step, groups=groups, keys=[f"{g}_g0" for g in groups], lease=["t"], staleness=0)


def trained(step: int, *prompts: int) -> ev.Trained:
    groups = [f"run.{prompt}.0" for prompt in prompts]
    return ev.Trained(step=step, groups=groups, rows=len(groups), seconds=1.0, metrics={"reward": 0.5})


STARTED = ev.Started(step=0, cursor=0, open_prompts=0)


def spans(trace: Json, category: str) -> list[tuple[str, int, int, str]]:
    """Name, begin, duration in seconds and outcome of the spans of a category."""
    return [
        (event["name"], event["ts"] // 10**6, event["dur"] // 10**6, event["args"].get("outcome", ""))
        for event in of_phase(trace, "X")
        if event["cat"] == category
    ]


@settings(max_examples=150)
@given(histories)
def test_every_history_gives_a_valid_trace(events: list[ev.RunEvent]) -> None:
    """Several lives, kills in the middle, clocks that jump: the trace is what the format asks for."""
    assert problems(chrome_trace(events)) == []


@settings(max_examples=100)
@given(torn_histories)
def test_a_history_with_holes_gives_a_valid_trace(events: list[ev.RunEvent]) -> None:
    """Whatever events are missing, nothing is assumed of them."""
    assert problems(chrome_trace(events)) == []


@given(histories)
def test_nothing_that_happened_is_missing_in_the_trace(events: list[ev.RunEvent]) -> None:
    """Each dispatch is a generation, each order a step, each life a span; each eviction and stall a moment."""
    trace = chrome_trace(events)

    def counted(*kinds: type[ev.RunEvent]) -> int:
        return sum(isinstance(event, kinds) for event in events)

    assert len(spans(trace, "generation")) == counted(ev.Dispatched)
    assert len(spans(trace, "step")) == counted(ev.Ordered)
    assert len(spans(trace, "publish")) == counted(ev.Published)
    assert len(spans(trace, "life")) == counted(ev.Started)
    assert len(of_phase(trace, "b")) == counted(ev.Joined)
    names = [event["name"] for event in of_phase(trace, "i")]
    assert names.count("evicted") == counted(ev.Evicted)
    assert names.count("stalled") == counted(ev.Stalled)
    assert names.count("events are missing here") == counted(ev.Missed)


def test_the_empty_history_is_a_trace() -> None:
    """A run that has told nothing yet breaks nothing."""
    assert problems(chrome_trace([])) == []


def test_a_step_is_told_from_dispatch_to_publication() -> None:
    """Generation, wait, step, pop and publication follow one another, with their times."""
    events = told(
        STARTED,
        dispatched(0),
        dispatched(1),
        committed(1),
        committed(0),
        claimed(1, 0, 1),
        ev.Ordered(step=1, attempt=1),
        trained(1, 0, 1),
        ev.Popped(step=1, keys=["run.0.0_g0", "run.1.0_g0"]),
        ev.Published(version=1, seconds=1.0),
    )
    trace = chrome_trace(events)
    assert problems(trace) == []
    assert spans(trace, "generation") == [("run.0.0", 1, 3, "committed"), ("run.1.0", 2, 1, "committed")]
    assert spans(trace, "queue") == [("run.1.0", 3, 2, "step 1"), ("run.0.0", 4, 1, "step 1")]
    assert spans(trace, "step") == [("step 1", 6, 1, "trained")]
    assert spans(trace, "pop") == [("pop of step 1", 7, 1, "popped")]
    assert spans(trace, "publish") == [("publish 1", 8, 1, "")]
    assert trace["otherData"]["origin"] == 1000.0


def test_arrows_lead_from_each_group_into_its_step() -> None:
    """A flow leaves the generation, passes the wait and ends in the step, once for each group."""
    events = told(
        STARTED,
        dispatched(0),
        dispatched(1),
        committed(0),
        committed(1),
        claimed(1, 0, 1),
        ev.Ordered(step=1, attempt=1),
    )
    trace = chrome_trace([*events, *told(trained(1, 0, 1))])
    flows: dict[int, list[str]] = {}
    names = lane_names(trace)
    for event in of_phase(trace, "s", "t", "f"):
        flows.setdefault(event["id"], []).append(names[event["pid"], event["tid"]])
    assert list(flows.values()) == [["slot 1", "place 1", "steps"], ["slot 2", "place 2", "steps"]]


def test_no_arrow_leads_from_a_claim_into_another_step() -> None:
    """Where the claim of a step was not told nothing is known of its groups."""
    events = told(STARTED, dispatched(0), committed(0), claimed(1, 0), ev.Ordered(step=2, attempt=1))
    trace = chrome_trace(events)
    assert of_phase(trace, "s", "t", "f") == []
    assert [event["args"].get("groups") for event in of_phase(trace, "X") if event["cat"] == "step"] == [None]


def test_a_step_that_fails_is_a_span_of_each_attempt() -> None:
    """The attempt that failed says why, where that was told."""
    orders = [ev.Ordered(step=1, attempt=1), ev.Ordered(step=1, attempt=2, why="no GPU"), ev.Ordered(step=1, attempt=3)]
    trace = chrome_trace(told(STARTED, dispatched(0), committed(0), claimed(1, 0), *orders, trained(1, 0)))
    outcomes = [(name, outcome) for name, _, _, outcome in spans(trace, "step")]
    assert outcomes == [
        ("step 1", "failed: no GPU"),
        ("step 1, attempt 2", "failed"),
        ("step 1, attempt 3", "trained"),
    ]
    assert len(of_phase(trace, "f")) == 3


def test_slots_are_used_again() -> None:
    """As many lanes as ran at one time, the lowest free one each: a lane is an in-flight slot."""
    events = told(STARTED, dispatched(0), dispatched(1), committed(0), dispatched(2), committed(2), committed(1))
    trace = chrome_trace(events)
    names = lane_names(trace)
    lanes = {e["name"]: names[e["pid"], e["tid"]] for e in of_phase(trace, "X") if e["cat"] == "generation"}
    assert lanes == {"run.0.0": "slot 1", "run.1.0": "slot 2", "run.2.0": "slot 1"}


def test_a_killed_life_ends_what_it_was_doing_and_leaves_what_the_plane_holds() -> None:
    """In flight and in training end with the life; a group that waits in the plane waits on."""
    first = told(STARTED, dispatched(0), committed(0), dispatched(1), claimed(1, 0), ev.Ordered(step=1, attempt=1))
    second = told(STARTED, STARTED, *[ev.Paused(why="x")] * 8, committed(0), claimed(1, 0), life=2)[1:]
    trace = chrome_trace([*first, *second])
    assert problems(trace) == []
    assert ("run.1.0", 3, 2, "life ended") in spans(trace, "generation")
    assert spans(trace, "step") == [("step 1", 5, 0, "life ended")]
    assert [name for name, *_ in spans(trace, "life")] == ["life 1", "life 2"]
    waits = [(begin, lasted) for _, begin, lasted, _ in spans(trace, "queue")]
    assert waits == [(2, 2), (10, 1)]


def test_a_wait_goes_on_across_lives() -> None:
    """The plane holds the group while no controller lives; the listing of the next life begins no new wait."""
    first = told(STARTED, dispatched(0), committed(0))
    second = told(*[STARTED] * 5, committed(0), claimed(1, 0), life=2)[4:]
    assert spans(chrome_trace([*first, *second]), "queue") == [("run.0.0", 2, 4, "step 1")]


def test_what_goes_again_or_is_dropped_says_why() -> None:
    """A failed generation, a group too old, a prompt given up: the span's outcome."""
    events = told(
        STARTED,
        dispatched(0),
        dispatched(1),
        ev.Again(prompt=0, attempt=1, why="ConnectionError"),
        ev.Dropped(prompt=1, reason="rejected"),
        dispatched(0, 1),
        committed(0, 1),
        ev.Evicted(group_id="unreadable: x", keys=["run.0.1_g0"], reason="unreadable"),
        dispatched(2),
    )
    trace = chrome_trace(events)
    outcomes = {name: outcome for name, _, _, outcome in spans(trace, "generation")}
    assert outcomes == {
        "run.0.0": "again: ConnectionError",
        "run.1.0": "dropped: rejected",
        "run.0.1": "committed",
        "run.2.0": "not over at the last event",
    }
    assert spans(trace, "queue") == [("run.0.1", 6, 1, "evicted: unreadable")]


def test_pauses_and_replicas_are_spans_and_counters_follow() -> None:
    """The pause lasts until the run goes on; a replica from joining to its end; counters change when they change."""
    recovered = ev.Recovered(seconds=2.0, plane_s=1.0, incarnation=2, empty=True, kept=0, again=1)
    events = told(
        STARTED,
        recovered,
        ev.Joined(replica="w", role="rollout"),
        dispatched(0),
        ev.Paused(why="gone"),
        ev.Paused(why="still gone"),
        recovered,
        ev.Reaped(replica="w", role="rollout", silent_s=11.0),
        committed(0),
    )
    trace = chrome_trace(events)
    assert spans(trace, "pause") == [("starting", 0, 1, "recovered"), ("paused", 4, 2, "recovered")]
    begin, end = of_phase(trace, "b", "e")
    assert (begin["ts"], end["ts"]) == (2 * 10**6, 7 * 10**6)
    flying = [(c["ts"] // 10**6, c["args"]["value"]) for c in of_phase(trace, "C") if c["name"] == "groups in flight"]
    assert flying == [(0, 0), (3, 1), (8, 0)]
    assert [e["name"] for e in of_phase(trace, "i")].count("the plane came back empty") == 2


def test_a_clock_that_was_set_back_stops_instead() -> None:
    """Time in the trace never goes back."""
    events = told(STARTED, dispatched(0), committed(0))
    early = [*events[:2], *told(committed(0))]
    assert spans(chrome_trace(early), "generation") == [("run.0.0", 1, 0, "committed")]


def test_the_validator_finds_what_it_is_for() -> None:
    """Each rule fires on a trace that breaks it."""
    events = history(random.Random(5), 400)

    def broken(change: str, where: str, **values: object) -> list[str]:
        trace = chrome_trace(events)
        victims = [event for event in trace["traceEvents"] if where in (event["ph"], event["name"])]
        assert victims, where
        if change == "drop":
            trace["traceEvents"].remove(victims[-1])
        else:
            victims[len(victims) // 2].update(values)
        return problems(trace)

    assert problems(chrome_trace(events)) == []
    assert broken("drop", "e")
    assert broken("drop", "f")
    assert broken("drop", "thread_name")
    assert broken("drop", "process_name")
    assert broken("set", "X", dur=0)
    assert broken("set", "X", dur=10**12)
    assert broken("set", "X", ts=0.5)
    assert broken("set", "X", tid=99_999)
    assert broken("set", "s", ts=0)
    assert broken("set", "C", args={"value": "3"})
    assert broken("set", "i", ph="Q")
    with pytest.raises(ValueError, match="JSON"):
        broken("set", "C", args={"value": float("nan")})


def test_a_long_run_is_written_as_json() -> None:
    """A trace is JSON through and through."""
    text = json.dumps(chrome_trace(history(random.Random(7), 3000)), allow_nan=False)
    assert problems(json.loads(text)) == []
