"""How a handler on any thread begins and ends a read: every change of a slot is made on the arena's one loop.

Invariants: what was begun is ended exactly once, though its handler was cancelled, or its loop has ended, at any moment
between; ending never waits, so that a cancelled handler's ``finally`` does it all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Protocol

from penstock.errors import DataPlaneError, DataPlaneUnavailable
from penstock.payload.arena import Reading
from penstock.payload.slots import Mode

__all__ = ["LoopOwner", "ReadStore", "SlotOwner"]

_PATIENCE_S = 5.0  # with an owner that is stopped or starved: as long as a reader waits for one attempt


class ReadStore(Protocol):
    """The arena, or arenas, on their own loop: ``Storage`` is one."""

    def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        """Begin an attempt.

        Raises:
            StaleSlotError: there is no such block, or it is in another generation.
            DataPlaneNotReady: it cannot be read now.
        """

    def end_read(self, reading: Reading, *, consumed: bool) -> bool:
        """End the attempt. False: it had been superseded, and nothing changed."""


class SlotOwner(Protocol):
    """What handlers see of the arena's owner, from whatever loop."""

    async def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        """Begin an attempt; who gets one ends it with exactly one ``end_read``.

        Raises:
            StaleSlotError: there is no such block, or it is in another generation.
            DataPlaneNotReady: it cannot be read now.
            DataPlaneUnavailable: the owner does not answer, or has ended.
        """

    def end_read(self, reading: Reading, *, consumed: bool) -> None:
        """End the attempt, soon. ``consumed``: the reader has acknowledged what it is to consume."""


class LoopOwner:
    """The owner of ``store``, whose loop is ``loop``.

    Args:
        ended: called on ``loop`` after each end of a read: room may have come.
    """

    def __init__(
        self,
        store: ReadStore,
        loop: asyncio.AbstractEventLoop,
        *,
        ended: Callable[[], None] = lambda: None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._store = store
        self._loop = loop
        self._ended = ended
        self._patience_s = patience_s

    def __repr__(self) -> str:
        return f"<LoopOwner of {self._store!r}>"

    async def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        attempt = _Attempt(lambda: self._store.begin_read(block_id, generation, mode))
        try:
            self._loop.call_soon_threadsafe(attempt.decide)
        except RuntimeError:
            raise DataPlaneUnavailable("the owner of this host's arena has ended") from None
        try:
            async with asyncio.timeout(self._patience_s):
                return await attempt.outcome()
        except BaseException as left:
            begun = attempt.abandon()
            if begun is not None:
                self.end_read(begun, consumed=False)
            if isinstance(left, TimeoutError):
                text = f"the owner of this host's arena did not answer within {self._patience_s:g} s"
                raise DataPlaneUnavailable(text) from None
            raise

    def end_read(self, reading: Reading, *, consumed: bool) -> None:
        with contextlib.suppress(RuntimeError):  # the owner's loop has ended, and its slots with it
            self._loop.call_soon_threadsafe(self._end, reading, consumed)

    def _end(self, reading: Reading, consumed: bool) -> None:
        self._store.end_read(reading, consumed=consumed)
        self._ended()


class _Attempt:
    """One beginning, between two loops: made on the handler's, decided on the owner's, wanted or not.

    The lock makes "decided" and "abandoned" one order: nothing is begun for somebody who has left, and who leaves is
    told what was begun.
    """

    def __init__(self, begin: Callable[[], Reading]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._abandoned = False
        self._reading: Reading | None = None
        self._error: DataPlaneError | None = None
        self._loop = asyncio.get_running_loop()
        self._decided = asyncio.Event()

    def decide(self) -> None:
        """On the owner's loop. A bug there is for that loop's log; who waits is not left to wait."""
        try:
            with self._lock:
                if not self._abandoned:
                    self._reading = self._begin()
        except DataPlaneError as error:
            self._error = error
        finally:
            with contextlib.suppress(RuntimeError):  # the handler's loop has ended; its task had been cancelled before
                self._loop.call_soon_threadsafe(self._decided.set)

    async def outcome(self) -> Reading:
        """On the handler's loop; raises what ``begin`` did."""
        await self._decided.wait()
        if self._error is not None:
            raise self._error
        if self._reading is None:
            raise RuntimeError("beginning a read failed by a bug of the arena's owner: see the traceback in its log")
        return self._reading

    def abandon(self) -> Reading | None:
        """Nobody waits any more. Return what was begun, which the caller is to end."""
        with self._lock:
            self._abandoned = True
            return self._reading
