"""An ordered end: one step after the other, each with a limit.

Invariants: a step that exceeds its limit is left behind, with the stacks of all threads and tasks written down, and the
rest goes on; a step that fails is told and the rest goes on; a disk that hangs holds up nothing of this.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import time
import traceback
from collections.abc import Awaitable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from penstock.controller.underway import in_thread

__all__ = ["Shutdown", "stack_of"]

log = logging.getLogger(__name__)

DUMP_S = 0.2  # for the stacks to be written; a disk that takes longer writes them when it can
_DEEPEST = 100  # frames of one task


class Shutdown:
    """The steps of one end.

    Args:
        folder: where stacks go: ``stacks.txt``.
        limit_s: for all steps together.
    """

    def __init__(self, folder: Path, limit_s: float) -> None:
        self.stacks = folder / "stacks.txt"
        self._end = time.monotonic() + limit_s
        self.overdue: list[str] = []

    async def all_of(self, name: str, tasks: set[asyncio.Task[Any]], limit_s: float) -> None:
        """Cancel ``tasks``, and wait for them to end, as ``step`` does."""
        left, began = set(tasks), time.monotonic()
        for task in left:
            task.cancel()
        if not left or await self._in_time(asyncio.wait(left), limit_s):
            return
        if names := sorted(task.get_name() for task in left if not task.done()):
            await self._too_late(f"{name} ({', '.join(names)})", time.monotonic() - began)

    async def step(self, name: str, work: Awaitable[object], limit_s: float) -> None:
        """Do one step, for at most ``limit_s`` and what is left of the whole.

        ``work`` goes on where it can after its limit; nobody waits for it.
        """
        began = time.monotonic()
        task = asyncio.ensure_future(work)
        if not await self._in_time(task, limit_s):
            await self._too_late(name, time.monotonic() - began)
            task.cancel()
        elif task.cancelled() or task.exception() is not None:
            why = "it was cancelled" if task.cancelled() else task.exception()
            log.warning("shutdown: %s failed after %.1f s: %s", name, time.monotonic() - began, why)
        else:
            log.info("shutdown: %s done in %.2f s", name, time.monotonic() - began)

    async def _in_time(self, work: Awaitable[object], limit_s: float) -> bool:
        task = asyncio.ensure_future(work)
        await asyncio.wait([task], timeout=max(0.0, min(limit_s, self._end - time.monotonic())))
        return task.done()

    async def _too_late(self, name: str, took: float) -> None:
        self.overdue.append(name)
        log.error("shutdown: %s: not done after %.1f s, left behind; stacks: %s", name, took, self.stacks)
        text = "".join(_told(task) for task in asyncio.all_tasks())
        dumping = in_thread("stacks", lambda: self._dump(f"== left behind: {name}\n{text}\n"))
        await asyncio.wait([dumping], timeout=DUMP_S)
        if not dumping.done():
            log.error("shutdown: the stacks cannot be written either, the disk hangs; tasks:\n%s", text)
        elif (error := dumping.exception()) is not None:
            log.error("shutdown: the stacks cannot be written: %s; tasks:\n%s", error, text)

    def _dump(self, head: str) -> None:
        with self.stacks.open("a") as file:
            file.write(head)
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)


def _told(task: asyncio.Task[Any]) -> str:
    frames = [(frame, frame.f_lineno) for frame in stack_of(task)]
    return f"-- {task.get_name()}\n" + "".join(traceback.StackSummary.extract(iter(frames)).format())


def stack_of(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return where a task stands, down to what it waits in; ``Task.get_stack`` tells its outermost frame alone."""
    return list(_frames(task.get_coro()))


def _frames(work: Any) -> Iterator[FrameType]:
    for _ in range(_DEEPEST):
        frame = next((f for name in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(work, name, None))), None)
        if frame is None:
            return
        yield frame
        work = next((w for name in ("cr_await", "gi_yieldfrom", "ag_await") if (w := getattr(work, name, None))), None)
