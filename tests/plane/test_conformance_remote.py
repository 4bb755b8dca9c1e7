"""The client of several hosts keeps the contract: a real plane, real agents, reads of this host and of another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient
from penstock.plane.remote import RemoteDataPlaneClient
from penstock.testing.conformance import ConformanceSuite
from penstock.testing.sync_over_async import BackgroundLoop, Driver, SyncOverAsync

from .sites import Site


def live_bytes(client: DataPlaneClient) -> int:
    """The payload bytes that the plane says it holds."""
    assert isinstance(client, RemoteDataPlaneClient)
    return client.status().live_bytes


def live_bytes_within(client: DataPlaneClient) -> int:
    """The same of the inner client."""
    assert isinstance(client, Driver)
    return live_bytes(client.facade.inner)


class TestOneHost(ConformanceSuite):
    """All clients on one host: what they read are views of its memory."""

    shares_plane = True
    measure_bytes = staticmethod(live_bytes)
    site: ClassVar[Site]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_site(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """One plane, and the agents of its hosts, for all cases."""
        with Site(tmp_path_factory.mktemp("site")) as cls.site:
            yield

    def make_client(self) -> DataPlaneClient:
        return RemoteDataPlaneClient(self.site.plane.url, self.site.token, host_dir=self.site.folder / "a")


class FarReader(RemoteDataPlaneClient):
    """Puts on one host and reads on the other, so that every block it reads comes through the transport."""

    fetched: ClassVar[int] = 0

    def __init__(self, url: str, token: bytes, here: Path, there: Path) -> None:
        self._there = RemoteDataPlaneClient(url, token, host_dir=there)
        super().__init__(url, token, host_dir=here)
        self._reads = self._there._reads

    def close(self, *, timeout_s: float | None = None) -> None:
        FarReader.fetched += self._there.transport_statistics().blocks
        self._there.close(timeout_s=timeout_s)
        super().close(timeout_s=timeout_s)


class TestTwoHosts(TestOneHost):
    """What any client puts it reads, as all others do, from the other side of the transport."""

    def make_client(self) -> DataPlaneClient:
        return FarReader(self.site.plane.url, self.site.token, self.site.folder / "a", self.site.folder / "b")

    def test_reads_did_cross(self) -> None:
        """The cases before this one fetched their rows."""
        assert FarReader.fetched > 100


@pytest.mark.slow
class TestAsync(TestTwoHosts):
    """The asyncio facade over it needs to know nothing of hosts."""

    measure_bytes = staticmethod(live_bytes_within)
    loop: ClassVar[BackgroundLoop]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_loop(cls) -> Iterator[None]:
        """One event loop for all cases."""
        with BackgroundLoop() as cls.loop:
            yield

    def make_client(self) -> DataPlaneClient:
        return SyncOverAsync(AsyncDataPlaneClient(super().make_client()), self.loop)
