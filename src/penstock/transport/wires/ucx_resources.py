"""What the endpoints of one process are made of over UCX: a connection each, all on one worker.

Invariant: a resource has a number that was never another's, so what was sent to an earlier one cannot come here.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.endpoint.events import Session
from penstock.retry import Deadline
from penstock.transport.wires.ucx_connection import UcxConnection
from penstock.transport.wires.ucx_library import library
from penstock.transport.wires.ucx_worker import UcxWorker

__all__ = ["UcxResource", "UcxResources"]


class UcxResource:
    """A ``Resource``: one connection, before and after it is bound."""

    def __init__(self, worker: UcxWorker) -> None:
        self._connection = UcxConnection(worker)
        self._params = self._connection.params

    @property
    def params(self) -> bytes:
        return self._params

    async def bind(self, params: bytes, peer: Session, deadline: Deadline) -> None:
        """See ``Resource``."""
        self._connection.bind(params, f"UCX peer {peer}", deadline)

    def connection(self) -> UcxConnection:
        """See ``Resource``."""
        return self._connection

    async def close(self) -> None:
        """See ``Resource``."""
        await self._connection.close()


class UcxResources:
    """Makes resources on one worker, which starts with the first; for one loop.

    Args:
        settings: of UCX, as its ``UCX_...`` variables without that prefix; None = see ``ucx_library``.

    Raises:
        MissingExtra: ucxx is not installed.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        library()
        self._settings = settings
        self._worker: UcxWorker | None = None

    async def fresh(self, session: Session, deadline: Deadline) -> UcxResource:  # noqa: ARG002 - it takes no time
        """See ``Resources``."""
        if self._worker is None:
            self._worker = UcxWorker(self._settings)
        return UcxResource(self._worker)

    async def close(self) -> None:
        """See ``Resources``."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
