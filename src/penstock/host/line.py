"""The agent's calls to its plane, for tasks: a link, whose thread carries the session, and futures for its answers.

Invariant: a call that is left, at its deadline or by cancellation, is forgotten by the link too.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeVar

from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane.events import Ended, Leave, Settled, Submit, Take
from penstock.plane.exchange import Waiter, failure
from penstock.plane.link import Link
from penstock.requests import Failed, Record, Request
from penstock.retry import Deadline

__all__ = ["Line"]

R = TypeVar("R", bound=Record)


class _Answer(Waiter):
    """An outcome that wakes a task. Settled in the link's thread."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.came = asyncio.Event()

    def settle(self, outcome: Settled | Ended) -> None:
        super().settle(outcome)
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self.came.set)


class Line:
    """Args: link: in session with the plane, or on its way there."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def ask(self, body: Request, kind: type[R], timeout_s: float) -> R:
        """Ask the plane and return its reply.

        Raises:
            DataPlaneTimeout: no answer in time, or no connection.
            DataPlaneUnavailable: the link is closed, or the plane will not have us.
            DataPlaneError: the plane refused; as it said it.
        """
        answer, number = _Answer(), self._link.number()
        self._link.hand_over(Submit(number, body, Deadline(timeout_s).at), answer)
        try:
            async with asyncio.timeout(timeout_s):
                await answer.came.wait()
        except TimeoutError:
            self._link.hand_over(Leave(number))
            raise DataPlaneTimeout(f"no answer within {timeout_s:g} s: {self._link.state()}") from None
        except BaseException:
            self._link.hand_over(Leave(number))
            raise
        outcome = answer.outcome
        if not isinstance(outcome, Settled):
            raise DataPlaneUnavailable(outcome.why if outcome is not None else "the link is closed")
        self._link.note(Take(number))
        if isinstance(outcome.body, Failed):
            raise failure(outcome.body, outcome.incarnation)
        assert isinstance(outcome.body, kind), outcome
        return outcome.body

    async def close(self, timeout_s: float) -> None:
        """Say goodbye, and wait so long for the link's thread to end."""
        await asyncio.to_thread(self._link.close, timeout_s)

    def __repr__(self) -> str:
        return f"Line({self._link!r})"
