"""One TransferQueue for this folder's tests: the suite runs on it, then the fault tests take it apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.plane.transfer_queue.queues import Queue, running
from tests.ray_cluster import RayCluster


@pytest.fixture(scope="package")
def queue(ray_cluster: RayCluster) -> Iterator[Queue]:
    with running(ray_cluster) as queue:
        yield queue
