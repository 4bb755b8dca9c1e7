"""Steps that are carried out one after another, in a task that lives for as long as there are any.

Invariants: one step at a time, in the order of their coming; after one has failed, or after ``stop``, none is begun;
the failure is told once; no lock is held, and whoever adds a step never waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from penstock.errors import DataPlaneError

__all__ = ["InOrder", "Step"]

log = logging.getLogger("penstock.endpoint")

Step: TypeAlias = Callable[[], Awaitable[None]]


class InOrder:
    """Args: failed: told what ended it; may add nothing more."""

    def __init__(self, name: str, failed: Callable[[str], None]) -> None:
        self._name = name
        self._failed = failed
        self._steps: deque[Step] = deque()
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Step) -> None:
        """Carry ``step`` out when those before it are done; forget it if there will be no more."""
        if self._over:
            return
        self._steps.append(step)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name=self._name)

    def stop(self) -> asyncio.Task[None] | None:
        """Begin no more steps, and cancel the one under way; return its task, if there is one. Idempotent."""
        self._over = True
        self._steps.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        return self._task

    async def _work(self) -> None:
        try:
            while self._steps:
                await self._steps.popleft()()
        except DataPlaneError as failed:
            self._end(str(failed))
        except Exception as bug:  # top frame: a bug in a kind of wire costs the endpoint, and is told
            log.exception("%s", self._name)
            self._end(f"{type(bug).__name__}: {bug}")
        finally:
            self._task = None

    def _end(self, why: str) -> None:
        told, self._over = self._over, True
        self._steps.clear()
        if not told:
            self._failed(why)
