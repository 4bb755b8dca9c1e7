"""Puts into a store and reads out of it, through a real plane and a real agent; the store is this process's memory."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from penstock.errors import (
    BadArgument,
    CorruptPayload,
    DataPlaneError,
    DataPlaneFull,
    DataPlaneReadError,
    DataPlaneUnavailable,
    MissingExtra,
)
from penstock.parts import HostPlace
from penstock.payload.stores.contract import BlockStore
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.stores import choose
from penstock.reports import HostStatus
from tests.host.store.site import StoreSite
from tests.server.harness import eventually


@pytest.fixture
def site(tmp_path: Path) -> Iterator[StoreSite]:
    with StoreSite(tmp_path) as made:
        yield made


@pytest.fixture
def client(site: StoreSite) -> LocalDataPlaneClient:
    """Return a client that puts into the store, and partition "p"."""
    made = site.client()
    made.register_partition("p", ["x"], 8, ["train"])
    return made


def put(client: DataPlaneClient, *keys: str, timeout_s: float = 30.0) -> None:
    """Each row holds the number of its key's letter."""
    rows = torch.tensor([[ord(key[0])] * 4 for key in keys])
    client.put_samples(list(keys), "p", {"x": rows}, timeout_s=timeout_s)


def read(client: DataPlaneClient, *keys: str, timeout_s: float = 30.0) -> str:
    """The letters that the rows hold."""
    column = client.get_samples(list(keys), "p", ["x"], timeout_s=timeout_s)["x"]
    assert isinstance(column, torch.Tensor)
    return "".join(chr(row[0]) for row in column.tolist())


def lost(client: LocalDataPlaneClient) -> dict[str, int]:
    return client.audit("p").partitions[0].lost


def until_lost(client: LocalDataPlaneClient, number: int = 1) -> None:
    eventually("the loss is in the books", lambda: sum(lost(client).values()) == number)


# -- the way of a block -----------------------------------------------------------------------------------------------


