"""A store as the ledger sees it: a host that is no machine, whose agent holds nothing of what lies there."""

from __future__ import annotations

import msgspec
import pytest

from penstock.ledger.events import SessionGone
from penstock.ledger.facts import Entry, StoreFreed, StoreMayHold
from penstock.ledger.machine import Ledger
from penstock.requests import Commit, Done, Enlist, Enlisted, GrantAgain, HostPlace, Locate, Pop, Tokens
from tests.ledger.machines import Agents, commit, granted, host_grant, host_place, located, places_of, put
from tests.ledger.office import Office

_STORE = 9


class Stores(Agents):
    """Hosts, of which number 9 is a store."""

    def enlist(self, host: int, life: int = 1) -> Enlisted:
        if host != _STORE:
            return super().enlist(host, life)
        reply = self.office.ask(self.sessions[host], Enlist(store_place(life)))
        assert isinstance(reply, Enlisted), reply
        return reply


def store_place(life: int = 1) -> HostPlace:
    return HostPlace(_STORE, life, "pool", "10.0.0.9", [], store="mooncake://10.0.0.9:50051")


@pytest.fixture
def office() -> Office:
    """Return a ledger with a client's session 1 and partition "p"."""
    made = Office(dead_after_s=1e6)
    made.open(1)
    made.register()
    return made


@pytest.fixture
def agents(office: Office) -> Stores:
    """Return the agents of host 1 and of the store, enlisted."""
    made = Stores(office)
    made.up(1)
    made.up(_STORE)
    return made


def stored(office: Office) -> list[int]:
    return list(office.ledger.desk.state.hosts[_STORE].stored)


def train(office: Office, key: str) -> None:
    assert office.ask(1, Pop("p", [key], Tokens([], []))) == Done()


# -- where puts lie ---------------------------------------------------------------------------------------------------


def test_a_put_into_a_store_lies_there_alone_and_readers_are_told_its_url(office: Office, agents: Stores) -> None:
    """One place; the host that a reader is told says how the store is opened."""
    block = put(office, 1, ["a"], host=_STORE)
    asked = office.post(1, Locate("p", ["a"], ["x"]))
    (found,) = [resolve for resolve in office.resolved if resolve.call_id == asked]
    assert [(place.block_id, place.host) for place in found.blocks] == [(block, _STORE)]
    assert [host.store for host in found.hosts] == ["mooncake://10.0.0.9:50051"]
    assert not found.others


def test_a_store_is_no_machines_second_host(office: Office, agents: Stores) -> None:
    """Replicas of a machine's put go to machines: with none but a store beside it, there is none."""
    assert granted(office, 1, ["a"], host=1, replicas=2).replica is None
    refused = office.fails(1, host_grant(["b"], host=1, replicas=2, at_least=2), "DataPlaneUnavailable")
    assert "no second host" in refused.message


def test_a_store_gets_no_second_host(office: Office, agents: Stores) -> None:
    """How often it keeps a block is its own affair: who needs two hosts is told where to say so."""
    assert granted(office, 1, ["a"], host=_STORE, replicas=2).replica is None
    refused = office.fails(1, host_grant(["b"], host=_STORE, replicas=2, at_least=2), "BadArgument")
    assert "replicas=2" in refused.message


def test_a_store_stays_a_store_and_its_url_must_be_one(office: Office, agents: Stores) -> None:
    """What rows need there would be looked for elsewhere."""
    session = office.open(5000)
    office.fails(session, Enlist(host_place(_STORE, 2)), "BadArgument")
    office.fails(session, Enlist(msgspec.structs.replace(host_place(1, 2), store="mooncake://x:1")), "BadArgument")
    office.fails(session, Enlist(msgspec.structs.replace(store_place(), store="pool")), "BadArgument")
    office.fails(session, Enlist(msgspec.structs.replace(store_place(), store="a://\n")), "BadArgument")


# -- its agent --------------------------------------------------------------------------------------------------------


def test_rows_in_a_store_outlast_its_agents_silence(office: Office, agents: Stores) -> None:
    """However long it is silent: the bytes are elsewhere; puts are refused meanwhile, with the remedy."""
    put(office, 1, ["a"], host=_STORE)
    agents.down(_STORE)
    for _ in range(4):
        office.later(office.config.host_grace_s + 1)
    assert agents.status(_STORE).state == "silent"
    assert located(office, 1, ["a"])
    refused = office.fails(1, host_grant(["b"], host=_STORE), "DataPlaneUnavailable")
    assert "penstock store" in refused.message


