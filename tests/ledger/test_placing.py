"""Puts on hosts: where they are granted, what a commit must name, and which places count."""

from __future__ import annotations

import msgspec
import pytest

from penstock.ledger.events import NotAllotted, SessionGone
from penstock.ledger.facts import Entry, Moved, Put, TombstoneIs, TombstonesAre
from penstock.requests import (
    BlockPlace,
    Commit,
    Done,
    Failed,
    FieldSpec,
    Grant,
    GrantAgain,
    Granted,
    Locate,
    TagColumn,
)
from tests.ledger.machines import Agents, commit, granted, host_grant, located, places_of, put
from tests.ledger.office import Office

_LATER = FieldSpec("y", "int64", 1)


@pytest.fixture
def office() -> Office:
    """Return a ledger with a client's session 1 and partition "p"."""
    made = Office()
    made.open(1)
    made.register()
    return made


@pytest.fixture
def agents(office: Office) -> Agents:
    """Return the agents of hosts 1 to 3, enlisted."""
    made = Agents(office)
    for host in (1, 2, 3):
        made.up(host)
    return made


def unavailable(office: Office, grant: Grant) -> str:
    return office.fails(1, grant, "DataPlaneUnavailable").message


# -- grants -----------------------------------------------------------------------------------------------------------


def test_a_put_on_a_host_is_granted_without_a_slot(office: Office, agents: Agents) -> None:
    """The answer names the host; its agent finds the slot."""
    grant = granted(office, 1, ["a"], host=2)
    assert (grant.place.host, grant.place.block_id, grant.place.nbytes) == (2, grant.grant, 164)
    assert grant.replica is None


def test_a_put_on_a_host_that_is_not_there_is_refused_with_the_remedy(office: Office, agents: Agents) -> None:
    """Unknown, silent or gone: the message says which, and what to do."""
    assert "not enlisted" in unavailable(office, host_grant(["a"], host=9))
    agents.down(1)
    told = unavailable(office, host_grant(["a"], host=1))
    assert "host m1" in told
    assert "silent" in told
    assert "penstock host" in told
    put(office, 1, ["b"], host=2)


def test_the_second_host_is_the_least_laden_of_the_others(office: Office, agents: Agents) -> None:
    """Bytes that were only granted count too; of equals the smaller id; a host that is silent is none."""
    first = granted(office, 1, ["a"], host=1, replicas=2)
    assert first.replica is not None
    assert first.replica.host_id == 2
    second = granted(office, 1, ["b"], host=1, replicas=2)
    assert second.replica is not None
    assert second.replica.host_id == 3
    put(office, 1, ["c"], host=3)
    third = granted(office, 1, ["d"], host=1, replicas=2)
    assert third.replica is not None
    assert third.replica.host_id == 2
    agents.down(2)
    fourth = granted(office, 1, ["e"], host=1, replicas=2)
    assert fourth.replica is not None
    assert fourth.replica.host_id == 3


def test_a_host_that_took_no_copy_is_chosen_last(office: Office, agents: Agents) -> None:
    """Who put knows better than the ledger who does not answer him; if all others are to be avoided, one is asked."""
    grants = [
        office.ask(1, msgspec.structs.replace(host_grant([key], host=1, replicas=2), avoid=avoid))
        for key, avoid in (("a", [2]), ("b", [3]), ("c", [2, 3]), ("d", [77]))
    ]
    chosen = [grant.replica.host_id for grant in grants if isinstance(grant, Granted) and grant.replica is not None]
    assert chosen[:2] == [3, 2]
    assert len(chosen) == 4


def test_without_a_second_host_a_put_that_needs_none_goes_on(office: Office) -> None:
    """And one that needs it is refused, with what to do."""
    agents = Agents(office)
    agents.up(1)
    assert granted(office, 1, ["a"], host=1, replicas=2).replica is None
    assert "no second host is up" in unavailable(office, host_grant(["b"], replicas=2, at_least=2))


