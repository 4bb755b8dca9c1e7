"""What a carrier of the benchmark is: something that brings bytes from another process into a buffer of this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

__all__ = ["ASKED", "MAX_BYTES", "WAIT_S", "Carrier", "asked_for"]

ASKED = 8  # bytes of a request: how many are wanted
MAX_BYTES = 64 << 20
WAIT_S = 600.0  # an end without orders waits so long


class Carrier(ABC):
    """One way of carrying, at either of its two ends.

    ``fetch`` sends a request of ``ASKED`` bytes and fills the buffer with the answer: what a reader of a remote block
    does, less what any protocol adds.
    """

    @abstractmethod
    async def serve(self, tell: Callable[[str], Awaitable[None]]) -> None:
        """Answer requests of one client until cancelled. ``tell`` it, once, how it is reached."""

    @abstractmethod
    async def open(self, told: str) -> None:
        """Connect to who has told that."""

    @abstractmethod
    async def fetch(self, buffer: memoryview) -> None:
        """Ask for as many bytes as the buffer has, and receive them into it."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything. Idempotent."""


def asked_for(request: bytes | bytearray) -> int:
    """Return how many bytes are wanted."""
    return int.from_bytes(request, "big")
