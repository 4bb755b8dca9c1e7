"""The async facade keeps the contract over the local adapter: real plane, real threads, every case by coroutine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.testing.conformance import ConformanceSuite
from penstock.testing.sync_over_async import BackgroundLoop, Driver, SyncOverAsync
from tests.plane.test_conformance_local import QUICK, live_bytes


def live_bytes_within(client: DataPlaneClient) -> int:
    """The payload bytes that the plane of the inner client says it holds."""
    assert isinstance(client, Driver)
    return live_bytes(client.facade.inner)


class TestAsyncOverLocal(ConformanceSuite):
    shares_plane = True
    measure_bytes = staticmethod(live_bytes_within)
    directory: ClassVar[Path]
    loop: ClassVar[BackgroundLoop]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_plane(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """One plane and one loop for all cases: the plane's first client keeps it from ending in between."""
        cls.directory = tmp_path_factory.mktemp("plane")
        with LocalDataPlaneClient(cls.directory, plane=QUICK), BackgroundLoop() as cls.loop:
            yield

    def make_client(self) -> DataPlaneClient:
        return SyncOverAsync(AsyncDataPlaneClient(LocalDataPlaneClient(self.directory, plane=QUICK)), self.loop)
