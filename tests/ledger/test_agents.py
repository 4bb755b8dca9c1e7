"""Agents enlist, report and are told what to do; orders are kept until they say that they have carried them out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from penstock.ledger.events import SessionGone, Withdrawn
from penstock.ledger.limits import MAX_HOSTS
from penstock.requests import (
    BlockPlace,
    Commit,
    Damaged,
    Done,
    Enlist,
    Enlisted,
    GrantAgain,
    HostReport,
    Orders,
)
from tests.ledger.machines import Agents, commit, granted, host_grant, host_place, located, places_of, put
from tests.ledger.office import Office


@pytest.fixture
def office() -> Office:
    """Return a ledger with a client's session 1 and partition "p"."""
    made = Office()
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


# -- enlisting --------------------------------------------------------------------------------------------------------


def test_an_agent_that_enlists_is_told_where_rows_need_its_blocks(office: Office, agents: Agents) -> None:
    """Live blocks of the host, at their places, and of no other host."""
    mine, other = put(office, 1, ["a"], host=1), put(office, 1, ["b"], host=2)
    both = put(office, 1, ["c"], host=2, replicas=2)
    agents.down(1)
    assert [place.block_id for place in agents.up(1).live] == [mine, both]
    agents.down(2)
    enlisted = agents.up(2)
    assert [place.block_id for place in enlisted.live] == [other, both]
    assert {place.host for place in enlisted.live} == {2}


def test_the_newest_session_of_a_host_counts(office: Office, agents: Agents) -> None:
    """A second session that enlists for a host ends the first; orders are for the second."""
    first = agents.sessions[1]
    agents.up(1)
    assert office.ended == [first]
    assert agents.status(1).state == "up"
    office.event(SessionGone(first, "late"))
    assert agents.status(1).state == "up"


def test_an_earlier_life_of_an_agent_is_refused(office: Office, agents: Agents) -> None:
    """A process that was stopped while its successor enlisted does not take the host back."""
    agents.down(1)
    agents.up(1, life=3)
    stale = office.open(77)
    office.fails(stale, Enlist(host_place(1, life=2)), "DataPlaneUnavailable")
    assert agents.status(1).place.life == 3
    assert agents.status(1).state == "up"


def test_an_agent_with_another_planes_blocks_is_refused(office: Office, agents: Agents) -> None:
    """It would be told to free them all; the plane is the same one after a restart, from a checkpoint too."""
    plane = agents.up(1).plane
    assert plane
    office.crash()
    for session in (1500, 1501):
        office.open(session)
        office.fails(session, Enlist(host_place(1), plane + 1), "DataPlaneUnavailable")
        assert agents.status(1).state == "silent"
        enlisted = office.ask(session, Enlist(host_place(1), plane))
        assert isinstance(enlisted, Enlisted)
        assert enlisted.plane == plane
        office.crash(list(office.ledger.checkpoint()))


def test_a_plane_that_forgets_its_rows_takes_agents_with_blocks_of_its_own_kind_alone() -> None:
    """Of durability "memory": what lies with an agent of such a plane nobody will ever ask for."""
    office = Office(durability="memory")
    session = office.open(1)
    assert office.ask(session, Enlist(host_place(1))) == Enlisted([], 1)
    office.fails(session, Enlist(host_place(1), 7), "DataPlaneUnavailable")


def test_grants_of_an_earlier_life_of_the_agent_are_dropped(office: Office, agents: Agents) -> None:
    """What its memory held and no row needed went with it: their commit asks for another grant."""
    grant = granted(office, 1, ["a"], host=1)
    agents.up(1, life=2)
    assert office.ledger.desk.state.grants == {}
    assert commit(office, 1, grant) == GrantAgain()
    assert office.unassigned == [grant.grant]
    assert office.audit().put == 0


def test_grants_live_through_a_second_enlisting_of_the_same_life(office: Office, agents: Agents) -> None:
    """An agent that lost its session and not its memory still holds what was sealed."""
    grant = granted(office, 1, ["a"], host=1)
    agents.down(1)
    agents.up(1)
    assert commit(office, 1, grant) == Done()


def test_a_session_is_the_agent_of_one_host(office: Office, agents: Agents) -> None:
    """And a session that has not enlisted is nobody's."""
    office.fails(agents.sessions[1], Enlist(host_place(9)), "BadArgument")
    failed = office.fails(1, HostReport(0), "DataPlaneUnavailable")
    assert "enlist first" in failed.message


