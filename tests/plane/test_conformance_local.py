"""The local adapter keeps the contract: real plane process, real shared memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
    directory: ClassVar[str]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def one_plane(cls) -> Iterator[None]:
        """One plane for all cases: its first client keeps it from ending in between."""
        with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
            cls.directory = directory
            with LocalDataPlaneClient(directory, plane=QUICK):
                yield

    def make_client(self) -> DataPlaneClient:
        return LocalDataPlaneClient(self.directory, plane=QUICK)
