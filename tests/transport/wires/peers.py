"""Another process at the other end of a wire, to be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TypeAlias

from penstock.endpoint.connection import Address, Connection, Wire
from penstock.errors import TransportError
from penstock.retry import Deadline
from tests.transport.wires.rooms import HOST

MIB = 1 << 20
STREAM, ECHO, SINK = b"stream!!", b"echo me!", b"sink 64M"

OpenWire: TypeAlias = Callable[[], AbstractAsyncContextManager[Wire]]  # importable, for a fresh interpreter


@dataclass(frozen=True)
class Peer:
    """A process that serves at ``address`` until it is killed."""

    address: Address
    process: BaseProcess

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)


@contextlib.contextmanager
def serving(wire: OpenWire, port: int = 0) -> Iterator[Peer]:
    """Start a process that listens with ``wire`` and does what its clients ask; kill it in the end."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_main, args=(wire, port, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(60), "the peer did not start"
        yield Peer(Address(HOST, ours.recv()), process)
    finally:
        process.kill()  # of a stopped process too
        process.join(20)
        process.close()
        ours.close()


def _main(wire: OpenWire, port: int, pipe: multiprocessing.connection.Connection) -> None:
    asyncio.run(_serve(wire, port, pipe))


async def _serve(wire: OpenWire, port: int, pipe: multiprocessing.connection.Connection) -> None:
    async with wire() as listening:
        listener = await listening.listen(HOST, port, _attend)
        pipe.send(listener.address.port)
        await asyncio.Event().wait()


async def _attend(connection: Connection) -> None:
    request = bytearray(8)
    while True:
        await connection.recv_into(request, Deadline(600))
        if request == STREAM:
            await _stream(connection)
        elif request == ECHO:
            await connection.send(request, deadline=Deadline(60))
        else:
            await asyncio.sleep(600)


async def _stream(connection: Connection) -> None:
    """Send one part of 1 MiB after the other, for ever."""
    part = bytes(MIB)
    while True:
        await connection.send(part, deadline=Deadline(60))


@contextlib.asynccontextmanager
async def connected(wire: Wire, address: Address, timeout_s: float = 20.0) -> AsyncIterator[Connection]:
    connection = await wire.connect(address, Deadline(timeout_s))
    try:
        yield connection
    finally:
        connection.abort()


async def ask_echo(connection: Connection, timeout_s: float = 20.0) -> None:
    """Have one message sent back."""
    answer = bytearray(8)
    await connection.send(ECHO, deadline=Deadline(timeout_s))
    await connection.recv_into(answer, Deadline(timeout_s))
    assert answer == ECHO


async def reconnected(wire: Wire, address: Address) -> Connection:
    """Connect as often as it takes, to a listener that is about to be there."""
    deadline = Deadline(30)
    while True:
        try:
            return await wire.connect(address, deadline.within(5))
        except TransportError:
            deadline.require("connecting again")
            await asyncio.sleep(0.05)
