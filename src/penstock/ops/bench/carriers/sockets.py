"""What TCP gives without anything round it: a loop of sendmsg, a loop of recv_into, blocking sockets, no deadline."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from penstock.ops.bench.carrier import ASKED, MAX_BYTES, Carrier, asked_for

__all__ = ["PlainSockets"]


class PlainSockets(Carrier):
    """Blocking sockets; the server's in a thread."""

    async def serve(self, tell: Callable[[str], Awaitable[None]]) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        await tell(str(listener.getsockname()[1]))
        await asyncio.to_thread(_serve, listener)

    async def open(self, told: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(told)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def fetch(self, buffer: memoryview) -> None:
        self._socket.sendall(buffer.nbytes.to_bytes(ASKED, "big"))
        _fill(self._socket, buffer)

    async def close(self) -> None:
        self._socket.close()


def _serve(listener: socket.socket) -> None:
    with listener:
        connection, _ = listener.accept()
    source, request = memoryview(bytearray(b"\x01") * MAX_BYTES), memoryview(bytearray(ASKED))
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while _fill(connection, request):
            rest = source[: asked_for(bytes(request))]
            while rest:
                rest = rest[connection.sendmsg([rest]) :]


def _fill(connection: socket.socket, view: memoryview) -> bool:
    """Fill ``view``; return False if the peer has closed instead."""
    while view:
        got = connection.recv_into(view)
        if not got:
            return False
        view = view[got:]
    return True
