"""Work that others bring (generators, trainers, disks): begun, bounded, and left behind when it does not end.

Invariants: whoever waits for it waits no longer than its limit, whatever the work does: work that ignores its
cancellation is remembered, not awaited; the loop is never blocked; no thread begun here keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from penstock.points import reached

__all__ = ["Ended", "Underway", "in_thread"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Ended(Exception):
    """The work was cancelled, and not by us, or raised no ``Exception``: internal to the shell, which says so."""


class Underway:
    """The tasks of one run.

    Attributes:
        tasks: all that have not ended.
    """

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    def start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin ``work`` as a task that is remembered until it ends."""
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # whoever awaits it has it too
            log.debug("%s ended: %r", task.get_name(), error)

    async def bounded(self, name: str, work: Coroutine[Any, Any, T], limit_s: float, point: str = "") -> T:
        """Await ``work``; it ends with its awaiter. ``point`` is reached once it has begun.

        Raises:
            TimeoutError: it has not ended within ``limit_s``; it has been cancelled, and may or may not heed that.
            Ended: it was cancelled by somebody else, or raised what is no ``Exception``.
        """
        task = self.start(name, work)
        try:
            await asyncio.wait([task], timeout=0)
            if point:
                reached(point)
            await asyncio.wait([task], timeout=limit_s)
        finally:
            task.cancel()
        if not task.done():
            raise TimeoutError(f"no answer within {limit_s:g} s")
        if task.cancelled():
            raise Ended("it was cancelled, and not by the controller")
        if (error := task.exception()) is not None and not isinstance(error, Exception):
            raise Ended(f"{type(error).__name__}: {error}") from error  # else nobody would ever hear of it
        return task.result()


def in_thread(name: str, work: Callable[[], T]) -> asyncio.Future[T]:
    """Do ``work`` in a thread of its own; one that hangs keeps neither the loop nor the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def arrive(result: list[T], error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result[0])
        else:
            future.set_exception(error)

    def run() -> None:
        result: list[T] = []
        failed: BaseException | None = None
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001  # top frame of the thread: who awaits the future raises it
            failed = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(arrive, result, failed)

    threading.Thread(target=run, name=f"penstock {name}", daemon=True).start()
    return future
