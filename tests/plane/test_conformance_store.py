"""A client that puts into a store keeps the contract: a real plane, an agent, and a store in memory, or Mooncake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from penstock.config import ClientConfig
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.testing.conformance import ConformanceSuite
from penstock.testing.mooncake import MooncakeCluster
from tests.host.store.site import StoreSite
from tests.server.harness import PlaneProcess


def live_bytes(client: DataPlaneClient) -> int:
    """The payload bytes that the plane says it holds."""
    assert isinstance(client, LocalDataPlaneClient)
    return client.status().live_bytes


class TestStore(ConformanceSuite):
    """Every block goes into the store, and comes out of it."""

    shares_plane = True
    measure_bytes = staticmethod(live_bytes)
    site: ClassVar[StoreSite]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_site(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """One plane, and the agent of its store, for all cases."""
        with StoreSite(tmp_path_factory.mktemp("site")) as cls.site:
            yield

    def make_client(self) -> DataPlaneClient:
        return self.site.client()

    def test_blocks_did_go_through_the_store(self) -> None:
        """The cases before this one put into it."""
        assert self.site.faults.puts > 50


@pytest.mark.slow
class TestMooncake(ConformanceSuite):
    """The same over a real one."""

    shares_plane = True
    measure_bytes = staticmethod(live_bytes)
    plane: ClassVar[PlaneProcess]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_plane(cls, mooncake: MooncakeCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with PlaneProcess(tmp_path_factory.mktemp("site") / "plane", store=mooncake.url) as cls.plane:
            yield

    def make_client(self) -> DataPlaneClient:
        config = ClientConfig(timeout_s=40.0, store="mooncake")
        return LocalDataPlaneClient(self.plane.data_dir, config=config, start=False)
