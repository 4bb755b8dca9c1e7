"""A store's agent at work: one task that asks the store, and does what ``Duties`` says.

Invariants: the store is asked by one thread at a time, each call under a deadline; while it does not answer nothing is
lost and nothing is given up; what a call leaves undone is done at a later turn, not again and again in this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from penstock.errors import CorruptPayload, DataPlaneError
from penstock.host.store.duties import Duties
from penstock.payload import block
from penstock.payload.stores.contract import BlockStore, Corrupt, Missing, Ok, Outcome
from penstock.plane.stores import block_key
from penstock.points import reached
from penstock.retry import Deadline

__all__ = ["StoreAgent"]

WATCH_S = 1.0  # between two looks at the store's life
PATROL_S = 5.0  # between two looks for everything that rows need, and at least:
PATROL_SHARE = 20  # as many times as the last one took
CALL_S = 15.0  # for one call: longer than a store needs to notice that one of its owners has died
BATCH = 512  # keys of one call
BLOCKS_READ = 4  # at once, of those that are checked: they may be large

log = logging.getLogger("penstock.host.store")

T = TypeVar("T")


class StoreAgent:
    """See the module.

    Args:
        store: open.
        host_id: the store's, at its plane.
        life: the name of its life, as it was when the agent enlisted.
        duties: what is to be done; told what came of it.
        told: called after each change of what the plane is to be told.
        clock: of deadlines and patrols.
    """

    def __init__(
        self,
        store: BlockStore,
        host_id: int,
        life: str,
        duties: Duties,
        told: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._host_id = host_id
        self._life = life
        self._duties = duties
        self._told = told
        self._clock = clock
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="penstock-store")
        self._patrolled = clock()  # when the last look for everything began
        self._patrol_at: float | None = None  # when the next one is due; None = one is under way
        self._silent_since: float | None = None

    def look(self) -> None:
        """There may be something to do."""
        self._work.set()

    async def run(self) -> str:
        """Work until the store is found to have been restarted; return the name of its new life."""
        while True:
            self._work.clear()
            life = await self._turn()
            if life != self._life:
                return life
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._work.wait()

    def close(self) -> None:
        """Begin no further call."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _turn(self) -> str:
        """See that it is the same store still, and do what there is to do; return the name of its life."""
        try:
            life = await self._call(self._store.life)
            if life == self._life:
                await self._do()
        except DataPlaneError as failed:
            self._note_silence(failed)
            return self._life
        self._silent_since = None
        return life

    def _note_silence(self, failed: DataPlaneError) -> None:
        if self._silent_since is None:
            self._silent_since = self._clock()
            log.warning("the store does not answer, what it holds is waited for: %s", failed)

    async def _do(self) -> None:
        """Do everything once; what fails stays to be done."""
        if self._patrol_at is not None and self._clock() >= self._patrol_at:
            self._patrolled, self._patrol_at = self._clock(), None
            self._duties.patrol()
        while await self._free() or await self._check() or await self._survey():
            self._told()
        if self._patrol_at is None and not self._duties.to_survey(1):
            took = self._clock() - self._patrolled
            self._patrol_at = self._clock() + max(PATROL_S, PATROL_SHARE * took)

    async def _free(self) -> bool:
        blocks = self._duties.to_free(BATCH)
        if not blocks:
            return False
        reached("store.freeing")
        outcomes = await self._call(lambda until: self._store.remove_many(self._keys(blocks), until))
        gone = _those(blocks, outcomes, Ok | Missing)
        self._duties.freed(gone)
        return self._all("removed", blocks, gone, outcomes)

    async def _survey(self) -> bool:
        """See whether what rows need is there at all: names are compared, no bytes."""
        blocks = self._duties.to_survey(BATCH)
        if not blocks:
            return False
        outcomes = await self._call(lambda until: self._store.exists_many(self._keys(blocks), until))
        self._duties.lost(_those(blocks, outcomes, Missing), "the store does not have it any more")
        seen = _those(blocks, outcomes, Ok | Missing)
        self._duties.checked(seen)
        return self._all("found", blocks, seen, outcomes)

    async def _check(self) -> bool:
        """Read what a reader did not get whole."""
        blocks = self._duties.to_check(BLOCKS_READ)
        if not blocks:
            return False
        outcomes = await self._call(lambda until: self._store.get_many(self._keys(blocks), None, until))
        judged = [await asyncio.to_thread(_judge, *pair) for pair in zip(blocks, outcomes, strict=True)]
        for block_id, why in zip(blocks, judged, strict=True):
            if why:
                self._duties.lost([block_id], why)
        seen = _those(blocks, outcomes, Ok | Missing | Corrupt)
        self._duties.checked(seen)
        return self._all("read", blocks, seen, outcomes)

    def _all(self, done: str, blocks: list[int], those: list[int], outcomes: Sequence[Outcome]) -> bool:
        """Whether it is of use to go on at once."""
        if len(those) == len(blocks):
            return True
        self._told()
        late = [outcome for block, outcome in zip(blocks, outcomes, strict=True) if block not in set(those)]
        log.warning("%d of %d blocks were not %s, and will be later: %s", len(late), len(blocks), done, late[0])
        return False

    def _keys(self, blocks: list[int]) -> list[str]:
        return [block_key(self._host_id, block_id) for block_id in blocks]

    async def _call(self, ask: Callable[[Deadline], T]) -> T:
        """Ask the store, in its thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: ask(Deadline(CALL_S, self._clock)))

    def __repr__(self) -> str:
        return f"StoreAgent({self._host_id:x}, life {self._life}, {self._duties!r})"


def _those(blocks: list[int], outcomes: Sequence[Outcome], kinds: object) -> list[int]:
    """Return the blocks whose outcome is of these kinds."""
    return [block_id for block_id, outcome in zip(blocks, outcomes, strict=True) if isinstance(outcome, kinds)]  # type: ignore[arg-type]


def _judge(block_id: int, outcome: Outcome) -> str:
    """Return why the block is lost; "" = it is whole, or nobody knows."""
    if isinstance(outcome, Missing):
        return "the store does not have it any more"
    if isinstance(outcome, Corrupt):
        return f"damaged in the store: {outcome.kind}"
    if isinstance(outcome, Ok):
        try:
            block.verify(outcome.view, block.parse(outcome.view, block_id))
        except CorruptPayload as damaged:
            return f"damaged in the store: {damaged}"
    return ""
