"""What each wire notices of another process: its death, its stop, and its next life."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from penstock.endpoint.connection import Address, Connection, Wire
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires import TcpWire, UcxWire
from penstock.wire.tls import client_context, server_context
from tests.transport.wires.peers import MIB, SINK, STREAM, OpenWire, ask_echo, connected, reconnected, serving
from tests.transport.wires.rooms import HOST, TOKEN, run

NOTICED_S = 5.0  # wide: it takes milliseconds


@dataclass(frozen=True)
class Kind:
    """One kind of wire, for another process (picklable) and for this one."""

    there: OpenWire
    here: OpenWire


async def times_out(call: Awaitable[object]) -> None:
    """See that ``call``, whose deadline is in 0.2 s, ends then."""
    started = time.monotonic()
    with pytest.raises(TransportError) as late:
        await call
    assert late.value.code == "timeout"
    assert time.monotonic() - started < 0.2 + NOTICED_S


async def receive_for_ever(connection: Connection) -> None:
    while True:
        await connection.recv_into(bytearray(MIB), Deadline(20))


@contextlib.asynccontextmanager
async def tcp() -> AsyncIterator[Wire]:
    yield TcpWire(TOKEN, "payload")


@contextlib.asynccontextmanager
async def ucx() -> AsyncIterator[Wire]:
    wire = UcxWire(TOKEN, "payload")
    yield wire
    wire.close()


@contextlib.asynccontextmanager
async def tls(cert: Path, key: Path) -> AsyncIterator[Wire]:
    yield TcpWire(TOKEN, "payload", tls_server=server_context(cert, key), tls_client=client_context(cert))


@pytest.fixture(params=["tcp", "tls", "ucx"])
def kind(request: pytest.FixtureRequest) -> Kind:
    match request.param:
        case "tls":
            opened = partial(tls, *request.getfixturevalue("tls_files"))
            return Kind(opened, opened)
        case "ucx":
            return Kind(ucx, ucx)
        case _:
            return Kind(tcp, tcp)


def test_the_peer_s_death_in_the_middle_is_noticed(kind: Kind) -> None:
    """A peer killed while it streams to us ends the receive long before its deadline."""

    async def main() -> None:
        async with kind.here() as wire, connected(wire, peer.address) as connection:
            await connection.send(STREAM, deadline=Deadline(20))
            for _ in range(10):
                await connection.recv_into(bytearray(MIB), Deadline(20))
            peer.kill()
            started = time.monotonic()
            with pytest.raises(TransportError) as dead:
                await receive_for_ever(connection)  # what was on its way may still arrive
            assert dead.value.code in {"closed", "reset", "truncated"}
            assert time.monotonic() - started < NOTICED_S

    with serving(kind.there) as peer:
        run(main())


def test_the_peer_s_death_ends_a_send(kind: Kind) -> None:
    """A peer killed while we send to it ends the send long before its deadline."""

    async def main() -> None:
        async with kind.here() as wire, connected(wire, peer.address) as connection:
            await connection.send(SINK, deadline=Deadline(20))
            sending = asyncio.create_task(connection.send(bytes(64 * MIB), deadline=Deadline(20)))
            await asyncio.sleep(0.1)  # so that it waits, for the peer takes nothing
            assert not sending.done()
            peer.kill()
            started = time.monotonic()
            with pytest.raises(TransportError) as dead:
                await sending
            assert dead.value.code in {"closed", "reset"}
            assert time.monotonic() - started < NOTICED_S

    with serving(kind.there) as peer:
        run(main())


def test_a_stopped_peer_costs_no_more_than_the_deadline(kind: Kind) -> None:
    """SIGSTOP cannot be seen; receives, sends and new connections end by their deadlines. Woken, it serves again."""

    async def main() -> None:
        async with kind.here() as wire:
            async with connected(wire, peer.address) as receiving, connected(wire, peer.address) as sending:
                await ask_echo(receiving)
                await ask_echo(sending)
                peer.signal(signal.SIGSTOP)
                await times_out(receiving.recv_into(bytearray(8), Deadline(0.2)))
                await times_out(sending.send(bytes(64 * MIB), deadline=Deadline(0.2)))
                await times_out(wire.connect(peer.address, Deadline(0.2)))
            peer.signal(signal.SIGCONT)
            again = await reconnected(wire, peer.address)
            await ask_echo(again)
            again.abort()

    with serving(kind.there) as peer:
        run(main())


def test_the_peer_s_next_life_is_reached_at_the_same_address(kind: Kind) -> None:
    """A wire connects to a peer that was killed and started again; what it had with the old one stays dead."""

    async def main() -> None:
        async with kind.here() as wire:
            old = await wire.connect(peer.address, Deadline(20))
            await ask_echo(old)
            peer.kill()
            with serving(kind.there, peer.address.port) as heir:
                assert heir.address == peer.address
                new = await reconnected(wire, heir.address)
                await ask_echo(new)
                with pytest.raises(TransportError):
                    await ask_echo(old)
                await ask_echo(new)
                new.abort()
                old.abort()

    with serving(kind.there) as peer:
        run(main())


def test_an_address_that_swallows_everything_ends_by_the_deadline(kind: Kind, blackhole: Address) -> None:
    """Where connections are neither taken nor refused, connecting is a timeout, after its time."""

    async def main() -> None:
        async with kind.here() as wire:
            with pytest.raises(TransportError) as late:
                await wire.connect(blackhole, Deadline(0.3))
            assert late.value.code == "timeout"
            assert late.value.elapsed_s >= 0.3

    run(main())


def test_a_listener_that_never_speaks_ends_by_the_deadline(kind: Kind, mute: Address) -> None:
    """Where the kernel takes connections and no process does, connecting is a timeout too."""

    async def main() -> None:
        async with kind.here() as wire:
            with pytest.raises(TransportError) as late:
                await wire.connect(mute, Deadline(0.3))
            assert late.value.code == "timeout"

    run(main())


@pytest.fixture(name="mute")
def mute_listener() -> Iterator[Address]:
    """The address of a socket that listens and is never asked what has come."""
    with socket.create_server((HOST, 0)) as sock:
        yield Address(HOST, sock.getsockname()[1])


@pytest.fixture(name="blackhole")
def full_listener() -> Iterator[Address]:
    """The address of a socket whose queue is full: the kernel drops what asks to connect."""
    with contextlib.ExitStack() as opened:
        sock = opened.enter_context(socket.create_server((HOST, 0), backlog=0))
        for _ in range(4):
            filler = opened.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield Address(HOST, sock.getsockname()[1])
