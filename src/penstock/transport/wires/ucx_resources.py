"""What the endpoints of one process are made of over UCX: a number each, on one worker; an endpoint of UCX when bound.

Invariants: a resource's number has never been another's, so what was sent to an earlier connection cannot come here;
damaged params are refused before UCX sees them, which does not check what it is given.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from penstock.endpoint.events import Session
from penstock.errors import TransportError
from penstock.retry import Deadline
from penstock.transport.wires.ucx_connection import UcxConnection
from penstock.transport.wires.ucx_library import SETTINGS, library, ucx_error
from penstock.transport.wires.ucx_worker import UcxWorker

__all__ = ["UcxResource", "UcxResources"]

_PARAMS = struct.Struct("!III")  # checksum of what follows, number, length of the worker's address


class UcxResource:
    """A ``Resource``: one connection, before and after it is bound."""

    def __init__(self, worker: UcxWorker) -> None:
        self._connection = UcxConnection(worker)
        self._params = _packed(self._connection.number, worker.address)

    @property
    def params(self) -> bytes:
        return self._params

    async def bind(self, params: bytes, peer: Session, deadline: Deadline) -> None:
        """See ``Resource``."""
        number, address = _unpacked(params)
        try:
            self._connection.bind(address, number, f"UCX peer {peer}")
        except library().UCXError as failed:
            raise ucx_error(f"binding to {peer}", failed, deadline) from failed

    def connection(self) -> UcxConnection:
        return self._connection

    async def close(self) -> None:
        await self._connection.close()


class UcxResources:
    """Makes resources on one worker, which starts with the first; for one loop.

    Args:
        settings: of UCX, as its ``UCX_...`` variables without that prefix.

    Raises:
        MissingExtra: ucxx is not installed.
    """

    def __init__(self, settings: Mapping[str, str] = SETTINGS) -> None:
        library()
        self._settings = settings
        self._worker: UcxWorker | None = None

    async def fresh(self, session: Session, deadline: Deadline) -> UcxResource:  # noqa: ARG002 - at once, whose ever
        """See ``Resources``."""
        if self._worker is None:
            self._worker = UcxWorker(self._settings)
        return UcxResource(self._worker)

    async def close(self) -> None:
        """See ``Resources``."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.close()


def _packed(number: int, address: bytes) -> bytes:
    content = _PARAMS.pack(0, number, len(address))[4:] + address
    return zlib.crc32(content).to_bytes(4, "big") + content


def _unpacked(params: bytes) -> tuple[int, bytes]:
    if len(params) > _PARAMS.size:
        checksum, number, nbytes = _PARAMS.unpack_from(params)
        address = params[_PARAMS.size :]
        if checksum == zlib.crc32(params[4:]) and len(address) == nbytes:
            return number, address
    raise TransportError("the peer's UCX parameters are damaged", code="protocol")
