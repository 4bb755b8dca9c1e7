"""What time does: unfinished groups of dead producers are given up, tombstones are forgotten after their horizon."""

from __future__ import annotations

from penstock.ledger.events import Heard, SessionGone
from penstock.requests import TagColumn
from tests.ledger.office import Office, group_tags


def made(**config: float) -> Office:
    office = Office(abandon_grace_s=3.0, **config)
    office.open(1)
    office.open(2)
    office.register()
    return office


def keep_alive(office: Office, seconds: float, session: int = 2) -> None:
    for _ in range(int(seconds)):
        office.later(1.0)
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