@pytest.mark.parametrize(
    "change",
    [
        {"host_id": 0},
        {"life": -1},
        {"name": "n" * 2000},
        {"name": "n\n"},
        {"address": "a\x1b[2J"},
        {"address": "a" * 2000},
        {"ports": [70_000]},
        {"ports": list(range(100))},
        {"peer_port": -1},
    ],
    ids=str,
)
def test_an_agent_that_makes_no_sense_is_refused(office: Office, change: dict[str, Any]) -> None:
    """Nothing is remembered of it."""
    office.fails(1, Enlist(msgspec.structs.replace(host_place(1), **change)), "BadArgument")
    assert office.ledger.desk.state.hosts == {}


def test_hosts_are_bounded_and_those_that_are_gone_make_room(office: Office) -> None:
    """A thousand agents that come and go do not grow the ledger for ever."""
    agents = Agents(office)
    for host in range(1, MAX_HOSTS + 1):
        office.ledger.desk.books.host(host).state = "silent"
    agents.sessions[5000] = office.open(5000)
    office.fails(5000, Enlist(host_place(5000)), "DataPlaneUnavailable")
    office.ledger.desk.state.hosts[7].state = "gone"
    agents.enlist(5000)
    assert 7 not in office.ledger.desk.state.hosts
    assert len(office.ledger.desk.state.hosts) == MAX_HOSTS


# -- orders -----------------------------------------------------------------------------------------------------------


def test_a_commit_orders_adopt_of_every_host_of_the_block(office: Office, agents: Agents) -> None:
    """Both agents are told to keep it, whoever its writer was."""
    block = put(office, 1, ["a"], host=1, replicas=2)
    assert agents.told(1).adopt == [block]
    assert agents.told(2).adopt == [block]


def test_a_block_that_no_row_needs_is_freed_on_every_host(office: Office, agents: Agents) -> None:
    """Not in the plane's arena, which does not hold it; an adopt that was not told yet is not told any more."""
    block = put(office, 1, ["a"], host=1, replicas=2)
    first = agents.told(1)
    assert office.pop(1, ["a"]) == Done()
    assert (agents.told(1, first.number).free, agents.told(1, first.number).adopt) == ([block], [])
    assert (agents.told(2).free, agents.told(2).adopt) == ([block], [])
    assert office.freed == []


def test_orders_are_told_until_the_agent_has_carried_them_out(office: Office, agents: Agents) -> None:
    """An answer that was lost is given again; one that was carried out is not."""
    put(office, 1, ["a"], host=1)
    first = agents.told(1)
    assert agents.told(1) == first
    second = put(office, 1, ["b"], host=1)
    assert len(agents.told(1).adopt) == 2
    told = agents.told(1, first.number)
    assert told.adopt == [second]
    assert told.number > first.number
    assert agents.orders(agents.post(1, told.number)) is None


def test_what_changed_since_it_was_told_is_told_once_more_and_nothing_else(office: Office, agents: Agents) -> None:
    """A block that was adopted and is freed now; another that was adopted with it is not named again."""
    first = put(office, 1, ["a"], host=1)
    put(office, 1, ["b"], host=1)
    seen = agents.told(1).number
    assert office.pop(1, ["a"]) == Done()
    told = agents.told(1, seen)
    assert (told.adopt, told.free) == ([], [first])
    assert agents.orders(agents.post(1, told.number)) is None


def test_enlisting_again_stands_for_all_earlier_orders(office: Office, agents: Agents) -> None:
    """Also in the same session, whose orders were not lost with it."""
    put(office, 1, ["a"], host=1)
    enlisted = agents.enlist(1)
    assert len(enlisted.live) == 1
    assert agents.orders(agents.post(1, 0)) is None


def test_an_agent_waits_for_orders(office: Office, agents: Agents) -> None:
    """Its call is answered when there is something to do."""
    call = agents.post(1)
    assert agents.orders(call) is None
    block = put(office, 1, ["a"], host=1)
    orders = agents.orders(call)
    assert orders is not None
    assert orders.adopt == [block]


def test_a_report_is_answered_shortly_before_its_deadline(office: Office, agents: Agents) -> None:
    """With nothing, and without acknowledging in the agent's name what it has not been told."""
    call = agents.post(1, after=3, timeout_s=4.0)
    office.later(3.0)
    assert agents.orders(call) is None
    assert office.ledger.next_timer() <= office.now + 0.5
    office.later(0.5)
    assert agents.orders(call) == Orders(3)


def test_a_newer_report_takes_the_place_of_the_one_that_waits(office: Office, agents: Agents) -> None:
    """The older one is answered with nothing, so that no call stays open."""
    older, newer = agents.post(1), agents.post(1)
    assert agents.orders(older) == Orders(0)
    block = put(office, 1, ["a"], host=1)
    orders = agents.orders(newer)
    assert orders is not None
    assert orders.adopt == [block]


def test_a_withdrawn_report_keeps_its_orders_for_the_next(office: Office, agents: Agents) -> None:
    """A connection that was lost takes nothing with it."""
    call = agents.post(1)
    office.event(Withdrawn(frozenset({call})))
    block = put(office, 1, ["a"], host=1)
    assert agents.orders(call) == Orders(0)
    assert agents.told(1).adopt == [block]


