"""What time does: unfinished groups of dead producers are given up, tombstones are forgotten after their horizon."""

from __future__ import annotations

import pytest

from penstock.ledger.events import BlocksLost, Heard, SessionGone
from penstock.records import GroupPolicy
from penstock.requests import TagColumn
from tests.ledger.office import Office, group_tags


def made(**config: float) -> Office:
    office = Office(abandon_grace_s=3.0, **config)
    office.open(1)
    office.open(2)
    office.register()
    return office


def keep_alive(office: Office, seconds: int, *sessions: int) -> None:
    """Let time pass, in which these sessions (2, if none is named) report."""
    for _ in range(seconds):
        office.later(1.0)
        for session in sessions or (2,):
            office.event(Heard(session))


def test_an_unfinished_group_whose_producers_have_all_ended_is_evicted_as_abandoned() -> None:
    """After the grace; a finished one, and an untagged row, stay."""
    office = made()
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.put_done(1, ["u_0"], tags=[TagColumn("committed", [False])])
    office.put_done(1, ["h_0", "h_1"], tags=group_tags("h", 2))
    office.put_done(1, ["plain"])
    office.event(SessionGone(1, "killed"))
    keep_alive(office, 2)
    assert office.audit().evicted == {}
    keep_alive(office, 2)
    assert office.audit().evicted == {"abandoned": 2}
    assert office.audit().in_flight == 3


def test_a_group_with_a_living_producer_is_not_abandoned() -> None:
    """Any of those who put to it."""
    office = made()
    office.put_done(1, ["g_0"], tags=group_tags("g", 3))
    office.put_done(2, ["g_1"], tags=group_tags("g", 3))
    office.event(SessionGone(1, "killed"))
    keep_alive(office, 5)
    assert office.audit().evicted == {}


def test_a_group_that_somebody_takes_over_within_the_grace_lives() -> None:
    """A replacement worker finishes it."""
    office = made()
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.event(SessionGone(1, "killed"))
    office.put_done(2, ["g_1"], tags=group_tags("g", 2))
    keep_alive(office, 5)
    assert office.claim(2, whole_groups=True).keys == ["g_0", "g_1"]


def test_abandonment_survives_a_restart() -> None:
    """The grace starts anew; the group is given up all the same."""
    office = made()
    office.put_done(1, ["g_0"], tags=group_tags("g", 2))
    office.event(SessionGone(1, "killed"))
    office.crash()
    office.resume(2)
    keep_alive(office, 4)
    assert office.audit().evicted == {"abandoned": 1}


def test_tombstones_are_forgotten_after_their_horizon() -> None:
    """Within it a late put is refused; after it the name is free."""
    office = made(tombstone_s=5.0)
    office.put_done(2, ["a"], content=1)
    office.pop(2, ["a"])
    assert office.put(2, ["a"], content=2).code == "RowRemoved"  # type: ignore[union-attr]
    keep_alive(office, 6)
    office.put_done(2, ["a"], content=2)


def test_there_are_never_more_tombstones_than_the_limit() -> None:
    """The oldest go first."""
    office = made(max_tombstones=10)
    for start in range(0, 50, 5):
        keys = [f"k{start + i}" for i in range(5)]
        office.put_done(2, keys)
        office.pop(2, keys)
    stones = office.ledger.desk.state.partitions["p"].tombstones
    assert len(stones) == 10
    assert "k49" in stones
    assert "k0" not in stones


def test_a_timer_of_a_lease_that_was_renewed_does_nothing() -> None:
    """Only the newest bound counts."""
    office = made()
    office.put_done(2, ["a"])
    lease = office.claim(2, lease_s=1.0)
    office.later(0.5)
    office.renew(2, ["a"], lease.token, lease_s=3.0)
    office.later(1.0)
    assert office.audit().leased == 1


def test_what_is_left_of_a_group_that_lost_a_row_is_given_up_too() -> None:
    """Its producers were gone when it was whole; it will not be whole again."""
    office = made()
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    office.event(SessionGone(1, "done"))
    office.evict(2, ["g_0"])
    keep_alive(office, 4)
    assert office.audit().evicted == {"stale": 1, "abandoned": 1}


def short_group(office: Office, cause: str, *, whole: bool = True, first: bool = True) -> None:
    """Put a group of three, which loses a row; the task claims whole groups, or rows, from ``first`` on or later."""
    if first:
        office.claim(2, whole_groups=whole)
    office.put_done(1, ["g_0"], tags=group_tags("g", 3))
    block = office.filled[-1]
    office.put_done(1, ["g_1", "g_2"], tags=group_tags("g", 3))
    if cause == "lost":
        office.event(BlocksLost([block], "damaged"))
    elif cause == "evicted":
        office.evict(2, ["g_0"])
    else:
        office.pop(2, ["g_0"])
    if not first:
        office.claim(2, whole_groups=whole)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("cause", ["lost", "evicted", "popped"])
