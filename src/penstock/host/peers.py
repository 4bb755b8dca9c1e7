"""The other agents: one endpoint with each, opened by whoever asks first or by both at once, one conversation on it.

Invariants: an endpoint has one conversation, and that is run by the task that serves the endpoint; who asks gets the
conversation of an endpoint that is ready, or an error by his deadline; after ``close`` nothing is left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from penstock.endpoint.connection import Address, Wire
from penstock.endpoint.endpoints import Endpoint
from penstock.endpoint.events import Session
from penstock.endpoint.peering import Peering
from penstock.endpoint.wire_resources import WireResources
from penstock.errors import TransportError
from penstock.host.conversation import Conversation, Copy
from penstock.parts import BlockPlace
from penstock.retry import Deadline

__all__ = ["PeerAgents"]

# What the proofs of either listener are good for: the handshake's messages, and the connections of endpoints.
HANDSHAKE, ENDPOINT = "peers", "peer endpoint"


class PeerAgents:
    """See ``replication.Peers``.

    Args:
        wire: makes a wire for a purpose.
        address: under which other agents reach this one.
        copy: does what they ask for.
        bind: the address that is bound; None = ``address``.
    """

    def __init__(
        self,
        wire: Callable[[str], Wire],
        address: str,
        copy: Callable[[Copy], Awaitable[BlockPlace]],
        *,
        bind: str | None = None,
    ) -> None:
        self._address = address
        self._bind = bind or address
        self._copy = copy
        self._resources = WireResources(wire(ENDPOINT), advertise=address)
        self._peering = Peering({"tcp": self._resources}, wire(HANDSHAKE), serve=self._serve)
        self._talks: dict[Session, Conversation] = {}
        self.served = 0
        self.opened = 0  # of these, by this side, perhaps by both

    async def start(self) -> int:
        """Listen; return the port at which other agents agree on endpoints with this one.

        Raises:
            TransportError: nothing can be bound.
        """
        await self._resources.start(self._bind)
        return (await self._peering.start(self._bind, advertise=self._address)).port

    async def talk(self, peer: Address, deadline: Deadline) -> Conversation:
        """See ``replication.Peers``."""
        endpoint = await self._peering.open(peer, deadline, patient=False)
        if endpoint.retired:
            raise TransportError(f"the endpoint with {peer} was there and is gone: {endpoint.why}", code="closed")
        return self._of(endpoint)

    async def close(self) -> None:
        """End all endpoints. Idempotent."""
        await self._peering.close()

    async def _serve(self, endpoint: Endpoint) -> None:
        self.served += 1
        self.opened += endpoint.opened
        try:
            await self._of(endpoint).run()
        finally:
            self._talks.pop(endpoint.session, None)

    def _of(self, endpoint: Endpoint) -> Conversation:
        talk = self._talks.get(endpoint.session)
        if talk is None:
            talk = self._talks[endpoint.session] = Conversation(endpoint.connection, self._copy)
        return talk

    def __repr__(self) -> str:
        return f"PeerAgents({self._peering!r}, {len(self._talks)} conversations)"