def test_orders_of_a_silent_host_are_not_kept_for_enlisting_says_it_all(office: Office, agents: Agents) -> None:
    """What was freed meanwhile is not named, what was put before is."""
    gone, stays = put(office, 1, ["a"], host=1), put(office, 1, ["b"], host=1)
    agents.down(1)
    assert office.pop(1, ["a"]) == Done()
    enlisted = agents.up(1)
    assert [place.block_id for place in enlisted.live] == [stays]
    assert agents.orders(agents.post(1, enlisted.after)) is None
    assert agents.told(1, enlisted.after, done_with=[gone]).free == [gone]


def test_numbers_of_orders_grow_over_lives_of_the_plane(office: Office, agents: Agents) -> None:
    """An agent that states back a number of an earlier life acknowledges nothing of this one."""
    put(office, 1, ["a"], host=1)
    before = agents.told(1).number
    office.crash()
    office.resume(1)
    office._incarnation = before + 100
    office.crash()
    office.resume(1)
    assert agents.up(1).after > before
    block = put(office, 1, ["b"], host=1)
    assert agents.told(1, before).adopt == [block]


# -- what agents say --------------------------------------------------------------------------------------------------


def test_a_block_whose_writer_has_gone_is_rows_or_nobodys(office: Office, agents: Agents) -> None:
    """Rows' blocks are to be adopted, unknown ones freed, and the grant of one that was not committed is dropped."""
    live, grant = put(office, 1, ["a"], host=1), granted(office, 1, ["b"], host=1)
    orders = agents.told(1, agents.told(1).number, done_with=[live, 12345, grant.grant])
    assert orders.adopt == [live]
    assert sorted(orders.free) == sorted([12345, grant.grant])
    assert commit(office, 1, grant) == GrantAgain()


def test_a_second_host_that_asks_too_early_waits_for_the_commit(office: Office, agents: Agents) -> None:
    """It pulled the block, and nobody has committed it yet: neither adopt nor free, and the commit decides."""
    grant = granted(office, 1, ["a"], host=1, replicas=2)
    call = agents.post(2, done_with=[grant.grant])
    assert agents.orders(call) is None
    assert commit(office, 1, grant) == Done()
    orders = agents.orders(call)
    assert orders is not None
    assert orders.adopt == [grant.grant]


def test_a_block_that_lies_elsewhere_is_freed_here(office: Office, agents: Agents) -> None:
    """A copy that was never committed, of a block that rows need on another host."""
    grant = granted(office, 1, ["a"], host=1, replicas=2)
    assert commit(office, 1, grant, places=places_of(grant)[:1]) == Done()
    assert agents.told(2).free == [grant.grant]
    assert agents.told(2, agents.told(2).number, done_with=[grant.grant]).free == [grant.grant]


def test_clients_whose_processes_ended_are_ended_at_once(office: Office, agents: Agents) -> None:
    """Their leases return and their grants go; other clients' stay."""
    office.open(2, client_id=22)
    office.open(3, client_id=33)
    block = put(office, 1, ["a"], host=1)
    assert office.claim(2).keys == ["a"]
    theirs, others = granted(office, 2, ["b"], host=1), granted(office, 3, ["c"], host=1)
    told = agents.told(1, ended=[22, 99])
    assert told.adopt == [block]
    assert told.free == [theirs.grant]
    assert office.ended == [2]
    assert office.claim(3).keys == ["a"]
    assert commit(office, 3, others) == Done()


def test_an_agent_does_not_end_itself(office: Office, agents: Agents) -> None:
    """An agent's own client id among those that ended is nonsense, and ignored."""
    agents.post(1, ended=[agents.sessions[1]])
    assert agents.status(1).state == "up"


def test_a_block_that_is_lost_on_its_host_is_read_from_the_other(office: Office, agents: Agents) -> None:
    """Its rows go on from the second place; the first frees what is left."""
    block = put(office, 1, ["a"], host=1, replicas=2)
    told = agents.told(1, lost=[block], why="checksum mismatch")
    assert told.free == [block]
    assert located(office, 1, ["a"]) == ([2], [], [2])
    assert office.audit().in_flight == 1
    office.crash()
    office.resume(1)
    assert located(office, 1, ["a"])[0] == [2]


def test_a_block_that_is_lost_on_its_only_host_loses_its_rows_by_name(office: Office, agents: Agents) -> None:
    """The reader is told which host and why."""
    block = put(office, 1, ["a"], host=1)
    agents.post(1, lost=[block], why="checksum mismatch")
    assert office.audit().lost == {"host m1: checksum mismatch": 1}
    located(office, 1, ["a"])
    (issue,) = office.resolved[-1].issues
    assert issue.key == "a"
    assert "host m1: checksum mismatch" in issue.why


