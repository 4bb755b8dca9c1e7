"""A wire within one process, for tests: the same promises as the real ones, stricter in one, and it fails on order.

Its parts are messages: a ``recv_into`` that does not take exactly one part of the peer's ``send`` fails here, as it
would over UCX, while TCP would let it pass. Threads with loops of their own may be at its two ends.

Invariants: the k-th call of a wire meets the fault that was ordered for k, and ``fired`` says so; nothing is left to
chance or to the clock; a network of one test knows nothing of another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from penstock.endpoint.connection import Address, Buffer, Serve
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires.buffers import readable, writable
from penstock.transport.wires.errors import timed_out
from penstock.transport.wires.greeting import GREETING_S, dial, greet
from penstock.wire.auth import Dialler, Greeter

__all__ = ["Fault", "MemoryConnection", "MemoryListener", "MemoryNetwork", "MemoryWire"]

Kind = Literal["fail", "stall", "truncate", "flip"]
_End = Literal["closed", "reset"]

Admit = Callable[["MemoryConnection"], Awaitable[None]]

_CAPACITY_BYTES = 1 << 20  # on their way in one direction; a sender waits for more, as it would for a socket's buffers
_FIRST_PORT = 20_000


@dataclass(frozen=True)
class Fault:
    """What happens to the ``call``-th call of a wire, counted from 0 over all its connections.

    ``fail``: the connection is reset. ``stall``: nothing happens until the deadline. ``truncate``: half of the first
    part arrives, and then the end. ``flip``: one bit in the middle of the longest part is another. A connect that is
    truncated or flipped just fails.
    """

    call: int
    kind: Kind


class MemoryNetwork:
    """Where the listeners of one test are found."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[Address, MemoryListener] = {}
        self._ports = itertools.count(_FIRST_PORT)

    def bind(self, host: str, port: int, listener: MemoryListener) -> Address:
        with self._lock:
            address = Address(host, port or next(self._ports))
            if address in self._listeners:
                raise TransportError(f"listening at {address}: it is taken", code="refused")
            self._listeners[address] = listener
            return address

    def unbind(self, address: Address) -> None:
        with self._lock:
            self._listeners.pop(address, None)

    def at(self, address: Address) -> MemoryListener:
        with self._lock:
            listener = self._listeners.get(address)
        if listener is None:
            raise TransportError(f"connecting to {address}: nobody listens there", code="refused")
        return listener


class MemoryWire:
    """Connections over ``network``. Each has the same ``token`` and ``purpose`` at both ends, or is refused.

    Args:
        faults: what happens to this wire's calls (``connect``, ``send`` and ``recv_into``); authentication is spared.
    """

    name = "memory"

    def __init__(
        self, network: MemoryNetwork, token: bytes = b"twin", purpose: str = "payload", faults: Sequence[Fault] = ()
    ) -> None:
        self._network = network
        self._token = token
        self._purpose = purpose
        self.calls: list[str] = []
        self.fired: list[tuple[Fault, str]] = []  # with the name of the call that met it
        self._faults = {fault.call: fault.kind for fault in faults}
        self._lock = threading.Lock()

    async def connect(self, address: Address, deadline: Deadline) -> MemoryConnection:
        """See ``Wire``."""
        doing = f"connecting to {address}"
        match self.fault("connect"):
            case "stall":
                await asyncio.sleep(deadline.remaining())
                raise timed_out(doing, deadline)
            case None:
                listener = self._network.at(address)
            case kind:
                raise TransportError(f"{doing}: {kind} was ordered", code="reset")
        there, back = _Pipe(), _Pipe()
        listener.arrive(MemoryConnection(there, back, "a client in memory"))
        connection = MemoryConnection(back, there, str(address))
        await dial(connection, Dialler(self._token, self._purpose), deadline)
        connection.wire = self
        return connection

    async def listen(self, host: str, port: int, serve: Serve, *, max_connections: int = 256) -> MemoryListener:
        """See ``Wire``."""
        return MemoryListener(self._network, host, port, self._admit, serve, max_connections)

    async def _admit(self, connection: MemoryConnection) -> None:
        await greet(connection, Greeter(self._token, self._purpose), Deadline(GREETING_S))
        connection.wire = self

    def fault(self, call: str) -> Kind | None:
        """Count one more ``call``; return what happens to it."""
        with self._lock:
            number = len(self.calls)
            self.calls.append(call)
            kind = self._faults.get(number)
            if kind is not None:
                self.fired.append((Fault(number, kind), call))
            return kind


