"""Between a socket in the clear and the plane's part of the connection: the bytes of the former are sealed.

Invariant: the plane's ``Connection`` does not know: what it writes is sealed, what it is given was opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from penstock.wire import WireError
from penstock.wire.seals import Seals

__all__ = ["Sealed"]


class Sealed(asyncio.Protocol):
    """Args: inner: whose bytes they are; broken: told why, when a seal is broken; the connection ends then."""

    def __init__(self, inner: asyncio.Protocol, seals: Seals, broken: Callable[[WireError], None]) -> None:
        self._inner = inner
        self._seals = seals
        self._broken = broken
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._inner.connection_made(_Sealing(self._transport, self._seals))

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        try:
            opened = self._seals.open(data)
        except WireError as bad:
            self._broken(bad)
            self._transport.abort()
            return
        if opened:
            self._inner.data_received(opened)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class _Sealing(asyncio.Transport):
    """The transport as the inner protocol sees it."""

    def __init__(self, outer: asyncio.Transport, seals: Seals) -> None:
        super().__init__()
        self._outer = outer
        self._seals = seals

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._outer.write(self._seals.seal(memoryview(data)))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._outer.get_extra_info(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._outer.set_write_buffer_limits(high, low)

    def is_closing(self) -> bool:
        return self._outer.is_closing()

    def close(self) -> None:
        self._outer.close()

    def abort(self) -> None:
        self._outer.abort()

    def pause_reading(self) -> None:
        self._outer.pause_reading()

    def resume_reading(self) -> None:
        self._outer.resume_reading()
