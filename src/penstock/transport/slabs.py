"""Memory to receive blocks into: large ones have their own, small ones share slabs.

Fresh memory costs more in page faults than the bytes that are received into it, and slabs, being of one size, come back
from the last batch whatever sizes its blocks had. The price: a slab is used again when the last block in it is let go
of. Invariants: no two blocks overlap; each begins at a multiple of ``ALIGN``.
"""

from __future__ import annotations

from penstock.payload.block import Bytes, padded
from penstock.payload.buffers import Buffers

__all__ = ["SLAB_BYTES", "Slabs"]

SLAB_BYTES = 8 * 1024 * 1024
_SHARES = SLAB_BYTES // 4  # bytes; larger blocks have memory of their own, so that little is left over at a slab's end


class Slabs:
    """Not thread-safe; the memory it hands out may go anywhere."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._slab = buffers.take(0)
        self._used = 0

    def take(self, nbytes: int) -> Bytes:
        """Return ``nbytes`` of uninitialised memory.

        Raises:
            MemoryError: there is none.
        """
        if nbytes > _SHARES:
            return self._buffers.take(nbytes)
        if self._used + nbytes > len(self._slab):
            self._slab, self._used = self._buffers.take(SLAB_BYTES), 0
        at = self._used
        self._used += padded(nbytes)
        return self._slab[at : at + nbytes]

    def clear(self) -> None:
        """Let go of what is kept."""
        self._slab, self._used = self._slab[:0].copy(), 0
        self._buffers.clear()

    def __repr__(self) -> str:
        return f"Slabs({self._used} of {len(self._slab)} bytes used, {self._buffers!r})"
