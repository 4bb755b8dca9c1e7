"""What a peering hands out: endpoints that are ready at both ends, and what it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from penstock.endpoint.connection import Address, Connection
from penstock.endpoint.events import Session
from penstock.endpoint.posted import PostedConnection

__all__ = ["Endpoint", "PeeringStatistics", "ServeEndpoint"]


class Endpoint:
    """A connection that is ready at both ends, named by the pair of its sessions.

    Attributes:
        connection: what it is for. To close or to abort it retires the endpoint.
        kind: of the wire.
        peer: where the other can be opened; None = it has no listener, and only it can open.
        opened: it was asked for here; the other side may have asked for it, too.
        why: why it has retired; "" = it has not.
    """

    def __init__(
        self,
        session: Session,
        peer_session: Session,
        connection: PostedConnection,
        *,
        kind: str,
        peer: Address | None,
        name: str,
        channel: str,
        opened: bool,
    ) -> None:
        self.session = session
        self.peer_session = peer_session
        self.kind = kind
        self.peer = peer
        self.name = name
        self.channel = channel
        self.opened = opened
        self.why = ""
        self._connection = connection
        self._retired = asyncio.Event()

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def retired(self) -> bool:
        """Whether it is of no further use."""
        return self._retired.is_set()

    async def wait_retired(self) -> str:
        """Wait until it is of no further use; return why."""
        await self._retired.wait()
        return self.why

    def retire(self, why: str) -> None:
        """For its peering: it has retired, and whoever uses it is told so."""
        self.why = why
        self._retired.set()
        self._connection.retire(why)

    def __repr__(self) -> str:
        state = f"retired: {self.why}" if self.retired else "ready"
        channel = f", channel {self.channel!r}" if self.channel else ""
        return f"<Endpoint {self.session} to {self.peer_session} of {self.name} by {self.kind}{channel}, {state}>"


ServeEndpoint: TypeAlias = Callable[[Endpoint], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PeeringStatistics:
    """What a peering has now, and has done."""

    pairs: int
    ready: int
    asking: int  # endpoints that are not ready yet, or not closed yet
    waiting: int  # callers of ``open``
    links: int
    made: int  # endpoints that have become ready, ever
    retired: int  # endpoints that were let go, ever; those that were never ready too
    messages: int  # heard
    refused: int  # strangers, and requests of one pair too many
    dropped: int  # messages that could not be said; timers say them again
