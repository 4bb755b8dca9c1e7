"""A connection of its own for each session, and for live pairs of sessions only."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from penstock.endpoint.connection import Address
from penstock.endpoint.events import Session
from penstock.endpoint.resources import MAX_PARAMS_BYTES
from penstock.endpoint.wire_resources import WireResources
from penstock.errors import TransportError
from penstock.testing.memory_wire import MemoryNetwork, MemoryWire
from tests.endpoint.peers import asked, soon, until

LOW, HIGH = Session(1, 1), Session(2, 1)


def play(scene: Callable[[WireResources, WireResources], Awaitable[None]], *, listen: str = "ab") -> None:
    async def run() -> None:
        network = MemoryNetwork()
        a, b = (WireResources(MemoryWire(network)) for _ in range(2))
        for name, resources in (("a", a), ("b", b)):
            if name in listen:
                await resources.start("127.0.0.1")
        await scene(a, b)
        await asyncio.gather(a.close(), b.close())

    asyncio.run(run())


@pytest.mark.parametrize("listen", ["ab", "a", "b"])
@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("sessions", [(LOW, HIGH), (HIGH, LOW)], ids=["a low", "a high"])
def test_either_end_binds_first(listen: str, first: str, sessions: tuple[Session, Session]) -> None:
    """Whoever listens, whoever is the smaller: when both have bound, the connection is there at both ends."""

    async def scene(a: WireResources, b: WireResources) -> None:
        ours, theirs = await a.fresh(sessions[0], soon()), await b.fresh(sessions[1], soon())
        assert len(ours.params) <= MAX_PARAMS_BYTES
        steps = [(ours, theirs.params, sessions[1]), (theirs, ours.params, sessions[0])]
        for resource, params, peer in steps if first == "a" else reversed(steps):
            await resource.bind(params, peer, soon())
        await ours.connection().send(b"hello", deadline=soon())
        word = bytearray(5)
        await theirs.connection().recv_into(word, soon())
        assert word == b"hello"
        assert ours.connection() is ours.connection()
        await ours.close()
        await ours.close()
        with pytest.raises(TransportError):
            await theirs.connection().recv_into(word, soon())
        await theirs.close()

    play(scene, listen=listen)


def test_nobody_listens() -> None:
    """Then there is no way, and it is said at once."""

    async def scene(a: WireResources, b: WireResources) -> None:
        ours, theirs = await a.fresh(LOW, soon()), await b.fresh(HIGH, soon())
        with pytest.raises(TransportError, match="neither of the two peers listens"):
            await ours.bind(theirs.params, HIGH, soon())

    play(scene, listen="")


def test_a_connection_is_taken_in_for_a_live_pair_only() -> None:
    """A session that is gone, never was, or is bound to another: refused, closed and counted."""

    async def scene(a: WireResources, b: WireResources) -> None:
        theirs = await b.fresh(HIGH, soon())
        stranger = Session(0, 9)
        assert b.address is not None
        with pytest.raises(TransportError, match="does not know session"):
            await a.dial(b.address, LOW, Session(7, 7), soon())
        early = await a.dial(b.address, stranger, HIGH, soon())
        await theirs.bind(b"", LOW, soon())
        with pytest.raises(TransportError):  # it was early, and for another
            await asked(early)
        with pytest.raises(TransportError, match="does not know session"):
            await a.dial(b.address, stranger, HIGH, soon())
        mine = await a.dial(b.address, LOW, HIGH, soon())
        with pytest.raises(TransportError, match="does not know session"):
            await a.dial(b.address, LOW, HIGH, soon())
        assert not mine.broken
        await theirs.close()
        with pytest.raises(TransportError):
            await a.dial(b.address, LOW, HIGH, soon())
        assert b.refused == 4

    play(scene)


def test_early_connections_are_few() -> None:
    """A session that is not bound yet holds no more than four of them."""

    async def scene(a: WireResources, b: WireResources) -> None:
        theirs = await b.fresh(HIGH, soon())
        assert b.address is not None
        for n in range(4):
            await a.dial(b.address, Session(0, n), HIGH, soon())
        with pytest.raises(TransportError):
            await a.dial(b.address, LOW, HIGH, soon())
        await theirs.close()

    play(scene)


@pytest.mark.parametrize("opening", [b"\0" * 36, b"PSe\x01" + b"\xff" * 32])
def test_a_stranger_on_the_data_port_costs_its_connection(opening: bytes) -> None:
    """It has authenticated, and asks for nothing that is here."""

    async def scene(a: WireResources, b: WireResources) -> None:
        assert b.address is not None
        connection = await a._wire.connect(b.address, soon())
        await connection.send(opening, deadline=soon())
        answer = bytearray(1)
        await connection.recv_into(answer, soon())
        assert answer == b"\0"
        await until(lambda: b.refused == 1, "it was not counted")
        assert "0 live" in repr(b)

    play(scene)


@pytest.mark.parametrize("params", [b"\xc1", b"\x93\x01\x02\x03", b"\x92\x01\x02"])
def test_malformed_params_break_the_endpoint(params: bytes) -> None:
    """As a transport error, not as a bug."""

    async def scene(a: WireResources, b: WireResources) -> None:
        ours = await a.fresh(LOW, soon())
        with pytest.raises(TransportError, match="malformed"):
            await ours.bind(params, HIGH, soon())

    play(scene)


def test_what_was_not_dialled_is_not_there() -> None:
    """Asked for too early, or after it has broken on the way: said, not waited for."""

    async def scene(a: WireResources, b: WireResources) -> None:
        theirs = await b.fresh(HIGH, soon())
        await theirs.bind(b"", LOW, soon())
        with pytest.raises(TransportError, match="has not dialled"):
            theirs.connection()
        assert b.address == Address("127.0.0.1", b.address.port if b.address else 0)

    play(scene)
