"""Peerings for tests: in memory or over TCP, with short timers; and what they send through their endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Self

from penstock.endpoint.connection import Address, Connection, Wire
from penstock.endpoint.endpoints import Endpoint
from penstock.endpoint.peering import Peering
from penstock.endpoint.timing import Timing
from penstock.endpoint.wire_resources import WireResources
from penstock.retry import Deadline
from penstock.testing.memory_wire import Fault, MemoryNetwork, MemoryWire
from penstock.transport.wires.tcp import TcpWire

TOKEN = b"a token of the tests, 32 bytes.."
CALM = Timing(resend_base_s=0.05, resend_cap_s=0.5)
HASTY = Timing(resend_base_s=0.05, resend_cap_s=0.5, keepalive_s=0.1, silence_s=1.0)
PLENTY_S = 20.0

MakeWire = Callable[[str], Wire]


def tcp(purpose: str) -> Wire:
    return TcpWire(TOKEN, purpose)


def soon() -> Deadline:
    return Deadline(PLENTY_S)


async def echo(endpoint: Endpoint) -> None:
    """Send back each message of five bytes, until the endpoint is gone."""
    word = bytearray(5)
    while True:
        await endpoint.connection.recv_into(word, soon())
        await endpoint.connection.send(bytes(word), deadline=soon())


async def asked(connection: Connection, word: bytes = b"hello") -> bytes:
    """What comes back for ``word``."""
    await connection.send(word, deadline=soon())
    back = bytearray(5)
    await connection.recv_into(back, soon())
    return bytes(back)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(PLENTY_S):
        while not condition():  # noqa: ASYNC110 - of what is asked for, no event tells
            await asyncio.sleep(0.002)
    assert condition(), what


class Town:
    """A network of peerings, all closed at its end. ``make``: the wire of a purpose; memory by default."""

    def __init__(self, make: MakeWire | None = None, timing: Timing = CALM) -> None:
        self.network = MemoryNetwork()
        self._make = make
        self._timing = timing
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def wire(self, purpose: str, faults: Sequence[Fault] = ()) -> Wire:
        return self._make(purpose) if self._make else MemoryWire(self.network, TOKEN, purpose, faults)

    async def peer(
        self,
        serve: Callable[[Endpoint], Awaitable[None]] | None = None,
        *,
        port: int = 0,
        listens: bool = True,
        carrier: Wire | None = None,
        data: Wire | None = None,
    ) -> Peering:
        """Return a new peering. ``port``: of its listener, as an earlier life had it."""
        resources = WireResources(data or self.wire("peer-data"))
        peering = Peering({"data": resources}, carrier or self.wire("peer"), serve=serve, timing=self._timing)
        self._stack.push_async_callback(peering.close)
        if listens:
            await resources.start("127.0.0.1")
            await peering.start("127.0.0.1", port)
        return peering


def address(peering: Peering) -> Address:
    assert peering.address is not None
    return peering.address
