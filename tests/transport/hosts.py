"""Hosts in memory whose ports do what a test says, one behaviour per request; and blocks to be fetched from them."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from penstock.endpoint.connection import Address, Connection
from penstock.errors import TransportError
from penstock.parts import HostPlace
from penstock.payload import block
from penstock.payload.block import Bytes, ColumnHeader
from penstock.retry import Deadline
from penstock.testing.memory_wire import MemoryConnection, MemoryNetwork, MemoryWire
from penstock.transport.client import AsyncPayloadClient
from penstock.transport.config import TransportConfig
from penstock.transport.slot_protocol import (
    ACK_BYTES,
    REQUEST_BYTES,
    Ack,
    Code,
    Request,
    Status,
    Verdict,
    covered,
    parts_of,
)
from penstock.transport.timing import Timing
from penstock.transport.wanted import Wanted

FIRST_GENERATION = 7


def a_block(block_id: int, rows: int = 4, row_bytes: int = 64) -> Bytes:
    """A whole block, as a put makes it."""
    values = np.random.default_rng(block_id).integers(0, 255, rows * row_bytes, dtype=np.uint8)
    column = ColumnHeader("x", "dense", "uint8", 1, (row_bytes,), len(values), bytes(8))
    planned = block.plan(rows, [column], [])
    out = np.zeros(planned.nbytes, np.uint8)
    out[planned.body : planned.body + len(values)] = values
    checksum = block.column_checksum(out, planned.body, len(values))
    block.seal(out, block_id, planned, [checksum])
    return out


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def timing(self) -> Timing:
        return Timing(self.clock, self.sleep, random.Random(5))

    def deadline(self, timeout_s: float = 300.0) -> Deadline:
        return Deadline(timeout_s, self.clock)


@dataclass
class FakePort:
    """One listener. ``script``: what it does to the next requests; then, what ``always`` says."""

    host: FakeHost
    script: deque[str] = field(default_factory=deque)
    always: str = "serve"
    requests: list[int] = field(default_factory=list)  # block ids
    connections: int = 0
    acks: list[Verdict] = field(default_factory=list)
    number: int = 0
    close: Callable[[], Awaitable[None]] | None = None

    async def serve(self, connection: Connection) -> None:
        self.connections += 1
        while True:
            buffer = bytearray(REQUEST_BYTES)
            await connection.recv_into(buffer, Deadline(60.0))
            request = Request.decode(buffer)
            self.requests.append(request.block_id)
            self.host.asked.append((self.number, request.block_id))
            doing = self.script.popleft() if self.script else self.always
            self.host.did.append((request.block_id, doing))
            await getattr(self, f"_{doing}")(connection, request)

    async def _send(self, connection: Connection, status: Status, payload: Bytes | None = None) -> None:
        parts = [] if payload is None else parts_of(memoryview(payload.tobytes()))
        await connection.send(status.encode(), *parts, deadline=Deadline(60.0))

    async def _serve(
        self, connection: Connection, request: Request, spoil: Callable[[Bytes], None] | None = None
    ) -> None:
        data = self.host.blocks.get((request.block_id, request.generation))
        if data is None:
            await self._refuse(connection, request, Code.STALE)
            return
        data = data.copy()
        if spoil is not None:
            spoil(data)
        checksum = xxhash.xxh3_64_intdigest(covered(request, data.data))
        await self._send(connection, Status(request.request_id, Code.OK, len(data), checksum), data)
        buffer = bytearray(ACK_BYTES)
        await connection.recv_into(buffer, Deadline(60.0))
        self.acks.append(Ack.decode(buffer).verdict)

    async def _refuse(self, connection: Connection, request: Request, code: Code) -> None:
        await self._send(connection, Status(request.request_id, code, text=f"it is {code.name}"))

    async def _stale(self, connection: Connection, request: Request) -> None:
        await self._refuse(connection, request, Code.STALE)

    async def _not_ready(self, connection: Connection, request: Request) -> None:
        await self._refuse(connection, request, Code.NOT_READY)

    async def _bad_request(self, connection: Connection, request: Request) -> None:
        await self._refuse(connection, request, Code.BAD_REQUEST)

    async def _error(self, connection: Connection, request: Request) -> None:
        await self._refuse(connection, request, Code.ERROR)

    async def _reset(self, connection: Connection, request: Request) -> None:
        connection.abort()
        raise TransportError("as the test says", code="reset")

    async def _stall(self, connection: Connection, request: Request) -> None:
        await asyncio.Event().wait()

    async def _flip(self, connection: Connection, request: Request) -> None:
        def spoil(data: Bytes) -> None:
            data[-70] ^= 1

        await self._serve(connection, request, spoil)

    async def _flip_prelude(self, connection: Connection, request: Request) -> None:
        def spoil(data: Bytes) -> None:
            data[20] ^= 1

        await self._serve(connection, request, spoil)

    async def _other_block(self, connection: Connection, request: Request) -> None:
        def spoil(data: Bytes) -> None:
            data[:] = a_block(request.block_id + 1000)

        await self._serve(connection, request, spoil)

    async def _truncate(self, connection: Connection, request: Request) -> None:
        data = self.host.blocks[request.block_id, request.generation]
        await self._send(connection, Status(request.request_id, Code.OK, len(data), 1), data[: len(data) // 2])
        await connection.close()
        raise TransportError("as the test says", code="closed")

    async def _one_byte(self, connection: Connection, request: Request) -> None:
        data = self.host.blocks[request.block_id, request.generation]
        await self._send(connection, Status(request.request_id, Code.OK, len(data), 1), data[:1])
        await asyncio.Event().wait()

    async def _slow(self, connection: Connection, request: Request) -> None:
        data = self.host.blocks[request.block_id, request.generation]
        await asyncio.sleep(0.3)
        await self._send(connection, Status(request.request_id, Code.OK, len(data), 1))
        await asyncio.sleep(0.3)
        await connection.send(data.tobytes(), deadline=Deadline(60.0))

    async def _steady(self, connection: Connection, request: Request, parts: int = 9) -> None:
        """Every part takes its time; after ``parts`` it falls silent."""
        data = self.host.blocks[request.block_id, request.generation]
        checksum = xxhash.xxh3_64_intdigest(covered(request, data.data))
        await self._send(connection, Status(request.request_id, Code.OK, len(data), checksum))
        for part in parts_of(data.data)[:parts]:
            await asyncio.sleep(0.3)
            await connection.send(part, deadline=Deadline(60.0))
        await connection.recv_into(bytearray(ACK_BYTES), Deadline(60.0))

    async def _falling_silent(self, connection: Connection, request: Request) -> None:
        await self._steady(connection, request, parts=1)

    async def _longer(self, connection: Connection, request: Request) -> None:
        data = self.host.blocks[request.block_id, request.generation]
        await self._send(connection, Status(request.request_id, Code.OK, len(data) + 64, 1), data)
        await asyncio.Event().wait()

    async def _giant(self, connection: Connection, request: Request) -> None:
        await self._send(connection, Status(request.request_id, Code.OK, 2**62, 1))
        await asyncio.Event().wait()

    async def _other_request(self, connection: Connection, request: Request) -> None:
        await self._send(connection, Status(request.request_id + 1, Code.STALE))
        await asyncio.Event().wait()

    async def _garbage(self, connection: Connection, request: Request) -> None:
        await connection.send(random.Random(3).randbytes(len(Status(0, Code.STALE).encode())), deadline=Deadline(60.0))
        await asyncio.Event().wait()


class FakeHost:
    """A host agent's payload side."""

    def __init__(self, host_id: int, life: int = 1) -> None:
        self.host_id = host_id
        self.life = life
        self.blocks: dict[tuple[int, int], Bytes] = {}
        self.ports: list[FakePort] = []
        self.asked: list[tuple[int, int]] = []  # (port, block), in order
        self.did: list[tuple[int, str]] = []  # (block, what was done), in order

    async def listen(self, wire: MemoryWire, listeners: int) -> None:
        for _ in range(listeners):
            port = FakePort(self)
            listener = await wire.listen(f"host{self.host_id}", 0, port.serve)
            port.number, port.close = listener.address.port, listener.close
            self.ports.append(port)

    @property
    def place(self) -> HostPlace:
        numbers = [port.number for port in self.ports]
        return HostPlace(self.host_id, self.life, f"h{self.host_id}", f"host{self.host_id}", numbers)

    def always(self, doing: str) -> None:
        for port in self.ports:
            port.always = doing


