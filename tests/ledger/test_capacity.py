"""Capacity: producers wait, nothing is dropped, and a full plane does not wait for itself."""

from __future__ import annotations

import pytest

from penstock.ledger.events import NotAllotted, SessionGone, Withdrawn
from penstock.requests import Clear, Commit, Grant
from tests.ledger.office import Office, group_tags


@pytest.fixture
def office() -> Office:
    made = Office(max_bytes=1000, max_rows=100)
    made.open(1)
    made.open(2)
    made.register()
    return made


def test_a_put_over_the_limit_waits_and_goes_on_when_there_is_room(office: Office) -> None:
    """Backpressure: the grant comes when rows are popped."""
    office.put_done(1, ["a"], row_bytes=900)
    call = office.grant(1, ["b"], row_bytes=200)
    assert office.reply(call) is None
    office.pop(1, ["a"])
    assert office.granted(call) is not None


def test_a_put_that_waits_in_vain_is_refused_as_full(office: Office) -> None:
    """At its deadline, with what is taken."""
    office.put_done(1, ["a"], row_bytes=900)
    call = office.grant(1, ["b"], row_bytes=200, timeout_s=2.0)
    office.later(2.5)
    reply = office.reply(call)
    assert reply.code == "DataPlaneFull"  # type: ignore[union-attr]
    assert "900 of 1000 bytes" in reply.message  # type: ignore[union-attr]


def test_what_can_never_fit_fails_at_once(office: Office) -> None:
    """By bytes and by rows."""
    assert office.put(1, ["a"], row_bytes=1001).code == "DataPlaneFull"  # type: ignore[union-attr]
    many = [str(i) for i in range(101)]
    assert office.put(1, many, row_bytes=1).code == "DataPlaneFull"  # type: ignore[union-attr]


def test_new_groups_are_admitted_in_order(office: Office) -> None:
    """A small put does not overtake a large one that waits."""
    office.put_done(1, ["a"], row_bytes=900)
    large = office.grant(1, ["b"], row_bytes=200)
    small = office.grant(2, ["c"], row_bytes=50)
    assert office.reply(large) is None
    assert office.reply(small) is None
    office.evict(1, ["a"])
    assert office.granted(large) is not None
    assert office.granted(small) is not None


@pytest.mark.parametrize("end", ["withdrawn", "expired", "session over"])
def test_a_put_that_no_longer_waits_holds_up_nobody(office: Office, end: str) -> None:
    """What it held up, and fits, has its turn in the same moment: nothing else need happen first."""
    office.put_done(1, ["a"], row_bytes=900)
    large = office.grant(2, ["b"], row_bytes=200, timeout_s=2.0)
    small = office.grant(1, ["c"], row_bytes=50)
    assert office.reply(small) is None
    if end == "withdrawn":
        office.event(Withdrawn(frozenset({large})))
    elif end == "expired":
        office.later(2.5)
    else:
        office.event(SessionGone(2, "killed"))
    assert office.granted(small) is not None


def test_a_put_that_is_withdrawn_is_answered_and_forgotten(office: Office) -> None:
    """Its call is over; room that comes later is not for it. Calls that do not wait for room are not meant."""
    office.put_done(1, ["a"], row_bytes=900)
    put, claim = office.grant(1, ["b"], row_bytes=200), office.waiting_claim(1, batch=4, min_rows=3)
    office.event(Withdrawn(frozenset({put, claim, 999})))
    assert office.reply(put).code == "DataPlaneUnavailable"  # type: ignore[union-attr]
    assert office.reply(claim) is None
    office.pop(1, ["a"])
    assert office.audit().put == 1
    assert not office.ledger.desk.state.grants


def test_finishing_what_was_admitted_never_queues_behind_new_groups(office: Office) -> None:
    """The last column of a full plane's rows draws on the reserve."""
    office.put_done(1, ["a"], row_bytes=950)
    waiting = office.grant(2, ["b"], row_bytes=200)
    assert office.reply(waiting) is None
    office.put_done(1, ["a"], fields=["logprobs"], row_bytes=150)
    assert office.reply(waiting) is None


