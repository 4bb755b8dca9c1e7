"""A host of the test's own: an arena whose owner is a loop in a thread, and readers that speak the slot protocol."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from penstock.endpoint.connection import Address, Connection, Wire
from penstock.errors import TransportError
from penstock.parts import ArenaPlace, BlockPlace
from penstock.payload import codec
from penstock.payload.arena import Arena, ArenaStatistics
from penstock.payload.slots import Mode
from penstock.retry import Deadline
from penstock.server.storage import PLANE, Storage
from penstock.transport.server import PayloadServer, ServerLimits
from penstock.transport.slot_owner import LoopOwner
from penstock.transport.slot_protocol import STATUS_BYTES, Ack, Request, Status, Verdict, check_payload
from penstock.transport.wires.tcp import TcpWire

T = TypeVar("T")

TOKEN = b"t" * 32
PURPOSE = "payload"
SOON_S = 20.0  # a wide margin: what is waited for takes milliseconds
PATIENT = ServerLimits(receive_timeout_s=SOON_S, send_timeout_s=SOON_S)


def a_wire() -> TcpWire:
    return TcpWire(TOKEN, PURPOSE)


class Station:
    """An arena and its owner's loop; ``do`` runs work there."""

    def __init__(self, path: Path, capacity: int) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="owner")
        self._thread.start()
        self.arena = Arena.create(path, 1, capacity, 0)
        self.storage = Storage(self.arena, ArenaPlace(1, self.arena.capacity, in_shm=False))
        self._changed = threading.Condition()
        self.owner = LoopOwner(self.storage, self.loop, ended=self._on_end)
        self._block_ids = itertools.count(1)

    def do(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the owner's loop, after all that was asked of it before."""

        async def there() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(there(), self.loop).result(SOON_S)

    def put(self, nbytes: int = 1000) -> BlockPlace:
        """Put a block of about ``nbytes``."""
        batch = codec.encode({"x": np.arange(nbytes // 8)}, nbytes // 8)

        def there() -> BlockPlace:
            place = self.arena.grant(next(self._block_ids), batch.nbytes, PLANE)
            assert place is not None, "no room"
            batch.write_into(self.arena.writer(place), place.block_id)
            self.storage.fill(place.block_id)
            return place

        return self.do(there)

    def release(self, place: BlockPlace) -> None:
        self.do(lambda: self.storage.release(place.block_id))

    def bytes_of(self, place: BlockPlace) -> bytes:
        return self.do(lambda: bytes(self.storage.view(place.block_id)))

    def statistics(self) -> ArenaStatistics:
        return self.do(self.storage.statistics)

    def wait_until_read(self) -> ArenaStatistics:
        """Wait until no read is under way."""
        self.wait_for(lambda: self.arena.statistics().tokens == 0)
        return self.statistics()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds after the end of a read."""
        with self._changed:
            assert self._changed.wait_for(condition, SOON_S), "a read never ended"

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SOON_S)
        self.loop.close()
        self.arena.check_invariants()
        self.arena.close(unlink=True)

    def _on_end(self) -> None:
        with self._changed:
            self._changed.notify_all()


@contextmanager
def a_station(path: Path, capacity: int = 1 << 20) -> Iterator[Station]:
    station = Station(path, capacity)
    try:
        yield station
    finally:
        station.close()


def a_server(
    station: Station,
    *,
    listeners: int = 1,
    may_consume: bool = False,
    limits: ServerLimits = PATIENT,
    make_wire: Callable[[], Wire] = a_wire,
) -> PayloadServer:
    return PayloadServer(station.owner, make_wire, listeners=listeners, may_consume=may_consume, limits=limits)


class Reader:
    """One connection of a reader, spoken by hand. Every wait ends within its patience."""

    def __init__(self, connection: Connection, patience_s: float = SOON_S) -> None:
        self.connection = connection
        self._patience_s = patience_s
        self._ids = itertools.count(1)

    async def say(self, data: bytes) -> None:
        await self.connection.send(data, deadline=Deadline(self._patience_s))

    async def hear(self, nbytes: int) -> memoryview:
        buffer = bytearray(nbytes)
        await self.connection.recv_into(buffer, Deadline(self._patience_s))
        return memoryview(buffer)

    async def ask(self, request: Request) -> Status:
        await self.say(request.encode())
        status = Status.decode(await self.hear(STATUS_BYTES))
        if status.request_id != request.request_id:
            raise TransportError(f"the server could not read the request: {status.text}", code="protocol")
        return status

    async def begin(self, place: BlockPlace, mode: Mode = Mode.RETAIN) -> Request:
        """Ask for a block and check it; the acknowledgement is still to be sent."""
        request = Request(next(self._ids), place.block_id, place.generation, mode)
        await self.take(request, await self.ask(request))
        return request

    async def take(self, request: Request, status: Status) -> bytes:
        payload = await self.hear(status.length)
        check_payload(request, status, payload)
        return bytes(payload)

    async def acknowledge(self, request: Request, verdict: Verdict = Verdict.CHECKED) -> None:
        await self.say(Ack(request.request_id, verdict).encode())

    async def fetch(self, request: Request) -> bytes:
        """Read to the end: request, status, payload, acknowledgement."""
        payload = await self.take(request, await self.ask(request))
        await self.acknowledge(request)
        return payload


@asynccontextmanager
async def reading_at(
    port: int, make_wire: Callable[[], Wire] = a_wire, patience_s: float = SOON_S
) -> AsyncIterator[Reader]:
    """A connection to a listener of this machine."""
    connection = await make_wire().connect(Address("127.0.0.1", port), Deadline(patience_s))
    try:
        yield Reader(connection, patience_s)
    finally:
        await connection.close()
