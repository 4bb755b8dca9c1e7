"""The local adapter keeps the contract: real plane process, real shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from penstock.config import PlaneConfig
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.testing.conformance import ConformanceSuite

QUICK = PlaneConfig(linger_s=0.2)


def live_bytes(client: DataPlaneClient) -> int:
    """The payload bytes that the plane says it holds."""
    assert isinstance(client, LocalDataPlaneClient)
    return client.status().live_bytes


class TestLocal(ConformanceSuite):
    shares_plane = True
    measure_bytes = staticmethod(live_bytes)
    directory: ClassVar[Path]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_plane(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """One plane for all cases: its first client keeps it from ending in between."""
        cls.directory = tmp_path_factory.mktemp("plane")
        with LocalDataPlaneClient(cls.directory, plane=QUICK):
            yield

    def make_client(self) -> DataPlaneClient:
        return LocalDataPlaneClient(self.directory, plane=QUICK)
