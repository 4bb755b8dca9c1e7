"""TransferQueue here, without Ray: its real controller on its real sockets, and clients on a memory store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from tensordict import TensorDict
from transfer_queue.client import TransferQueueClient
from transfer_queue.controller import TransferQueueController
from transfer_queue.metadata import BatchMeta
from transfer_queue.storage.clients.base import StorageClientFactory
from transfer_queue.storage.managers.base import StorageManagerFactory

from penstock.compat.transfer_queue_storage import MooncakeOptions
from penstock.compat.transfer_queue_storage.blocks import StoreBlocks
from penstock.compat.transfer_queue_storage.clients import ValueClient
from penstock.compat.transfer_queue_storage.frames import Pieces
from penstock.compat.transfer_queue_storage.managers import ValueManager
from penstock.payload.stores.memory import MemoryStore, Shelf
from penstock.retry import Deadline

NAMESPACE = "tq-test"


class Controller(TransferQueueController.__ray_metadata__.modified_class):  # type: ignore[misc]
    """The real one; ``answering`` cleared, it takes requests and says nothing, as one that hangs."""

    def __init__(self) -> None:
        self.answering = threading.Event()
        self.answering.set()
        super().__init__(polling_mode=True)

    def _handle_request(self, *given: Any) -> Any:
        self.answering.wait(20.0)
        return super()._handle_request(*given)


class WatchedBlocks(StoreBlocks):
    """A store whose next calls a test can watch or fail."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(MemoryStore(shelf))
        self.before_get: Callable[[], None] = lambda: None
        self.before_remove: Callable[[], None] = lambda: None

    def get(self, names: Sequence[str], sizes: Sequence[int], deadline: Deadline) -> list[memoryview]:
        self.before_get()
        return super().get(names, sizes, deadline)

    def remove(self, names: Sequence[str], deadline: Deadline) -> None:
        self.before_remove()
        super().remove(names, deadline)

    def put(self, names: Sequence[str], values: Sequence[Pieces], deadline: Deadline) -> None:
        super().put(names, values, deadline)


class Site:
    """One controller, one shelf, clients of both."""

    def __init__(self, capacity_bytes: int = 1 << 24) -> None:
        self.shelf = Shelf(capacity_bytes)
        self.controller = Controller()
        self._clients: list[TransferQueueClient] = []
        self._partitions = 0
        self._merging = ThreadPoolExecutor(2)

    def client(self, **options: Any) -> TransferQueueClient:
        """A client of its own, as another process has one."""
        shelf, merging = self.shelf, self._merging

        class Client(ValueClient):
            def __init__(self, config: Any) -> None:
                super().__init__(config, WatchedBlocks(shelf), NAMESPACE, config["timeout_s"])

        class Manager(ValueManager):
            client_name = "TestValues"
            options = MooncakeOptions

            def _get_executor(self) -> ThreadPoolExecutor:  # the package's asks Ray, which would start itself
                return merging

        StorageClientFactory.register("TestValues")(Client)
        StorageManagerFactory.register("TestValues")(Manager)
        client = TransferQueueClient(f"client{len(self._clients)}", self.controller.zmq_server_info)
        client.initialize_storage_manager("TestValues", {"timeout_s": 5.0} | options)
        self._clients.append(client)
        return client

    def partition(self) -> str:
        self._partitions += 1
        return f"partition{self._partitions}"

    @contextlib.contextmanager
    def silent_controller(self) -> Iterator[None]:
        self.controller.answering.clear()
        try:
            yield
        finally:
            self.controller.answering.set()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._merging.shutdown()


def rows(count: int = 2, value: float = 1.0, fields: Sequence[str] = ("a", "b")) -> TensorDict:
    """Columns of ``count`` rows."""
    return TensorDict({field: torch.full((count, 3), value) for field in fields}, batch_size=count)


def blocks_of(client: TransferQueueClient) -> WatchedBlocks:
    blocks = client.storage_manager.storage_client._blocks
    assert isinstance(blocks, WatchedBlocks)
    return blocks


def fetched(client: TransferQueueClient, partition: str, fields: Sequence[str] = ("a", "b")) -> BatchMeta:
    """All rows of a partition, as the controller names them now."""
    return client.get_meta(list(fields), 1, partition, mode="force_fetch")


def column(client: TransferQueueClient, meta: BatchMeta, field: str) -> list[float]:
    """The first number of every row."""
    return [float(row[0]) for row in client.get_data(meta.select_fields([field]))[field]]
