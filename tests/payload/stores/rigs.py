"""A Mooncake to see quirks on: the real one and the twin, behind one face, in the library's own words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from penstock.payload.stores.mooncake.library import Library, installed
from penstock.testing.fake_mooncake import FakeMooncake
from penstock.testing.mooncake import MooncakeCluster
from tests.leaks import wait_for

MIB = 1 << 20


class Rig(Protocol):
    @property
    def library(self) -> Library: ...
    def connect(self, local_buffer: int = 16 * MIB) -> Any: ...
    def board(self, client: Any, pieces: int = 8, nbytes: int = 4096) -> Board: ...
    def segments(self) -> list[str]: ...
    def owner(self, number: int) -> str: ...
    def kill_owner(self, number: int) -> None: ...
    def until_unmounted(self, segment: str) -> None: ...
    def kill_master(self) -> None: ...
    def restart_master(self) -> None: ...


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeRig:
    fake: FakeMooncake
    clock: Clock

    @property
    def library(self) -> Library:
        return self.fake

    def connect(self, local_buffer: int = 16 * MIB) -> Any:
        client = self.fake.client()
        assert client.setup("host", "metadata", 0, local_buffer, "tcp", "", self.fake.config().master) == 0
        return client

    def board(self, client: Any, pieces: int = 8, nbytes: int = 4096) -> Board:
        return Board(client, pieces, nbytes)

    def segments(self) -> list[str]:
        return self.fake.segments()

    def owner(self, number: int) -> str:
        return f"owner:{number + 1}"

    def kill_owner(self, number: int) -> None:
        self.fake.kill_owner(self.owner(number))

    def until_unmounted(self, segment: str) -> None:
        self.clock.now += self.fake.master.client_ttl_s

    def kill_master(self) -> None:
        self.fake.kill_master()

    def restart_master(self) -> None:
        self.fake.restart_master()


@dataclass
class RealRig:
    cluster: MooncakeCluster
    library: Library = field(default_factory=installed)
    _clients: dict[int, Any] = field(default_factory=dict)
    _boards: list[Board] = field(default_factory=list)

    def connect(self, local_buffer: int = 16 * MIB) -> Any:
        """One client for all who want a local buffer of this size."""
        if local_buffer not in self._clients:
            client = self._clients[local_buffer] = self.library.client()
            address = self.cluster.metadata_url, self.cluster.master_address
            assert client.setup("127.0.0.1", address[0], 0, local_buffer, "tcp", "", address[1]) == 0
        return self._clients[local_buffer]

    def board(self, client: Any, pieces: int = 8, nbytes: int = 4096) -> Board:
        board = Board(client, pieces, nbytes)
        self._boards.append(board)
        return board

    def forget_boards(self) -> None:
        """Unregister memory, before the next test gets it again."""
        for board in self._boards:
            board.close()
        self._boards.clear()

    def segments(self) -> list[str]:
        return self.cluster.segments()

    def owner(self, number: int) -> str:
        return self.cluster.owners[number].segment

    def kill_owner(self, number: int) -> None:
        self.cluster.kill_owner(number)

    def until_unmounted(self, segment: str) -> None:
        wait_for(lambda: segment not in self.segments(), 30.0)

    def kill_master(self) -> None:
        self.cluster.kill_master()

    def restart_master(self) -> None:
        self.cluster.restart_master()

    def close(self) -> None:
        self.forget_boards()
        for client in self._clients.values():
            client.close()
        self._clients.clear()


class Board:
    """Memory that is registered with a client, cut into equal pieces."""

    def __init__(self, client: Any, pieces: int = 8, nbytes: int = 4096) -> None:
        self._client = client
        self.memory = np.zeros((pieces, nbytes), np.uint8)
        assert client.register_buffer(self.memory.ctypes.data, self.memory.nbytes) == 0

    def close(self) -> None:
        self._client.unregister_buffer(self.memory.ctypes.data)

    def at(self, piece: int) -> int:
        address: int = self.memory[piece].ctypes.data
        return address

    def write(self, piece: int, value: bytes) -> tuple[int, int]:
        """Return address and length of ``value``, written there."""
        self.memory[piece, : len(value)] = np.frombuffer(value, np.uint8)
        return self.at(piece), len(value)

    def read(self, piece: int, nbytes: int) -> bytes:
        return self.memory[piece, :nbytes].tobytes()

    def __len__(self) -> int:
        return len(self.memory)


def put(client: Any, board: Board, library: Library, key: str, value: bytes, segment: str = "") -> int:
    """Upsert one value; return its code."""
    address, nbytes = board.write(0, value)
    (code,) = client.batch_upsert_from([key], [address], [nbytes], library.write_config(segment))
    return int(code)


def get(client: Any, board: Board, key: str, nbytes: int) -> int | bytes:
    """Get one value into memory of ``nbytes``; return it, or its code."""
    (code,) = client.batch_get_into([key], [board.at(1)], [nbytes])
    return int(code) if code < 0 else board.read(1, code)


def segments_of(client: Any, key: str) -> Iterator[str]:
    """The segments that have a key."""
    for replica in client.batch_get_replica_desc([key]).get(key, []):
        yield replica.get_memory_descriptor().buffer_descriptor.transport_endpoint
