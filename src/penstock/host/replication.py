"""Second copies: this host has another one pull a block, and pulls blocks for others (being written)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from penstock.host.events import Copied, NotCopied, Replicate
from penstock.parts import HostPlace
from penstock.server.plane import Plane
from penstock.transport.wires.tcp import TcpWire

__all__ = ["Replication"]


class Replication:
    """See the module."""

    def __init__(self, host_id: int, address: str, wire: Callable[[str], TcpWire]) -> None:
        self._host_id, self._address, self._wire = host_id, address, wire
        self.port = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def open(self, place: HostPlace, plane: Plane) -> None:
        """It is known what lies here: serve."""

    async def replicate(self, effect: Replicate) -> Copied | NotCopied:
        """Have the second host pull the block."""
        return NotCopied(effect.grant, "not there yet")

    async def close(self) -> None:
        """End it. Idempotent."""
