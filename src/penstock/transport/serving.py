"""One listener's conversations with readers: a request, its status, the payload, the reader's acknowledgement.

Invariants: each attempt that was begun is ended exactly once, by the handler that began it, in its ``finally``; only an
acknowledgement consumes, never a completed send; every wait has a deadline, sending too; handlers share nothing but
counters; whatever goes wrong on a connection costs that connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field, fields

import xxhash

from penstock.endpoint.connection import Connection
from penstock.errors import BadArgument, DataPlaneError, DataPlaneNotReady, StaleSlotError, TransportError
from penstock.payload.arena import Reading
from penstock.payload.slots import Mode
from penstock.points import reached
from penstock.retry import Clock, Deadline
from penstock.transport.slot_owner import SlotOwner
from penstock.transport.slot_protocol import (
    ACK_BYTES,
    REQUEST_BYTES,
    Ack,
    Code,
    Request,
    Status,
    Verdict,
    covered,
    parts_of,
)
from penstock.wire.warnings import Warnings

__all__ = ["Counts", "ReadServing", "ServerLimits"]

_log = logging.getLogger("penstock.transport")
_HASHED_AT_ONCE = 4 << 20  # bytes between two turns of the loop: about 0.3 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """How long, and how many.

    Attributes:
        receive_timeout_s: for the acknowledgement of a payload that was sent.
        idle_timeout_s: between two requests of a connection.
        send_timeout_s: for a payload, besides what its size takes at ``slowest_bytes_per_s``.
        drain_s: how long reads under way may go on when the server stops.
        max_connections: of one listener.
    """

    receive_timeout_s: float = 5.0
    idle_timeout_s: float = 120.0
    send_timeout_s: float = 5.0
    slowest_bytes_per_s: float = 64 * 2**20
    drain_s: float = 5.0
    max_connections: int = 256

    def __post_init__(self) -> None:
        for item in fields(self):
            if not (math.isfinite(getattr(self, item.name)) and getattr(self, item.name) > 0):
                raise BadArgument(f"{item.name} must be finite and above 0, got {getattr(self, item.name)!r}")

    def send_within_s(self, nbytes: int) -> float:
        """Seconds that a payload of ``nbytes`` may take to leave."""
        return self.send_timeout_s + nbytes / self.slowest_bytes_per_s


@dataclass(slots=True)
class Counts:
    """What has happened on a listener; plain numbers, which any thread may read.

    Attributes:
        connections, reading: now; all others: so far.
        sent_bytes: of payloads whose sending completed.
        acknowledged, consumed: reads that ended well, and those of them in consume mode (one that had been superseded
            has freed nothing; the arena counts those).
        damaged, unwanted: verdicts of readers on what arrived.
        unacknowledged: payloads that were begun and never acknowledged: the reader is gone, stuck, or was cut off.
        malformed, broken: connections ended for what they sent, and by the network.
        idle: connections closed because nothing was asked.
        failed: requests answered with an error of our own.
    """

    connections: int = 0
    reading: int = 0
    requests: int = 0
    sent_bytes: int = 0
    acknowledged: int = 0
    consumed: int = 0
    damaged: int = 0
    unwanted: int = 0
    unacknowledged: int = 0
    stale: int = 0
    not_ready: int = 0
    bad_requests: int = 0
    failed: int = 0
    malformed: int = 0
    broken: int = 0
    idle: int = 0


@dataclass(slots=True, eq=False)
class _Visit:
    """A connection that is being served, and whether it waits for a request."""

    connection: Connection
    waiting: bool = field(default=True)


class ReadServing:
    """Serves the connections of one listener, on its loop.

    Args:
        owner: of the slots.
        may_consume: whether readers may consume at all; where rows refer to the blocks they may not.
        clock: monotonic seconds.
    """

    def __init__(
        self, owner: SlotOwner, limits: ServerLimits, *, may_consume: bool, clock: Clock = time.monotonic
    ) -> None:
        self.counts = Counts()
        self._owner = owner
        self._limits = limits
        self._may_consume = may_consume
        self._clock = clock
        self._warnings = Warnings(_log, clock)
        self._visits: set[_Visit] = set()
        self._closing = False
        self._nobody = asyncio.Event()

    async def serve(self, connection: Connection) -> None:
        """Answer the connection's requests until it ends, one at a time. Closing it is the listener's part."""
        visit = _Visit(connection)
        self._visits.add(visit)
        self.counts.connections += 1
        try:
            await self._converse(visit)
        except TransportError as broken:
            self._part(visit, broken)
        finally:
            self.counts.connections -= 1
            self._visits.discard(visit)
            if not self._visits:
                self._nobody.set()

    async def drain(self) -> None:
        """Serve nobody new; end who is idle; let reads under way go on for as long as the limits say."""
        self._closing = True
        for visit in self._visits:
            if visit.waiting:
                visit.connection.abort()
        self._nobody.clear()
        if not self._visits:
            return
        try:
            async with asyncio.timeout(self._limits.drain_s):
                await self._nobody.wait()
        except TimeoutError:
            _log.warning(
                "%d reads were still under way after %g s and are cut", self.counts.reading, self._limits.drain_s
            )
            for visit in self._visits:
                visit.connection.abort()

    # -- one connection -----------------------------------------------------------------------------------------------

    async def _converse(self, visit: _Visit) -> None:
        buffer = bytearray(REQUEST_BYTES)
        while not self._closing:
            visit.waiting = True
            await visit.connection.recv_into(buffer, self._deadline(self._limits.idle_timeout_s))
            visit.waiting = False
            try:
                request = Request.decode(buffer)
            except TransportError as malformed:
                await self._refuse(visit.connection, 0, Code.BAD_REQUEST, malformed.message)
                raise
            self.counts.requests += 1
            await self._answer(visit.connection, request)

    async def _answer(self, connection: Connection, request: Request) -> None:
        why = request.objection()
        if not why and request.mode is Mode.CONSUME and not self._may_consume:
            why = "nothing here is to be consumed"
        if why:
            await self._refuse(connection, request.request_id, Code.BAD_REQUEST, why)
            return
        try:
            reading = await self._owner.begin_read(request.block_id, request.generation, request.mode)
        except DataPlaneError as refusal:
            await self._refuse(connection, request.request_id, _code_of(refusal), refusal.message)
            return
        consumed = False
        self.counts.reading += 1
        try:
            consumed = await self._attempt(connection, request, reading) and request.mode is Mode.CONSUME
        finally:
            self._owner.end_read(reading, consumed=consumed)
            self.counts.reading -= 1
            self.counts.consumed += consumed

    async def _attempt(self, connection: Connection, request: Request, reading: Reading) -> bool:
        """Send what was asked for; return whether the reader has acknowledged it."""
        if request.offset + request.length > len(reading.data):
            why = f"block {request.block_id} has {len(reading.data)} bytes, not {request.length} from {request.offset}"
            await self._refuse(connection, request.request_id, Code.BAD_REQUEST, why)
            return False
        payload = reading.data if request.whole else reading.data[request.offset : request.offset + request.length]
        status = Status(request.request_id, Code.OK, len(payload), await _checksum(covered(request, payload)))
        acknowledged = False
        try:
            reached("host.sending")
            within = self._deadline(self._limits.send_within_s(len(payload)))
            await connection.send(status.encode(), *parts_of(payload), deadline=within)
            self.counts.sent_bytes += len(payload)
            reached("host.sent")
            verdict = await self._verdict(connection, request)
            acknowledged = True
        finally:
            self.counts.unacknowledged += not acknowledged
        return self._heard(connection, request, verdict)

    async def _verdict(self, connection: Connection, request: Request) -> Verdict:
        buffer = bytearray(ACK_BYTES)
        await connection.recv_into(buffer, self._deadline(self._limits.receive_timeout_s))
        ack = Ack.decode(buffer)
        if ack.request_id != request.request_id:
            text = f"malformed: an acknowledgement of request {ack.request_id} after {request.request_id}"
            raise TransportError(text, code="protocol")
        reached("host.acknowledged")
        return ack.verdict

    def _heard(self, connection: Connection, request: Request, verdict: Verdict) -> bool:
        if verdict is Verdict.CHECKED:
            self.counts.acknowledged += 1
            return True
        if verdict is Verdict.DAMAGED:
            self.counts.damaged += 1
            self._warnings.warn("damaged", f"block {request.block_id} arrived damaged, says {connection.peer}")
        else:
            self.counts.unwanted += 1
        return False

    async def _refuse(self, connection: Connection, request_id: int, code: Code, why: str) -> None:
        if code is Code.STALE:
            self.counts.stale += 1
        elif code is Code.NOT_READY:
            self.counts.not_ready += 1
        elif code is Code.BAD_REQUEST:
            self.counts.bad_requests += 1
            self._warnings.warn("bad request", f"{connection.peer}: {why}")
        else:
            self.counts.failed += 1
            self._warnings.warn("failure", f"a read of {connection.peer} failed: {why}")
        status = Status(request_id, code, text=why)
        await connection.send(status.encode(), deadline=self._deadline(self._limits.send_timeout_s))

    def _part(self, visit: _Visit, broken: TransportError) -> None:
        """The connection ends: because its reader left or asked nothing, or by what is worth a warning."""
        if visit.waiting and (broken.code in ("closed", "reset") or self._closing):
            return
        if visit.waiting and broken.code == "timeout":
            self.counts.idle += 1
            return
        kind = "malformed" if broken.code == "protocol" else "broken"
        if kind == "malformed":
            self.counts.malformed += 1
        else:
            self.counts.broken += 1
        self._warnings.warn(kind, f"the connection of {visit.connection.peer} ends: {broken.message}")

    def _deadline(self, timeout_s: float) -> Deadline:
        return Deadline(timeout_s, self._clock)


def _code_of(refusal: DataPlaneError) -> Code:
    if isinstance(refusal, StaleSlotError):
        return Code.STALE
    return Code.NOT_READY if isinstance(refusal, DataPlaneNotReady) else Code.ERROR


async def _checksum(data: memoryview) -> int:
    hasher = xxhash.xxh3_64()
    for at in range(0, len(data), _HASHED_AT_ONCE):
        if at:
            await asyncio.sleep(0)  # others' turn
        hasher.update(data[at : at + _HASHED_AT_ONCE])
    return hasher.intdigest()
