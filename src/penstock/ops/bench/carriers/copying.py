"""The limit: one memcpy within a process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from penstock.ops.bench.carrier import MAX_BYTES, Carrier

__all__ = ["Copying"]


class Copying(Carrier):
    """``numpy.copyto``; nobody serves."""

    async def serve(self, tell: Callable[[str], Awaitable[None]]) -> None:
        await tell("")

    async def open(self, told: str) -> None:  # noqa: ARG002 - there is nobody
        self._source = np.ones(MAX_BYTES, dtype=np.uint8)

    async def fetch(self, buffer: memoryview) -> None:
        np.copyto(np.frombuffer(buffer, dtype=np.uint8), self._source[: buffer.nbytes])

    async def close(self) -> None:
        pass