def test_a_second_place_that_is_lost_leaves_the_first(office: Office, agents: Agents) -> None:
    """And of a block that is nowhere any more the rows are lost."""
    block = put(office, 1, ["a"], host=1, replicas=2)
    agents.post(2, lost=[block])
    assert located(office, 1, ["a"]) == ([1], [], [1])
    agents.post(2, lost=[block])  # said again: it does not lie there
    assert office.audit().in_flight == 1
    agents.post(1, lost=[block])
    assert office.audit().lost == {"host m1: missing or damaged": 1}


def test_a_sealed_block_that_is_damaged_before_its_commit_is_not_committed(office: Office, agents: Agents) -> None:
    """The producer, who still has the bytes, is asked for another grant."""
    grant = granted(office, 1, ["a"], host=1)
    agents.post(1, lost=[grant.grant])
    assert commit(office, 1, grant) == GrantAgain()


def test_why_a_row_was_lost_survives_a_restart_and_a_checkpoint(office: Office, agents: Agents) -> None:
    """Its reader is told long after."""
    block = put(office, 1, ["a"], host=1)
    agents.post(1, lost=[block], why="checksum mismatch")
    office.crash(list(office.ledger.checkpoint(1)))
    office.resume(1)
    located(office, 1, ["a"])
    assert "checksum mismatch" in office.resolved[-1].issues[0].why


def test_a_block_that_moved_on_its_host_is_read_there(office: Office, agents: Agents) -> None:
    """First and second places alike; the record of it survives; what is not this host's to move is ignored."""
    block = put(office, 1, ["a"], host=1, replicas=2)
    there = BlockPlace(block, 9, 64, 164, 12, host=1)
    too = BlockPlace(block, 8, 32, 164, 13, host=2)
    agents.post(1, moved=[there, too, BlockPlace(4242, 1, 0, 164, 1, host=1)])
    agents.post(2, moved=[too])
    written = len(office.journal)
    agents.post(2, moved=[too])
    assert len(office.journal) == written
    office.crash()
    office.resume(1)
    located(office, 1, ["a"])
    assert office.resolved[-1].blocks == [there]
    assert office.resolved[-1].others == [too]


def test_a_reader_that_found_damage_has_the_agent_look(office: Office, agents: Agents) -> None:
    """It is told once to verify, and the reader is answered at once; blocks that lie elsewhere are nothing to it."""
    block = put(office, 1, ["a"], host=1)
    seen = agents.told(1).number
    office.done(1, Damaged(block, 1))
    office.done(1, Damaged(block, 2))
    office.done(1, Damaged(block, 777))
    told = agents.told(1, seen)
    assert told.verify == [block]
    assert agents.orders(agents.post(1, told.number)) is None


def test_reports_of_an_agent_that_has_lost_its_session_are_refused(office: Office, agents: Agents) -> None:
    """Until it has enlisted in this life of the plane, also if its session came back."""
    office.crash()
    session = agents.sessions[1]
    office.resume(session)
    office.fails(session, HostReport(0), "DataPlaneUnavailable")
    assert isinstance(office.ask(session, Enlist(host_place(1))), Enlisted)
    agents.post(1)


def test_a_commit_that_is_repeated_after_a_restart_is_the_same_success(office: Office, agents: Agents) -> None:
    """The plane died after it had written the put down; its answer was lost."""
    grant = granted(office, 1, ["a"], host=1)
    body = Commit(grant.grant, 7, places_of(grant))
    assert office.ask(1, body, seq=50) == Done()
    office.crash()
    office.resume(1)
    assert office.ask(1, body, seq=50) == Done()
    assert office.audit().put == 1


def test_a_grant_of_an_earlier_life_of_the_plane_asks_again(office: Office, agents: Agents) -> None:
    """Grants are not journaled, on hosts neither; what was sealed is nobody's and is freed."""
    grant = granted(office, 1, ["a"], host=1)
    office.crash()
    office.resume(1)
    agents.up(1)
    assert commit(office, 1, grant) == GrantAgain()
    assert agents.told(1, done_with=[grant.grant]).free == [grant.grant]


def test_a_waiting_put_is_admitted_when_an_agent_reports_its_client_dead(agents: Agents) -> None:
    """What a dead client had been granted makes room at once."""
    office = Office(max_rows=1)
    office.open(1, client_id=11)
    office.open(2, client_id=22)
    office.register()
    there = Agents(office)
    there.up(1)
    granted(office, 1, ["a"], host=1)
    waits = office.post(2, host_grant(["b"]))
    assert office.reply(waits) is None
    there.post(1, ended=[11])
    assert office.reply(waits) is not None
