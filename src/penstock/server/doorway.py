"""Where clients of other machines come in: a connection shows that it knows the token before anything of it is read.

Invariants: a stranger can make the plane keep at most ``RESPONSE_BYTES`` of him, and with TLS asyncio's buffer of 256
KiB, for ``_KNOCK_S``, the handshake included, on one of ``_MAX_STRANGERS`` connections; one more, and who has waited
longest goes: who knows the token is through at once.
Until a stranger has answered the challenge no frame, no session and no ledger is in sight.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.server.connections import Connection
from penstock.server.sealed import Sealed
from penstock.wire import WireError
from penstock.wire.address import Address
from penstock.wire.auth import RESPONSE_BYTES, Greeter, new_token, read_token

__all__ = ["PURPOSE", "Door", "Doorway", "bind", "token_of"]

PURPOSE = "plane"
_KNOCK_S = 10.0  # to answer the challenge; a client on a slow link takes a fraction of a second
_MAX_STRANGERS = 128  # connections that have not answered yet
_BACKLOG = 1024
_ACCEPTS_AT_ONCE = 64
_PAUSE_S = 0.1  # after there was no descriptor for a connection: asking again at once would burn a core
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
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
    except (OSError, UnicodeError) as failed:  # UnicodeError: a label that no name can have
        why = getattr(failed, "strerror", None) or failed
        raise DataPlaneUnavailable(f"cannot listen at {address}: {why}") from failed
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
        self.strangers: dict[Door, None] = {}  # in the order of their coming
        self._listener: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None

    @property
    def encrypts(self) -> bool:
        """Whether connections come over TLS."""
        return self._tls is not None

    def open(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take connections from ``listener``, which ``bind`` made, from now on; encrypted if ``tls`` says how."""
        self._listener, self._tls = listener, tls
        self._attend()

    def close(self) -> None:
        """Take nobody in any more, and send the strangers away. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        for door in list(self.strangers):
            door.shut()

    def _attend(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, where = listener.accept()
            except BlockingIOError:
                return
            except OSError as failed:
                if failed.errno in _EXHAUSTED:
                    self._rest(listener, failed)
                    return
                continue  # who came has gone again
            if len(self.strangers) >= _MAX_STRANGERS:
                next(iter(self.strangers)).send_away(f"{_MAX_STRANGERS} others came to the door after it")
            Door(self, f"{where[0]}:{where[1]}").receive(sock, self._tls)

    def _rest(self, listener: socket.socket, failed: OSError) -> None:
        loop = asyncio.get_running_loop()
        self.warn("accept_failed", f"no connection can be taken: {failed.strerror}")
        loop.remove_reader(listener)
        loop.call_later(_PAUSE_S, self._attend)


class Door(asyncio.Protocol):
    """One connection until it has shown that it knows the token; then its protocol is a ``Connection``."""

    def __init__(self, doorway: Doorway, peer: str) -> None:
        self._doorway = doorway
        self._greeter = Greeter(doorway.token, PURPOSE)
        self._transport: asyncio.Transport | None = None
        self._heard = b""
        self._timer: asyncio.TimerHandle | None = None
        self._arriving: asyncio.Task[None] | None = None
        self._peer = peer

    def receive(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Hear who has just come, for a while; the time counts from here."""
        loop = asyncio.get_running_loop()
        self._doorway.strangers[self] = None
        self._timer = loop.call_later(_KNOCK_S, self.send_away, f"silent for {_KNOCK_S:g} s")
        self._arriving = loop.create_task(self._arrive(sock, tls))

    async def _arrive(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock.setblocking(False)
            _never_wait_for_ever(sock)
            await loop.connect_accepted_socket(lambda: self, sock, ssl=tls)
        except OSError as failed:
            self.send_away(f"no connection comes about: {failed}")
        finally:
            if self._transport is None:
                sock.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
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
            self.send_away(str(stranger))
            return
        self._leave()
        self._transport.write(proof)
        protocol = self._protocol()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        if rest:
            protocol.data_received(rest)

    def _protocol(self) -> asyncio.Protocol:
        """Whose the connection is from now on; in the clear, what it says and hears is sealed."""
        connection = self._doorway.admit()
        if self._doorway.encrypts:
            return connection
        return Sealed(
            connection,
            self._greeter.seals(),
            lambda bad: self._doorway.warn("connections_misbehaved", f"{connection!r} was ended: {bad}"),
        )

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a reset is as good as an end
        self._leave()

    def shut(self) -> None:
        """End it without a word."""
        self._leave()
        if self._transport is not None:
            self._transport.abort()
        elif self._arriving is not None:
            self._arriving.cancel()

    def send_away(self, why: str) -> None:
        """End it, and say so in the counts."""
        self._doorway.warn("strangers", f"{self._peer} was sent away: {why}")
        self.shut()

    def _leave(self) -> None:
        self._doorway.strangers.pop(self, None)
        self._heard = b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _never_wait_for_ever(sock: socket.socket) -> None:
    """A peer whose machine or cable is gone is noticed by the kernel: its session ends by heartbeat anyway."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
