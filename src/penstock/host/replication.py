"""Second copies: this host has another one pull a block, and pulls blocks for others; both at once over one endpoint.

A pull: reserve a slot here, fetch the block into it from the source's listeners, verify it, seal it, say where it lies.

Invariants: everything has a deadline, the caller's; a block is pulled once however often that is asked; a slot into
which nothing whole was pulled is given back when nothing writes to it any more; a pull that was begun ends by itself,
though whoever asked has gone: the plane is asked what becomes of the block.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, Protocol, Self

from penstock.endpoint.connection import Address, Wire
from penstock.errors import DataPlaneError, DataPlaneUnavailable, TransportError
from penstock.host.conversation import Conversation, Copy
from penstock.host.events import Copied, NotCopied, Replicate
from penstock.host.own_calls import OwnCalls
from penstock.parts import BlockPlace, HostPlace
from penstock.points import reached
from penstock.requests import Granted, Reserve, Seal, Sealed
from penstock.retry import Deadline
from penstock.server.plane import Plane
from penstock.transport.client import AsyncPayloadClient
from penstock.transport.config import TransportConfig
from penstock.transport.wanted import Fetched, Wanted

__all__ = ["Peers", "Replication"]

_RETURN_SHARE = 0.1  # of a caller's time is kept for the way back, at most ``_RETURN_S``
_RETURN_S = 1.0
_PULLS = 8  # blocks pulled at once; others wait their turn
_TRIES = 2  # to ask a peer: its endpoint may have died since it was last used

log = logging.getLogger("penstock.host")


class Peers(Protocol):
    """How a conversation with another agent comes to be."""

    async def talk(self, peer: Address, deadline: Deadline) -> Conversation:
        """Return the conversation with the agent at ``peer``, which may have begun it.

        Raises:
            TransportError: there is none to be had.
        """


class Replication:
    """Args: wire: for pulling payloads from other hosts' listeners, called ``name``. On the agent's loop."""

    def __init__(self, wire: Callable[[], Wire], *, name: Literal["tcp", "ucx", "memory"] = "tcp") -> None:
        self._client = AsyncPayloadClient({name: wire}, TransportConfig(prefer=name))
        self._pulls: dict[int, asyncio.Task[BlockPlace]] = {}
        self._turns = asyncio.Semaphore(_PULLS)
        self._place: HostPlace | None = None
        self._plane: Plane | None = None
        self._peers: Peers | None = None
        self.made = 0
        self.pulled = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def open(self, place: HostPlace, plane: Plane, peers: Peers | None) -> None:
        """It is known what lies here: copy and pull from now on."""
        self._place, self._plane, self._peers = place, plane, peers

    async def close(self) -> None:
        """End the pulls that are under way. Idempotent."""
        self._peers = self._plane = None
        for pull in list(self._pulls.values()):
            pull.cancel()
        await asyncio.gather(*self._pulls.values(), return_exceptions=True)
        await self._client.close()

    # -- asking -------------------------------------------------------------------------------------------------------

    async def replicate(self, effect: Replicate) -> Copied | NotCopied:
        """Have the second host pull the block, by the deadline of whoever put it."""
        if self._place is None or self._plane is None:
            return NotCopied(effect.grant, "this host's agent is starting, or ending")
        deadline = _with_way_back(effect.deadline - self._plane.clock())
        try:
            place = await self._ask(effect, self._place, deadline)
        except DataPlaneError as failed:
            return NotCopied(effect.grant, f"host {effect.replica.name} has no copy: {failed}")
        asked = effect.place
        if (place.host, place.block_id, place.nbytes) != (effect.replica.host_id, asked.block_id, asked.nbytes):
            return NotCopied(effect.grant, f"host {effect.replica.name} says that it pulled another block: {place}")
        self.made += 1
        return Copied(effect.grant, place)

    async def _ask(self, effect: Replicate, source: HostPlace, deadline: Deadline) -> BlockPlace:
        peer = Address(effect.replica.address, effect.replica.peer_port)
        for attempt in range(1, _TRIES + 1):
            if self._peers is None:
                break
            try:
                talk = await self._peers.talk(peer, deadline)
                return await talk.ask(effect.place, effect.content, source, deadline)
            except TransportError as cut:
                if attempt == _TRIES or deadline.expired():
                    raise
                log.info("asking %s again: %s", effect.replica.name, cut)
        raise DataPlaneUnavailable("this host's agent is ending")

    # -- pulling ------------------------------------------------------------------------------------------------------

    async def serve(self, asked: Copy) -> BlockPlace:
        """Pull what a peer asks for; who asks for the same block meanwhile gets the same answer.

        Raises:
            DataPlaneError: it could not be pulled; says why.
        """
        if self._plane is None or self._place is None:
            raise DataPlaneUnavailable("this host's agent is starting, or ending")
        if asked.source.host_id == self._place.host_id or asked.block.host != asked.source.host_id:
            raise DataPlaneError(f"block {asked.block.block_id} cannot be pulled here from {asked.source.name}")
        block_id = asked.block.block_id
        pull = self._pulls.get(block_id)
        if pull is None:
            pull = self._pulls[block_id] = asyncio.get_running_loop().create_task(self._pull(asked, self._plane))
            pull.add_done_callback(self._pulled)
        return await asyncio.shield(pull)

    def _pulled(self, pull: asyncio.Task[BlockPlace]) -> None:
        """It has ended. Whoever asked may have gone, and then nobody else hears of a failure."""
        self._pulls = {block_id: other for block_id, other in self._pulls.items() if other is not pull}
        if not pull.cancelled() and pull.exception() is not None:
            log.debug("a pull failed: %s", pull.exception())

    async def _pull(self, asked: Copy, plane: Plane) -> BlockPlace:
        deadline, own = _with_way_back(asked.deadline_s), OwnCalls(plane)
        block = asked.block
        before = await own.ask(Seal(block.block_id, asked.content), deadline)
        if isinstance(before, Sealed):  # asked before, and the answer was lost
            return before.places[0]
        async with self._turns:
            deadline.require(f"pulling block {block.block_id}")
            try:
                granted = await own.ask(Reserve(block.block_id, block.nbytes), deadline)
                assert isinstance(granted, Granted), granted
                await self._fetch(asked, plane, deadline)
            except BaseException:
                _give_back(plane, block.block_id)
                raise
        reached("host.pulled")
        sealed = await own.ask(Seal(block.block_id, asked.content), deadline)
        assert isinstance(sealed, Sealed), sealed
        self.pulled += 1
        return sealed.places[0]

    async def _fetch(self, asked: Copy, plane: Plane, deadline: Deadline) -> None:
        """Fetch the block into its slot, verified."""
        arena, block = plane.storage.arena, asked.block
        buffer = arena.writer(arena.place_of(block.block_id))
        wanted = Wanted(block.block_id, block.nbytes, [(asked.source, block.generation)], buffer)
        (outcome,) = await self._client.fetch([wanted], deadline)
        if not isinstance(outcome, Fetched):
            raise outcome

    def __repr__(self) -> str:
        return f"Replication({self.made} copies made, {self.pulled} pulled, {len(self._pulls)} under way)"


def _with_way_back(left_s: float) -> Deadline:
    """A deadline that leaves time for its outcome ("the arena is full") to reach who asked."""
    left = max(0.0, left_s)
    return Deadline(left - min(_RETURN_S, left * _RETURN_SHARE))


def _give_back(plane: Plane, grant: int) -> None:
    """Let go of a slot of our own, if there is one: an answer that came as its caller left has been given all the same.

    Else whoever asks for the block again would be told that it is written, for it would be sealed as it is.
    """
    if grant in plane.own.grants:
        plane.custody.give_back(grant)
        plane.settle_soon()
