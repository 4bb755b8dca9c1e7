"""The handshake, explored: nothing is found in the real one, and everything that was planted is."""

from __future__ import annotations

import json
from typing import TypeAlias

import pytest
from typer.testing import CliRunner

from penstock.endpoint.events import Event, Kind, Open, Timer
from penstock.endpoint.machine import Pair
from penstock.endpoint.table import TRANSITIONS, Standing, Step
from penstock.ops.cli import app
from penstock.ops.report import ExitCode
from penstock.testing.explore.handshake import SMALL, HandshakeReport, Shape, explore, run
from penstock.testing.explore.handshake_planted import PLANTED, without
from penstock.testing.explore.handshake_world import Budget, World, matched

PLENTY_S = 600.0
ENOUGH_S = 10.0  # of processor time; what is found is found in one
Where: TypeAlias = "tuple[Standing, Kind | type[Event]]"
# The entries without which two peers would still find each other in the small shapes, only later or by a timer more.
ONLY_FASTER = {
    (Standing.BOUND, Kind.REQ),
    (Standing.READY, Kind.REQ),
    (Standing.ELSEWHERE, Kind.REQ),
    (Standing.GONE, Kind.REP),
    (Standing.READY, Kind.REP),
    (Standing.ELSEWHERE, Kind.REP),
    (Standing.UNBOUND, Kind.PING),
    (Standing.BOUND, Kind.PING),
    (Standing.READY, Kind.PING),
    (Standing.ELSEWHERE, Kind.PING),
    (Standing.GONE, Kind.ACK),
    (Standing.BOUND, Kind.ACK),
    (Standing.READY, Kind.ACK),
    (Standing.ELSEWHERE, Kind.ACK),
    (Standing.BOUND, Timer),
}
MESSAGES_AND_TIMERS = [
    where for where, rule in TRANSITIONS.items() if rule.step is not Step.IGNORE and where[1] in {*Kind, Open, Timer}
]


@pytest.fixture(scope="module")
def hunted() -> HandshakeReport:
    return run(shapes=SMALL[:1], budget_s=PLENTY_S)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_nothing_is_found_in_the_real_handshake(shape: Shape) -> None:
    """Every state of each small shape keeps every promise, and from each of them fair delivery connects the peers."""
    found = explore(shape, Pair, PLENTY_S)
    assert found.finding is None
    assert found.complete
    assert found.states > 100
    assert found.transitions > 2 * found.states
    assert 0 < found.connected < found.states


def test_every_planted_bug_is_found(hunted: HandshakeReport) -> None:
    """Each has a shortest path that shows it; the report says so as JSON."""
    report = hunted
    assert [name for name, finding in report.planted.items() if finding is None] == []
    assert report.planted_found == report.planted_total == len(PLANTED) >= 8
    assert (report.violations, report.ok, report.complete) == (0, True, True)


def test_a_delayed_request_kills_a_healthy_pair_if_a_different_peer_is_believed_to_have_restarted(
    hunted: HandshakeReport,
) -> None:
    """The naive rule, found by its shortest path: the REQ of a session that has gone arrives after its successor's."""
    finding = hunted.planted["a different peer means re-establish at once"]
    assert finding is not None
    assert finding.what.startswith("stability")
    assert finding.path == [
        "open A",
        "evict A A1",
        "timer A A2",
        "arrive B REQ A2",
        "arrive A REP B1 A2",
        "arrive B ACK A2 B1",
        "arrive B REQ A1",
    ]
    lie = hunted.planted["PING to an unbound endpoint draws RST"]
    assert lie is not None
    assert lie.what.startswith("RST soundness")
    assert lie.path[-1] == "arrive A PING B1 A2"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", MESSAGES_AND_TIMERS, ids=lambda w: f"{w[0].name}-{getattr(w[1], 'name', w[1])}")
def test_an_entry_of_the_table_that_does_nothing_is_found_or_only_slower(where: Where) -> None:
    """Exploring notices each entry that the promises need; of the others, which are listed, it finds nothing in time.

    Some of them keep messages from being answered for good: their worlds grow without end.
    """
    findings = (explore(shape, without(where), ENOUGH_S).finding for shape in SMALL)
    joining = where[1] is Open and where[0] is not Standing.GONE  # of one waiter nothing is seen of it
    assert any(findings) == (where not in ONLY_FASTER and not joining)


def test_a_spent_budget_is_not_called_complete() -> None:
    """An exploration that ran out of time says so, and a bug that was not looked for is not found."""
    report = run(shapes=SMALL[:1], budget_s=0.0)
    assert (report.complete, report.ok) == (False, False)


def test_both_sides_opening_at_once_are_connected_by_one_binding() -> None:
    """The world's own moves: two openings, two requests, two replies, and both are ready with each other."""
    world = World((True, True), Budget())
    state = world.initial()
    for label in ("open A", "open B", "arrive A REQ", "arrive B REQ", "arrive A REP", "arrive B REP"):
        state = next(m.after for m in world.moves(state) if " ".join(m.label).startswith(label))
    assert matched(state) == (0, 1)
    assert (state.a[1], state.b[1]) == (None, None)


def test_states_that_differ_in_names_alone_are_one() -> None:
    """A pair that restarted and found itself again is the pair that it was, and nothing is left of the first life."""
    world = World((True, False), Budget(restarts=1))
    paths = (
        ("open A", "arrive B REQ", "arrive A REP", "arrive B ACK"),
        ("open A", "arrive B REQ", "arrive A REP", "arrive B ACK", "restart B", "timer A", "arrive B PING"),
    )
    ends = []
    for path in paths:
        state = world.initial()
        for label in path:
            state = next(m.after for m in world.moves(state) if " ".join(m.label).startswith(label))
        ends.append(state)
    assert ends[0].net == ()
    assert ends[0].a[0] == (0, "R", 1, False)
    assert ends[1].net == (("RST", 1, 0),)


def test_the_command_prints_one_json_object() -> None:
    """``penstock explore handshake --json`` with no time: states, violations and what was not found; exit code 1."""
    result = CliRunner().invoke(app, ["explore", "handshake", "--budget-s", "0", "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == ExitCode.FINDING
    assert {"states", "violations", "planted_found", "planted_total", "complete", "shapes"} <= told.keys()
