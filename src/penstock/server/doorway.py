"""Where clients of other machines come in: a connection shows that it knows the token before anything of it is read.

Invariants: a stranger can make the plane keep at most ``RESPONSE_BYTES`` of him, for ``_KNOCK_S``, on one of
``_MAX_STRANGERS`` connections; until he has answered the challenge no frame, no session and no ledger is in sight.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.server.connections import Connection
from penstock.wire import WireError
from penstock.wire.address import Address
from penstock.wire.auth import RESPONSE_BYTES, Greeter, new_token, read_token

__all__ = ["PURPOSE", "Door", "Doorway", "bind", "token_of"]

PURPOSE = "plane"
_KNOCK_S = 10.0  # to answer the challenge; a client on a slow link takes a fraction of a second
_MAX_STRANGERS = 128  # connections that have not answered yet
_BACKLOG = 1024
_USER_TIMEOUT_MS = 30_000  # unacknowledged bytes after which the kernel gives a connection up: heartbeats come sooner


def bind(address: Address) -> socket.socket:
    """Return a listening socket; port 0 is any free one.

    Raises:
        DataPlaneUnavailable: it cannot be had; says why and what to do.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    except OSError as failed:
        raise DataPlaneUnavailable(f"cannot listen at {address}: {failed.strerror or failed}") from failed
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart does not wait for old connections
        listener.bind(where)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as failed:
        listener.close()
        raise DataPlaneUnavailable(
            f"cannot listen at {address}: {failed.strerror or failed}; choose another, port 0 is any free one"
        ) from failed
    return listener


def token_of(data_dir: Path, given: Path | None) -> bytes:
    """Return the plane's token: that of the file ``given``, or of ``token`` in its directory, made if need be.

    Raises:
        BadArgument: see ``read_token``.
    """
    path = given or data_dir / "token"
    if given is None and not path.exists():
        try:
            return new_token(path)
        except OSError as failed:
            raise BadArgument(f"the token file {path} cannot be made: {failed.strerror}") from failed
    return read_token(path)


class Doorway:
    """Lets connections in. Args: token; admit: makes the connection of one who knows it; warn: told of the others."""

    def __init__(self, token: bytes, admit: Callable[[], Connection], warn: Callable[[str, str], None]) -> None:
        self.token = token
        self.admit = admit
        self.warn = warn
        self.strangers: set[Door] = set()
        self._server: asyncio.Server | None = None

    async def open(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take connections from ``listener``, which ``bind`` made, from now on; encrypted if ``tls`` says how."""
        loop = asyncio.get_running_loop()
        patience = _KNOCK_S if tls is not None else None
        self._server = await loop.create_server(
            self.door, sock=listener, ssl=tls, ssl_handshake_timeout=patience, backlog=_BACKLOG
        )

    def door(self) -> Door:
        """A protocol for a connection that has just been accepted."""
        return Door(self)

    def close(self) -> None:
        """Take nobody in any more, and send the strangers away. Idempotent."""
        if self._server is not None:
            self._server.close()
        for door in list(self.strangers):
            door.shut()


class Door(asyncio.Protocol):
    """One connection until it has shown that it knows the token; then its protocol is a ``Connection``."""

    def __init__(self, doorway: Doorway) -> None:
        self._doorway = doorway
        self._greeter = Greeter(doorway.token, PURPOSE)
        self._transport: asyncio.Transport | None = None
        self._heard = b""
        self._timer: asyncio.TimerHandle | None = None
        self._peer = "nobody"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._peer = str(transport.get_extra_info("peername"))
        if len(self._doorway.strangers) >= _MAX_STRANGERS:
            self._send_away(f"{_MAX_STRANGERS} others are at the door")
            return
        self._doorway.strangers.add(self)
        _never_wait_for_ever(transport.get_extra_info("socket"))
        self._timer = asyncio.get_running_loop().call_later(_KNOCK_S, self._send_away, f"silent for {_KNOCK_S:g} s")
        self._transport.write(self._greeter.challenge())

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._heard += data
        if len(self._heard) < RESPONSE_BYTES:
            return
        response, rest = self._heard[:RESPONSE_BYTES], self._heard[RESPONSE_BYTES:]
        try:
            proof = self._greeter.answer(response)
        except WireError as stranger:
            self._send_away(str(stranger))
            return
        self._leave()
        self._transport.write(proof)
        connection = self._doorway.admit()
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        if rest:
            connection.data_received(rest)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a reset is as good as an end
        self._leave()

    def shut(self) -> None:
        """End it without a word."""
        self._leave()
        if self._transport is not None:
            self._transport.abort()

    def _send_away(self, why: str) -> None:
        self._doorway.warn("strangers", f"{self._peer} was sent away: {why}")
        self.shut()

    def _leave(self) -> None:
        self._doorway.strangers.discard(self)
        self._heard = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _never_wait_for_ever(sock: socket.socket) -> None:
    """A peer whose machine or cable is gone is noticed by the kernel: its session ends by heartbeat anyway."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
