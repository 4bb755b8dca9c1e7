"""A host's agent in service: the plane's shell round a keeper, and what carries out the keeper's own effects.

Invariants: everything that changes memory happens on one loop; what another host or the plane says becomes an event of
the keeper, what it decides an effect here; a task that met a bug of ours ends the agent, as a callback does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneNotReady
from penstock.host import events as ev
from penstock.host.keeper import Keeper, Who
from penstock.host.recovery import Left
from penstock.ledger.events import BlocksLost, Effect
from penstock.ledger.journal import MemoryJournal
from penstock.payload.arena import Reading
from penstock.payload.slots import Mode
from penstock.points import reached
from penstock.server.moving import Mover
from penstock.server.plane import EX_SOFTWARE, Plane
from penstock.server.storage import Storage

__all__ = ["Agent", "Shelves"]

log = logging.getLogger("penstock.host")


class Shelves:
    """What other hosts may read: nothing, before it is known what lies here, and after the end. On the agent's loop."""

    def __init__(self) -> None:
        self._storage: Storage | None = None

    def open(self, storage: Storage) -> None:
        self._storage = storage

    def close(self) -> None:
        self._storage = None

    def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        """See ``transport.slot_owner.ReadStore``."""
        if self._storage is None:
            raise DataPlaneNotReady("this host's agent is starting, or ending")
        return self._storage.begin_read(block_id, generation, mode)

    def end_read(self, reading: Reading, *, consumed: bool) -> bool:
        """See ``transport.slot_owner.ReadStore``."""
        return self._storage is not None and self._storage.end_read(reading, consumed=consumed)


class Agent:
    """Round a keeper: its shell, its mover, its copies.

    Args:
        who: this host; ``life`` is the number of this life.
        storage: its arenas.
        replicate: starts a copy on another host; what becomes of it is told to the shell.

    Attributes: keeper; plane (the shell: it is the plane's own); mover.
    """

    def __init__(
        self,
        who: Who,
        life: int,
        config: PlaneConfig,
        storage: Storage,
        *,
        replicate: Callable[[ev.Replicate], Coroutine[Any, Any, ev.Copied | ev.NotCopied]],
    ) -> None:
        self.keeper = Keeper(who, config, life)
        self.plane = Plane(
            config,
            self.keeper,
            MemoryJournal(),
            storage,
            clock=time.monotonic,
            wall=time.time,
            served=True,
            others=self._carry_out,
        )
        self.mover = Mover(self.plane, config.warm_bytes, lambda: self.keeper.moves_known)
        self._replicate = replicate
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving: asyncio.Task[None] | None = None

    def take_over(self, left: Left, enlisted: ev.Enlisting) -> None:
        """What earlier lives left is this one's; the rest of what the plane names is lost."""
        storage = self.plane.storage
        self.plane.tell(ev.Found([storage.place_of(block_id) for block_id in storage.in_old_files()]))
        for why, block_ids in left.lost.items():
            log.error("%d blocks are lost: %s", len(block_ids), why)
            self.plane.tell(BlocksLost(block_ids, why))
        self.plane.tell(enlisted)
        self.plane.settle()

    def start(self, what: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task of the agent's; one that meets what nobody expected ends the agent."""
        task = asyncio.get_running_loop().create_task(self._guarded(what, work), name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def start_moving(self) -> None:
        """Move blocks out of earlier lives' files, until ``stop``."""
        self._moving = self.start("moving", self.mover.run())

    async def stop(self) -> None:
        """End the tasks; the mover, whose thread copies from one mapping to another, with its block. Idempotent."""
        await self.mover.stop()
        if self._moving is not None:
            await self._moving
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # top frame of a task: the agent ends, and what comes back is what the plane says
            log.exception("a bug of ours while %s", what)
            self.plane.fail(EX_SOFTWARE, f"a bug of ours while {what}")

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case ev.Keep():
                self.plane.custody.keep(effect.grant)
                reached("host.sealed")
            case ev.Verify():
                self.mover.verify(effect.block_id, self.plane.sessions.expect(lambda _: None))
            case ev.Replicate():
                self.start("replicating", self._copy(effect))
            case _:
                raise AssertionError(f"nobody carries out {effect!r}")

    async def _copy(self, effect: ev.Replicate) -> None:
        self.plane.tell(await self._replicate(effect))

    def __repr__(self) -> str:
        return f"Agent({self.keeper!r}, {len(self._tasks)} tasks)"
