"""Hosts that fall silent: their rows wait for them, and go on elsewhere or are lost by name once they are gone."""

from __future__ import annotations

import msgspec
import pytest

from penstock.ledger import losses
from penstock.ledger.events import Tick
from penstock.requests import Claimed, Done, FieldSpec, Granted, TagColumn
from tests.ledger.machines import Agents, commit, granted, host_grant, located, put
from tests.ledger.office import WALL, Office

GRACE_S = 60.0


@pytest.fixture
def office() -> Office:
    """Return a ledger with a client's session 1, which is heard of, and partition "p"."""
    made = Office(dead_after_s=1e6, resume_grace_s=20.0)
    made.open(1)
    made.register()
    return made


@pytest.fixture
def agents(office: Office) -> Agents:
    """Return the agents of hosts 1 and 2, enlisted."""
    made = Agents(office)
    made.up(1)
    made.up(2)
    return made


def test_a_host_that_comes_back_within_its_grace_has_lost_nothing(office: Office, agents: Agents) -> None:
    """It is silent, then up again; no timer of its silence fires later."""
    put(office, 1, ["a"], host=1)
    agents.down(1)
    assert (agents.status(1).state, agents.status(1).blocks) == ("silent", 1)
    office.later(GRACE_S - 1)
    assert agents.status(1).silent_s == GRACE_S - 1
    agents.up(1)
    office.later(3 * GRACE_S)
    assert agents.status(1).state == "up"
    assert agents.status(1).silent_s == 0.0
    assert office.audit().in_flight == 1


def test_each_silence_has_its_grace_in_full(office: Office, agents: Agents) -> None:
    """A second silence is not cut short by the timer of the first."""
    put(office, 1, ["a"], host=1)
    agents.down(1)
    office.later(GRACE_S / 2)
    agents.up(1)
    agents.down(1)
    office.later(GRACE_S - 1)
    assert agents.status(1).state == "silent"
    office.later(1)
    assert agents.status(1).state == "gone"


def test_rows_of_a_host_that_is_gone_are_lost_by_name(office: Office, agents: Agents) -> None:
    """The audit, and the reader of such a row, are told which host and for how long."""
    put(office, 1, ["a", "b"], host=1)
    put(office, 1, ["c"], host=2)
    agents.down(1)
    office.later(GRACE_S)
    assert agents.status(1).state == "gone"
    audit = office.audit()
    assert audit.lost == {"host m1 gone for 60 s": 2}
    assert audit.in_flight == 1
    located(office, 1, ["a"])
    assert "host m1 gone for 60 s" in office.resolved[-1].issues[0].why
    office.crash()


def test_rows_with_a_second_place_go_on_from_there(office: Office, agents: Agents) -> None:
    """Whether it was the first or the second host that is gone; the record of it survives."""
    put(office, 1, ["a"], host=1, replicas=2)
    put(office, 1, ["b"], host=2, replicas=2)
    agents.down(1)
    office.later(GRACE_S)
    assert office.audit().lost == {}
    assert located(office, 1, ["a", "b"]) == ([2, 2], [], [2])
    office.crash()
    office.resume(1)
    assert located(office, 1, ["a", "b"])[:2] == ([2, 2], [])


def test_a_row_whose_hosts_are_both_gone_is_lost(office: Office, agents: Agents) -> None:
    """The second is named: it was the last to be waited for."""
    put(office, 1, ["a"], host=1, replicas=2)
    agents.down(1)
    office.later(10.0)
    agents.down(2)
    office.later(GRACE_S - 10)
    assert office.audit().in_flight == 1
    office.later(10.0)
    assert office.audit().lost == {"host m2 gone for 60 s": 1}


def test_a_host_that_comes_back_too_late_is_told_to_free_what_it_holds(office: Office, agents: Agents) -> None:
    """Nothing of it is named when it enlists, and what it asks about is nobody's; it may be put to again."""
    block = put(office, 1, ["a"], host=1)
    moved = put(office, 1, ["b"], host=1, replicas=2)
    agents.down(1)
    office.later(GRACE_S)
    enlisted = agents.up(1)
    assert enlisted.live == []
    assert agents.told(1, enlisted.after, done_with=[block, moved]).free == [block, moved]
    put(office, 1, ["c"], host=1)


