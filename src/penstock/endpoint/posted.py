"""A connection whose every use is posted to the machine first: nothing is sent on an endpoint that is not ready.

Invariants: every ``send`` and ``recv_into`` ends once, with what the machine settled: a retirement fails what is under
way, though its bytes may have left; whatever breaks a call breaks the endpoint, and the machine hears of it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from penstock.endpoint.connection import Buffer, Connection
from penstock.endpoint.events import Session
from penstock.errors import TransportError
from penstock.retry import Deadline

__all__ = ["Desk", "PostedConnection"]


class Desk(Protocol):
    """Where work is posted."""

    def post(self, session: Session) -> int:
        """Return the number of a new piece of work; raises ``TransportError`` if the endpoint is not ready."""

    def finish(self, session: Session, work: int, why: str) -> str:
        """Say that it has ended, badly if there is a ``why``; return why it counts as failed, "" = it is done."""

    def give_up(self, session: Session, why: str) -> None:
        """The endpoint is of no further use."""


class PostedConnection:
    """See ``Connection``."""

    def __init__(self, desk: Desk, session: Session, inner: Connection) -> None:
        self._desk = desk
        self._session = session
        self._inner = inner
        self._why = ""

    @property
    def peer(self) -> str:
        return self._inner.peer

    @property
    def broken(self) -> bool:
        return bool(self._why) or self._inner.broken

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        """See ``Connection``."""
        await self._carried(self._desk.post(self._session), self._inner.send(*parts, deadline=deadline))

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        """See ``Connection``."""
        await self._carried(self._desk.post(self._session), self._inner.recv_into(buffer, deadline))

    def abort(self) -> None:
        """See ``Connection``."""
        self._desk.give_up(self._session, "its user has let go of it")
        self._inner.abort()

    async def close(self) -> None:
        """See ``Connection``."""
        await self._inner.close()
        self._desk.give_up(self._session, "its user has closed it")

    def retire(self, why: str) -> None:
        """The endpoint has retired: whoever waits here is told why."""
        self._why = self._why or why
        self._inner.abort()

    async def _carried(self, work: int, call: Awaitable[None]) -> None:
        why, code = "", "closed"
        try:
            await call
        except TransportError as failed:
            why, code = failed.message, failed.code
            raise TransportError(self._finish(work, why), code=code, elapsed_s=failed.elapsed_s) from failed
        except BaseException:
            self._finish(work, "a call on it was cancelled")
            raise
        settled = self._desk.finish(self._session, work, "")
        if settled:
            raise TransportError(settled, code="closed")

    def _finish(self, work: int, why: str) -> str:
        settled = self._desk.finish(self._session, work, why)
        self._desk.give_up(self._session, why)
        return settled or why

    def __repr__(self) -> str:
        return f"<PostedConnection of {self._session} over {self._inner!r}>"
