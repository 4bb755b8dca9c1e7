"""Whether the store has forgotten everything."""

from __future__ import annotations

import threading

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.contract import Missing, Ok
from penstock.payload.stores.mooncake.canary import CANARIES
from penstock.testing.fake_mooncake_faults import fail
from tests.payload.stores.sites import FakeSite


def canaries(site: FakeSite) -> list[str]:
    return [key for key in site.fake.master.keys if "canary" in key]


def test_all_clients_see_one_life(site: FakeSite) -> None:
    """Whoever came first named it."""
    lives = {site.open().life(site.deadline()) for _ in range(3)}
    assert len(lives) == 1
    assert len(canaries(site)) == CANARIES


def test_clients_that_come_at_once_see_one_life(site: FakeSite) -> None:
    """A put of a canary that is there writes nothing."""
    lives: list[str] = []
    threads = [threading.Thread(target=lambda: lives.append(site.open().life(site.deadline()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert len(lives) == 6
    assert len(set(lives)) == 1


def test_canaries_are_spread_over_the_segments(site: FakeSite) -> None:
    """So that an owner's death is not taken for the store's."""
    site.open()
    assert {site.fake.master.keys[key].segment.name for key in canaries(site)} == set(site.fake.segments())


def test_an_owners_death_is_not_the_stores(site: FakeSite) -> None:
    """What it held is missing, one key at a time; its canaries are planted elsewhere."""
    store = site.open()
    life = store.life(site.deadline())
    keys = [f"k{n}" for n in range(20)]
    store.put_many(keys, [b"v"] * 20, site.deadline())
    site.fake.kill_owner("owner:1")
    site.clock.now += 11.0
    outcomes = store.get_many(keys, None, site.deadline())
    assert {type(outcome) for outcome in outcomes} == {Ok, Missing}
    assert store.life(site.deadline()) == life
    assert len(canaries(site)) == CANARIES


def test_a_restart_is_one_event(site: FakeSite) -> None:
    """Told once to each client, by whatever call meets it; afterwards a missing key is missing."""
    told: list[str] = []
    store, other = site.open(on_restarted=told.append), site.open(on_restarted=told.append)
    life = store.life(site.deadline())
    store.put_many(["a", "b"], [b"v"] * 2, site.deadline())
    site.restart()
    with pytest.raises(DataPlaneUnavailable, match="restarted"):
        store.get_many(["a", "b"], None, site.deadline())
    assert len(told) == 1
    assert store.get_many(["a", "b"], None, site.deadline()) == [Missing(), Missing()]
    with pytest.raises(DataPlaneUnavailable, match="restarted"):
        other.life(site.deadline())
    assert len(told) == 2
    assert store.life(site.deadline()) == other.life(site.deadline()) != life
    assert store.statistics().restarts == 1


def test_a_restart_that_others_have_seen_to_is_a_restart(site: FakeSite) -> None:
    """Its canaries are there again, and name another life."""
    store, other = site.open(), site.open()
    site.restart()
    with pytest.raises(DataPlaneUnavailable):
        other.life(site.deadline())
    with pytest.raises(DataPlaneUnavailable, match="restarted"):
        store.exists_many(["k"], site.deadline())


def test_a_missing_key_is_missing_while_a_canary_lives(site: FakeSite) -> None:
    """Even a single one."""
    store = site.open()
    site.fake.evict(*canaries(site)[1:])
    assert store.get_many(["k"], None, site.deadline()) == [Missing()]
    assert store.statistics().restarts == 0
    assert len(canaries(site)) == CANARIES


def test_no_answer_is_no_verdict(site: FakeSite) -> None:
    """A master that is down has not forgotten anything yet."""
    store = site.open()
    life = store.life(site.deadline())
    site.fake.inject(fail(-900, call="get", times=CANARIES))
    assert store.life(site.deadline()) == life
    assert store.statistics().restarts == 0


def test_a_store_that_cannot_be_asked_has_no_life_yet(site: FakeSite) -> None:
    """It is named when it can be."""
    site.fake.inject(fail(-900, call="get", times=CANARIES + 1))
    store = site.open()
    site.fake.inject(fail(-900, call="get", times=CANARIES - 1))
    with pytest.raises(DataPlaneUnavailable, match="does not answer"):
        store.life(site.deadline())
    assert store.life(site.deadline())
    assert store.statistics().restarts == 0