@pytest.mark.parametrize(("replicas", "at_least"), [(0, 0), (3, 1), (1, 2), (2, 0)])
def test_numbers_of_places_that_make_no_sense_are_refused(
    office: Office, agents: Agents, replicas: int, at_least: int
) -> None:
    """More than two places, or more needed than wanted."""
    office.fails(1, host_grant(["a"], replicas=replicas, at_least=at_least), "BadArgument")


def test_the_planes_own_arena_holds_one_place(office: Office, agents: Agents) -> None:
    """A put there that needs two is refused; one that would only like two gets a slot as ever."""
    office.fails(1, host_grant(["a"], host=0, replicas=2, at_least=2), "BadArgument")
    call = office.post(1, host_grant(["b"], host=0, replicas=2))
    assert office.granted(call) is not None


def test_arenas_and_hosts_may_be_mixed(office: Office, agents: Agents) -> None:
    """Blocks in the plane's arena are freed there, others by their hosts; only the former are the arena's."""
    office.put_done(1, ["a"])
    put(office, 1, ["b"], host=1)
    assert [place.host for place in office.ledger.live_blocks()] == [0]
    assert office.ledger.live_bytes == 100
    assert office.audit().live_bytes == 200
    assert located(office, 1, ["a", "b"]) == ([0, 1], [], [1])
    assert office.pop(1, ["a", "b"]) == Done()
    assert len(office.freed) == 1
    assert office.ledger.live_bytes == 0


def test_what_lies_on_hosts_is_not_for_compaction(office: Office, agents: Agents) -> None:
    """A block that is mostly dead goes with its last row."""
    put(office, 1, ["a", "b", "c", "d"], host=1)
    assert office.pop(1, ["a", "b", "c"]) == Done()
    assert office.ledger.sparse_blocks() == []


def test_puts_on_hosts_wait_for_room_like_any_others() -> None:
    """In order; a put whose host has fallen silent meanwhile is refused at its turn, and holds nobody up."""
    office = Office(max_rows=1)
    office.open(1)
    office.register()
    agents = Agents(office)
    agents.up(1)
    agents.up(2)
    put(office, 1, ["a"], host=1)
    first, second = office.post(1, host_grant(["b"], host=1)), office.post(1, host_grant(["c"], host=2))
    assert (office.reply(first), office.reply(second)) == (None, None)
    agents.down(1)
    assert office.pop(1, ["a"]) == Done()
    refused = office.reply(first)
    assert isinstance(refused, Failed)
    assert refused.code == "DataPlaneUnavailable"
    assert isinstance(office.reply(second), Granted)


def test_a_grant_that_its_client_does_not_hold_is_dropped(office: Office, agents: Agents) -> None:
    """The shell says so: the answer was lost, or its holder is gone. Both hosts free what they may have."""
    grant = granted(office, 1, ["a"], host=1, replicas=2)
    office.event(NotAllotted(grant.grant))
    assert agents.told(1).free == [grant.grant]
    assert agents.told(2).free == [grant.grant]
    assert office.unassigned == [grant.grant]
    assert office.dropped == []
    assert commit(office, 1, grant) == GrantAgain()


def test_the_end_of_its_session_drops_a_grant_on_a_host(office: Office, agents: Agents) -> None:
    """The plane cannot see the client's process; the agent, which can, keeps the memory until he is done."""
    office.open(2, client_id=22)
    grant = granted(office, 2, ["a"], host=1)
    office.event(SessionGone(2, "silent for 10.0 s"))
    assert agents.told(1).free == [grant.grant]
    office.open(3, client_id=22)
    assert commit(office, 3, grant) == GrantAgain()


# -- commits ----------------------------------------------------------------------------------------------------------