def test_grants_on_a_host_that_is_gone_are_dropped(office: Office, agents: Agents) -> None:
    """Those whose second place it was to be stay."""
    own = granted(office, 1, ["a"], host=1)
    beside = granted(office, 1, ["b"], host=2, replicas=2)
    agents.down(1)
    office.later(GRACE_S)
    assert own.grant not in office.ledger.desk.state.grants
    assert commit(office, 1, beside) == Done()
    assert located(office, 1, ["b"]) == ([2], [], [2])


def test_a_restarted_plane_waits_for_every_host_anew(office: Office, agents: Agents) -> None:
    """It knows where they are reached, and readers may go on; one that does not come back is gone in the end."""
    put(office, 1, ["a"], host=1)
    put(office, 1, ["b"], host=2)
    agents.down(1)
    office.later(GRACE_S - 1)
    office.crash()
    office.resume(1)
    assert (agents.status(1).state, agents.status(1).place.name) == ("silent", "m1")
    assert located(office, 1, ["a", "b"]) == ([1, 2], [], [1, 2])
    office.later(GRACE_S - 1)
    agents.up(2)
    assert office.audit().in_flight == 2
    office.later(1)
    assert office.audit().lost == {"host m1 gone for 60 s": 1}
    assert office.audit().in_flight == 1


def test_hosts_have_at_least_the_grace_of_sessions_after_a_restart() -> None:
    """A shorter ``host_grace_s`` does not bury them while agents are still coming back."""
    office = Office(dead_after_s=1e6, resume_grace_s=20.0, host_grace_s=2.0)
    office.open(1)
    office.register()
    agents = Agents(office)
    agents.up(1)
    put(office, 1, ["a"], host=1)
    office.crash()
    office.resume(1)
    office.later(19.0)
    assert office.audit().in_flight == 1
    office.later(1.0)
    assert office.audit().lost == {"host m1 gone for 20 s": 1}


def test_time_in_which_the_plane_was_stopped_is_nobodys_silence(office: Office, agents: Agents) -> None:
    """A plane that wakes after an hour does not take its hosts for gone."""
    put(office, 1, ["a"], host=1)
    agents.down(1)
    office.now += 3600.0
    office.later(1.0)
    assert agents.status(1).state == "silent"


def test_a_group_that_lost_rows_with_its_host_is_given_up_like_any_other(office: Office, agents: Agents) -> None:
    """Its other rows, on another host, are evicted once nobody can take them."""
    tags = [TagColumn("group_id", ["g"]), TagColumn("expected_num_keys", [2]), TagColumn("committed", [True])]
    put(office, 1, ["a"], host=1, tags=tags)
    assert office.claim(1, batch=2, whole_groups=True) == Claimed("", [], [], None)
    put(office, 1, ["b"], host=2, tags=tags)
    agents.down(1)
    office.later(GRACE_S + 61.0)
    assert office.audit().lost == {"host m1 gone for 60 s": 1}
    assert office.audit().evicted == {"incomplete": 1}


def test_leased_rows_of_a_host_that_is_gone_are_lost_too(office: Office, agents: Agents) -> None:
    """Their lease ends with them, and the equation holds."""
    put(office, 1, ["a"], host=1)
    claimed = office.claim(1)
    agents.down(1)
    office.later(GRACE_S)
    audit = office.audit()
    assert (audit.leased, sum(audit.lost.values())) == (0, 1)
    assert office.ack(1, ["a"], claimed.token) != Done()


