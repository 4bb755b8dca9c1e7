"""A plane of several hosts, one of which is a store: what lies there is read from anywhere, without any agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from penstock.errors import BadArgument
from penstock.host.store.lifecycle import StoreOptions
from penstock.payload.stores.contract import BlockStore
from penstock.payload.stores.memory import MemoryStore, Shelf
from penstock.plane.connect import connect
from penstock.plane.contract import DataPlaneClient
from penstock.plane.remote import RemoteDataPlaneClient
from tests.host.store.site import InThread
from tests.plane.sites import Site
from tests.server.harness import eventually

URL = "memory://pool"


class Yard:
    """A plane, hosts "a" and "b", and a store in this process's memory."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf(name="pool")
        self.site = Site(folder, hosts="a")
        plane = self.site.plane
        options = StoreOptions(store=URL, plane=plane.url, token_file=plane.token_file, name="pool")
        self.agent = InThread(options, self.opened)
        assert self.agent.said.startswith("ready"), self.agent.said

    def opened(self, _: str) -> BlockStore:
        return MemoryStore(self.shelf)

    def client(self, host: str = "a", **config: object) -> RemoteDataPlaneClient:
        made = self.site.client(host, **config)
        made._stores._opened = self.opened
        return made

    def close(self) -> None:
        self.agent.end()
        self.site.__exit__(None, None, None)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.close()


def put(client: RemoteDataPlaneClient, *keys: str) -> None:
    client.put_samples(list(keys), "p", {"x": torch.tensor([[ord(key)] * 4 for key in keys])})


def read(client: DataPlaneClient, *keys: str) -> str:
    column = client.get_samples(list(keys), "p", ["x"])["x"]
    assert isinstance(column, torch.Tensor)
    return "".join(chr(row[0]) for row in column.tolist())


def test_puts_go_into_the_store_from_a_machine_without_an_agent(yard: Yard) -> None:
    """And are read beside those that lie on hosts, in one read, from a machine that has one."""
    bare = yard.client("nowhere", store="memory")
    there = yard.client("a")
    bare.register_partition("p", ["x"], 8, ["train"])
    put(bare, "a", "b")
    put(there, "c")
    assert len(yard.shelf) == 1
    assert read(there, "c", "b", "a") == "cba"
    assert read(bare, "c", "a") == "ca"
    there.ack(there.claim_meta("p", "train", ["x"], 3))
    eventually("the store is empty", lambda: len(yard.shelf) == 0)


def test_a_clients_store_is_no_plane_option(yard: Yard) -> None:
    """``connect`` takes it for clients of a plane elsewhere; replicas are the store's own."""
    plane = yard.site.plane
    with connect(plane.url, token_file=plane.token_file, store="memory", timeout_s=30.0) as client:
        assert client.list_metadata("p") == []
    with pytest.raises(BadArgument, match="replicas"):
        connect(plane.url, token_file=plane.token_file, store="memory", replicas=2)
    with pytest.raises(BadArgument, match="noop"):
        connect("noop", store="memory")
