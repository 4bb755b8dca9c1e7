"""Real planes for runs in this process, and what a test looks at while one runs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from penstock.config import ClientConfig, PlaneConfig
from penstock.controller.config import ControllerConfig
from penstock.controller.events import RunEvent
from penstock.controller.single import RunResult
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.requests import AuditReport
from tests.controller.toys import Cast, Shop, cast, config

SOON_S = 30.0
QUICK = PlaneConfig(heartbeat_s=0.2, dead_after_s=0.8, resume_grace_s=0.8, linger_s=0.2, max_bytes=16 << 20)


def local(folder: Path, config: PlaneConfig = QUICK) -> LocalDataPlaneClient:
    """Join the plane of ``folder``, which starts where none runs and is started again by whoever misses it."""
    return LocalDataPlaneClient(folder / "plane", config=ClientConfig(timeout_s=5.0), plane=config)


@asynccontextmanager
async def life(connect: Callable[[], DataPlaneClient], folder: Path, **options: Any) -> AsyncIterator[Cast]:
    """A cast whose options are the run's and the controller's; closed after the run."""
    changes = {name: options.pop(name) for name in list(options) if name in ControllerConfig.__struct_fields__}
    shop = options.pop("shop", Shop())
    made = await asyncio.to_thread(lambda: cast(connect, folder, shop, config(**changes), **options))
    try:
        yield made
    finally:
        await made.generator.close()
        await made.trainer.close()


async def told(made: Cast, kind: type[RunEvent], count: int = 1) -> Any:
    """Wait for the ``count``-th event of a kind, and return it."""
    until = time.monotonic() + SOON_S
    while len(made.of(kind)) < count:
        assert time.monotonic() < until, f"no {kind.__name__} #{count}: {made.events[-20:]}"
        await asyncio.sleep(0.002)
    return made.of(kind)[count - 1]


async def run_to_end(connect: Callable[[], DataPlaneClient], folder: Path, **options: Any) -> tuple[RunResult, Cast]:
    """One life."""
    async with life(connect, folder, **options) as made:
        return await asyncio.wait_for(made.controller.run(), SOON_S), made


def balanced(books: AuditReport, trained: int) -> None:
    """All rows are accounted for, and so many were trained."""
    assert books.residue == 0
    assert [p.trained for p in books.partitions] == [trained]


def kill_plane(client: LocalDataPlaneClient) -> int:
    """kill -9; returns the life that ended."""
    now = client.status()
    os.kill(now.pid, signal.SIGKILL)
    return now.incarnation


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Lag:
    """How long the event loop did not turn, beyond what a thread of this process had to wait for the machine."""

    TICK_S = 0.01

    def __init__(self) -> None:
        self.loop_s = 0.0
        self.machine_s = 0.0
        self._over = threading.Event()

    @property
    def blocked_s(self) -> float:
        return self.loop_s - self.machine_s

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self.TICK_S)
            now = time.monotonic()
            self.loop_s, last = max(self.loop_s, now - last), now

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self.TICK_S):
            now = time.monotonic()
            self.machine_s, last = max(self.machine_s, now - last), now

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """Measure while inside."""
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            await asyncio.sleep(2 * self.TICK_S)  # a block at the end is seen, too
            ticking.cancel()
            self._over.set()
            await asyncio.to_thread(watcher.join)
