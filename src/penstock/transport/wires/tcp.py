"""The wire that is always there: TCP of the standard library, encrypted if contexts for that are given.

Invariants: every connection that leaves here has authenticated; an address is tried with all its numbers, in the
resolver's order, under one deadline.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Any, TypeAlias

from penstock.endpoint.connection import Address, Serve
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires.errors import transport_error
from penstock.transport.wires.greeting import GREETING_S, dial, greet
from penstock.transport.wires.listener import TcpListener
from penstock.transport.wires.motion import Attempt, Mover
from penstock.transport.wires.stream import StreamConnection, tuned
from penstock.wire.auth import Dialler, Greeter

__all__ = ["TcpWire"]

_BACKLOG = 1024
_Where: TypeAlias = Any  # what a family of addresses takes: a tuple, of other lengths for other families
_Resolved: TypeAlias = tuple[socket.AddressFamily, socket.SocketKind, int, str, _Where]


class TcpWire:
    """Connections over TCP.

    Args:
        token: what both ends must know.
        purpose: what listeners of this wire are for; a connection for another purpose is refused.
        tls_server: how listeners encrypt; None = they do not.
        tls_client: how connections are encrypted; None = they are not.
    """

    name = "tcp"

    def __init__(
        self,
        token: bytes,
        purpose: str,
        *,
        tls_server: ssl.SSLContext | None = None,
        tls_client: ssl.SSLContext | None = None,
    ) -> None:
        self._token = token
        self._purpose = purpose
        self._tls_server = tls_server
        self._tls_client = tls_client

    async def connect(self, address: Address, deadline: Deadline) -> StreamConnection:
        """See ``Wire``."""
        try:
            sock = self._encrypting(await _dialled(address, deadline), address)
        except OSError as failed:
            raise transport_error(f"connecting to {address}", failed, deadline) from failed
        connection = StreamConnection(sock, address)
        try:
            await connection.handshake(deadline)
            await dial(connection, Dialler(self._token, self._purpose), deadline)
        except TransportError as failed:
            connection.abort()
            raise self._unanswered(address, failed) from failed
        except BaseException:
            connection.abort()
            raise
        return connection

    async def listen(self, host: str, port: int, serve: Serve, *, max_connections: int = 256) -> TcpListener:
        """See ``Wire``."""
        deadline = Deadline(GREETING_S)
        try:
            sock = await _bound(host, port, deadline)
        except OSError as failed:
            raise transport_error(f"listening at {Address(host, port)}", failed, deadline) from failed
        return TcpListener(sock, self._admit, serve, max_connections)

    async def _admit(self, sock: socket.socket, peer: Address) -> StreamConnection:
        """Make a connection of ``sock``, which was accepted, or raise ``TransportError``; in time that is limited."""
        deadline = Deadline(GREETING_S)
        if self._tls_server is not None:
            sock = self._tls_server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        connection = StreamConnection(sock, peer)
        try:
            await connection.handshake(deadline)
            await greet(connection, Greeter(self._token, self._purpose), deadline)
        except BaseException:
            connection.abort()
            raise
        return connection

    def _unanswered(self, address: Address, failed: TransportError) -> TransportError:
        """Say what was being done, and what silence may mean."""
        silent = self._tls_client is None and failed.code in ("timeout", "closed", "reset")
        hint = " (a listener that wants TLS does not answer who does not speak it)" if silent else ""
        words = f"authenticating with {address}: {failed.message}{hint}"
        return TransportError(words, code=failed.code, elapsed_s=failed.elapsed_s)

    def _encrypting(self, sock: socket.socket, address: Address) -> socket.socket:
        if self._tls_client is None:
            return sock
        return self._tls_client.wrap_socket(sock, do_handshake_on_connect=False, server_hostname=address.host)


async def _dialled(address: Address, deadline: Deadline) -> socket.socket:
    """Return a connected socket, or raise the ``OSError`` of the last number tried."""
    failure = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    for family, kind, protocol, _, where in await _resolved(address.host, address.port, deadline):
        try:
            return await _connected(tuned(socket.socket(family, kind, protocol)), where, deadline)
        except OSError as failed:
            if deadline.expired():
                raise
            failure = failed
    raise failure


async def _connected(sock: socket.socket, where: _Where, deadline: Deadline) -> socket.socket:
    mover = Mover(sock)
    try:
        await mover.write(_connecting(sock, where), deadline)
        if sock.getsockname() == sock.getpeername():  # nobody listens, and the kernel picked that very port for us
            raise ConnectionRefusedError(errno.ECONNREFUSED, "it would be connected with itself")
    except BaseException:
        mover.stop(ConnectionAbortedError())
        sock.close()
        raise
    mover.stop(ConnectionAbortedError())
    return sock


def _connecting(sock: socket.socket, where: _Where) -> Attempt:
    def attempt() -> bool:
        error = sock.connect_ex(where)  # asked again, it tells how the first one went
        if error in (errno.EINPROGRESS, errno.EALREADY):
            raise BlockingIOError
        if error not in (0, errno.EISCONN):
            raise OSError(error, os.strerror(error))
        return True

    return attempt


async def _bound(host: str, port: int, deadline: Deadline) -> socket.socket:
    family, kind, protocol, _, where = (await _resolved(host, port, deadline, socket.AI_PASSIVE))[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart does not wait for old connections
        sock.bind(where)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolved(host: str, port: int, deadline: Deadline, flags: int = 0) -> Sequence[_Resolved]:
    """Return what ``host`` is; numbers at once, names in the loop's own thread, for those may take a server's time."""
    try:
        return socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags | socket.AI_NUMERICHOST)
    except UnicodeError as impossible:  # a label that no name can have, whoever said it
        raise socket.gaierror(socket.EAI_NONAME, str(impossible)) from impossible
    except socket.gaierror:
        async with asyncio.timeout(deadline.remaining()):
            return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