def test_the_reserve_too_has_an_end(office: Office) -> None:
    """Beyond it even existing rows wait."""
    office.put_done(1, ["a"], row_bytes=950)
    assert office.reply(office.grant(1, ["a"], fields=["y"], row_bytes=400)) is None


def test_a_group_is_charged_whole_at_admission(office: Office) -> None:
    """Its declared siblings have their room; a second group that would not fit beside them waits."""
    office.put_done(1, ["g_0"], tags=group_tags("g", 8), row_bytes=100)
    other = office.grant(2, ["h_0"], tags=group_tags("h", 8), row_bytes=100)
    assert office.reply(other) is None
    for i in range(1, 8):
        office.put_done(1, [f"g_{i}"], tags=group_tags("g", 8), row_bytes=100)
    assert office.reply(other) is None
    office.pop(1, [f"g_{i}" for i in range(8)])
    assert office.granted(other) is not None


def test_the_mean_of_trained_rows_charges_the_columns_that_are_still_to_come(office: Office) -> None:
    """A row that will grow by a column is charged with it from the start, once such rows have been trained."""
    office.put_done(1, ["a"], row_bytes=100)
    office.put_done(1, ["a"], fields=["logprobs"], row_bytes=500)
    office.pop(1, ["a"])
    assert office.granted(office.grant(1, ["g_0"], tags=group_tags("g", 1), row_bytes=100)) is not None
    assert office.reply(office.grant(2, ["h_0"], tags=group_tags("h", 1), row_bytes=100)) is None


def test_a_dropped_grant_gives_its_room_back(office: Office) -> None:
    """The writer died or gave up: the next in line goes on, and a commit of it comes too late."""
    first = office.granted(office.grant(1, ["a"], row_bytes=900))
    waiting = office.grant(2, ["b"], row_bytes=900)
    assert first is not None
    office.event(NotAllotted(first))
    assert office.dropped == [first]
    assert office.granted(waiting) is not None
    assert type(office.ask(1, Commit(first, 7))).__name__ == "GrantAgain"


def test_a_waiting_put_of_a_dead_session_is_forgotten(office: Office) -> None:
    """It holds up nobody."""
    office.put_done(1, ["a"], row_bytes=900)
    office.grant(2, ["b"], row_bytes=900)
    office.event(SessionGone(2, "killed"))
    third = office.grant(1, ["c"], row_bytes=100)
    assert office.granted(third) is not None


def test_a_partitions_own_limit_holds_up_that_partition_only() -> None:
    """Others go on."""
    office = Office(max_bytes=10_000, partition_max_bytes=1000)
    office.open(1)
    office.register()
    office.register(name="q")
    office.put_done(1, ["a"], row_bytes=900)
    assert office.reply(office.grant(1, ["b"], row_bytes=900)) is None
    assert office.granted(office.grant(1, ["c"], row_bytes=900, partition="q")) is not None


def test_a_grant_for_a_group_that_another_grant_began_is_not_charged_twice(office: Office) -> None:
    """Two workers put siblings of one group at the same moment."""
    one = office.grant(1, ["g_0"], tags=group_tags("g", 8), row_bytes=100)
    two = office.grant(2, ["g_1"], tags=group_tags("g", 8), row_bytes=100)
    assert office.granted(one) is not None
    assert office.granted(two) is not None
    assert office.ledger.desk.state.partitions["p"].granted_bytes == 900


def test_unregistered_partitions_take_no_puts(office: Office) -> None:
    """The refusal lists those that are registered."""
    body = Grant("nowhere", ["a"], [], [], 100, [1])
    assert "'p'" in office.fails(1, body, "UnknownName").message


def test_a_put_that_waits_for_a_partition_that_is_cleared_is_told(office: Office) -> None:
    """At once: it will not come back, and silence would be a hang."""
    office.put_done(1, ["a"], row_bytes=900)
    call = office.grant(2, ["b"], row_bytes=900)
    office.done(1, Clear("p", None))
    assert office.reply(call).code == "UnknownName"  # type: ignore[union-attr]


