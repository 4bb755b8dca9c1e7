"""A TCP proxy that does to connections what sentences say; see ``line_faults``.

    with FaultProxy(("127.0.0.1", port), reset(at=100, toward="client", connection=0)) as proxy:
        talk_to(proxy.address)
    assert proxy.fired

Invariants: what no sentence names passes unchanged, ends and resets included; a sentence fires at the same byte
however the bytes arrive; after ``stop`` no thread, connection or listener is left. Usable from any thread; its own
thread is of the network namespace of who starts it.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self, TypeAlias

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.testing.line_faults import Action, End, LineFault, Pass, Stream, Toward, Wait

__all__ = ["FaultProxy", "LineFired"]

_CHUNK = 1 << 18
_BACKLOG = 512
_CONNECT_S = 10.0
_DRAIN_S = 1.0  # how long an end in good order may take, and what was sent before a reset may take to arrive
_LOOK_S = 0.001  # between two looks at what no descriptor tells
_START_S = 10.0

_How: TypeAlias = Literal["close", "reset"]


@dataclass(frozen=True)
class LineFired:
    """A fault that took effect on connection ``connection``. ``at``: monotonic seconds."""

    fault: LineFault
    connection: int
    at: float


@dataclass(eq=False)
class _Line:
    """A connection: its two sockets and its two directions."""

    number: int
    client: socket.socket
    server: socket.socket
    streams: dict[Toward, Stream]
    over: asyncio.Future[_How]
    ended: int = 0
    noted: dict[Toward, int] = field(default_factory=lambda: {"client": 0, "server": 0})

    def ends(self, toward: Toward) -> tuple[socket.socket, socket.socket]:
        """Return who sends and who receives."""
        return (self.server, self.client) if toward == "client" else (self.client, self.server)

    def direction_ended(self) -> None:
        """One of its directions has come to its end; both have, and there is nothing more to carry."""
        self.ended += 1
        if self.ended == len(self.streams):
            self.finish("close")

    def finish(self, how: _How) -> None:
        """Let it end so, unless it ends already."""
        if not self.over.done():
            self.over.set_result(how)


class FaultProxy:
    """Args: target: host and port of the real listener. faults: armed from the start.

    Attributes:
        fired: what took effect so far, in order.
    """

    def __init__(self, target: tuple[str, int], *faults: LineFault, host: str = "127.0.0.1", port: int = 0) -> None:
        self.fired: list[LineFired] = []
        self._target = target
        self._faults = list(faults)
        self._bind = (host, port)
        self._lines: list[_Line] = []
        self._serving: set[asyncio.Task[None]] = set()
        self._taken = 0
        self._bytes: dict[Toward, int] = {"client": 0, "server": 0}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._listener: socket.socket | None = None

    # -- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        self._listener = socket.create_server(self._bind, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._bind = self._listener.getsockname()[:2]
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=f"proxy {self.address}", daemon=True)
        self._thread.start()
        if not ready.wait(_START_S):
            raise DataPlaneUnavailable("the proxy's thread does not start")
        return self

    def stop(self) -> None:
        """Drop all connections and stop listening. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what it is told ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect to."""
        if self._listener is None:
            raise BadArgument("the proxy has not been started")
        return self._bind

    def arm(self, *faults: LineFault) -> None:
        """Let these happen to connections that come from now on."""
        self._faults = [*self._faults, *faults]

    def strike(self, *faults: LineFault) -> None:
        """Let these happen to the connections that are open; ``at`` counts from now."""

        def add() -> None:
            for line in self._lines:
                for fault in faults:
                    line.streams[fault.toward].add(fault)

        self._call(add)

    def disarm(self) -> None:
        """Let connections that come from now on pass unharmed."""
        self._faults = []

    def redirect(self, target: tuple[str, int]) -> None:
        """Send connections that come from now on elsewhere: the listener has been started again on another port."""
        self._target = target

    def freeze(self) -> None:
        """From now on nothing passes and nobody is let in, as if the other end were stopped, until ``thaw``."""
        self._call(self._gate.clear)

    def thaw(self) -> None:
        """Let things pass again; what was held back arrives now."""
        self._call(self._gate.set)

    def reset_all(self) -> int:
        """Reset all connections that are open; return how many."""
        lines = list(self._lines)

        def finish() -> None:
            for line in lines:
                line.finish("reset")

        self._call(finish)
        return len(lines)

    # -- how it stands ------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many have been taken so far."""
        return self._taken

    @property
    def open(self) -> int:
        """How many are open."""
        return len(self._lines)

    def passed(self, toward: Toward) -> int:
        """Bytes that were received from the other side, over all connections."""
        return self._bytes[toward]

    def __repr__(self) -> str:
        state = f"{len(self._lines)} open, {len(self.fired)} faults fired"
        return f"FaultProxy({self._bind} -> {self._target}, {state}, {'running' if self._thread else 'not running'})"

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _call(self, do: Callable[[], object]) -> None:
        """Run ``do`` on the loop and wait until it has been done."""
        if self._thread is None or self._loop is None:
            raise BadArgument("the proxy is not running")
        done = threading.Event()

        def run() -> None:
            do()
            done.set()

        self._loop.call_soon_threadsafe(run)
        if not done.wait(_START_S):
            raise DataPlaneUnavailable("the proxy's thread does not answer")

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        assert self._listener is not None
        self._loop = asyncio.get_running_loop()
        self._stopping, self._gate = asyncio.Event(), asyncio.Event()
        self._gate.set()
        accepting = asyncio.create_task(self._accept(self._listener))
        ready.set()
        await self._stopping.wait()
        self._listener.close()
        for task in [accepting, *self._serving]:
            task.cancel()
        await asyncio.gather(accepting, *self._serving, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gate.wait()
            client, _ = await loop.sock_accept(listener)
            number, self._taken = self._taken, self._taken + 1
            task = asyncio.create_task(self._relay(number, client))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _relay(self, number: int, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self._gate.wait()
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(server, self._target), _CONNECT_S)
            except (OSError, TimeoutError):
                _reset(client)
                return
            await self._carry(self._line(number, client, server))

    def _line(self, number: int, client: socket.socket, server: socket.socket) -> _Line:
        mine = [fault for fault in self._faults if fault.connection in (None, number)]
        sides: tuple[Toward, Toward] = ("client", "server")
        streams = {toward: Stream([fault for fault in mine if fault.toward == toward]) for toward in sides}
        return _Line(number, client, server, streams, asyncio.get_running_loop().create_future())

    async def _carry(self, line: _Line) -> None:
        """Carry both directions to their ends, or until something ends both."""
        self._lines.append(line)
        pumps = [asyncio.create_task(self._pump(line, toward)) for toward in line.streams]
        try:
            how = await line.over
        finally:
            self._lines.remove(line)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        await _end(line, how)

    # -- one direction ------------------------------------------------------------------------------------------------

    async def _pump(self, line: _Line, toward: Toward) -> None:
        """Carry one direction to its end; the other direction may go on after that."""
        loop, (sender, receiver), stream = asyncio.get_running_loop(), line.ends(toward), line.streams[toward]
        try:
            for action in stream.begin():
                await self._act(action, line, toward)
            while data := await loop.sock_recv(sender, _CHUNK):
                self._bytes[toward] += len(data)
                for action in stream.feed(data):
                    await self._act(action, line, toward)
                self._note(line, toward)
            if not stream.silent:
                receiver.shutdown(socket.SHUT_WR)
            line.direction_ended()
        except OSError:  # one of the ends is gone: the other hears of it the hard way, as it would without us
            line.finish("reset")

    async def _act(self, action: Action, line: _Line, toward: Toward) -> None:
        receiver = line.ends(toward)[1]
        await self._gate.wait()
        self._note(line, toward)
        match action:
            case Pass(data):
                await asyncio.get_running_loop().sock_sendall(receiver, data)
                await asyncio.sleep(0)  # the others' turn: a slice is a segment of its own, and so it arrives
            case Wait(None):
                await asyncio.Event().wait()
            case Wait(for_s):
                await asyncio.sleep(for_s or 0.0)
            case End("half_close"):
                receiver.shutdown(socket.SHUT_WR)
            case End("close" | "reset" as how):
                await _arrived(receiver)
                line.finish(how)

    def _note(self, line: _Line, toward: Toward) -> None:
        """Remember what has fired since the last time."""
        fired = line.streams[toward].fired[line.noted[toward] :]
        line.noted[toward] += len(fired)
        self.fired += [LineFired(fault, line.number, time.monotonic()) for fault in fired]


# -- ends -------------------------------------------------------------------------------------------------------------


def _reset(sock: socket.socket) -> None:
    """Let the close that follows be a reset (socket(7), SO_LINGER)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _arrived(receiver: socket.socket) -> None:
    """Wait until the receiver's kernel has all that was sent: a reset would drop the rest (tcp(7), SIOCOUTQ)."""
    until = time.monotonic() + _DRAIN_S
    while time.monotonic() < until:
        unsent = struct.unpack("i", fcntl.ioctl(receiver, termios.TIOCOUTQ, b"\0" * 4))[0]
        if not unsent:
            return
        await asyncio.sleep(_LOOK_S)


async def _end(line: _Line, how: _How) -> None:
    """End both sides; their sockets are closed right after this."""
    for sock in (line.client, line.server):
        if how == "reset":
            _reset(sock)
    if how == "close":
        await asyncio.gather(_hang_up(line.client), _hang_up(line.server))


async def _hang_up(sock: socket.socket) -> None:
    """End one side in good order: a close with bytes unread would be a reset."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_DRAIN_S):
            while await loop.sock_recv(sock, _CHUNK):
                pass