class CountingWire(MemoryWire):
    """Notes who was connected to."""

    def __init__(self, network: MemoryNetwork) -> None:
        super().__init__(network)
        self.connected: list[Address] = []

    async def connect(self, address: Address, deadline: Deadline) -> MemoryConnection:
        self.connected.append(address)
        return await super().connect(address, deadline)


class World:
    """Some hosts with the same blocks, and a client."""

    def __init__(self, time: Time | None = None) -> None:
        self.network = MemoryNetwork()
        self.wire = CountingWire(self.network)
        self.time = time
        self.hosts: list[FakeHost] = []

    async def host(self, block_ids: Sequence[int] = (1,), *, listeners: int = 2) -> FakeHost:
        host = FakeHost(len(self.hosts) + 1)
        await host.listen(MemoryWire(self.network), listeners)
        host.blocks = {(block_id, FIRST_GENERATION): a_block(block_id) for block_id in block_ids}
        self.hosts.append(host)
        return host

    def client(self, **limits: float) -> AsyncPayloadClient:
        timing = self.time.timing() if self.time else None
        config = TransportConfig(prefer="memory", **limits)  # type: ignore[arg-type]
        return AsyncPayloadClient({"memory": lambda: self.wire}, config, timing=timing)

    async def close(self) -> None:
        for host in self.hosts:
            for port in host.ports:
                if port.close is not None:
                    await port.close()


def wanted(block_id: int, *hosts: FakeHost, generation: int = FIRST_GENERATION) -> Wanted:
    return Wanted(block_id, len(a_block(block_id)), [(host.place, generation) for host in hosts])


def run(test: Callable[[World], Awaitable[None]], time: Time | None = None) -> None:
    """Run ``test`` on a loop of its own, in a world that is ended afterwards."""

    async def main() -> None:
        world = World(time)
        try:
            await test(world)
        finally:
            await world.close()

    asyncio.run(main())
