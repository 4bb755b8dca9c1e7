"""What carries the handshake's messages: connections to a peer, dialled when there is something to say, or by the peer.

Invariants: to say something never waits, and may be in vain (the machine's timers say it again); what is queued is
bounded; a peer that sends what is no message loses that connection, and no other; a connection on which questions stay
without a word is not asked for ever; every task is owned here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from penstock.endpoint.connection import Address, Connection, Wire
from penstock.endpoint.messages import HEADER, VERSION, Hello, Ping, Rep, Req, Said, decode, encode, length_of
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.wire import WireError

__all__ = ["Link", "greet"]

_DIAL_S = 5.0
_SEND_S = 5.0
_IDLE_S = 120.0  # without a word; ready endpoints say something every few seconds
_MAX_QUEUED = 256
_ANSWER_S = (
    5.0  # what a cut has swallowed, TCP sends again after a pause that has grown as long as the cut: dial instead
)
_QUESTIONS = (Req, Rep, Ping)  # who lives and hears them answers at once

log = logging.getLogger("penstock.endpoint")


class Link:
    """All that is said to one peer, and heard from it.

    Args:
        name: the peer's.
        address: where it is dialled; None = it has no listener, and must dial us.
        hear: told each message.
        unreachable: told that dialling failed, and that what was queued is lost.
        parted: told that the last connection with the peer has ended.
        gate: entered for dialling.
    """

    def __init__(
        self,
        name: str,
        address: Address | None,
        *,
        me: Callable[[], Hello],
        wire: Wire,
        hear: Callable[[Link, Said], None],
        unreachable: Callable[[Link, TransportError], None],
        parted: Callable[[Link], None],
        gate: AbstractAsyncContextManager[object],
    ) -> None:
        self.name = name
        self.address = address
        self._me = me
        self._wire = wire
        self._hear = hear
        self._unreachable = unreachable
        self._parted = parted
        self._gate = gate
        self._queue: deque[Said] = deque()
        self._connections: list[Connection] = []  # the newest last
        self._talker: asyncio.Task[None] | None = None
        self._readers: set[asyncio.Task[None]] = set()
        self._asked_at: float | None = None  # the first question since the peer was heard last
        self._closed = False
        self.dropped = 0

    @property
    def quiet(self) -> bool:
        """Whether nothing is lost if this object is forgotten."""
        return not (self._connections or self._queue or self._talker)

    def say(self, said: Said) -> None:
        """Queue a message."""
        if self._closed or len(self._queue) >= _MAX_QUEUED:
            self.dropped += 1
            return
        self._queue.append(said)
        if self._talker is None:
            self._talker = asyncio.get_running_loop().create_task(self._talk(), name=f"talking to {self.name}")

    async def read(self, connection: Connection) -> None:
        """Use a connection that the peer has dialled, and hear what it says there, until it ends."""
        self._connections.append(connection)
        await self._read(connection)

    async def _read(self, connection: Connection) -> None:
        try:
            while not self._closed:
                said = await _receive(connection, Deadline(_IDLE_S))
                self._heard_on(connection)
                if isinstance(said, Hello):
                    raise WireError(f"{self.name} said Hello twice")
                self._hear(self, said)
        except (TransportError, WireError) as gone:
            log.debug("connection with %s: %s", self.name, gone)
        finally:
            self._lose(connection)

    async def close(self) -> None:
        """End all connections and tasks. Idempotent."""
        self._closed = True
        self._queue.clear()
        for connection in list(self._connections):
            self._lose(connection)
        tasks = [task for task in (self._talker, *self._readers) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _talk(self) -> None:
        try:
            while self._queue:
                self._leave_the_mute()
                connection = self._connections[-1] if self._connections else await self._dial()
                if self._queue:
                    await self._send(connection, self._queue.popleft())
        except (TransportError, WireError) as failed:
            self.dropped += len(self._queue)
            self._queue.clear()
            code = failed.code if isinstance(failed, TransportError) else "protocol"
            self._unreachable(self, TransportError(f"peer {self.name}: {failed}", code=code))
        finally:
            self._talker = None

    def _heard_on(self, connection: Connection) -> None:
        """The peer is reached by the connection on which it was heard last."""
        self._asked_at = None
        if connection in self._connections and connection is not self._connections[-1]:
            self._connections.remove(connection)
            self._connections.append(connection)

    def _leave_the_mute(self) -> None:
        """Give up the connections if nothing has answered for too long, and the peer can be dialled."""
        if self._asked_at is None or self.address is None:
            return
        if asyncio.get_running_loop().time() - self._asked_at > _ANSWER_S:
            self._asked_at = None
            for connection in list(self._connections):
                self._lose(connection)

    async def _send(self, connection: Connection, said: Said) -> None:
        if isinstance(said, _QUESTIONS) and self._asked_at is None:
            self._asked_at = asyncio.get_running_loop().time()
        try:
            await connection.send(*encode(said), deadline=Deadline(_SEND_S))
        except TransportError as lost:
            self.dropped += 1
            log.debug("a %s to %s is lost: %s", type(said).__name__, self.name, lost)
            self._lose(connection)

    async def _dial(self) -> Connection:
        if self.address is None:
            raise TransportError("it has no listener, and its connection has ended", code="closed")
        async with self._gate:
            deadline = Deadline(_DIAL_S)
            connection = await self._wire.connect(self.address, deadline)
            try:
                await greet(connection, self._me(), deadline)
            except BaseException:
                connection.abort()
                raise
        self._connections.append(connection)
        reader = asyncio.get_running_loop().create_task(self._read(connection), name=f"hearing {self.name}")
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)
        return connection

    def _lose(self, connection: Connection) -> None:
        connection.abort()
        if connection in self._connections:
            self._connections.remove(connection)
            if not self._connections and not self._closed:
                self._parted(self)

    def __repr__(self) -> str:
        return f"<Link to {self.name}, {len(self._connections)} connections, {len(self._queue)} queued>"


async def greet(connection: Connection, me: Hello, deadline: Deadline) -> Hello:
    """Exchange names.

    Raises:
        TransportError: the connection broke, or not in time.
        WireError: it is no peer, or one of another version.
    """
    await connection.send(*encode(me), deadline=deadline)
    hello = await _receive(connection, deadline)
    if not isinstance(hello, Hello):
        raise WireError("a peer says Hello first")
    if hello.version != VERSION:
        raise WireError(f"the peer speaks version {hello.version} of the handshake, and we speak {VERSION}")
    return hello


async def _receive(connection: Connection, deadline: Deadline) -> Hello | Said:
    header = bytearray(HEADER.size)
    await connection.recv_into(header, deadline)
    body = bytearray(length_of(header))
    await connection.recv_into(body, deadline)
    return decode(body)
