"""Connections kept for the next read: which are given out, which are not, and that closing delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from penstock.endpoint.connection import Address, Buffer, Connection, Listener, Serve
from penstock.errors import DataPlaneUnavailable, StaleSlotError, TransportError
from penstock.retry import Deadline
from penstock.transport.pool import Pool, Port
from tests.transport.hosts import Time

A, B = Port("fake", Address("h", 1), 1), Port("fake", Address("h", 2), 1)
LATER_LIFE = Port("fake", Address("h", 1), 2)


class FakeConnection:
    """Knows how it ended."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.broken = False
        self.ended = ""
        self.let_close = asyncio.Event()

    @property
    def peer(self) -> str:
        return str(self.address)

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        raise NotImplementedError

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        self.broken, self.ended = True, "aborted"

    async def close(self) -> None:
        await self.let_close.wait()
        self.broken, self.ended = True, "closed"


class FakeWire:
    name = "fake"

    def __init__(self) -> None:
        self.made: list[FakeConnection] = []
        self.refuses = False

    async def connect(self, address: Address, deadline: Deadline) -> Connection:
        if self.refuses:
            raise TransportError("nobody there", code="refused")
        self.made.append(FakeConnection(address))
        self.made[-1].let_close.set()
        return self.made[-1]

    async def listen(self, host: str, port: int, serve: Serve, *, max_connections: int = 256) -> Listener:
        raise NotImplementedError


class Room:
    """A pool on a clock of its own."""

    def __init__(self, max_idle: int = 4) -> None:
        self.time = Time()
        self.wire = FakeWire()
        self.pool = Pool({"fake": lambda: self.wire}, max_age_s=100.0, max_idle=max_idle, clock=self.time.clock)

    async def read(
        self, port: Port = A, *, complete: bool = True, error: BaseException | None = None
    ) -> FakeConnection:
        """Use a connection, as a read does; return it."""
        async with self.pool.connection(port, self.time.deadline()) as lease:
            lease.complete = complete
            if error is not None:
                raise error
            assert isinstance(lease.connection, FakeConnection)
            return lease.connection


def run(test: Callable[[Room], Coroutine[Any, Any, None]], **options: int) -> None:
    async def main() -> None:
        await test(Room(**options))

    asyncio.run(main())


def test_a_connection_is_used_again_for_its_port() -> None:
    """And for no other."""

    async def test(room: Room) -> None:
        first = await room.read()
        assert await room.read() is first
        assert await room.read(B) is not first
        counts = room.pool.statistics()
        assert (counts.hits, counts.opened, counts.idle, counts.lent) == (1, 2, 2, 0)

    run(test)


def test_an_exchange_that_is_not_complete_ends_its_connection() -> None:
    """The next read would take what is left of it for its own answer."""

    async def test(room: Room) -> None:
        first = await room.read(complete=False)
        assert first.ended == "aborted"
        assert await room.read() is not first

    run(test)


def test_each_borrowing_has_to_be_complete_anew() -> None:
    """That an earlier exchange was complete says nothing about this one."""

    async def test(room: Room) -> None:
        first = await room.read()
        async with room.pool.connection(A, room.time.deadline()) as lease:
            assert lease.connection is first
            assert not lease.complete
        assert first.ended == "aborted"

    run(test)


def test_a_broken_connection_is_never_given_out() -> None:
    """Whether it broke in use or while it was idle."""

    async def test(room: Room) -> None:
        async with room.pool.connection(A, room.time.deadline()) as lease:
            lease.complete = True
            lease.connection.abort()
        assert room.pool.statistics().idle == 0
        second = await room.read()
        second.broken = True
        assert await room.read() is not second
        assert room.pool.statistics().dropped == 2

    run(test)


def test_an_old_connection_is_closed_at_checkout_and_replaced() -> None:
    """At 100 s, which is less than the server's idle limit; closing it is not waited for."""

    async def test(room: Room) -> None:
        first = await room.read()
        room.time.now += 99.9
        assert await room.read() is first  # using it does not make it younger
        first.let_close.clear()  # a peer that never answers
        room.time.now += 0.1
        second = await room.read()
        assert second is not first
        assert (first.ended, room.pool.statistics().replaced) == ("", 1)
        first.let_close.set()
        await room.pool.close()
        assert (first.ended, second.ended) == ("closed", "closed")

    run(test)


