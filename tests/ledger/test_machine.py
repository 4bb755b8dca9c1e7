"""The machine's frame: registration, repeats, what is not for it, and the table of leasing."""

from __future__ import annotations

import pytest

from penstock.errors import BadArgument
from penstock.ledger import desk
from penstock.ledger.leasing import TRANSITIONS, Hold, Step
from penstock.ledger.machine import TICK_S, Ledger
from penstock.requests import Depth, Ping, RegisterPartition
from tests.ledger.office import Office


@pytest.fixture
def office() -> Office:
    made = Office()
    made.open(1)
    made.register()
    return made


def test_registering_again_merges_fields_and_replaces_sizes(office: Office) -> None:
    """Callers do it every step; rows stay."""
    office.put_done(1, ["a"])
    office.done(1, RegisterPartition("p", ["y"], 99, ["train"], group_size=2))
    partition = office.ledger.desk.state.partitions["p"]
    assert (partition.fields, partition.request.num_samples) == (["x", "y"], 99)
    assert office.claim(1).keys == ["a"]


def test_registering_again_with_other_tasks_or_enums_is_refused(office: Office) -> None:
    """Naming both."""
    reply = office.fails(1, RegisterPartition("p", [], 1, ["train", "eval"]), "BadArgument")
    assert "['train']" in reply.message
    assert "['train', 'eval']" in reply.message
    office.fails(1, RegisterPartition("p", [], 1, ["train"], enums={"x": ["a"]}), "BadArgument")


@pytest.mark.parametrize(
    "body",
    [
        RegisterPartition("", [], 1, ["t"]),
        RegisterPartition("q", [], 1, []),
        RegisterPartition("q", [], 1, ["t", "t"]),
        RegisterPartition("q", [], 1, ["t"], group_size=0),
    ],
)
def test_bad_registrations_are_refused(office: Office, body: RegisterPartition) -> None:
    """Nothing is registered."""
    office.fails(1, body, "BadArgument")


def test_sequences_belong_to_mutations_alone(office: Office) -> None:
    """A question with a sequence, or a mutation without one, is a peer's bug."""
    office.fails(1, Depth("p"), "BadArgument", seq=5)
    office.fails(1, RegisterPartition("q", [], 1, ["t"]), "BadArgument", seq=0)


def test_what_is_not_for_the_ledger_is_refused(office: Office) -> None:
    """The shell answers pings."""
    office.fails(1, Ping(), "DataPlaneBadRequest")


def test_an_incarnation_never_goes_back() -> None:
    """A life that is not beyond the journal's last is refused."""
    ledger = Ledger(Office().config)
    ledger.begin_life(5, 0.0, 0.0)
    with pytest.raises(BadArgument):
        ledger.begin_life(5, 0.0, 0.0)


def test_the_next_timer_is_never_further_than_a_tick(office: Office) -> None:
    """And as near as the nearest deadline."""
    assert office.ledger.next_timer() <= office.now + TICK_S
    office.waiting_claim(1, timeout_s=0.25)
    assert office.ledger.next_timer() == office.now + 0.25
    office.later(0.5)
    assert office.ledger.next_timer() == office.now + TICK_S


def test_deadlines_of_calls_that_were_served_do_not_pile_up(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that waits for hours may be served in a moment."""
    monkeypatch.setattr(desk, "MANY_DEADLINES", 16)
    office.ledger.desk._many_deadlines = 16
    for i in range(50):
        call = office.waiting_claim(1, timeout_s=1e6 + i)
        office.put_done(1, [f"k{i}"])
        assert office.claimed(call)
    assert len(office.ledger.desk.deadlines) <= 17
    assert office.ledger.desk.claims == {}


def test_the_table_of_leasing_has_no_way_out_of_consumed() -> None:
    """What is consumed stays so; a missing entry is the error."""
    assert not [pair for pair in TRANSITIONS if pair[0] is Hold.CONSUMED]
    assert (Hold.LEASED, Step.CLAIM) not in TRANSITIONS


def test_statistics_count_what_was_done(office: Office) -> None:
    """Refusals by their type."""
    office.put_done(1, ["a"])
    office.claim(1)
    office.fails(1, RegisterPartition("", [], 1, ["t"]), "BadArgument")
    counts = office.ledger.statistics()
    assert (counts["rows.put"], counts["rows.leased"], counts["refused.BadArgument"]) == (1, 1, 1)