def test_a_store_in_which_nothing_lies_is_gone_when_its_agent_is(office: Office, agents: Stores) -> None:
    """Nobody waits for it: its place among the hosts is free."""
    agents.down(_STORE)
    office.later(office.config.host_grace_s + 1)
    assert agents.status(_STORE).state == "gone"


def test_a_put_is_committed_though_the_stores_agent_has_died_meanwhile(office: Office, agents: Stores) -> None:
    """It does not hold what was put; the next one, of the same life of the store, hears that it is needed."""
    grant = granted(office, 1, ["a"], host=_STORE)
    agents.down(_STORE)
    assert commit(office, 1, grant) == Done()
    assert [place.block_id for place in agents.up(_STORE).live] == [grant.grant]


def test_a_put_is_not_committed_into_an_earlier_life_of_the_store(office: Office, agents: Stores) -> None:
    """What was written before it was restarted is not there any more: the writer asks for another grant."""
    grant = granted(office, 1, ["a"], host=_STORE)
    agents.up(_STORE, life=2)
    assert commit(office, 1, grant) == GrantAgain()


def test_what_a_restarted_store_has_kept_is_kept(office: Office, agents: Stores) -> None:
    """Its agent looks, and says what is lost: who wrote into the new life before that was known has lost nothing."""
    lost, there = put(office, 1, ["a"], host=_STORE), put(office, 1, ["b"], host=_STORE)
    enlisted = agents.up(_STORE, life=2)
    assert [place.block_id for place in enlisted.live] == [lost, there]
    agents.post(_STORE, enlisted.after, lost=[lost], why="the store was restarted")
    assert office.audit().lost == {"store pool: the store was restarted": 1}
    assert located(office, 1, ["b"])


# -- what is to be freed ----------------------------------------------------------------------------------------------


def test_what_was_granted_in_a_store_is_known_until_its_agent_has_freed_it(office: Office, agents: Stores) -> None:
    """Also of a put that came to nothing: bytes may have been written all the same."""
    committed, given_up = put(office, 1, ["a"], host=_STORE), granted(office, 1, ["b"], host=_STORE).grant
    assert stored(office) == [committed, given_up]
    office.event(SessionGone(1, "killed"))
    orders = agents.told(_STORE)
    assert (orders.adopt, orders.free) == ([committed], [given_up])
    agents.post(_STORE, orders.number)
    assert stored(office) == [committed]


def test_what_no_agent_had_freed_is_told_to_the_next_one(office: Office, agents: Stores) -> None:
    """Rows trained while it was away, and grants of a plane that died: nothing lies in the store for ever."""
    trained = put(office, 1, ["a"], host=_STORE)
    kept = put(office, 1, ["b"], host=_STORE)
    underway = granted(office, 1, ["c"], host=_STORE).grant
    agents.down(_STORE)
    train(office, "a")
    office.crash()
    agents.office.open(4000)
    enlisted = agents.up(_STORE)
    assert [place.block_id for place in enlisted.live] == [kept]
    orders = agents.told(_STORE, enlisted.after)
    assert sorted(orders.free) == sorted([trained, underway])
    agents.post(_STORE, orders.number)
    assert stored(office) == [kept]


def test_what_lies_in_a_store_survives_checkpoints(office: Office, agents: Stores) -> None:
    """A checkpoint restates it, between facts that add to it and take from it."""
    gone, kept = put(office, 1, ["a"], host=_STORE), put(office, 1, ["b"], host=_STORE)
    entries = list(office.ledger.checkpoint(1))
    train(office, "a")
    orders = agents.told(_STORE)
    agents.post(_STORE, orders.number)
    later = [Entry([StoreMayHold(_STORE, [77])]), Entry([StoreFreed(_STORE, [gone, 77])])]
    again = Ledger(office.config)
    for entry in [*entries, *later]:
        again.replay(entry, office.now)
    assert list(again.desk.state.hosts[_STORE].stored) == [kept]


def test_a_commit_that_names_another_place_in_the_store_is_refused(office: Office, agents: Stores) -> None:
    """The block's name is its place: nothing else can be read there."""
    grant = granted(office, 1, ["a"], host=_STORE)
    (place,) = places_of(grant)
    wrong = Commit(grant.grant, 7, [msgspec.structs.replace(place, block_id=place.block_id + 1)])
    office.fails(1, wrong, "BadArgument")
