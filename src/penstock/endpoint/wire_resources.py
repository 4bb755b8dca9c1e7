"""Endpoints over any ``Wire``, TCP above all: each has a connection of its own, new for every session.

Either end listens, or both: who has no listener dials, and if both have one, the smaller session does. The first bytes
name the two sessions; a connection for a session that is not live, or is bound to another, is refused and closed.

Invariants: ``bind`` of who listens does not wait; that of who dials ends when the other end has taken the connection
in, so that when both have bound it is there at both ends; nothing of a session outlives its resource.
"""

from __future__ import annotations

import asyncio
import struct

import msgspec

from penstock.endpoint.connection import Address, Connection, Listener, Wire
from penstock.endpoint.events import Session
from penstock.errors import TransportError
from penstock.retry import Deadline

__all__ = ["WireResources"]

_OPENING = struct.Struct("<4s4Q")  # magic; the dialler's session, the listener's
_MAGIC = b"PSe\x01"
_YES, _NO = b"\x01", b"\x00"
_HEAR_S = 5.0
_MAX_EARLY = 4  # connections to a session that is not bound yet
_where = msgspec.msgpack.Decoder(tuple[str, int])


class WireResources:
    """Connections over ``wire``, whose authentication and encryption they have.

    Args:
        advertise: the host name that peers dial; None = that which ``start`` binds.
    """

    def __init__(self, wire: Wire, advertise: str | None = None) -> None:
        self._wire = wire
        self._advertise = advertise
        self._listener: Listener | None = None
        self._live: dict[Session, _WireResource] = {}
        self.address: Address | None = None
        self.refused = 0

    async def start(self, host: str, port: int = 0, *, max_connections: int = 1024) -> Address:
        """Listen; without, only peers that listen can be reached. Raises ``TransportError``."""
        self._listener = await self._wire.listen(host, port, self._serve, max_connections=max_connections)
        bound = self._listener.address
        self.address = Address(self._advertise or bound.host, bound.port)
        return self.address

    async def fresh(self, session: Session, deadline: Deadline) -> _WireResource:  # noqa: ARG002  # nothing to wait for
        """See ``Resources``. A connection is made when it is bound, and not before."""
        resource = self._live[session] = _WireResource(self, session)
        return resource

    async def close(self) -> None:
        """See ``Resources``."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    async def _serve(self, connection: Connection) -> None:
        """One connection that a peer has dialled: for as long as its session lives."""
        deadline = Deadline(_HEAR_S)
        opening = bytearray(_OPENING.size)
        await connection.recv_into(opening, deadline)
        magic, *numbers = _OPENING.unpack(opening)
        resource = self._live.get(Session(*numbers[2:])) if magic == _MAGIC else None
        if resource is None or not resource.takes(Session(*numbers[:2]), connection):
            self.refused += 1
            await connection.send(_NO, deadline=deadline)
            return
        await connection.send(_YES, deadline=deadline)
        await resource.ended.wait()

    # -- for its resources --------------------------------------------------------------------------------------------

    async def dial(self, address: Address, ours: Session, peer: Session, deadline: Deadline) -> Connection:
        """Return a connection that the peer has taken in for these two sessions."""
        connection = await self._wire.connect(address, deadline)
        try:
            await connection.send(_OPENING.pack(_MAGIC, *ours, *peer), deadline=deadline)
            answer = bytearray(1)
            await connection.recv_into(answer, deadline)
        except BaseException:
            connection.abort()
            raise
        if answer != _YES:
            connection.abort()
            raise TransportError(f"{address} does not know session {peer}, or not as ours", code="refused")
        return connection

    def forget(self, session: Session) -> None:
        self._live.pop(session, None)

    def __repr__(self) -> str:
        return f"<WireResources over {self._wire.name} at {self.address}, {len(self._live)} live>"


class _WireResource:
    """The connection of one session."""

    def __init__(self, owner: WireResources, session: Session) -> None:
        self._owner = owner
        self._session = session
        self._peer: Session | None = None
        self._early: dict[Session, Connection] = {}  # dialled by peers to whom we are not bound yet
        self._connection: Connection | None = None
        self.ended = asyncio.Event()

    @property
    def params(self) -> bytes:
        """See ``Resource``: where we listen, if we do."""
        return msgspec.msgpack.encode(self._owner.address) if self._owner.address else b""

    async def bind(self, params: bytes, peer: Session, deadline: Deadline) -> None:
        """See ``Resource``."""
        self._peer = peer
        early = self._early.pop(peer, None)
        self._drop_early()
        theirs = _address_in(params)
        if theirs is not None and (self._owner.address is None or self._session < peer):
            connection = await self._owner.dial(theirs, self._session, peer, deadline)
            if self.ended.is_set():
                connection.abort()
            self._connection = connection
        elif self._owner.address is None:
            raise TransportError("neither of the two peers listens", code="refused")
        else:
            self._connection = early

    def takes(self, peer: Session, connection: Connection) -> bool:
        """Take in what ``peer`` has dialled, if we are bound to it, or not yet bound."""
        if self.ended.is_set() or self._connection is not None or self._peer not in (None, peer):
            return False
        if self._peer == peer:
            self._connection = connection
            return True
        if peer in self._early or len(self._early) >= _MAX_EARLY:
            return False
        self._early[peer] = connection
        return True

    def connection(self) -> Connection:
        """See ``Resource``."""
        if self._connection is None:
            raise TransportError(f"session {self._peer} has not dialled session {self._session}", code="protocol")
        return self._connection

    async def close(self) -> None:
        """See ``Resource``."""
        self._owner.forget(self._session)
        self.ended.set()
        self._drop_early()
        if self._connection is not None:
            self._connection.abort()

    def _drop_early(self) -> None:
        for connection in self._early.values():
            connection.abort()
        self._early.clear()


def _address_in(params: bytes) -> Address | None:
    if not params:
        return None
    try:
        host, port = _where.decode(params)
    except msgspec.MsgspecError as bad:
        raise TransportError(f"the peer's address is malformed: {bad}", code="protocol") from bad
    return Address(host, port)
