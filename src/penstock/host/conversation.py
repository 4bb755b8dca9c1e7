"""What two agents say to each other over one connection: "pull this block", and how that went. Both may ask, at once.

    asker  -> Copy            number, where the block lies, what it holds, until when
    answer -> CopyMade        number, where the second copy lies
           or CopyRefused     number, why

Each message is two parts: a header of fixed size, and as many bytes as it says, whose xxh3-64 it holds.

Invariants: a question is answered once, or fails with the connection; whoever leaves a question disturbs nobody, for
one task alone sends and one alone receives; a peer that asks too much at once is refused, and we never do; what a peer
says is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any, TypeAlias

import msgspec
import xxhash

from penstock.endpoint.connection import Connection
from penstock.errors import DataPlaneError, TransportError
from penstock.parts import BlockPlace, HostPlace, Record
from penstock.retry import Deadline

__all__ = ["Conversation", "Copy", "CopyMade", "CopyRefused"]

_HEADER = struct.Struct("<4sIQ")  # magic, bytes, checksum
_MAGIC = b"PSc\x01"  # the last byte: the version
_MAX_BYTES = 64 * 1024  # of a message; honest ones have some hundred
_MAX_SERVED = 256  # questions of the peer that are open
_MAX_ASKED = 128  # at once; an honest peer stays far below, though it may still serve what its asker has left
_SEND_S = 10.0
_IDLE_S = 600.0  # without a word from the peer
_MAX_WHY = 500  # characters

log = logging.getLogger("penstock.host")


class Copy(Record, frozen=True):
    """Pull this block and keep it: ``block`` of ``source``, whose listeners serve it."""

    number: int
    block: BlockPlace
    content: int
    source: HostPlace
    deadline_s: float


class CopyMade(Record, frozen=True):
    """The block lies there too, verified."""

    number: int
    place: BlockPlace


class CopyRefused(Record, frozen=True):
    """It does not."""

    number: int
    why: str


_Message: TypeAlias = Copy | CopyMade | CopyRefused
_decoder: msgspec.msgpack.Decoder[_Message] = msgspec.msgpack.Decoder(_Message)


class Conversation:
    """One connection to one peer.

    Args:
        connection: established; the conversation closes it.
        copy: does what the peer asks for; an error is the refusal.
    """

    def __init__(self, connection: Connection, copy: Callable[[Copy], Awaitable[BlockPlace]]) -> None:
        self._connection = connection
        self._copy = copy
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[BlockPlace]] = {}
        self._turns = asyncio.Semaphore(_MAX_ASKED)
        self._served: set[asyncio.Task[None]] = set()
        self._outbox: asyncio.Queue[_Message] = asyncio.Queue(2 * _MAX_SERVED)
        self._over: TransportError | None = None

    @property
    def over(self) -> bool:
        """Nothing can be asked any more."""
        return self._over is not None

    async def ask(self, block: BlockPlace, content: int, source: HostPlace, deadline: Deadline) -> BlockPlace:
        """Have the peer pull a block; return where its copy lies.

        Raises:
            TransportError: the connection broke, or there was no answer in time: what the peer has is not known.
            DataPlaneError: the peer has refused.
        """
        if self._over is not None:
            raise self._over
        try:
            async with asyncio.timeout(deadline.remaining()), self._turns:
                return await self._answer_to(block, content, source, deadline)
        except TimeoutError:
            why = f"{self._connection.peer} has not pulled block {block.block_id} within {deadline.timeout_s:g} s"
            raise TransportError(why, code="timeout") from None

    async def _answer_to(self, block: BlockPlace, content: int, source: HostPlace, deadline: Deadline) -> BlockPlace:
        """Say it, and wait; the answer to a question that was left is dropped."""
        if self._over is not None:  # since it waited for its turn
            raise self._over
        number = next(self._numbers)
        answer: asyncio.Future[BlockPlace] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            await self._outbox.put(Copy(number, block, content, source, deadline.remaining()))
            return await answer
        finally:
            self._asked.pop(number, None)

    async def run(self) -> None:
        """Send, receive and serve, until the connection breaks or this is cancelled."""
        sending = asyncio.get_running_loop().create_task(self._guarded(self._send_all))
        try:
            await self._guarded(self._receive_all)
        finally:
            self._end(
                self._over or TransportError(f"the conversation with {self._connection.peer} is over", code="closed")
            )
            tasks = [sending, *self._served]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._connection.close()

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run until something is wrong with the connection; whichever half notices first ends the other."""
        try:
            await work()
        except TransportError as cut:
            self._end(cut)
            self._connection.abort()

    def _end(self, why: TransportError) -> None:
        self._over = self._over or why
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(why)
        self._asked.clear()

    # -- out ----------------------------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        while True:
            body = msgspec.msgpack.encode(await self._outbox.get())
            header = _HEADER.pack(_MAGIC, len(body), xxhash.xxh3_64_intdigest(body))
            await self._connection.send(header, body, deadline=Deadline(_SEND_S))

    # -- in -----------------------------------------------------------------------------------------------------------

    async def _receive_all(self) -> None:
        while True:
            self._take(await self._receive())

    async def _receive(self) -> _Message:
        header = bytearray(_HEADER.size)
        await self._connection.recv_into(header, Deadline(_IDLE_S))
        magic, nbytes, checksum = _HEADER.unpack(header)
        if magic != _MAGIC or not 0 < nbytes <= _MAX_BYTES:
            raise TransportError(f"{self._connection.peer} does not speak as an agent does", code="protocol")
        body = bytearray(nbytes)
        await self._connection.recv_into(body, Deadline(_SEND_S))
        if xxhash.xxh3_64_intdigest(bytes(body)) != checksum:
            raise TransportError(f"what {self._connection.peer} sent is damaged", code="protocol")
        try:
            return _decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as bad:
            raise TransportError(f"{self._connection.peer} sent what is no message: {bad}", code="protocol") from bad

    def _take(self, message: _Message) -> None:
        match message:
            case Copy():
                self._serve(message)
            case CopyMade():
                answer = self._asked.get(message.number)  # else whoever asked has left
                if answer is not None and not answer.done():
                    answer.set_result(message.place)
            case CopyRefused():
                answer = self._asked.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_exception(DataPlaneError(message.why[:_MAX_WHY]))

    def _serve(self, asked: Copy) -> None:
        if len(self._served) >= _MAX_SERVED:
            raise TransportError(
                f"{self._connection.peer} asks for more than {_MAX_SERVED} copies at once", code="protocol"
            )
        task = asyncio.get_running_loop().create_task(self._do(asked))
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def _do(self, asked: Copy) -> None:
        try:
            place = await self._copy(asked)
        except DataPlaneError as refused:
            await self._outbox.put(CopyRefused(asked.number, str(refused)[:_MAX_WHY]))
        else:
            await self._outbox.put(CopyMade(asked.number, place))

    def __repr__(self) -> str:
        state = "over" if self.over else f"{len(self._asked)} asked, {len(self._served)} served"
        return f"Conversation({self._connection.peer}, {state})"
