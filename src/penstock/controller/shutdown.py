"""An ordered end: one step after the other, each with a limit.

Invariants: a step that exceeds its limit is left behind, with the stacks of all threads and tasks written down, and the
rest goes on; a step that fails is told and the rest goes on.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import logging
import time
from collections.abc import Awaitable
from pathlib import Path

__all__ = ["Shutdown"]

log = logging.getLogger(__name__)


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

    async def step(self, name: str, work: Awaitable[object], limit_s: float) -> None:
        """Do one step, for at most ``limit_s`` and what is left of the whole.

        ``work`` goes on where it can after its limit; nobody waits for it.
        """
        limit = max(0.0, min(limit_s, self._end - time.monotonic()))
        task = asyncio.ensure_future(work)
        began = time.monotonic()
        done, _ = await asyncio.wait([task], timeout=limit)
        took = time.monotonic() - began
        if not done:
            self.overdue.append(name)
            task.cancel()
            log.error("shutdown: %s is not done after %.1f s; stacks: %s", name, took, self._dump(name))
        elif task.cancelled() or task.exception() is not None:
            why = "cancelled" if task.cancelled() else task.exception()
            log.warning("shutdown: %s failed after %.1f s: %s", name, took, why)
        else:
            log.info("shutdown: %s done in %.2f s", name, took)

    def _dump(self, name: str) -> Path:
        tasks = io.StringIO()
        for task in asyncio.all_tasks():
            task.print_stack(file=tasks)
        with self.stacks.open("a") as file:
            file.write(f"== {name} hangs\n{tasks.getvalue()}\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
        return self.stacks