def test_a_commit_is_visible_at_the_places_that_it_names(office: Office, agents: Agents) -> None:
    """They survive a restart and a checkpoint."""
    grant = granted(office, 1, ["a"], host=1, replicas=2)
    places = places_of(grant)
    assert commit(office, 1, grant, places=places) == Done()
    for restated in (False, True):
        office.crash(list(office.ledger.checkpoint(1)) if restated else None)
        office.resume(1)
        located(office, 1, ["a"])
        assert office.resolved[-1].blocks == places[:1]
        assert office.resolved[-1].others == places[1:]
        assert [host.host_id for host in office.resolved[-1].hosts] == [1, 2]
        assert [host.address for host in office.resolved[-1].hosts] == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize(
    "change",
    [
        {"block_id": 4242},
        {"host": 2},
        {"host": 0},
        {"nbytes": 163},
        {"generation": -1},
        {"offset": -4096},
    ],
    ids=str,
)
def test_a_place_that_is_not_the_grants_is_refused(office: Office, agents: Agents, change: dict[str, int]) -> None:
    """Nothing becomes visible, and the grant is over."""
    grant = granted(office, 1, ["a"], host=1)
    places = [msgspec.structs.replace(places_of(grant)[0], **change)]
    office.fails(1, Commit(grant.grant, 7, places), "BadArgument")
    assert office.audit().put == 0
    assert agents.told(1).free == [grant.grant]


def test_a_commit_names_the_granted_hosts_in_their_order(office: Office, agents: Agents) -> None:
    """None, too many, others, the same twice, or the second alone are refused."""
    for wrong in ([], [1, 1], [1, 3], [2], [2, 1], [1, 2, 3]):
        grant = granted(office, 1, ["a"], host=1, replicas=2)
        place = places_of(grant)[0]
        assert grant.replica is not None
        other = {2: grant.replica.host_id}
        places = [msgspec.structs.replace(place, host=other.get(host, host)) for host in wrong]
        if wrong == [1, 3]:
            places[1] = msgspec.structs.replace(place, host=5 - grant.replica.host_id)
        office.fails(1, Commit(grant.grant, 7, places), "BadArgument")


def test_places_are_for_puts_on_hosts_alone(office: Office, agents: Agents) -> None:
    """A put into the plane's arena that names some is refused."""
    call = office.grant(1, ["a"])
    arena = office.granted(call)
    assert arena is not None
    grant = granted(office, 1, ["b"], host=1)
    office.fails(1, Commit(arena, 7, places_of(grant)), "BadArgument")


def test_a_second_place_that_was_not_sealed_may_be_left_out(office: Office, agents: Agents) -> None:
    """Unless the put needs it; the second host frees what it may have pulled."""
    grant = granted(office, 1, ["a"], host=1, replicas=2)
    assert commit(office, 1, grant, places=places_of(grant)[:1]) == Done()
    assert located(office, 1, ["a"]) == ([1], [], [1])
    assert agents.told(2).free == [grant.grant]
    needs = granted(office, 1, ["b"], host=1, replicas=2, at_least=2)
    office.fails(1, Commit(needs.grant, 7, places_of(needs)[:1]), "BadArgument")


def test_a_put_whose_host_is_silent_is_not_acknowledged(office: Office, agents: Agents) -> None:
    """The plane cannot say that the block is there: another grant, which is refused with the remedy."""
    grant = granted(office, 1, ["a"], host=1)
    agents.down(1)
    assert commit(office, 1, grant) == GrantAgain()
    assert office.audit().put == 0
    assert "silent" in unavailable(office, host_grant(["a"], host=1))


def test_a_put_that_needs_one_host_is_acknowledged_while_one_of_two_is_up(office: Office, agents: Agents) -> None:
    """Whichever it is; the silent one is kept as a place, for it may come back, and readers are sent to the other."""
    grant = granted(office, 1, ["a"], host=1, replicas=2)
    agents.down(1)
    assert commit(office, 1, grant) == Done()
    assert located(office, 1, ["a"]) == ([2], [1], [2, 1])
    assert [place.block_id for place in agents.up(1).live] == [grant.grant]
    assert located(office, 1, ["a"]) == ([1], [2], [1, 2])


def test_a_put_that_needs_two_hosts_waits_for_both(office: Office, agents: Agents) -> None:
    """One that is silent is one too few: the put begins anew, on another second host."""
    grant = granted(office, 1, ["a"], host=1, replicas=2, at_least=2)
    assert grant.replica is not None
    agents.down(grant.replica.host_id)
    assert commit(office, 1, grant) == GrantAgain()
    assert agents.told(1).free == [grant.grant]
    anew = granted(office, 1, ["a"], host=1, replicas=2, at_least=2)
    assert anew.replica is not None
    assert anew.replica.host_id != grant.replica.host_id
    assert commit(office, 1, anew) == Done()


