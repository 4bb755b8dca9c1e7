"""Twins of hardware whose connected resources cannot be reset, and of what one does who does not know that.

Some adapters take a queue pair back to its beginning only if it was never connected; it must be destroyed, and another
made. ``Hardware`` is like that, or is told to be kinder. ``ResetOnly`` is the strategy that fails on it: one resource
for one peer, reset for every new endpoint. Penstock takes a fresh resource for every endpoint, which works on both.
"""

from __future__ import annotations

from penstock.endpoint.connection import Connection
from penstock.endpoint.events import Session
from penstock.endpoint.resources import Resource, Resources
from penstock.errors import TransportError
from penstock.retry import Deadline

__all__ = ["Hardware", "ResetOnly"]


class _Adapter:
    """One piece of the hardware. ``connected``: it has been, ever."""

    def __init__(self, inner: Resources, *, resettable: bool) -> None:
        self._inner = inner
        self._resettable = resettable
        self.connected = False

    async def begin(self, session: Session, deadline: Deadline) -> _Use:
        """Serve ``session``, as if it were new.

        Raises:
            TransportError: it has been connected, and cannot be reset.
        """
        if self.connected and not self._resettable:
            raise TransportError("a resource that was connected cannot be reset", code="protocol")
        return _Use(self, await self._inner.fresh(session, deadline))


class _Use:
    """What an adapter is to one endpoint."""

    def __init__(self, adapter: _Adapter, inner: Resource) -> None:
        self._adapter = adapter
        self._inner = inner

    @property
    def params(self) -> bytes:
        return self._inner.params

    async def bind(self, params: bytes, peer: Session, deadline: Deadline) -> None:
        """See ``Resource``."""
        self._adapter.connected = True
        await self._inner.bind(params, peer, deadline)

    def connection(self) -> Connection:
        """See ``Resource``."""
        return self._inner.connection()

    async def close(self) -> None:
        """See ``Resource``. The adapter is left, to be reset or not."""
        await self._inner.close()


class Hardware:
    """Makes resources of ``inner`` that cannot be reset once they were connected, unless they are ``resettable``."""

    def __init__(self, inner: Resources, *, resettable: bool = False) -> None:
        self._inner = inner
        self._resettable = resettable
        self.made = 0

    def adapter(self) -> _Adapter:
        """Return a new one."""
        self.made += 1
        return _Adapter(self._inner, resettable=self._resettable)

    async def fresh(self, session: Session, deadline: Deadline) -> _Use:
        """See ``Resources``."""
        return await self.adapter().begin(session, deadline)

    async def close(self) -> None:
        """See ``Resources``."""
        await self._inner.close()


class ResetOnly:
    """What not to do: one adapter, reset for every endpoint. For one peer."""

    def __init__(self, hardware: Hardware) -> None:
        self._hardware = hardware
        self._adapter = hardware.adapter()
        self.refused = 0

    async def fresh(self, session: Session, deadline: Deadline) -> _Use:
        """See ``Resources``; it is not fresh."""
        try:
            return await self._adapter.begin(session, deadline)
        except TransportError:
            self.refused += 1
            raise

    async def close(self) -> None:
        """See ``Resources``."""
        await self._hardware.close()