def test_what_waits_for_the_plane_is_not_overtaken_from_another_partition() -> None:
    """Partitions have limits of their own, but it is the plane that is full: small puts must not starve a large one."""
    office = Office(max_bytes=1000, partition_max_bytes=900)
    office.open(1)
    office.register()
    office.register(name="q")
    office.put_done(1, ["a"], row_bytes=600)
    large = office.grant(1, ["b"], row_bytes=800, partition="q")
    small = office.grant(1, ["c"], row_bytes=100)
    assert office.reply(large) is None
    assert office.reply(small) is None
    office.evict(1, ["a"])
    assert office.granted(large) is not None
    assert office.granted(small) is not None


def test_a_full_partition_holds_up_its_own_puts_only_and_says_that_it_is_full() -> None:
    """The message names the limit that the put waited for."""
    office = Office(max_bytes=10_000, partition_max_bytes=900)
    office.open(1)
    office.register()
    office.register(name="q")
    office.put_done(1, ["a"], row_bytes=600)
    waiting = office.grant(1, ["b"], row_bytes=800, timeout_s=1.0)
    office.put_done(1, ["c"], row_bytes=800, partition="q")
    office.later(1.5)
    assert "600 of 900 bytes" in office.reply(waiting).message  # type: ignore[union-attr]
    assert "of the partition" in office.reply(waiting).message  # type: ignore[union-attr]


def test_a_column_that_exceeds_even_the_reserve_fails_at_once(office: Office) -> None:
    """No pop can make room for it."""
    office.put_done(1, ["a"], row_bytes=100)
    assert office.put(1, ["a"], fields=["y"], row_bytes=1201).code == "DataPlaneFull"  # type: ignore[union-attr]


def test_a_group_is_admitted_once_for_the_grants_in_flight(office: Office) -> None:
    """Two puts of one group at the same time; dropping the first lets a later one begin it anew."""
    first = office.granted(office.grant(1, ["g_0"], tags=group_tags("g", 8), row_bytes=100))
    assert first is not None
    second = office.granted(office.grant(2, ["g_1"], tags=group_tags("g", 8), row_bytes=100))
    assert second is not None
    assert office.reply(office.grant(2, ["h_0"], row_bytes=150)) is None
    office.event(NotAllotted(first))
    office.event(NotAllotted(second))
    assert office.granted(office.grant(2, ["g_1"], tags=group_tags("g", 8), row_bytes=100)) is not None


def test_partitions_that_were_cleared_cost_the_living_nothing() -> None:
    """A partition per step leaves its counters, once its tombstones have expired."""
    office = Office(tombstone_s=2.0)
    office.open(1)
    for step in range(5):
        office.register(name=f"step{step}")
        office.put_done(1, ["a"], partition=f"step{step}")
        office.done(1, Clear(f"step{step}", None))
    office.register()
    office.later(3.0)
    assert list(office.ledger.desk.state.active) == ["p"]
    assert office.audit("step0").cleared == 1
    office.register(name="step0")
    assert list(office.ledger.desk.state.active) == ["p", "step0"]


def test_rows_that_were_trained_leave_no_promise_behind(office: Office) -> None:
    """They cannot come back: the rest of their group holds only its own room, after a restart too."""
    keys = [f"g_{i}" for i in range(8)]
    office.put_done(1, keys, tags=group_tags("g", 8), row_bytes=100)
    office.pop(1, keys[:7])
    partition = office.ledger.desk.state.partitions["p"]
    assert (partition.promised_rows, partition.promised_bytes) == (0, 0)
    assert office.granted(office.grant(2, ["other"], row_bytes=850)) is not None
    office.crash(list(office.ledger.checkpoint()))
    assert office.ledger.desk.state.partitions["p"].promised_rows == 0


def test_a_late_put_to_removed_rows_does_not_wait_for_room(office: Office) -> None:
    """Its producer is told that they are gone; queued as new rows it would wait behind those that need it."""
    office.put_done(1, ["a"], row_bytes=100)
    office.pop(1, ["a"])
    office.put_done(1, ["full"], row_bytes=950)
    late = office.put(2, ["a"], fields=["logprobs"], row_bytes=100)
    assert late.code == "RowRemoved"  # type: ignore[union-attr]
    office.clear(1, ["full"])
    office.put_done(1, ["fuller"], row_bytes=950)
    assert office.reply(office.grant(2, ["full"], row_bytes=100)) is None  # a cleared row may be put anew: it is new
