"""Hosts without processes or a plane: keeper, shell, arena and payload server on one loop, peers over a wire in memory.

The test plays clients (as the agent's own session does) and the plane.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from penstock.config import PlaneConfig
from penstock.host.agent import Agent, Shelves
from penstock.host.keeper import Who
from penstock.host.own_calls import OwnCalls
from penstock.host.peers import PeerAgents
from penstock.host.replication import Replication
from penstock.parts import ArenaPlace, BlockPlace, HostPlace
from penstock.payload.arena import Arena
from penstock.requests import Granted, Reserve, Seal, Sealed
from penstock.retry import Deadline
from penstock.server.storage import Storage
from penstock.testing.memory_wire import MemoryNetwork, MemoryWire
from penstock.transport.server import PayloadServer
from penstock.transport.slot_owner import LoopOwner
from tests.server.harness import batch_of

CAPACITY = 4 * 1024 * 1024
WAIT_S = 10.0


class InsideHost:
    """One host. ``listeners`` and ``peers`` may be harmed by the test."""

    def __init__(self, folder: Path, network: MemoryNetwork, host_id: int) -> None:
        self.host_id = host_id
        self.name = f"host{host_id}"
        self.arena = Arena.create(folder / f"arena-{host_id}", host_id, CAPACITY, 0)
        self.storage = Storage(self.arena, ArenaPlace(host_id, CAPACITY, in_shm=False), host=host_id)
        self.replication = Replication(lambda: MemoryWire(network), name="memory")
        who = Who(host_id, self.name, "penstock://plane:1", CAPACITY)
        self.agent = Agent(who, 1, PlaneConfig(), self.storage, replicate=self.replication.replicate)
        self.shelves = Shelves()
        self.server = PayloadServer(
            LoopOwner(self.shelves, asyncio.get_running_loop(), ended=self.agent.plane.settle_soon),
            lambda: MemoryWire(network),
            host=self.name,
            listeners=1,
        )
        self.peers = PeerAgents(lambda purpose: MemoryWire(network, purpose=purpose), self.name, self.replication.serve)
        self.own = OwnCalls(self.agent.plane)
        self.place = HostPlace(host_id, 1, self.name, self.name, [])

    async def start(self) -> None:
        ports = await asyncio.to_thread(self.server.start)
        peer_port = await self.peers.start()
        self.place = HostPlace(self.host_id, 1, self.name, self.name, ports, peer_port=peer_port)
        self.shelves.open(self.storage)
        self.replication.open(self.place, self.agent.plane, self.peers)

    async def close(self) -> None:
        await self.replication.close()
        await self.peers.close()
        await self.agent.stop()
        await asyncio.to_thread(self.server.stop)
        self.arena.check_invariants()
        self.agent.keeper.check_invariants()
        self.agent.plane.close()
        self.arena.close(unlink=True)

    async def write(self, block_id: int, rows: int = 1, row_bytes: int = 64, fill: int = 7) -> int:
        """Reserve and write a block; return its content hash."""
        data = batch_of(rows, row_bytes, fill)
        granted = await self.own.ask(Reserve(block_id, data.nbytes), Deadline(WAIT_S))
        assert isinstance(granted, Granted), granted
        return data.write_into(self.arena.writer(self.arena.place_of(block_id)), block_id)

    async def put(self, block_id: int, other: InsideHost | None, *, timeout_s: float = WAIT_S, fill: int = 7) -> Sealed:
        content = await self.write(block_id, fill=fill)
        return await self.seal(block_id, content, other, timeout_s)

    async def seal(self, block_id: int, content: int, other: InsideHost | None, timeout_s: float = WAIT_S) -> Sealed:
        place = None if other is None else other.place
        sealed = await self.own.ask(Seal(block_id, content, place), Deadline(timeout_s))
        assert isinstance(sealed, Sealed), sealed
        return sealed

    def bytes_of(self, block_id: int) -> bytes:
        return bytes(np.frombuffer(self.storage.view(block_id), np.uint8))


@asynccontextmanager
async def hosts(folder: Path, count: int = 2) -> AsyncIterator[list[InsideHost]]:
    network = MemoryNetwork()
    made = [InsideHost(folder, network, n + 1) for n in range(count)]
    for host in made:
        await host.start()
    try:
        yield made
    finally:
        for host in made:
            await host.close()


__all__ = ["CAPACITY", "BlockPlace", "InsideHost", "hosts"]
