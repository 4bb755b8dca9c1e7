"""Connections to one peer: dialled when there is something to say, and forgotten when they break."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from penstock.endpoint import links
from penstock.endpoint.connection import Address, Connection
from penstock.endpoint.events import Kind, Message, Session
from penstock.endpoint.links import Link, greet
from penstock.endpoint.messages import VERSION, Hello, Rst, Said, encode, said_of
from penstock.errors import TransportError
from penstock.testing.memory_wire import MemoryNetwork, MemoryWire
from penstock.wire import WireError
from tests.endpoint.peers import soon, until

ME = Hello(VERSION, "me")
SOMETHING = said_of(Message(Kind.RST, Session(1, 1), Session(2, 2)), "", {})
QUESTION = said_of(Message(Kind.PING, Session(1, 1), Session(2, 2)), "", {})

PEER = Address("peer", 7)


class Town:
    """One link to a peer that hears, or to nobody."""

    def __init__(self, *, listens: bool = True, address: Address | None = PEER) -> None:
        self.network = MemoryNetwork()
        self.heard: list[Said] = []
        self.served: list[Connection] = []
        self.failures: list[TransportError] = []
        self.parted: list[Link] = []
        self.listens = listens
        self.link = self.make_link(address)

    def make_link(self, address: Address | None) -> Link:
        return Link(
            "peer:7",
            address,
            me=lambda: ME,
            wire=MemoryWire(self.network),
            hear=lambda _, said: self.heard.append(said),
            unreachable=lambda _, error: self.failures.append(error),
            parted=self.parted.append,
            gate=asyncio.Semaphore(1),
        )

    async def serve(self, connection: Connection) -> None:
        await greet(connection, Hello(VERSION, "peer:7"), soon())
        self.served.append(connection)
        await self.make_link(None).read(connection)


def play(scene: Callable[[Town], Awaitable[None]], **options: object) -> None:
    async def run() -> None:
        town = Town(**options)  # type: ignore[arg-type]
        listener = await MemoryWire(town.network).listen("peer", 7, town.serve) if town.listens else None
        await scene(town)
        await town.link.close()
        if listener is not None:
            await listener.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_what_is_said_is_heard_over_one_connection() -> None:
    """Dialled once, kept, and no task is left when nothing is to be said."""

    async def scene(town: Town) -> None:
        assert town.link.quiet
        for _ in range(5):
            town.link.say(SOMETHING)
        await until(lambda: len(town.heard) == 5, "it was not heard")
        assert len(town.served) == 1
        assert "1 connections, 0 queued" in repr(town.link)

    play(scene)


def test_a_connection_that_breaks_is_dialled_again_for_the_next_word() -> None:
    """What was said into the broken one may be lost: timers say it again."""

    async def scene(town: Town) -> None:
        town.link.say(SOMETHING)
        await until(lambda: len(town.heard) == 1, "it was not heard")
        town.served[0].abort()
        await until(lambda: town.link.quiet, "the broken connection is kept")
        assert town.link in town.parted
        town.link.say(SOMETHING)
        await until(lambda: len(town.heard) == 2, "it was not heard again")

    play(scene)


def test_a_connection_on_which_nobody_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cut TCP would send again only after a pause as long: the peer is dialled instead."""
    monkeypatch.setattr(links, "_ANSWER_S", 0.05)

    async def scene(town: Town) -> None:
        town.link.say(QUESTION)
        await until(lambda: len(town.heard) == 1, "it was not heard")
        await asyncio.sleep(0.1)
        town.link.say(QUESTION)
        await until(lambda: len(town.heard) == 2, "it was not heard again")
        assert len(town.served) == 2

    play(scene)


def test_a_peer_that_answers_or_owes_no_answer_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it says will do, and to RST there is nothing to say."""
    monkeypatch.setattr(links, "_ANSWER_S", 0.05)

    async def scene(town: Town) -> None:
        town.link.say(QUESTION)
        await until(lambda: len(town.heard) == 1, "it was not heard")
        for part in encode(SOMETHING):
            await town.served[0].send(part, deadline=soon())
        await until(lambda: len(town.heard) == 2, "its answer was not heard")
        town.link.say(SOMETHING)
        await asyncio.sleep(0.1)
        town.link.say(SOMETHING)
        await until(lambda: len(town.heard) == 4, "it was not heard")
        assert len(town.served) == 1

    play(scene)


def test_a_mute_peer_that_cannot_be_dialled_keeps_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no other way to it: it may answer late."""
    monkeypatch.setattr(links, "_ANSWER_S", 0.05)

    async def scene(town: Town) -> None:
        town.link.say(SOMETHING)
        await until(lambda: len(town.served) == 1, "it was not dialled")
        town.link.address = None
        for _ in range(2):
            town.link.say(QUESTION)
            await asyncio.sleep(0.1)
        await until(lambda: len(town.heard) == 3, "it was not heard")
        assert not town.failures

    play(scene)


def test_nobody_there_is_told_and_the_queue_is_dropped() -> None:
    """Nothing piles up, and the next word is tried again."""

    async def scene(town: Town) -> None:
        for _ in range(3):
            town.link.say(SOMETHING)
        await until(lambda: len(town.failures) == 1, "it was not told")
        assert town.failures[0].code == "refused"
        assert town.link.dropped == 3
        assert town.link.quiet

    play(scene, listens=False)


def test_a_peer_without_an_address_is_not_dialled() -> None:
    """It must dial us."""

    async def scene(town: Town) -> None:
        town.link.say(SOMETHING)
        await until(lambda: len(town.failures) == 1, "it was not told")
        assert "has no listener" in town.failures[0].message

    play(scene, address=None)


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a dial hangs, more than so much is dropped, and counted."""
    monkeypatch.setattr(links, "_MAX_QUEUED", 4)

    async def scene(town: Town) -> None:
        for _ in range(10):
            town.link.say(SOMETHING)
        assert town.link.dropped == 6
        await until(lambda: len(town.heard) == 4, "what was queued is lost")

    play(scene)


def test_both_ends_say_hello_before_anything() -> None:
    """Another word, or another version, ends the connection."""

    async def run() -> None:
        network = MemoryNetwork()
        said: list[Hello | Rst] = [Hello(VERSION + 1, "x"), Rst("", (1, 1), (2, 2))]

        async def serve(connection: Connection) -> None:
            for part in encode(said.pop()):
                await connection.send(part, deadline=soon())
            await connection.recv_into(bytearray(4), soon())

        listener = await MemoryWire(network).listen("peer", 7, serve)
        for match in ("says Hello first", "version 2 of the handshake, and we speak 1"):
            connection = await MemoryWire(network).connect(Address("peer", 7), soon())
            with pytest.raises(WireError, match=match):
                await greet(connection, ME, soon())
            connection.abort()
        await listener.close()

    asyncio.run(run())


def test_after_close_nothing_is_said() -> None:
    """And it can be closed again."""

    async def scene(town: Town) -> None:
        await town.link.close()
        town.link.say(SOMETHING)
        await town.link.close()
        assert town.link.dropped == 1

    play(scene)