def test_a_lost_row_is_not_put_again_in_silence(office: Office, agents: Agents) -> None:
    """Its producer is told, even with the very same bytes: he must not take for safe what nobody can read."""
    grant = granted(office, 1, ["a"], host=1)
    assert commit(office, 1, grant, content=7) == Done()
    agents.down(1)
    office.later(GRACE_S)
    again = granted(office, 1, ["a"], host=2)
    reply = commit(office, 1, again, content=7)
    assert getattr(reply, "code", "") == "RowRemoved"


def _tick(office: Office) -> None:
    office.now = max(office.now, office.ledger.next_timer())
    office.event(Tick(WALL + office.now))


def test_a_host_with_much_on_it_is_given_up_bit_by_bit(
    office: Office, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many rows at a time, within a block too; it is gone when nothing is left there."""
    monkeypatch.setattr(losses, "SLICE", 3)
    put(office, 1, [f"a{i}" for i in range(5)], host=1)
    put(office, 1, ["b"], host=1, replicas=2)
    put(office, 1, ["c", "d"], host=1)
    agents.down(1)
    office.later(GRACE_S - 0.25)
    lost = []
    while agents.status(1).state == "silent":
        lost.append(sum(office.audit().lost.values()))
        _tick(office)
    assert lost == [0, 3, 5]
    assert office.audit().lost == {"host m1 gone for 60 s": 7}
    assert located(office, 1, ["b"]) == ([2], [], [2])
    office.crash()


def test_a_host_that_comes_back_while_it_is_given_up_keeps_what_is_left(
    office: Office, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of that; what was lost meanwhile stays lost."""
    monkeypatch.setattr(losses, "SLICE", 2)
    first, second = put(office, 1, ["a", "b", "c"], host=1), put(office, 1, ["d"], host=1)
    agents.down(1)
    office.later(GRACE_S - 0.25)
    _tick(office)
    assert sum(office.audit().lost.values()) == 2
    assert [place.block_id for place in agents.up(1).live] == [first, second]
    office.later(5.0)
    assert agents.status(1).state == "up"
    assert office.audit().in_flight == 2


def test_what_is_committed_beside_a_host_that_is_being_given_up_leaves_it_too(
    office: Office, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second place is dropped before the host is gone."""
    monkeypatch.setattr(losses, "SLICE", 1)
    put(office, 1, ["a", "b", "c"], host=1)
    late = granted(office, 1, ["d"], host=2, replicas=2)
    agents.down(1)
    office.later(GRACE_S - 0.25)
    _tick(office)
    assert commit(office, 1, late) == Done()
    assert located(office, 1, ["d"]) == ([2], [1], [2, 1])
    while agents.status(1).state == "silent":
        _tick(office)
    assert located(office, 1, ["d"]) == ([2], [], [2])
    assert sum(office.audit().lost.values()) == 3


def test_many_blocks_that_an_agent_reports_lost_are_decided_bit_by_bit(
    office: Office, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that lost its memory holds nobody up; a restart in between loses nothing of the report's effect."""
    monkeypatch.setattr(losses, "SLICE", 2)
    blocks = [put(office, 1, [f"r{i}"], host=1) for i in range(5)]
    call = agents.post(1, agents.told(1).number, lost=blocks, why="power failure")
    assert sum(office.audit().lost.values()) == 2
    _tick(office)
    _tick(office)
    assert office.audit().lost == {"host m1: power failure": 5}
    orders = agents.orders(call)
    assert orders is not None
    assert sorted(orders.free) == blocks[:2]
    assert agents.told(1, orders.number).free == blocks[2:]


def test_a_row_of_two_lost_blocks_is_lost_once(office: Office, agents: Agents) -> None:
    """Its fields lay in different blocks of the host."""
    put(office, 1, ["a", "b"], host=1)
    later = office.ask(1, msgspec.structs.replace(host_grant(["a"], host=1), fields=[FieldSpec("y", "int64", 1)]))
    assert isinstance(later, Granted)
    assert commit(office, 1, later) == Done()
    agents.down(1)
    office.later(GRACE_S)
    assert office.audit().lost == {"host m1 gone for 60 s": 2}
    assert office.ledger.statistics()["rows.lost"] == 2
