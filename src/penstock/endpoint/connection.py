"""A connection between two processes, whatever carries it; and the one thing that goes wrong with it.

Invariants: sends and receives correspond: each ``recv_into`` takes exactly what one part of the peer's ``send`` held,
so a wire of messages and a wire of bytes serve alike; every call ends by its deadline, with ``TransportError``; after
an error or a cancelled call the connection is of no further use, and says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.retry import Deadline
from penstock.wire.address import Address

__all__ = ["Address", "Buffer", "Connection", "Listener", "Serve", "Wire"]

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.uint8]


class Connection(Protocol):
    """One established connection, used by one task at a time in each direction, on the loop that made it."""

    @property
    def peer(self) -> str:
        """Who is at the other end, for messages."""

    @property
    def broken(self) -> bool:
        """Whether it is of no further use."""

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        """Send ``parts`` in order. That they have been sent does not mean that they have arrived.

        Raises:
            TransportError: it broke, or the deadline passed; what has arrived is not known.
        """

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        """Fill ``buffer``, which is writable, with the peer's next part: exactly as long, or it is an error.

        Raises:
            TransportError: it broke ("closed", "reset", "truncated"), or the deadline passed ("timeout").
        """

    def abort(self) -> None:
        """Let go of it at once; whoever waits gets ``TransportError``. Never blocks. Idempotent."""

    async def close(self) -> None:
        """Let go of it when what was sent has left, within about a second. Idempotent."""


Serve: TypeAlias = Callable[[Connection], Awaitable[None]]


class Listener(Protocol):
    """Takes connections until it is closed."""

    @property
    def address(self) -> Address:
        """What it has bound, and what to advertise."""

    async def close(self) -> None:
        """Take no more, end the connections that are served, and wait for their handlers. Idempotent."""


class Wire(Protocol):
    """A way of carrying connections. Authentication and encryption are the wire's: what it gives out has both."""

    @property
    def name(self) -> str:
        """Its name: "tcp", "ucx" or "memory"."""

    async def connect(self, address: Address, deadline: Deadline) -> Connection:
        """Connect and authenticate.

        Raises:
            TransportError: nobody there, not in time, or not authorised; says which.
        """

    async def listen(self, host: str, port: int, serve: Serve, *, max_connections: int = 256) -> Listener:
        """Bind ``host``:``port`` (0 = any free port) and run ``serve`` for each connection that has authenticated.

        ``serve`` runs in a task of its own; the connection is closed when it returns or raises. A connection beyond
        ``max_connections``, one that does not authenticate in time or is malformed costs nobody else anything.

        Raises:
            TransportError: the address cannot be bound.
        """
