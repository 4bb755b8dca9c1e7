"""One TCP connection, plain or TLS: bytes go from the caller's buffers to the kernel and back, not copied in Python.

Invariants: a failed, late or cancelled call ends the connection, since what of it has travelled is not known; ``abort``
is immediate (the peer gets a reset); ``close`` lets what was sent arrive first, within ``_LINGER_S``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

from penstock.endpoint.connection import Address, Buffer
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires.buffers import readable, writable
from penstock.transport.wires.errors import transport_error
from penstock.transport.wires.motion import Attempt, Mover

_Move = Callable[[Attempt, Deadline], Awaitable[None]]

__all__ = ["StreamConnection", "tuned"]

_TURN_BYTES = 8 << 20  # after so many, other connections of the loop have their turn
_PARTS_AT_ONCE = 64  # handed to the kernel in one call; the limit of Linux is 1024
_LINGER_S = 1.0
_DISCARD_BYTES = 1 << 16
_DISCARDS = 64
_SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes in the send queue that have not been sent
_IDLE_S, _PROBE_S, _PROBES = 30, 10, 3  # a peer whose machine is gone is noticed after a minute, if nobody asks it


def tuned(sock: socket.socket) -> socket.socket:
    """Make ``sock`` what every connection here needs: non-blocking, at once, and noticing a machine that is gone.

    The buffers' sizes stay the kernel's: it grows them itself, and a fixed size turns that off.
    """
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    return sock


class StreamConnection:
    """A ``Connection`` over ``sock``, which is connected and ``tuned``, and belongs to it from now on."""

    def __init__(self, sock: socket.socket, peer: Address) -> None:
        self._sock = sock
        self._peer = str(peer)
        self._mover = Mover(sock)
        self._open = True  # for calls
        self._held = True  # the socket; longer than open, while it is being closed

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def broken(self) -> bool:
        return not self._open

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        views = [view for part in parts if (view := readable(part)).nbytes]
        sending = _encrypted if isinstance(self._sock, ssl.SSLSocket) else _gathered
        await self._run("sending to", self._mover.write, sending(self._sock, views), deadline)

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        view = writable(buffer)
        await self._run("receiving from", self._mover.read, self._filling(view), deadline)

    async def handshake(self, deadline: Deadline) -> None:
        """Agree on encryption; for a socket that TLS was wrapped round."""
        if isinstance(self._sock, ssl.SSLSocket):
            await self._run("TLS handshake with", self._mover.read, _shaking(self._sock), deadline)

    def watch(self, told: Callable[[], None]) -> None:
        """Call ``told`` once when the peer ends the connection, or says something, while nothing is being received."""
        if self._open:
            self._mover.watch(partial(self._look, told))

    def _look(self, told: Callable[[], None]) -> None:
        try:
            self._sock.recv_into(bytearray(1))
        except (BlockingIOError, ssl.SSLWantReadError):
            self.watch(told)  # only TLS had something to say to itself
            return
        except OSError:
            pass  # an end too
        told()

    def abort(self) -> None:
        if not self._held:
            return
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._let_go()

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._mover.stop(_closed_here())
        try:
            await self._part(Deadline(_LINGER_S))
        except (OSError, TransportError):
            pass  # the peer has broken it off, or does not take what was sent: it ends all the same
        finally:
            self._let_go()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            self.abort()

    def __repr__(self) -> str:
        kind = "TLS" if isinstance(self._sock, ssl.SSLSocket) else "TCP"
        return f"<{kind} connection with {self._peer}, {'open' if self._open else 'gone'}>"

    async def _run(self, doing: str, move: _Move, attempt: Attempt, deadline: Deadline) -> None:
        doing = f"{doing} {self._peer}"
        if not self._open:
            raise TransportError(f"{doing}: the connection is closed", code="closed")
        try:
            await move(attempt, deadline)
        except (OSError, TransportError) as failed:
            self.abort()
            raise transport_error(doing, failed, deadline) from failed
        except BaseException:  # cancelled: half a message may have gone
            self.abort()
            raise

    def _filling(self, view: memoryview) -> Attempt:
        filled, total = 0, view.nbytes

        def attempt() -> bool:
            nonlocal filled
            turn_ends = filled + _TURN_BYTES
            while filled < total:
                if filled >= turn_ends:
                    return False
                got = self._sock.recv_into(view[filled:])
                if not got:
                    raise self._ended(filled, total)
                filled += got
            return True

        return attempt

    def _ended(self, filled: int, total: int) -> TransportError:
        if filled:
            words = f"receiving from {self._peer}: it closed after {filled} of {total} bytes"
            return TransportError(words, code="truncated")
        return TransportError(f"receiving from {self._peer}: it has closed the connection", code="closed")

    async def _part(self, deadline: Deadline) -> None:
        """Say that no more will come, and let what was sent leave; the kernel sees to its arrival.

        What the peer sends meanwhile is thrown away: closing with it unread would reset the connection.
        """
        if isinstance(self._sock, ssl.SSLSocket):
            await self._mover.write(_parting(self._sock), deadline)
        self._sock.shutdown(socket.SHUT_WR)
        if _unsent(self._sock):
            await self._mover.read(_discarding(self._sock), deadline)  # until the peer, having read all, closes too
        else:
            _discard(self._sock)

    def _let_go(self) -> None:
        self._open = self._held = False
        self._mover.stop(_closed_here())
        self._sock.close()


def _closed_here() -> ConnectionAbortedError:
    return ConnectionAbortedError(errno.ECONNABORTED, "the connection was closed here")


def _gathered(sock: socket.socket, views: list[memoryview]) -> Attempt:
    """Send ``views`` with as few calls as the kernel allows."""
    first = 0

    def attempt() -> bool:
        nonlocal first
        turn = 0
        while first < len(views):
            if turn >= _TURN_BYTES:
                return False
            sent = sock.sendmsg(views[first : first + _PARTS_AT_ONCE])
            turn += sent
            first = _past(views, first, sent)
        return True

    return attempt


def _encrypted(sock: socket.socket, views: list[memoryview]) -> Attempt:
    """Send ``views`` one after the other: TLS gathers nothing."""
    first = 0

    def attempt() -> bool:
        nonlocal first
        turn = 0
        while first < len(views):
            if turn >= _TURN_BYTES:
                return False
            sent = sock.send(views[first])
            turn += sent
            first = _past(views, first, sent)
        return True

    return attempt


def _past(views: list[memoryview], first: int, sent: int) -> int:
    """Take ``sent`` bytes off ``views`` from ``first`` on; return the first that is left."""
    while sent and sent >= views[first].nbytes:
        sent -= views[first].nbytes
        first += 1
    if sent:
        views[first] = views[first][sent:]
    return first


def _shaking(sock: ssl.SSLSocket) -> Attempt:
    def attempt() -> bool:
        sock.do_handshake()
        return True

    return attempt


def _parting(sock: ssl.SSLSocket) -> Attempt:
    """Tell the peer, under the encryption, that this is the end; what it answers is not waited for."""

    def attempt() -> bool:
        with contextlib.suppress(ssl.SSLWantReadError):
            sock.unwrap()
        return True

    return attempt


def _discarding(sock: socket.socket) -> Attempt:
    scratch = bytearray(_DISCARD_BYTES)
    return lambda: not sock.recv_into(scratch)


def _discard(sock: socket.socket) -> None:
    """Take what has come and throw it away."""
    discarded = _discarding(sock)
    with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
        for _ in range(_DISCARDS):
            if discarded():
                return


def _unsent(sock: socket.socket) -> int:
    """How many bytes have not left this machine."""
    (unsent,) = struct.unpack("i", fcntl.ioctl(sock, _SIOCOUTQNSD, bytes(4)))
    return int(unsent)
