"""The calls of Mooncake Store that we use, as an interface: the installed library behind it, or a twin in tests.

Only calls with one code per key are here. The byte getters are not: they answer ``b""`` to everything that goes wrong.
Nor is ``put``: it answers 0 for a key that is there and writes nothing.
Invariants: nothing is imported before ``installed()``; addresses given to a client are of memory registered with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from penstock.errors import MissingExtra

__all__ = ["BufferDescriptor", "Client", "Library", "MemoryDescriptor", "ReplicaDescriptor", "Status", "installed"]


class Status(Protocol):
    @property
    def name(self) -> str: ...  # "COMPLETE" when it may be read


class BufferDescriptor(Protocol):
    @property
    def size(self) -> int: ...
    @property
    def transport_endpoint(self) -> str: ...  # host:port of the segment's owner, which is the segment's name


class MemoryDescriptor(Protocol):
    @property
    def buffer_descriptor(self) -> BufferDescriptor: ...


class ReplicaDescriptor(Protocol):
    """Where one replica of a key lies."""

    @property
    def status(self) -> Status: ...
    def is_memory_replica(self) -> bool: ...
    def get_memory_descriptor(self) -> MemoryDescriptor: ...


class Client(Protocol):
    """One connection to a store: ``MooncakeDistributedStore``. Codes are 0, a length, or negative: see ``codes``."""

    def setup(
        self,
        local_hostname: str,
        metadata_server: str,
        global_segment_size: int,
        local_buffer_size: int,
        protocol: str,
        rdma_devices: str,
        master_server_addr: str,
        /,
    ) -> int: ...

    def get_hostname(self) -> str: ...

    def register_buffer(self, buffer_ptr: int, size: int, /) -> int: ...

    def unregister_buffer(self, buffer_ptr: int, /) -> int: ...

    def batch_upsert_from(self, keys: list[str], ptrs: list[int], sizes: list[int], config: Any, /) -> list[int]: ...

    def batch_put_from(self, keys: list[str], ptrs: list[int], sizes: list[int], config: Any, /) -> list[int]: ...

    def batch_get_replica_desc(self, keys: list[str], /) -> dict[str, list[Any]]:
        """Replicas by key (``ReplicaDescriptor``); a key that is missing, or could not be asked for, is left out."""
        ...

    def batch_get_into(self, keys: list[str], ptrs: list[int], sizes: list[int], /) -> list[int]: ...

    def batch_is_exist(self, keys: list[str], /) -> list[int]: ...

    def batch_remove(self, keys: list[str], force: bool, /) -> list[int]: ...

    def close(self) -> int: ...


class Library(Protocol):
    """What is imported: how clients and their write configurations are made."""

    def client(self) -> Client:
        """Return a client that is not connected yet."""
        ...

    def write_config(self, preferred_segment: str) -> Any:
        """Return the configuration of a write: one hard-pinned replica, in that segment if it has room ("" = any)."""
        ...


class _Installed:
    """The installed wheel."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def client(self) -> Client:
        client: Client = self._module.MooncakeDistributedStore()
        return client

    def write_config(self, preferred_segment: str) -> Any:
        config = self._module.ReplicateConfig()
        config.replica_num = 1
        config.with_hard_pin = True  # the default lets the master evict in silence
        config.preferred_segment = preferred_segment
        return config


def installed() -> Library:
    """Return the installed library.

    Raises:
        MissingExtra: it is not installed, or a system library that it needs is not.
    """
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")  # else it prints 17 lines for each client that all went well
    try:
        import mooncake.store as module
    except ImportError as error:
        raise MissingExtra(
            f"Mooncake Store cannot be imported ({error}): pip install 'penstock[mooncake]', and of the system the "
            "Debian packages libibverbs1 libnuma1 libcurl4"
        ) from error
    return _Installed(module)


def segment_of(replicas: Sequence[Any]) -> str:
    """Return the segment of the first replica in memory, "" if there is none."""
    for replica in replicas:
        if replica.is_memory_replica():
            return str(replica.get_memory_descriptor().buffer_descriptor.transport_endpoint)
    return ""
