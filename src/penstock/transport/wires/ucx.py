"""The wire for fabrics: payloads over UCX, which uses RDMA where there is any; its reason is that.

UCX itself neither authenticates nor encrypts. Each connection therefore begins as one of the TCP wire, which does both,
and over which the two ends tell each other how UCX reaches them; it stays open beside it, silent, and tells of a peer's
death at once, which UCX would only after a while.

Invariants: no UCX endpoint is made to who has not authenticated; a connection and its TCP companion end together; all
connections of a wire share one worker, on the loop that used the wire first, and no other loop may use it.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Mapping
from functools import partial

from penstock.endpoint.connection import Address, Connection, Serve
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires.greeting import GREETING_S
from penstock.transport.wires.listener import TcpListener
from penstock.transport.wires.stream import StreamConnection
from penstock.transport.wires.tcp import TcpWire
from penstock.transport.wires.ucx_connection import UcxConnection
from penstock.transport.wires.ucx_library import library
from penstock.transport.wires.ucx_params import MAX_PARAMS_BYTES
from penstock.transport.wires.ucx_worker import UcxWorker

__all__ = ["UcxWire"]

_LENGTH = struct.Struct("!I")
_BOUND = b"\x01"


class UcxWire:
    """Connections over UCX. For one loop.

    Args:
        token, purpose, tls_server, tls_client: see ``TcpWire``. TLS covers how a connection is made, not what UCX
            carries: use it on a network that is trusted.
        settings: of UCX, as its ``UCX_...`` variables without that prefix; None = see ``ucx_library``.

    Raises:
        MissingExtra: ucxx is not installed.
    """

    name = "ucx"

    def __init__(
        self,
        token: bytes,
        purpose: str,
        *,
        tls_server: ssl.SSLContext | None = None,
        tls_client: ssl.SSLContext | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        library()
        self._tcp = TcpWire(token, f"{purpose} over ucx", tls_server=tls_server, tls_client=tls_client)
        self._settings = settings
        self._worker: UcxWorker | None = None

    async def connect(self, address: Address, deadline: Deadline) -> UcxConnection:
        """See ``Wire``."""
        return await self._bound(await self._tcp.connect(address, deadline), deadline)

    async def listen(self, host: str, port: int, serve: Serve, *, max_connections: int = 256) -> TcpListener:
        """See ``Wire``."""
        return await self._tcp.listen(host, port, partial(self._attend, serve), max_connections=max_connections)

    def close(self) -> None:
        """Let go of UCX; its connections and listeners have been closed. It is let go of with the wire, else."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    async def _attend(self, serve: Serve, lifeline: Connection) -> None:
        """What was accepted: serve it over UCX."""
        assert isinstance(lifeline, StreamConnection)
        connection = await self._bound(lifeline, Deadline(GREETING_S))
        try:
            await serve(connection)
        except BaseException:
            connection.abort()
            raise
        await connection.close()

    async def _bound(self, lifeline: StreamConnection, deadline: Deadline) -> UcxConnection:
        """Tell each other how UCX reaches us, and bind; both ends do the same."""
        if self._worker is None:
            self._worker = UcxWorker(self._settings)
        connection = UcxConnection(self._worker)
        try:
            await lifeline.send(_LENGTH.pack(len(connection.params)), connection.params, deadline=deadline)
            connection.bind(await _params_from(lifeline, deadline), f"{lifeline.peer} (ucx)", deadline)
            await lifeline.send(_BOUND, deadline=deadline)
            await lifeline.recv_into(bytearray(len(_BOUND)), deadline)
        except BaseException:
            lifeline.abort()
            connection.abort()
            raise
        connection.hang_on(lifeline)
        return connection


async def _params_from(lifeline: StreamConnection, deadline: Deadline) -> bytes:
    header = bytearray(_LENGTH.size)
    await lifeline.recv_into(header, deadline)
    (length,) = _LENGTH.unpack(header)
    if not 0 < length <= MAX_PARAMS_BYTES:
        raise TransportError(f"{lifeline.peer} announced {length} bytes of UCX parameters", code="protocol")
    params = bytearray(length)
    await lifeline.recv_into(params, deadline)
    return bytes(params)