def test_what_is_left_of_a_whole_group_does_not_hold_a_full_planes_room(cause: str, first: bool) -> None:
    """Its producers live, and wait for the room: nobody claims it, so that it is given up after the grace."""
    office = made(max_rows=4)
    short_group(office, cause, first=first)
    waiting = office.grant(1, ["h_0", "h_1", "h_2"], tags=group_tags("h", 3), timeout_s=60.0)
    assert office.granted(waiting) is None
    keep_alive(office, 2, 1, 2)
    assert "incomplete" not in office.audit().evicted
    keep_alive(office, 2, 1, 2)
    assert office.audit().evicted["incomplete"] == 2
    assert office.granted(waiting) is not None
    late = office.put(1, ["g_3"], tags=group_tags("g", 3))  # at once, though there is no room
    assert late.code == "RowRemoved"  # type: ignore[union-attr]
    office.crash()


def test_what_is_left_of_a_group_is_given_up_after_a_restart_too() -> None:
    """The grace starts anew; what was claimed how is in the journal."""
    office = made()
    short_group(office, "lost")
    keep_alive(office, 2, 1, 2)
    office.crash(list(office.ledger.checkpoint()))
    office.resume(1)
    office.resume(2)
    keep_alive(office, 2, 1, 2)
    assert office.audit().evicted == {}
    keep_alive(office, 2, 1, 2)
    assert office.audit().evicted == {"incomplete": 2}


@pytest.mark.parametrize("producer", ["lives", "has ended"])
def test_a_group_that_is_taken_row_by_row_is_not_given_up(producer: str) -> None:
    """It was put whole, and what is left of it will be claimed: a slow trainer's next batch must still be there."""
    office = made()
    short_group(office, "popped", whole=False)
    if producer == "has ended":
        office.event(SessionGone(1, "done"))
    keep_alive(office, 8, *(() if producer == "has ended" else (1,)), 2)
    assert office.audit().evicted == {}
    assert office.claim(2).keys == ["g_1", "g_2"]


def test_a_group_that_nobody_has_claimed_from_is_left_to_its_reader() -> None:
    """He who reads and pops by key alone may take as long as he likes, as long as its producers live."""
    office = made()
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    office.pop(2, ["g_0"])
    keep_alive(office, 8, 1, 2)
    assert office.audit().evicted == {}


@pytest.mark.parametrize("trainer", ["has not claimed", "takes both"])
def test_a_group_whose_final_task_may_take_rows_is_left_alone(trainer: str) -> None:
    """The stage that takes whole groups has passed it; who comes next may well take what is left."""
    office = made()
    office.clear(1, None)
    office.register(tasks=("logp", "train"))
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    if trainer == "takes both":
        for whole in (True, False):
            office.release(2, ["g_0", "g_1"], office.claim(2, whole_groups=whole).token)
    passed = office.claim(2, task="logp", whole_groups=True)
    office.ack(2, passed.keys, passed.token, task="logp")
    office.pop(2, ["g_0"])
    keep_alive(office, 8, 1, 2)
    assert office.audit().evicted == {}


def test_a_group_that_has_lost_nothing_is_left_to_its_new_producer() -> None:
    """Its first one died; the grace was for whoever takes over, and he may take his time."""
    office = made()
    office.claim(2, whole_groups=True)
    office.put_done(1, ["g_0"], tags=group_tags("g", 3))
    office.event(SessionGone(1, "killed"))
    office.put_done(2, ["g_1"], tags=group_tags("g", 3))
    keep_alive(office, 8)
    assert office.audit().evicted == {}


def test_a_stage_that_takes_whole_groups_decides_as_long_as_it_needs_the_rows() -> None:
    """The trainer takes rows: what the stage before has passed will be claimed, the other group never gets so far."""
    office = Office(abandon_grace_s=3.0)
    office.open(1)
    office.open(2)
    office.register(tasks=("logp", "train"))
    office.claim(2)
    office.put_done(1, ["g_0", "g_1"], tags=group_tags("g", 2))
    passed = office.claim(2, task="logp", whole_groups=True)
    office.ack(2, passed.keys, passed.token, task="logp")
    office.put_done(1, ["h_0", "h_1"], tags=group_tags("h", 2))
    office.pop(2, ["g_0", "h_0"])
    keep_alive(office, 4, 1, 2)
    assert office.audit().evicted == {"incomplete": 1}
    assert office.claim(2).keys == ["g_1"]


@pytest.mark.parametrize("policy", [None, GroupPolicy(deadline_s=2.0, on_deadline="drop")])
@pytest.mark.parametrize("alive", [(1, 2), (2,)])
def test_no_timer_takes_a_row_from_its_holder(policy: GroupPolicy | None, alive: tuple[int, ...]) -> None:
    """Only evict and clear end other people's leases: a group of which a row is held is given up once it is not."""
    office = made()
    office.register(policy=policy)
    short_group(office, "evicted")
    held = office.claim(2, batch=1, keys=["g_1"])
    if 1 not in alive:
        office.event(SessionGone(1, "killed"))
    keep_alive(office, 8, *alive)
    assert office.audit().evicted == {"stale": 1}
    assert office.audit().leased == 1
    office.release(2, held.keys, held.token)
    keep_alive(office, 2, *alive)
    assert sum(office.audit().evicted.values()) == 3


def test_what_is_left_of_a_group_is_handed_out_under_the_policy_partial() -> None:
    """The deadline of a policy comes first, however long it is."""
    office = made()
    office.register(policy=GroupPolicy(deadline_s=6.0, on_deadline="partial"))
    short_group(office, "lost")
    keep_alive(office, 7, 1, 2)
    assert office.claim(2, whole_groups=True).keys == ["g_1", "g_2"]