def test_connections_that_nobody_asks_for_any_more_are_given_up_all_the_same() -> None:
    """A host that is restarted again and again, at another port each time, leaves nothing of its former ports."""

    async def test(room: Room) -> None:
        for number in range(1, 6):
            await room.read(Port("fake", Address("h", number), number))
            room.time.now += 40.0
        broken = await room.read(A)
        broken.broken = True
        await room.read(B)
        await asyncio.sleep(0)
        counts = room.pool.statistics()
        assert (counts.replaced, counts.dropped, counts.idle) == (3, 1, 3)
        assert [one.ended for one in room.wire.made[:3]] == ["closed"] * 3
        assert len(room.pool._idle) == 3

    run(test)


def test_idle_connections_are_bounded() -> None:
    """Of more than that, the one that was idle longest is closed."""

    async def test(room: Room) -> None:
        leases = [room.pool.connection(A, room.time.deadline()) for _ in range(3)]
        for lease in [await context.__aenter__() for context in leases]:
            lease.complete = True
        for context in leases:
            await context.__aexit__(None, None, None)
        await asyncio.sleep(0)
        assert [connection.ended for connection in room.wire.made] == ["closed", "", ""]
        assert room.pool.statistics().idle == 2

    run(test, max_idle=2)


def test_after_a_failure_no_connection_from_before_it_is_used() -> None:
    """Those that are idle go at once, one that is in use goes when it comes back; the next is a new one."""

    async def test(room: Room) -> None:
        in_use = room.pool.connection(A, room.time.deadline())
        lease = await in_use.__aenter__()
        other = await room.read(A)
        untouched = await room.read(B)
        room.time.now += 1
        with pytest.raises(TransportError):
            await room.read(A, error=TransportError("gone", code="reset"))
        assert other.ended == "aborted"
        lease.complete = True
        await in_use.__aexit__(None, None, None)
        assert room.wire.made[0].ended == "aborted"
        assert await room.read(A) not in (lease.connection, other)
        assert await room.read(B) is untouched

    run(test)


def test_an_answer_of_the_host_is_no_failure_of_its_connection() -> None:
    """Stale, not ready, damaged: the exchange was complete, and the connection is as good as ever."""

    async def test(room: Room) -> None:
        first = await room.read()
        with pytest.raises(StaleSlotError):
            await room.read(error=StaleSlotError("moved on"))
        assert await room.read() is first

    run(test)


def test_a_connect_that_fails_says_so_and_is_held_against_the_port() -> None:
    """Connections that idle there are given up too."""

    async def test(room: Room) -> None:
        idle = await room.read()
        async with room.pool.connection(A, room.time.deadline()) as lease:  # takes the idle one
            lease.complete = True
            room.wire.refuses = True
            with pytest.raises(TransportError, match="nobody there"):
                await room.read()
            room.time.now += 1
            with pytest.raises(TransportError, match="nobody there"):
                await room.read()
        assert idle.ended == "aborted"
        assert room.pool.statistics().idle == 0

    run(test)


def test_a_later_life_at_the_same_address_gets_connections_of_its_own() -> None:
    """The dead life's are given up."""

    async def test(room: Room) -> None:
        old = await room.read(A)
        new = await room.read(LATER_LIFE)
        assert new is not old
        assert old.ended == "aborted"
        assert await room.read(LATER_LIFE) is new

    run(test)


def test_a_closed_pool_gives_out_nothing_and_has_nothing() -> None:
    """What is lent is broken off; closing twice is closing once."""

    async def test(room: Room) -> None:
        idle, context = await room.read(B), room.pool.connection(A, room.time.deadline())
        lease = await context.__aenter__()
        await room.pool.close()
        assert idle.ended == "closed"
        assert lease.connection.broken
        lease.complete = True
        await context.__aexit__(None, None, None)
        with pytest.raises(DataPlaneUnavailable, match="closed"):
            await room.read()
        await room.pool.close()
        assert (room.pool.statistics().idle, room.pool.statistics().lent) == (0, 0)

    run(test)


def test_a_read_that_is_cancelled_breaks_its_connection_off_and_no_other() -> None:
    """A caller's impatience says nothing about the port."""

    async def test(room: Room) -> None:
        in_use = room.pool.connection(A, room.time.deadline())
        await in_use.__aenter__()
        other = await room.read(A)
        await in_use.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
        assert room.wire.made[0].ended == "aborted"
        assert await room.read(A) is other

    run(test)
