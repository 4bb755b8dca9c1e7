"""The resources of one endpoint: made, bound and let go in the order in which the machine wants it.

Invariants: what the machine says after ``Make`` or ``Bind`` leaves when that is done, and not at all if it failed;
the two peers choose the same kind of wire, each on its own; few endpoints make or bind at a time (``gate``), and who
is at it waits for no other of this process; after ``close`` nothing of it is left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager

from penstock.endpoint.connection import Connection
from penstock.endpoint.events import Session
from penstock.endpoint.in_order import InOrder, Step
from penstock.endpoint.messages import Params
from penstock.endpoint.resources import Resource, Resources
from penstock.errors import TransportError
from penstock.retry import Deadline

__all__ = ["Fitting", "common_kind"]

_LIMIT_S = 10.0  # for making, and for binding
_CLOSE_S = 5.0


class Fitting:
    """Args: failed: told why making or binding failed. asked: the endpoint was opened here."""

    def __init__(
        self,
        session: Session,
        resources: Mapping[str, Resources],
        gate: AbstractAsyncContextManager[object],
        failed: Callable[[str], None],
        *,
        asked: bool,
    ) -> None:
        self.session = session
        self.asked = asked
        self.peer: Session | None = None
        self.kind = ""
        self._resources = resources
        self._gate = gate
        self._made: dict[str, Resource] = {}
        self._steps = InOrder(f"endpoint {session}", failed)
        self._steps.add(self._make)

    def params(self) -> Params:
        """What the peer must know; of each kind, until one is chosen."""
        return {kind: resource.params for kind, resource in self._made.items()}

    def connection(self) -> Connection:
        """Return the connection; both ends have bound."""
        return self._made[self.kind].connection()

    def then(self, step: Callable[[], None]) -> None:
        """Do ``step`` when all before it is done."""

        async def later() -> None:
            step()

        self._steps.add(later)

    def bind(self, peer: Session, params: Params) -> None:
        """Bind to the peer's resources when ours are made."""
        self._steps.add(self._binding(peer, dict(params)))

    async def close(self) -> None:
        """Let go of everything. Idempotent."""
        working = self._steps.stop()
        if working is not None:
            await asyncio.gather(working, return_exceptions=True)
        made, self._made = self._made, {}
        closing = asyncio.gather(*(resource.close() for resource in made.values()), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await closing

    async def _make(self) -> None:
        async with self._gate:
            deadline = Deadline(_LIMIT_S)
            for kind, resources in self._resources.items():
                self._made[kind] = await resources.fresh(self.session, deadline)

    def _binding(self, peer: Session, params: Params) -> Step:
        async def bind() -> None:
            self.peer, self.kind = peer, common_kind(self._made, params)
            for kind in [kind for kind in self._made if kind != self.kind]:
                await self._made.pop(kind).close()
            async with self._gate:
                await self._bind_one(params[self.kind], peer)

        return bind

    async def _bind_one(self, params: bytes, peer: Session) -> None:
        await self._made[self.kind].bind(params, peer, Deadline(_LIMIT_S))


def common_kind(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    """Return the kind of wire that both have and like best, by their own orders; the same at both ends.

    Raises:
        TransportError: they have none in common.
    """
    mine, others = list(ours), list(theirs)
    common = [kind for kind in mine if kind in theirs]
    if not common:
        raise TransportError(f"no wire in common: here {mine}, there {others}", code="protocol")
    return min(common, key=lambda kind: (mine.index(kind) + others.index(kind), kind))