class _Pipe:
    """One direction: parts on their way, and how it ended. Its two ends may be on two threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: deque[bytes] = deque()
        self._bytes = 0
        self._end: str | None = None
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def offer(self, part: bytes) -> bool:
        """Put ``part`` on its way, if there is room. Raises ``ConnectionResetError`` if nobody will take it."""
        with self._lock:
            if self._end is not None:
                raise ConnectionResetError
            if self._parts and self._bytes + len(part) > _CAPACITY_BYTES:
                return False
            self._parts.append(part)
            self._bytes += len(part)
        self._tell()
        return True

    def take(self) -> bytes | None:
        """Return the next part, or None if none has come yet.

        Raises:
            EOFError: all has been taken, and no more will come. ConnectionResetError: it was broken off.
        """
        with self._lock:
            if self._end == "reset":
                raise ConnectionResetError
            if not self._parts:
                if self._end is not None:
                    raise EOFError
                return None
            part = self._parts.popleft()
            self._bytes -= len(part)
        self._tell()
        return part

    def end(self, how: _End) -> None:
        """No more will come; if reset, not even what is on its way. The first end counts."""
        with self._lock:
            self._end = self._end or how
        self._tell()

    def change(self) -> asyncio.Future[None]:
        """Return what is done when something changes; ask before looking."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._lock:
            self._waiting.append((loop, future))
        return future

    def _tell(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(_done, future)


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class MemoryConnection:
    """One end: takes from ``incoming``, gives to ``outgoing``."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, peer: str) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._peer = peer
        self._open = True
        self._busy: set[str] = set()
        self.wire: MemoryWire | None = None  # whose faults its calls meet, once it has authenticated

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def broken(self) -> bool:
        return not self._open

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        async with self._call("send", deadline) as fault:
            travelling = [view.tobytes() for part in parts if (view := readable(part)).nbytes]
            if not travelling:
                return
            if fault == "flip":
                longest = max(range(len(travelling)), key=lambda n: len(travelling[n]))
                travelling[longest] = _flipped(travelling[longest])
            if fault == "truncate":
                await self._give(travelling[0][: len(travelling[0]) // 2])
                self._end("closed")
                raise TransportError(f"sending to {self._peer}: cut off half way, as ordered", code="reset")
            for part in travelling:
                await self._give(part)

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        view = writable(buffer)
        async with self._call("recv_into", deadline) as fault:
            part = await self._next() if view.nbytes else b""
            if fault == "flip":
                part = _flipped(part)
            if fault == "truncate":
                part = part[: len(part) // 2]
            if len(part) != view.nbytes:
                code = "truncated" if len(part) < view.nbytes else "protocol"
                raise TransportError(f"{self._peer} sent {len(part)} bytes for {view.nbytes}", code=code)
            view[:] = part

    def abort(self) -> None:
        self._end("reset")

    async def close(self) -> None:
        self._end("closed")

    def __repr__(self) -> str:
        return f"<memory connection with {self._peer}, {'open' if self._open else 'gone'}>"

    def _end(self, how: _End) -> None:
        self._open = False
        self._outgoing.end(how)
        self._incoming.end("reset")

    async def _give(self, part: bytes) -> None:
        while True:
            change = self._outgoing.change()
            if self._outgoing.offer(part):
                return
            await change

    async def _next(self) -> bytes:
        while True:
            change = self._incoming.change()
            if (part := self._incoming.take()) is not None:
                return part
            await change

    @contextlib.asynccontextmanager
    async def _call(self, name: str, deadline: Deadline) -> AsyncIterator[Kind | None]:
        """One call: counted, alone in its direction, ended by its deadline; yields the fault that it meets."""
        doing = f"{'sending to' if name == 'send' else 'receiving from'} {self._peer}"
        if not self._open:
            raise TransportError(f"{doing}: the connection is closed", code="closed")
        assert name not in self._busy, "two calls in one direction of one connection"
        self._busy.add(name)
        try:
            async with asyncio.timeout(deadline.remaining()):
                yield await self._met(name)
        except (OSError, EOFError, TransportError) as failed:
            code = "closed" if not self._open or isinstance(failed, EOFError) else "reset"
            self.abort()
            if isinstance(failed, TimeoutError):
                raise timed_out(doing, deadline) from failed
            if isinstance(failed, TransportError):
                raise
            raise TransportError(f"{doing}: {code}", code=code, elapsed_s=deadline.elapsed()) from failed
        except BaseException:
            self.abort()
            raise
        finally:
            self._busy.discard(name)

    async def _met(self, name: str) -> Kind | None:
        kind = self.wire.fault(name) if self.wire is not None else None
        if kind == "stall":
            await asyncio.get_running_loop().create_future()
        if kind == "fail":
            raise ConnectionResetError
        return kind


def _flipped(part: bytes) -> bytes:
    damaged = bytearray(part)
    if damaged:
        damaged[len(damaged) // 2] ^= 0x10
    return bytes(damaged)


class MemoryListener:
    """Serves what arrives, each connection in a task of its own, on the loop that made it."""

    def __init__(
        self, network: MemoryNetwork, host: str, port: int, admit: Admit, serve: Serve, max_connections: int
    ) -> None:
        self._network = network
        self._admit = admit
        self._serve = serve
        self._max_connections = max_connections
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._address = network.bind(host, port, self)

    @property
    def address(self) -> Address:
        return self._address

    async def close(self) -> None:
        self._closed = True
        self._network.unbind(self._address)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def arrive(self, connection: MemoryConnection) -> None:
        """Somebody has connected; called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._hear, connection)
        except RuntimeError as ended:  # its loop
            raise TransportError(f"connecting to {self._address}: its loop has ended", code="refused") from ended

    def _hear(self, connection: MemoryConnection) -> None:
        if self._closed or len(self._tasks) >= self._max_connections:
            connection.abort()
            return
        task = self._loop.create_task(self._attend(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: connection.abort())

    async def _attend(self, connection: MemoryConnection) -> None:
        with contextlib.suppress(TransportError):
            await self._admit(connection)
            await self._serve(connection)
        await connection.close()
