"""A plane on a real Mooncake: what is killed, and what of the rows outlives it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import penstock
from penstock.config import ClientConfig
from penstock.errors import DataPlaneError
from penstock.payload.stores.opening import open_store
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.retry import Deadline
from penstock.testing.mooncake import MooncakeCluster
from tests.mooncake_fixture import StartMooncake
from tests.server.harness import PlaneProcess, eventually

ROWS = 16
KEYS = [f"k{i}" for i in range(ROWS)]


def put(client: DataPlaneClient, keys: list[str], width: int = 4096) -> None:
    rows = torch.tensor([int(key[1:]) for key in keys]).view(-1, 1).expand(-1, width)
    client.put_samples(keys, "p", {"x": rows})


def read(client: DataPlaneClient, keys: list[str]) -> list[int]:
    column = client.get_samples(keys, "p", ["x"])["x"]
    assert isinstance(column, torch.Tensor)
    assert bool((column == column[:, :1]).all())
    return [int(value) for value in column[:, 0]]


def lost(client: LocalDataPlaneClient) -> int:
    return sum(client.audit("p").partitions[0].lost.values())


def agent_of(client: LocalDataPlaneClient) -> int:
    """The process of the store's agent; 0 = none is in session."""
    return next((session.pid for session in client.status().sessions if session.role == "store"), 0)


def is_up(client: LocalDataPlaneClient) -> bool:
    return any(host.place.store and host.state == "up" for host in client.status().hosts)


class Yard:
    """A cluster of its own, a plane with its agent, a client that puts into the store."""

    def __init__(self, folder: Path, cluster: MooncakeCluster) -> None:
        self.cluster = cluster
        self.plane = PlaneProcess(folder, store=cluster.url)
        self.client = self.connect()
        self.client.register_partition("p", ["x"], ROWS, ["train"])
        self.until_up()
        self.empty = self.used()  # what the store's clients keep there for themselves

    def connect(self, store: str = "mooncake") -> LocalDataPlaneClient:
        return LocalDataPlaneClient(self.plane.data_dir, config=ClientConfig(timeout_s=60.0, store=store), start=False)

    def used(self) -> float:
        """Bytes of the store that are taken."""
        return self.cluster.metric("master_allocated_bytes")

    def until_up(self) -> None:
        eventually("the agent is enlisted", lambda: is_up(self.client))

    def restart_plane(self) -> None:
        self.plane.kill()
        self.plane = PlaneProcess(self.plane.data_dir, store=self.cluster.url)


@pytest.fixture
def yard(tmp_path: Path, mooncakes: StartMooncake) -> Iterator[Yard]:
    made = Yard(tmp_path / "plane", mooncakes(client_ttl_s=2))
    yield made
    made.client.close()
    made.plane.__exit__()


def test_connect_starts_a_plane_on_a_store(mooncake: MooncakeCluster) -> None:
    """One line; a private plane, its agent, and what lay in the store are gone with the client."""
    with open_store(mooncake.url) as store:  # whoever is the first leaves something there for all the others
        store.life(Deadline(30.0))
    before = mooncake.metric("master_key_count")
    with penstock.connect("local", store=mooncake.url, timeout_s=60.0, linger_s=0.1) as client:
        client.register_partition("p", ["x"], ROWS, ["train"])
        put(client, KEYS)
        claimed = client.claim_meta("p", "train", ["x"], ROWS // 2)
        assert read(client, claimed.sample_ids) == list(range(ROWS // 2))
        client.ack(claimed)
        assert mooncake.metric("master_key_count") > before
    eventually("nothing is left in the store", lambda: mooncake.metric("master_key_count") <= before)


@pytest.mark.slow
def test_rows_outlive_agent_and_plane(yard: Yard) -> None:
    """Both are killed, in turn and together; what is trained meanwhile is freed by their next lives."""
    put(yard.client, KEYS[:8])
    os.kill(agent_of(yard.client), signal.SIGKILL)
    put(yard.client, KEYS[8:])
    yard.until_up()
    yard.restart_plane()
    assert read(yard.client, KEYS) == list(range(ROWS))
    other = yard.connect(store="")
    try:
        assert read(other, KEYS[::-1]) == list(range(ROWS))[::-1]
    finally:
        other.close()
    yard.until_up()
    assert yard.used() > yard.empty
    yard.client.ack(yard.client.claim_meta("p", "train", ["x"], ROWS))
    os.kill(agent_of(yard.client), signal.SIGKILL)
    eventually("everything is freed", lambda: yard.used() <= yard.empty)
    assert lost(yard.client) == 0


def test_a_restarted_master_has_lost_the_rows_by_name(yard: Yard) -> None:
    """One event for plane and clients; then puts go into the store's new life."""
    put(yard.client, KEYS)
    yard.cluster.kill_master()
    yard.cluster.restart_master()
    eventually("the loss is in the books", lambda: lost(yard.client) == ROWS)
    with pytest.raises(DataPlaneError) as caught:
        read(yard.client, KEYS)
    assert caught.value.keys == KEYS
    put(yard.client, ["k99"])
    assert read(yard.client, ["k99"]) == [99]
    assert lost(yard.client) == ROWS


@pytest.mark.slow
def test_a_dead_owner_takes_its_blocks_with_it_and_no_others(yard: Yard) -> None:
    """Of two: the rows of one are lost by name, those of the other are read on; the books balance."""
    yard.cluster.start_owner()
    for key in KEYS:
        put(yard.client, [key])
    yard.cluster.kill_owner(0)
    eventually("the loss is in the books", lambda: lost(yard.client) > 0)
    eventually("it is complete", lambda: len(_readable(yard.client)) == ROWS - lost(yard.client))
    kept = _readable(yard.client)
    assert 0 < len(kept) < ROWS
    assert read(yard.client, kept) == [int(key[1:]) for key in kept]
    assert yard.client.audit("p").residue == 0


def _readable(client: LocalDataPlaneClient) -> list[str]:
    _, meta = client.get_samples(KEYS, "p", ["x"], on_failed="drop", timeout_s=20.0)
    return list(meta.sample_ids)
