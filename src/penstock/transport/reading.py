"""One read attempt over one connection: request, status, payload, checks, acknowledgement.

Invariants: memory is written only if the host says the length that is wanted; nothing is returned that has not passed
the checks of the integrity level; a lease is marked complete only when nothing of its exchange can follow any more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from penstock.config import Integrity
from penstock.errors import (
    CorruptPayload,
    DataPlaneBadRequest,
    DataPlaneError,
    DataPlaneNotReady,
    DataPlaneUnavailable,
    StaleSlotError,
    TransportError,
)
from penstock.payload.block import BlockHeader, Bytes
from penstock.retry import Deadline
from penstock.transport.checking import Checking
from penstock.transport.pool import Lease
from penstock.transport.slot_protocol import STATUS_BYTES, Ack, Code, Request, Status, Verdict, parts_of
from penstock.transport.wanted import Wanted

__all__ = ["SlotReader"]

log = logging.getLogger(__name__)

_REFUSALS: dict[Code, type[DataPlaneError]] = {
    Code.STALE: StaleSlotError,
    Code.NOT_READY: DataPlaneNotReady,
    Code.BAD_REQUEST: DataPlaneBadRequest,
    Code.ERROR: DataPlaneUnavailable,
}


class SlotReader:
    """Reads blocks whole, in retain mode.

    Args:
        integrity: what is verified before a block is handed out.
        silence_s: no part of a payload takes longer than this.
        beside: a pool of one thread, which verifies blocks of at least ``beside_bytes`` while they arrive.
    """

    def __init__(self, integrity: Integrity, silence_s: float, beside: Executor, beside_bytes: int) -> None:
        self._integrity, self._silence_s = integrity, silence_s
        self._beside, self._beside_bytes = beside, beside_bytes
        self._request_ids = itertools.count(1)

    async def read(
        self, lease: Lease, wanted: Wanted, generation: int, memory: Callable[[], Bytes], deadline: Deadline
    ) -> tuple[BlockHeader, Bytes]:
        """Receive the block into ``memory()``, which is asked for when the host offers it, and check it.

        Raises:
            TransportError: the connection broke, the deadline passed, or the peer does not keep to the protocol.
            StaleSlotError: the slot is another block's by now.
            CorruptPayload: what arrived, or is announced, is not the block.
            DataPlaneNotReady, DataPlaneUnavailable, DataPlaneBadRequest: what the host answered.
        """
        request = Request(next(self._request_ids), wanted.block_id, generation)
        await lease.connection.send(request.encode(), deadline=deadline)
        status = await self._status(lease, request, deadline)
        if status.length != wanted.nbytes:
            raise CorruptPayload(
                f"block {wanted.block_id} has {wanted.nbytes} bytes, and {lease.connection.peer} offers {status.length}"
            )
        out = memory()
        try:
            header = await self._received(lease, request, status, out, deadline)
        except CorruptPayload as damaged:
            await self._acknowledge(lease, request, Verdict.DAMAGED, deadline)
            raise CorruptPayload(f"{damaged}; it came from {lease.connection.peer}") from damaged
        await self._acknowledge(lease, request, Verdict.CHECKED, deadline)
        return header, out

    async def _status(self, lease: Lease, request: Request, deadline: Deadline) -> Status:
        buffer = bytearray(STATUS_BYTES)
        await lease.connection.recv_into(buffer, deadline.within(self._silence_s))
        status = Status.decode(buffer)
        peer = lease.connection.peer
        if status.request_id != request.request_id:
            words = f"{peer} answers request {status.request_id}, and {request.request_id} was sent"
            raise TransportError(words, code="protocol")
        if status.code is Code.OK:
            return status
        lease.complete = status.code is not Code.BAD_REQUEST  # after that the host may hang up
        words = status.text or status.code.name.lower()
        raise _REFUSALS[status.code](f"{peer}, asked for block {request.block_id}: {words}")

    async def _received(
        self, lease: Lease, request: Request, status: Status, out: Bytes, deadline: Deadline
    ) -> BlockHeader:
        """Receive the payload; a large one is checked beside the loop while the rest of it comes."""
        checking = Checking(request, status, out, self._integrity)
        beside = len(out) >= self._beside_bytes
        arrived = 0
        for part in parts_of(out.data):
            await lease.connection.recv_into(part, deadline.within(self._silence_s))
            arrived += len(part)
            if beside and arrived < len(out):
                self._beside.submit(checking.advance, arrived)  # in order: it is one thread
        if not beside:
            return checking.finish()
        return await asyncio.get_running_loop().run_in_executor(self._beside, checking.finish)

    async def _acknowledge(self, lease: Lease, request: Request, verdict: Verdict, deadline: Deadline) -> None:
        """Tell the host. If it cannot be told, the block is no worse for it, and the connection is not used again."""
        try:
            await lease.connection.send(Ack(request.request_id, verdict).encode(), deadline=deadline)
        except TransportError as failed:
            log.debug("block %d is here; its acknowledgement failed: %s", request.block_id, failed)
        else:
            lease.complete = True
