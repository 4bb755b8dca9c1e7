"""Real TransferQueues on the session's Ray, as the tests start and end them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from penstock.config import ClientConfig, PlaneConfig
from penstock.plane.contract import DataPlaneClient
from penstock.plane.transfer_queue import library
from penstock.plane.transfer_queue.client import TransferQueueDataPlaneClient
from penstock.retry import Deadline
from tests.leaks import wait_for
from tests.ray_cluster import TRANSFER_QUEUE, RayCluster

SETTINGS: dict[str, Any] = {"backend": {"SimpleStorage": {"num_data_storage_units": 2}}}


class Queue:
    """One running TransferQueue."""

    def __init__(self) -> None:
        self.queue = library.start("", SETTINGS, Deadline(60.0))

    def client(self, plane: PlaneConfig | None = None, **options: Any) -> TransferQueueDataPlaneClient:
        return TransferQueueDataPlaneClient(self.queue, ClientConfig(**options), plane)

    def kill_controller(self) -> None:
        _kill(self.queue.controller)

    def kill_unit(self, index: int = 0) -> None:
        _kill(_units()[index])

    @contextmanager
    def stopped_unit(self, index: int = 0) -> Iterator[None]:
        """Stop the process of one storage unit: it takes connections and never answers."""
        import ray

        pid = ray.get(_units()[index].__ray_call__.remote(_pid), timeout=30)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def ports(self) -> list[tuple[str, int]]:
        """Where controller and storage units listen for requests."""
        config = self.queue.config
        infos = [(config.controller.zmq_info, "request_handle_socket")]
        infos += [(info, "put_get_socket") for info in config.backend.SimpleStorage.zmq_info.values()]
        return [(info.ip, info.ports[name]) for info, name in infos]


def stored_bytes(client: DataPlaneClient) -> int:
    """The bytes of all rows in the storage units, as these say."""
    assert isinstance(client, TransferQueueDataPlaneClient)
    import ray

    return sum(ray.get([unit.__ray_call__.remote(_held_bytes) for unit in _units()], timeout=30))


def _units() -> list[Any]:
    """The storage units' actors; only the process that started them has their handles."""
    from transfer_queue import interface

    return list(interface._TQ_STORAGE["SimpleStorage"].values())


def _kill(actor: Any) -> None:
    """Kill an actor and wait until its process has gone."""
    import ray

    pid = ray.get(actor.__ray_call__.remote(_pid), timeout=30)
    ray.kill(actor)
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def _pid(_: Any) -> int:
    return os.getpid()


def _held_bytes(unit: Any) -> int:
    """Runs in a storage unit: the memory that its values hold, which may be more than they are."""
    columns = unit.storage_data.field_data.values()
    storages = [value.untyped_storage() for column in columns for value in column.values()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


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
