"""Blocks that move while the plane serves: out of earlier lives' files, and out of sparse blocks into smaller ones.

One block at a time; its checksums are verified and its bytes copied in a worker thread, so that the loop is not held. A
move out of an old file is also the verification of what a restart found there.

Invariants: a block is copied only after its checksums held; a damaged one is reported lost and never copied; a block
that was freed meanwhile is not moved; an old file is unlinked only after the record of its last move is in the journal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import numpy as np

from penstock.errors import CorruptPayload, DataPlaneError, StaleSlotError
from penstock.ledger.events import BlockMoved, BlocksLost
from penstock.payload import block
from penstock.payload.compact import compacted
from penstock.points import reached
from penstock.requests import BlockPlace, Done
from penstock.server.plane import Plane
from penstock.server.storage import PLANE

__all__ = ["Mover"]

_LOOK_S = 1.0  # between two looks at whether there is something to compact
_MAX_PENDING_VERIFICATIONS = 64

log = logging.getLogger("penstock.server")


class Mover:
    """Moves blocks of ``plane``.

    Args:
        sparse_bytes: when so many bytes more hold no living row, sparse blocks are compacted.
        may_retire: whether what has moved is known wherever it must be, so that old files may go.
    """

    def __init__(self, plane: Plane, sparse_bytes: int, may_retire: Callable[[], bool] = lambda: True) -> None:
        self._plane = plane
        self._may_retire = may_retire
        self._sparse_bytes = sparse_bytes
        self._stopping = asyncio.Event()
        self._verifying: dict[int, list[int]] = {}  # block -> calls that reported it
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_bytes = 0  # bytes without rows that the last look could not help
        self.moved = 0
        self.compacted = 0

    async def run(self) -> None:
        """Move what there is to move, until ``stop``."""
        while not self._stopping.is_set():
            room = await self._empty_old_files()
            await self._compact_sparse(pressed=not room)
            await self._pause()

    async def stop(self) -> None:
        """Finish the block at hand, and no more. Idempotent."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    # -- old files ------------------------------------------------------------------------------------------------

    async def _empty_old_files(self) -> bool:
        """Move every block of earlier lives into this life's arena; False when there is no room now."""
        storage = self._plane.storage
        for block_id in storage.in_old_files():
            if self._stopping.is_set():
                return True
            if not await self._move(block_id):
                return False
        self._plane.settle()
        if not self._plane.failed and self._may_retire():
            for arena_id in storage.retire():
                log.info("arena %d of an earlier life is empty and unlinked", arena_id)
        return True

    async def _move(self, block_id: int) -> bool:
        storage = self._plane.storage
        try:
            data = storage.view(block_id)
        except StaleSlotError:  # freed a moment ago
            return True
        place = storage.begin_move(block_id, len(data))
        if place is None:
            return False
        try:
            await asyncio.to_thread(self._copy_verified, block_id, data, place)
        except CorruptPayload as damage:
            storage.cancel_move(block_id, place)
            self._lost(block_id, str(damage))
            return True
        self._moved(block_id, place, None)
        self.moved += 1
        return True

    def _copy_verified(self, block_id: int, data: memoryview, place: BlockPlace) -> None:
        block.verify(data, block.parse(data, block_id))
        self._plane.storage.arena.writer(place)[:] = np.frombuffer(data, np.uint8)

    def _moved(self, block_id: int, place: BlockPlace, kept: list[int] | None) -> None:
        """The block lies elsewhere from now on, for storage and ledger in one step.

        What was decided before is settled first: a read's rows are numbered as the block lay then. The record is
        written before the caller lets go of the old slot.
        """
        self._plane.settle()
        moved = self._plane.storage.end_move(block_id, place)
        if moved is not None:
            self._plane.tell(BlockMoved(moved, kept))
        self._plane.settle()
        if moved is not None:
            reached("server.moved")

    def _lost(self, block_id: int, why: str) -> None:
        log.error("block %d is damaged, its rows are lost: %s", block_id, why)
        self._plane.tell(BlocksLost([block_id], why))
        self._plane.warnings.counters["blocks_lost"] += 1

    # -- compaction -----------------------------------------------------------------------------------------------

    async def _compact_sparse(self, *, pressed: bool) -> None:
        """Make sparse blocks small, if room is wanted or there are enough of them."""
        pressed = pressed or len(self._plane.custody.allotment) > 0
        self._idle_bytes = min(self._idle_bytes, self._bytes_without_rows())
        grown = self._bytes_without_rows() - self._idle_bytes
        if grown < (1 if pressed else self._sparse_bytes):  # looking costs a step for each block
            return
        for place, kept, positions in self._plane.ledger.sparse_blocks():
            if self._stopping.is_set():
                return
            await self._compact(place.block_id, kept, positions)
        self._plane.settle()
        self._idle_bytes = self._bytes_without_rows()

    def _bytes_without_rows(self) -> int:
        """Bytes in slots that hold no row that lives: dead rows, headers, padding, grants, pins."""
        return self._plane.storage.statistics().used - self._plane.ledger.live_bytes

    async def _compact(self, block_id: int, kept: list[int], positions: Sequence[int]) -> None:
        storage = self._plane.storage
        try:
            _, hold = storage.pin(block_id, PLANE)
            data = storage.view(block_id)
        except StaleSlotError:
            return
        try:
            batch = await asyncio.to_thread(compacted, data, block_id, positions)
            place = storage.begin_move(block_id, batch.nbytes)
            if place is not None:
                await asyncio.to_thread(batch.write_into, storage.arena.writer(place), block_id)
                self._moved(block_id, place, kept)
                self.compacted += 1
        except CorruptPayload as damage:
            self._lost(block_id, str(damage))
        finally:
            storage.unpin(hold, PLANE)
            self._plane.settle_soon()

    # -- suspicion ------------------------------------------------------------------------------------------------

    def verify(self, block_id: int, number: int) -> None:
        """A reader found the block damaged: look, believe our own eyes, and answer its call."""
        waiting = self._verifying.get(block_id)
        if waiting is not None:
            waiting.append(number)
            return
        if len(self._verifying) >= _MAX_PENDING_VERIFICATIONS:
            self._plane.answer(
                number, Done()
            )  # the reader goes on as if it had been looked at; somebody will ask again
            return
        self._verifying[block_id] = [number]
        task = asyncio.get_running_loop().create_task(self._verify(block_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify(self, block_id: int) -> None:
        storage = self._plane.storage
        try:
            _, hold = storage.pin(block_id, PLANE)
            data = storage.view(block_id)
        except StaleSlotError:
            pass  # freed meanwhile, or never there
        else:
            try:
                await asyncio.to_thread(_verify_bytes, data, block_id)
            except DataPlaneError as damage:
                self._lost(block_id, str(damage))
            finally:
                storage.unpin(hold, PLANE)
        for number in self._verifying.pop(block_id):
            self._plane.answer(number, Done())

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), _LOOK_S)
        except TimeoutError:
            return


def _verify_bytes(data: memoryview, block_id: int) -> None:
    block.verify(data, block.parse(data, block_id))