def test_what_is_put_into_a_store_is_read_out_of_it(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """One block under one key, for any client of the plane; it is freed when its last row is trained."""
    reader = site.client(store="")
    put(client, "a", "b")
    assert len(site.keys()) == 1
    assert read(reader, "b", "a", "b") == "bab"
    reader.ack(reader.claim_meta("p", "train", ["x"], 2))
    site.until_empty()


def test_a_read_finds_every_row_wherever_it_lies(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """In the store and in the plane's own memory, side by side, in the order that was asked for."""
    local = site.client(store="")
    put(client, "a", "d")
    put(local, "b")
    put(client, "c")
    assert len(site.keys()) == 2
    for reader in (client, local):
        assert read(reader, "c", "b", "a", "d", "b") == "cbadb"


def test_a_read_verifies_the_block_whatever_the_store_has_verified(
    site: StoreSite, client: LocalDataPlaneClient
) -> None:
    """Damage is never served: it is told to the plane, whose agent finds it too; then the row is lost, by name."""
    put(client, "a")
    put(client, "b")
    key = site.keys()[0]
    value = bytearray(site.shelf._values[key])
    value[-1] ^= 1
    site.shelf._values[key] = bytes(value)
    with pytest.raises((CorruptPayload, DataPlaneReadError)) as caught:
        read(client, "a", "b")
    assert caught.value.keys == ["a"]
    until_lost(client)
    assert "damaged in the store" in str(lost(client))
    assert read(client, "b") == "b"


@pytest.mark.slow
def test_paranoid_puts_are_read_back(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """What came back other than it was sent is put anew, under another key, and the first is freed."""
    spoilt: list[str] = []

    def spoil(keys: Sequence[str]) -> None:
        if not spoilt:
            spoilt.extend(keys)
            value = bytearray(site.shelf._values[keys[0]])
            value[-1] ^= 1
            site.shelf._values[keys[0]] = bytes(value)

    site.faults.after_put = spoil
    paranoid = site.client(integrity="paranoid")
    put(paranoid, "a")
    assert spoilt
    assert read(client, "a") == "a"
    eventually("the damaged one is freed", lambda: len(site.keys()) == 1)


# -- the store fails --------------------------------------------------------------------------------------------------


def test_a_store_that_fails_for_a_while_is_waited_for(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """Puts and reads end as if nothing had happened; no row is lost."""
    put(client, "a")
    site.faults.down = True
    back = threading.Timer(0.7, lambda: setattr(site.faults, "down", False))
    back.start()
    put(client, "b")
    assert not site.faults.down
    site.faults.down = True
    back = threading.Timer(2.0, lambda: setattr(site.faults, "down", False))  # longer than eight tries would last
    back.start()
    assert read(client, "a", "b") == "ab"
    assert lost(client) == {}


def test_a_store_that_stays_away_ends_calls_within_their_deadlines(
    site: StoreSite, client: LocalDataPlaneClient
) -> None:
    """Typed, naming the rows and the store; with ``drop`` the rest is read."""
    put(client, "a")
    put(site.client(store=""), "b")
    site.faults.down = True
    for call in (lambda: put(client, "c", timeout_s=1.0), lambda: read(client, "a", timeout_s=1.0)):
        began = time.monotonic()
        with pytest.raises(DataPlaneUnavailable, match="memory://pool") as caught:
            call()
        assert time.monotonic() - began < 5.0
        assert caught.value.keys
    table, meta = client.get_samples(["a", "b"], "p", ["x"], on_failed="drop", timeout_s=5.0)
    assert meta.sample_ids == ["b"]
    assert len(table) == 1


def test_a_full_store_makes_producers_wait(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """Until their deadline, when the error says so; what is freed makes room for them."""
    site.faults.full = True
    with pytest.raises(DataPlaneFull, match="no room"):
        put(client, "a", timeout_s=0.5)
    threading.Timer(0.5, lambda: setattr(site.faults, "full", False)).start()
    put(client, "a")
    eventually("what came to nothing is freed", lambda: len(site.keys()) == 1)


def test_a_restarted_store_has_lost_its_rows_by_name(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """Those in the plane's own memory stay; the same clients put into its new life."""
    put(client, "a", "b")
    put(site.client(store=""), "c")
    before = site.place().life
    site.shelf.restart()
    until_lost(client, 2)
    assert lost(client) == {"store pool: the store does not have it any more": 2}
    with pytest.raises(DataPlaneError, match="lost") as caught:
        read(client, "a", "b", timeout_s=5.0)
    assert caught.value.keys == ["a", "b"]
    assert read(client, "c") == "c"
    put(client, "d")
    assert read(client, "d") == "d"
    eventually("it has another life", lambda: site.place().life > before)


def test_a_put_that_a_restart_overtakes_is_made_again(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """It was written before and would be committed after: the plane does not count what is not there."""
    life = site.place().life
    restarted: list[int] = []

    def restart(_: Sequence[str]) -> None:
        if not restarted:
            restarted.append(1)
            site.shelf.restart()
            eventually("the agent has noticed", lambda: site.place().life > life)

    site.faults.after_put = restart
    put(client, "a")
    assert restarted
    assert read(client, "a") == "a"
    assert lost(client) == {}


def test_a_block_that_the_store_has_lost_is_lost_by_name_at_its_first_read(
    site: StoreSite, client: LocalDataPlaneClient
) -> None:
    """The reader tells the plane, its agent looks; nobody waits for what will not come back."""
    put(client, "a")
    site.shelf.remove(site.keys()[0])
    began = time.monotonic()
    with pytest.raises(DataPlaneError) as caught:
        read(client, "a")
    assert time.monotonic() - began < 10.0
    assert caught.value.keys == ["a"]
    until_lost(client)


# -- others die -------------------------------------------------------------------------------------------------------


def test_rows_outlive_the_agent(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """Reads need none; a put in the middle ends; others wait for the next one, which frees what was trained."""
    put(client, "a", "b")
    site.faults.after_put = lambda _: site.end_agent()
    put(client, "c")
    assert site.host().state == "silent"
    site.faults.after_put = lambda _: None
    assert read(client, "a", "c") == "ac"
    client.ack(client.claim_meta("p", "train", ["x"], 3))
    assert len(site.keys()) == 2
    with pytest.raises(DataPlaneUnavailable, match="penstock store"):
        put(client, "d", timeout_s=0.5)
    life = site.place().life
    site.start_agent()
    site.until_empty()
    assert site.place().life == life
    put(client, "d")
    assert read(client, "d") == "d"


def test_a_plane_killed_in_the_middle_of_a_put_leaves_nothing_in_the_store(
    site: StoreSite, client: LocalDataPlaneClient
) -> None:
    """The put is made again in its next life, under another key; what the first one wrote is freed."""
    killed: list[str] = []

    def kill(keys: Sequence[str]) -> None:
        if not killed:
            killed.extend(keys)
            site.restart_plane()

    site.faults.after_put = kill
    put(client, "a")
    assert killed
    assert read(client, "a") == "a"
    eventually("what came to nothing is freed", lambda: len(site.keys()) == 1)
    assert site.keys() != killed
    assert lost(client) == {}


@pytest.mark.slow
def test_rows_trained_while_the_plane_died_are_freed_by_its_next_life(
    site: StoreSite, client: LocalDataPlaneClient
) -> None:
    """The plane remembers what it has not heard to be freed, whoever asks."""
    put(client, "a")
    put(client, "b")
    site.end_agent()
    client.ack(client.claim_meta("p", "train", ["x"], 1))
    site.restart_plane()
    site.start_agent()
    eventually("one is freed", lambda: len(site.keys()) == 1)
    assert read(client, "b") == "b"


def test_a_put_that_its_caller_leaves_is_freed(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """Ctrl-C between the store's answer and the commit."""

    def interrupt(_: Sequence[str]) -> None:
        raise KeyboardInterrupt

    site.faults.after_put = interrupt
    with pytest.raises(KeyboardInterrupt):
        put(client, "a")
    site.faults.after_put = lambda _: None
    put(client, "b")
    eventually("it is freed", lambda: len(site.keys()) == 1)
    assert read(client, "b") == "b"


def test_a_plane_that_forgets_its_rows_leaves_none_in_the_store_to_an_agent_that_lives(tmp_path: Path) -> None:
    """Durability ``memory``: the agent frees what the next life does not know."""
    with StoreSite(tmp_path, durability="memory") as site:
        client = site.client()
        client.register_partition("p", ["x"], 8, ["train"])
        put(client, "a")
        put(client, "b")
        client.evict(["b"], "p")
        eventually("the agent has heard of both", lambda: len(site.keys()) == 1)
        site.restart_plane(durability="memory")
        site.until_empty()
        again = site.client()
        again.register_partition("p", ["x"], 8, ["train"])
        put(again, "a")
        assert read(again, "a") == "a"


# -- the client's side ------------------------------------------------------------------------------------------------


def test_a_store_that_nobody_has_enlisted_is_waited_for_and_named(tmp_path: Path) -> None:
    """The message says how it is started; once it is, puts go on."""
    with StoreSite(tmp_path, agent=False) as site:
        client = site.client()
        client.register_partition("p", ["x"], 8, ["train"])
        with pytest.raises(DataPlaneUnavailable, match="penstock store --store memory://"):
            put(client, "a", timeout_s=0.5)
        starting = threading.Timer(0.3, site.start_agent)
        starting.start()
        put(client, "a")
        starting.join()
        assert read(client, "a") == "a"


def test_a_client_without_the_stores_library_says_what_to_install(
    site: StoreSite, client: LocalDataPlaneClient
) -> None:
    """A put at once; a read too, naming the rows: waiting installs nothing."""
    put(client, "a")
    bare = site.client()

    def missing(_: str) -> BlockStore:
        raise MissingExtra("install it with: pip install 'penstock[mooncake]'")

    bare._stores._opened = missing
    with pytest.raises(MissingExtra):
        put(bare, "b")
    with pytest.raises(DataPlaneReadError, match="pip install") as caught:
        read(bare, "a")
    assert caught.value.keys == ["a"]


def test_no_call_waits_for_a_store_that_does_not_open(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """Beyond its deadline; whoever comes later finds it open, and it was opened once."""
    put(client, "a")
    opened: list[str] = []
    gate = threading.Event()

    def slowly(url: str) -> BlockStore:
        opened.append(url)
        gate.wait(30.0)
        return site.opened(url)

    late = site.client()
    late._stores._opened = slowly
    for call in (lambda: put(late, "b", timeout_s=0.5), lambda: read(late, "a", timeout_s=0.5)):
        began = time.monotonic()
        with pytest.raises(DataPlaneUnavailable, match="has not answered"):
            call()
        assert time.monotonic() - began < 5.0
    gate.set()
    assert read(late, "a") == "a"
    assert opened == ["memory://pool"]


def test_a_closed_client_waits_for_no_store(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """A put under way ends, typed; later calls too."""
    site.faults.down = True
    closing = threading.Timer(0.3, client.close)
    closing.start()
    with pytest.raises(DataPlaneUnavailable):
        put(client, "a")
    closing.join()
    with pytest.raises(DataPlaneUnavailable, match="closed"):
        put(client, "a")
    assert "closed" in repr(client._stores)


def test_a_client_does_not_keep_copies_that_the_agent_does_not_know_of() -> None:
    """They would never be freed, and a block whose first copy died would be called lost while another was there."""
    hosts = [_status(1, "mooncake://a:1?metrics=a:2")]
    with pytest.raises(BadArgument, match=r"replicas=1.*replicas=2"):
        choose("mooncake://a:1?replicas=2", hosts)
    assert choose("mooncake://a:1?replicas=1&local_buffer=1GiB", hosts) == hosts[0].place
    two = [_status(1, "mooncake://a:1?replicas=2")]
    assert choose("mooncake", two) == choose("mooncake://a:1?replicas=2", two) == two[0].place
    with pytest.raises(BadArgument, match="replicas"):
        choose("mooncake://a:1", two)


def test_a_forked_child_leaves_the_stores_to_its_parent(site: StoreSite, client: LocalDataPlaneClient) -> None:
    """Closing one there would close the parent's; and a thread of the parent's may have held the lock."""
    put(client, "a")
    (opening,) = client._stores._stores.values()
    with client._stores._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            client._stores.close(1.0)
            os._exit(2 if "closed" in repr(opening.outcome.result()) else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read(client, "a") == "a"


def _status(number: int, url: str, state: str = "up") -> HostStatus:
    place = HostPlace(number, 1, "", "a", [], store=url)
    return HostStatus(place=place, state=state, silent_s=0.0, blocks=0, nbytes=0)


def test_a_store_is_chosen_by_its_kind_or_its_url() -> None:
    """One that is up goes before one that is silent; settings of a URL are the client's own; two are too many."""
    machine = HostStatus(place=HostPlace(1, 1, "m", "a", [1]), state="up", silent_s=0.0, blocks=0, nbytes=0)
    one, two = _status(2, "mooncake://a:1?replicas=2"), _status(3, "mooncake://b:1", "silent")
    assert choose("mooncake", [machine, one, two]).host_id == 2
    assert choose("mooncake://b:1?local_buffer=1GiB", [machine, one, two]).host_id == 3
    with pytest.raises(DataPlaneUnavailable, match="no store 'redis'"):
        choose("redis", [machine, one])
    with pytest.raises(BadArgument, match="several"):
        choose("mooncake", [one, _status(3, "mooncake://b:1")])
