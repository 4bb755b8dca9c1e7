"""Every use of a connection is posted first, and ends once."""

from __future__ import annotations

import asyncio

import pytest

from penstock.endpoint.connection import Buffer
from penstock.endpoint.events import Session
from penstock.endpoint.posted import PostedConnection
from penstock.errors import TransportError
from tests.endpoint.peers import soon

US = Session(1, 1)


class Inner:
    """A connection that does as it is told."""

    peer = "somebody"
    broken = False

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.log: list[str] = []

    async def send(self, *parts: Buffer, deadline: object) -> None:
        await self._do("send")

    async def recv_into(self, buffer: Buffer, deadline: object) -> None:
        await self._do("recv")

    def abort(self) -> None:
        self.log.append("abort")

    async def close(self) -> None:
        self.log.append("close")

    async def _do(self, what: str) -> None:
        self.log.append(what)
        await asyncio.sleep(0)
        if self.fails:
            raise TransportError("cut", code=self.fails)


class Desk:
    """Writes down what it is told. ``refuse``: why nothing may be posted; ``settled``: why work has failed."""

    def __init__(self, refuse: str = "", settled: str = "") -> None:
        self.refuse, self.settled = refuse, settled
        self.log: list[str] = []

    def post(self, session: Session) -> int:
        if self.refuse:
            raise TransportError(self.refuse, code="closed")
        self.log.append("post")
        return 1

    def finish(self, session: Session, work: int, why: str) -> str:
        self.log.append(f"finish {why}".strip())
        return self.settled or why

    def give_up(self, session: Session, why: str) -> None:
        self.log.append(f"give up: {why}")


def test_a_call_is_posted_and_finished() -> None:
    """Once each."""
    desk, inner = Desk(), Inner()
    connection = PostedConnection(desk, US, inner)
    asyncio.run(connection.send(b"x", deadline=soon()))
    asyncio.run(connection.recv_into(bytearray(1), soon()))
    assert (desk.log, inner.log) == (["post", "finish"] * 2, ["send", "recv"])
    assert not connection.broken
    assert connection.peer == "somebody"


def test_nothing_is_sent_on_what_is_not_ready() -> None:
    """Not a byte."""
    inner = Inner()
    connection = PostedConnection(Desk(refuse="bound, not ready"), US, inner)
    with pytest.raises(TransportError, match="not ready"):
        asyncio.run(connection.send(b"x", deadline=soon()))
    assert inner.log == []


def test_a_failed_call_breaks_the_endpoint_and_keeps_its_code() -> None:
    """Layers above tell a timeout from a reset."""
    desk = Desk()
    connection = PostedConnection(desk, US, Inner(fails="timeout"))
    with pytest.raises(TransportError, match="cut") as failed:
        asyncio.run(connection.send(b"x", deadline=soon()))
    assert failed.value.code == "timeout"
    assert desk.log == ["post", "finish cut", "give up: cut"]


def test_work_that_a_retirement_has_settled_has_failed() -> None:
    """Though its bytes have left in the same moment."""
    connection = PostedConnection(Desk(settled="the peer has begun session 7.2"), US, Inner())
    with pytest.raises(TransportError, match="has begun session"):
        asyncio.run(connection.send(b"x", deadline=soon()))


def test_a_retired_connection_is_broken() -> None:
    """And lets go of what it carries."""
    inner = Inner()
    connection = PostedConnection(Desk(), US, inner)
    connection.retire("silent")
    assert connection.broken
    assert inner.log == ["abort"]


def test_to_close_or_to_abort_it_retires_the_endpoint() -> None:
    """By its user's will."""
    desk, inner = Desk(), Inner()
    connection = PostedConnection(desk, US, inner)
    asyncio.run(connection.close())
    connection.abort()
    assert desk.log == ["give up: its user has closed it", "give up: its user has let go of it"]
    assert inner.log == ["close", "abort"]
