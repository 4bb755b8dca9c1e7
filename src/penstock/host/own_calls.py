"""Calls that the agent makes to its own keeper, in session 0: it reserves and seals what it pulls for other hosts."""

from __future__ import annotations

import asyncio

from penstock.errors import DataPlaneError, DataPlaneTimeout, error_of
from penstock.host.keeper import OWN_SESSION
from penstock.ledger.events import Asked
from penstock.requests import Failed, ReplyBody, Request
from penstock.retry import Deadline
from penstock.server.plane import Plane

__all__ = ["OwnCalls"]


class OwnCalls:
    """Args: plane: the shell of the keeper. On its loop."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def ask(self, body: Request, deadline: Deadline) -> ReplyBody:
        """Ask, and return the answer.

        Raises:
            DataPlaneError: the keeper refused, or did not answer in time: then nobody waits any more.
        """
        answer: asyncio.Future[ReplyBody] = asyncio.get_running_loop().create_future()
        number = self._plane.sessions.expect(lambda reply: None if answer.done() else answer.set_result(reply))
        at = self._plane.clock() + deadline.remaining()
        self._plane.tell(Asked(OWN_SESSION, number, 0, 0, [], at, body, self._plane.wall()))
        try:
            async with asyncio.timeout(deadline.remaining() + 1.0):  # the keeper's own answer comes at the deadline
                reply = await answer
        except TimeoutError:
            raise DataPlaneTimeout(f"{type(body).__name__} was not answered within {deadline.timeout_s:g} s") from None
        finally:
            self._plane.sessions.forsake(number)
            self._plane.custody.forsake(frozenset({number}))
        if isinstance(reply, Failed):
            error: DataPlaneError = error_of(reply.code)(reply.message)
            raise error
        return reply
