"""One client's connection: bytes in, calls out to the plane; replies in, bytes out; limits on both.

Invariants: a malformed frame or an unexpected call ends this connection and touches nothing else; a connection whose
peer does not read its replies, or that has too many calls open, is not read; one connection takes the loop for at most
``_TURN_S`` before the others have their turn; after ``discard`` nothing of its input is looked at.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol, cast

from penstock.errors import DataPlaneUnavailable
from penstock.requests import Call
from penstock.server.holdings import Holder
from penstock.server.processes import Process
from penstock.wire import FrameReader, WireError, decode_call

__all__ = ["Connection", "Desk"]

_TURN_S = 0.005  # of the loop, for one connection's calls, before the others have their turn
_GREETING_BYTES = 64 * 1024  # the first frame; a stranger does not make the plane buffer 256 MiB
_MAX_OPEN_CALLS = 256  # unanswered, per connection; a client has one per thread
_WRITE_HIGH_BYTES = 4 * 1024 * 1024  # unread replies, beyond which a connection is not read any more


class Desk(Protocol):
    """What a connection needs of the plane."""

    max_frame_bytes: int
    clock: Callable[[], float]

    def connected(self, connection: Connection, sock: socket.socket) -> None: ...
    def receive(self, connection: Connection, call: Call) -> None: ...
    def misbehaved(self, connection: Connection, error: Exception) -> None: ...
    def disconnected(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """Attributes: session_id (0 before one is open), holder, process: who is at the other end, since when."""

    def __init__(self, desk: Desk) -> None:
        self.session_id = 0
        self.holder: Holder | None = None
        self.process: Process | None = None
        self.open_calls: set[int] = set()
        self.closed = False
        self.since = desk.clock()
        self._desk = desk
        self._reader = FrameReader(min(_GREETING_BYTES, desk.max_frame_bytes))
        self._transport: asyncio.Transport | None = None
        self._outbox: list[bytes] = []
        self._blocked = False  # the peer does not read
        self._paused = False
        self._turn_due = False  # more frames are there than one turn could take

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        try:
            self._desk.connected(self, transport.get_extra_info("socket"))
        except DataPlaneUnavailable as refused:
            self._misbehaved(refused)

    def data_received(self, data: bytes) -> None:
        if not self.closed:
            self._work(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a reset is as good as an end
        self.closed = True
        self._desk.disconnected(self)

    def pause_writing(self) -> None:
        self._blocked = True
        self._regulate()

    def resume_writing(self) -> None:
        self._blocked = False
        self.carry_on()

    def queue(self, frame: bytes) -> None:
        """Take a reply; it leaves with the next ``send``."""
        self._outbox.append(frame)

    def send(self) -> None:
        """Write what is queued, at once."""
        frames, self._outbox = self._outbox, []
        if frames and self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))

    def carry_on(self) -> None:
        """Something that held up its reading is over: a call was answered, or the peer reads again.

        It has its next turn later, not now: whoever settles a batch must find nothing decided after it.
        """
        if self._paused and not (self.closed or self._turn_due or self._held_up()):
            self._next_turn()

    def close(self) -> None:
        """Read nothing more; send what is queued; close."""
        if not self.closed:
            self.closed = True
            self.send()
            if self._transport is not None:
                self._transport.close()

    def discard(self) -> None:
        """End at once; what was not sent and not read is lost."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def _next_turn(self) -> None:
        self._turn_due = True
        asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_due = False
        if not self.closed:
            self._work(b"")

    def _work(self, data: bytes) -> None:
        """Hand frames to the plane until none is complete, the turn is over, or the peer must first read."""
        until = self._desk.clock() + _TURN_S
        frames = self._reader.feed(data)
        try:
            while not (self._turn_due or self.closed or self._held_up()):
                frame = next(frames, None)
                if frame is None:
                    break
                self._desk.receive(self, decode_call(frame))
                if self.session_id:
                    self._reader.allow(self._desk.max_frame_bytes)
                if self._desk.clock() > until:
                    self._next_turn()
        except WireError as bad:
            self._misbehaved(bad)
        finally:
            frames.close()
        self._regulate()

    def _held_up(self) -> bool:
        return self._blocked or len(self.open_calls) >= _MAX_OPEN_CALLS

    def _regulate(self) -> None:
        """Read from the socket only if what was read already is dealt with."""
        if self.closed or self._transport is None or self._transport.is_closing():
            return
        self._paused = self._held_up() or self._turn_due
        if self._paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _misbehaved(self, error: Exception) -> None:
        self._desk.misbehaved(self, error)
        self.discard()

    def __repr__(self) -> str:
        return f"Connection(session {self.session_id}, {self.process}, {len(self.open_calls)} open calls)"
