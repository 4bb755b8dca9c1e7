"""The wires under one roof, for a suite that all of them pass: how to make each, and how tests use any."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from penstock.endpoint.connection import Connection, Listener, Wire
from penstock.retry import Deadline
from penstock.testing.memory_wire import MemoryNetwork, MemoryWire
from penstock.transport.wires import TcpWire, UcxWire

TOKEN = b"the token of these tests"
HOST = "127.0.0.1"


class Wires(NamedTuple):
    """The same kind of wire twice: as a process that listens has it, and as one that connects."""

    listening: Wire
    connecting: Wire


Opening: TypeAlias = AbstractAsyncContextManager[Wires]


@dataclass(frozen=True)
class Room:
    """One kind of wire. ``open(token, purpose)`` makes wires with what the connecting side knows."""

    name: str
    open: Callable[[bytes, str], Opening]

    def wires(self, token: bytes = TOKEN, purpose: str = "payload") -> Opening:
        return self.open(token, purpose)

    @contextlib.asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Connection, Connection]]:
        """Two ends of one connection: of who connected, and of who was connected to."""
        async with self.wires() as wires, kept(wires.listening) as (listener, ends):
            here = await wires.connecting.connect(listener.address, soon())
            there = await asyncio.wait_for(ends.get(), 10.0)
            try:
                yield here, there
            finally:
                here.abort()
                there.abort()


@contextlib.asynccontextmanager
async def kept(wire: Wire, *, max_connections: int = 256) -> AsyncIterator[tuple[Listener, asyncio.Queue[Connection]]]:
    """A listener whose handlers do nothing but keep their connections, which come in the queue."""
    ends: asyncio.Queue[Connection] = asyncio.Queue()

    async def keep(connection: Connection) -> None:
        ends.put_nowait(connection)
        await asyncio.Event().wait()  # until the listener closes

    listener = await wire.listen(HOST, 0, keep, max_connections=max_connections)
    try:
        yield listener, ends
    finally:
        await listener.close()


def memory_room() -> Room:
    @contextlib.asynccontextmanager
    async def opened(token: bytes, purpose: str) -> AsyncIterator[Wires]:
        network = MemoryNetwork()
        yield Wires(MemoryWire(network, TOKEN), MemoryWire(network, token, purpose))

    return Room("memory", opened)


def tcp_room(tls_server: ssl.SSLContext | None = None, tls_client: ssl.SSLContext | None = None) -> Room:
    @contextlib.asynccontextmanager
    async def opened(token: bytes, purpose: str) -> AsyncIterator[Wires]:
        listening = TcpWire(TOKEN, "payload", tls_server=tls_server, tls_client=tls_client)
        yield Wires(listening, TcpWire(token, purpose, tls_client=tls_client))

    return Room("tls" if tls_server else "tcp", opened)


def ucx_room() -> Room:
    @contextlib.asynccontextmanager
    async def opened(token: bytes, purpose: str) -> AsyncIterator[Wires]:
        listening, connecting = UcxWire(TOKEN, "payload"), UcxWire(token, purpose)
        yield Wires(listening, connecting)
        listening.close()
        connecting.close()

    return Room("ucx", opened)


def soon(timeout_s: float = 20.0) -> Deadline:
    """A deadline that only a hang misses."""
    return Deadline(timeout_s)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on a loop of its own, and see that it leaves no task behind."""

    async def watched() -> None:
        await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"left behind: {left}"

    asyncio.run(watched())
