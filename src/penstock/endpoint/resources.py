"""What a connection is made of, for each kind of wire: one fresh set for every endpoint, never one that was used.

A kind of wire brings a ``Resources``: the shell asks it for a fresh ``Resource`` per endpoint, tells the peer its
``params``, and binds it to the peer's. Both ends bind at their own time, in any order, maybe long before the other.

Invariants that an implementation keeps: ``bind`` does not wait for the peer to have bound (that would be a circle);
what the peer sends after its own ``bind`` is not lost; when both have bound, ``connection`` is there at both ends.
"""

from __future__ import annotations

from typing import Protocol

from penstock.endpoint.connection import Connection
from penstock.endpoint.events import Session
from penstock.retry import Deadline

__all__ = ["MAX_PARAMS_BYTES", "Resource", "Resources"]

MAX_PARAMS_BYTES = 16 * 1024  # a UCX worker address has some hundred bytes per network device


class Resource(Protocol):
    """What one endpoint is made of. Used by one task at a time; ``close`` may come at any moment."""

    @property
    def params(self) -> bytes:
        """What the peer must know to bind to it; at most ``MAX_PARAMS_BYTES``."""

    async def bind(self, params: bytes, peer: Session, deadline: Deadline) -> None:
        """Bind to the peer's resource, whose ``params`` these are and whose session is ``peer``. At most once.

        The peer has shown that it knows the token; nothing else about ``params`` has been checked.

        Raises:
            TransportError: it cannot be had, or not in time; the endpoint retires with this reason.
        """

    def connection(self) -> Connection:
        """Return the connection. Called when both ends have bound, and not before; the same one each time."""

    async def close(self) -> None:
        """Let go of everything, the connection too, within about a second; whoever uses it gets ``TransportError``.

        Idempotent, and cancels a ``bind`` that is under way.
        """


class Resources(Protocol):
    """Makes resources of one kind."""

    async def fresh(self, session: Session, deadline: Deadline) -> Resource:
        """Return a resource for our new ``session`` that no endpoint has used before.

        Raises:
            TransportError: it cannot be had; the endpoint retires with this reason.
        """

    async def close(self) -> None:
        """End what all of them share. Every resource has been closed before. Idempotent."""