def test_a_place_of_an_earlier_life_of_the_second_agent_does_not_count(office: Office, agents: Agents) -> None:
    """Its successor was not told of the block and has let go of it."""
    grant = granted(office, 1, ["a"], host=1, replicas=2)
    assert grant.replica is not None
    agents.up(grant.replica.host_id, life=2)
    assert commit(office, 1, grant) == Done()
    assert located(office, 1, ["a"]) == ([1], [], [1])
    needs = granted(office, 1, ["b"], host=1, replicas=2, at_least=2)
    assert needs.replica is not None
    agents.up(needs.replica.host_id, life=3)
    assert commit(office, 1, needs) == GrantAgain()


def test_a_repeat_of_the_same_bytes_frees_its_copy(office: Office, agents: Agents) -> None:
    """Success without effect; the first block stays."""
    first = granted(office, 1, ["a"], host=1)
    assert commit(office, 1, first, content=5) == Done()
    seen = agents.told(1).number
    second = granted(office, 1, ["a"], host=1)
    assert commit(office, 1, second, content=5) == Done()
    assert agents.told(1, seen).free == [second.grant]
    assert located(office, 1, ["a"])[0] == [1]
    assert office.resolved[-1].blocks[0].block_id == first.grant


def test_a_late_put_of_a_removed_row_frees_its_copies(office: Office, agents: Agents) -> None:
    """It is refused as ever."""
    put(office, 1, ["a"], host=1)
    late = granted(office, 1, ["a"], host=1, replicas=2)
    assert office.pop(1, ["a"]) == Done()
    office.fails(1, Commit(late.grant, 99, places_of(late)), "RowRemoved")
    assert late.grant in agents.told(1).free
    assert agents.told(2).free == [late.grant]


def test_a_later_field_may_lie_on_another_host(office: Office, agents: Agents) -> None:
    """A read of both names both blocks, each at its host, with all agents."""
    put(office, 1, ["a"], host=1, replicas=2)
    office.register(tasks=("train",))
    grant = office.ask(1, msgspec.structs.replace(host_grant(["a"], host=3), fields=[_LATER]))
    assert isinstance(grant, Granted)
    assert grant.life == office.ledger.desk.state.hosts[3].place.life > 0
    assert commit(office, 1, grant) == Done()
    office.post(1, Locate("p", ["a"], ["x", "y"]))
    resolved = office.resolved[-1]
    assert [place.host for place in resolved.blocks] == [1, 3]
    assert [place.host for place in resolved.others] == [2]
    assert [host.host_id for host in resolved.hosts] == [1, 3, 2]


def test_a_group_on_hosts_is_promised_room_like_any_other(office: Office, agents: Agents) -> None:
    """The declared rows are charged at admission, and released with the grant."""
    tags = [TagColumn("group_id", ["g"]), TagColumn("expected_num_keys", [4]), TagColumn("committed", [True])]
    grant = granted(office, 1, ["a"], host=1, tags=tags)
    assert office.ledger.desk.books.partition("p").granted_rows == 4
    assert commit(office, 1, grant) == Done()
    assert office.ledger.desk.books.partition("p").granted_rows == 0


def test_entries_written_before_there_were_hosts_are_read_as_ever() -> None:
    """Their facts lack the last fields, which stand for the plane's own arena."""
    place = BlockPlace(5, 1, 4096, 164, 3)
    put_fact = Put(5, "p", 1, ["a"], [6], None, [], [], place, 7, [100], None, 1.0)
    stones = TombstonesAre("p", [TombstoneIs("b", "lost", "", [], 1, 5.0)], [])
    for fact in (put_fact, Moved(place, None), stones):
        told = msgspec.msgpack.decode(msgspec.msgpack.encode(Entry([fact])))
        facts = told[0]
        shorter = facts[0]
        if isinstance(fact, TombstonesAre):
            assert shorter[2][0].pop() == ""
        else:
            assert shorter.pop() is None
        old = msgspec.msgpack.encode([facts, *told[1:]])
        assert msgspec.msgpack.decode(old, type=Entry) == Entry([fact])
