"""The adapter onto a real TransferQueue keeps the contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from penstock.plane.contract import DataPlaneClient
from penstock.testing.conformance import ConformanceSuite
from tests.plane.transfer_queue.queues import Queue, running
from tests.ray_cluster import RayCluster


class TestTransferQueue(ConformanceSuite):
    shares_plane = True
    queue: ClassVar[Queue]

    @pytest.fixture(scope="class", autouse=True)
    def _running(self, ray_cluster: RayCluster) -> Iterator[None]:
        with running(ray_cluster) as queue:
            type(self).queue = queue
            yield

    def make_client(self) -> DataPlaneClient:
        return self.queue.client()
