"""Real TransferQueues on the session's Ray, as the tests start and end them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from penstock.config import ClientConfig, PlaneConfig
from penstock.plane.transfer_queue import library
from penstock.plane.transfer_queue.client import TransferQueueDataPlaneClient
from penstock.retry import Deadline
from tests.ray_cluster import TRANSFER_QUEUE, RayCluster

SETTINGS: dict[str, Any] = {"backend": {"SimpleStorage": {"num_data_storage_units": 2}}}


class Queue:
    """One running TransferQueue."""

    def __init__(self) -> None:
        self.queue = library.start("", SETTINGS, Deadline(60.0))

    def client(self, plane: PlaneConfig | None = None, **options: Any) -> TransferQueueDataPlaneClient:
        return TransferQueueDataPlaneClient(self.queue, ClientConfig(**options), plane)

    def kill_controller(self) -> None:
        import ray

        ray.kill(self.queue.controller)

    def kill_unit(self, index: int = 0) -> None:
        """Kill one storage unit; only the process that started it has its handle."""
        import ray
        from transfer_queue import interface

        ray.kill(list(interface._TQ_STORAGE["SimpleStorage"].values())[index])


@contextmanager
def running(ray_cluster: RayCluster) -> Iterator[Queue]:
    """A fresh TransferQueue; nothing of it, nor of its registrars, is left behind."""
    import transfer_queue

    try:
        yield Queue()
    finally:
        with suppress(RuntimeError):
            transfer_queue.close()
        ray_cluster.end_actors(TRANSFER_QUEUE)
