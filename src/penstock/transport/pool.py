"""Connections that are kept for the next read, by port.

Invariants: a connection comes back only when its last exchange is complete, else the next read would take the rest of
this one for its own; none is given out that is broken, older than ``max_age_s``, or was opened before its port failed;
closing one delays nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from penstock.endpoint.connection import Address, Connection, Wire
from penstock.errors import DataPlaneUnavailable, TransportError
from penstock.retry import Clock, Deadline

__all__ = ["Lease", "Pool", "PoolStatistics", "Port"]


class Port(NamedTuple):
    """One listener of one life of a host, over one wire. A restarted host's ports are others, at the same address."""

    wire: str
    address: Address
    life: int = 0

    def __str__(self) -> str:
        return f"{self.wire}://{self.address}#{self.life}"


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Counts since the pool was made.

    Attributes:
        hits: reads over a connection that was there.
        opened: connections made.
        replaced: connections given up at a checkout, of this port or another, for their age.
        dropped: connections not taken back or given up, since they or their port had failed.
        idle, lent: connections now.
    """

    hits: int = 0
    opened: int = 0
    replaced: int = 0
    dropped: int = 0
    idle: int = 0
    lent: int = 0


class Lease:
    """A connection lent for one exchange."""

    __slots__ = ("complete", "connection", "opened_at")

    def __init__(self, connection: Connection, opened_at: float) -> None:
        self.connection = connection
        self.opened_at = opened_at
        self.complete = False  # set by the borrower: nothing of this exchange is left on it


class Pool:
    """For the tasks of one event loop.

    Args:
        wires: by name, made when first used, on the loop.
        max_age_s: an older connection is replaced; less than the servers' idle limit.
        max_idle: kept for each port.
    """

    def __init__(
        self, wires: Mapping[str, Callable[[], Wire]], *, max_age_s: float, max_idle: int, clock: Clock
    ) -> None:
        self._factories = dict(wires)
        self._wires: dict[str, Wire] = {}
        self._max_age_s, self._max_idle = max_age_s, max_idle
        self._clock = clock
        self._idle: dict[Port, deque[Lease]] = {}
        self._lent: set[Lease] = set()
        self._parting: set[asyncio.Task[None]] = set()
        self._failed_at: dict[Port, float] = {}  # no longer ago than the oldest connection
        self._closed = False
        self._hits = self._opened = self._replaced = self._dropped = 0

    def offers(self, wire: str) -> bool:
        """Whether there is such a wire here."""
        return wire in self._factories

    def connection(self, port: Port, deadline: Deadline) -> _Loan:
        """As a context: lends a connection, which comes back if the borrower marks its exchange as complete.

        Raises, on entering:
            TransportError: none can be made.
            DataPlaneUnavailable: the pool is closed.
        """
        return _Loan(self, port, deadline)

    async def borrow(self, port: Port, deadline: Deadline) -> Lease:
        """Return a connection, idle or new; who borrows gives it back once."""
        lease = self._take(port) or await self._open(port, deadline)
        self._lent.add(lease)
        return lease

    def give_back(self, port: Port, lease: Lease, *, failed: bool) -> None:
        """Take ``lease`` back, or break it off. ``failed``: by the connection's fault."""
        self._lent.discard(lease)
        if failed:
            self._distrust(port)
        if not lease.complete or lease.connection.broken or self._closed or self._is_distrusted(port, lease):
            self._dropped += 1
            lease.connection.abort()
            return
        idle = self._idle.setdefault(port, deque())
        idle.append(lease)
        if len(idle) > self._max_idle:
            self._part(idle.popleft())

    async def close(self) -> None:
        """Part with every connection; those that are lent are broken off. Idempotent."""
        self._closed = True
        for lease in self._lent:
            lease.connection.abort()
        for port in list(self._idle):
            for lease in self._idle.pop(port):
                self._part(lease)
        while self._parting:
            await asyncio.gather(*self._parting, return_exceptions=True)
        self._wires.clear()  # on the loop that they belong to

    def statistics(self) -> PoolStatistics:
        """Return the counts at this moment. From any thread."""
        idle = sum(map(len, list(self._idle.values())))  # a copy: the loop goes on meanwhile
        return PoolStatistics(self._hits, self._opened, self._replaced, self._dropped, idle, len(self._lent))

    def _take(self, port: Port) -> Lease | None:
        """The idle connection that was used last, of those that are still fit."""
        if self._closed:
            raise DataPlaneUnavailable("the payload client is closed")
        idle = self._idle.get(port) or self._make_room(port)
        while idle:
            lease = idle.pop()
            if not self._gave_up(lease):
                self._hits += 1
                lease.complete = False
                return lease
        return None

    def _gave_up(self, lease: Lease) -> bool:
        """Whether an idle connection had to be parted with: it is broken, or too old."""
        if lease.connection.broken:
            self._dropped += 1
            return True
        if self._clock() - lease.opened_at >= self._max_age_s:
            self._replaced += 1
            self._part(lease)
            return True
        return False

    async def _open(self, port: Port, deadline: Deadline) -> Lease:
        opened_at = self._clock()  # its age counts from the first attempt, as the server may count it
        try:
            connection = await self._wire(port.wire).connect(port.address, deadline)
        except TransportError:
            self._distrust(port)
            raise
        self._opened += 1
        return Lease(connection, opened_at)

    def _wire(self, name: str) -> Wire:
        if name not in self._wires:
            self._wires[name] = self._factories[name]()
        return self._wires[name]

    def _distrust(self, port: Port) -> None:
        """A failure of one connection says something about those opened before it: to the same process, perhaps."""
        now = self._clock()
        self._failed_at = {p: at for p, at in self._failed_at.items() if now - at < self._max_age_s} | {port: now}
        for lease in self._idle.pop(port, ()):
            self._dropped += 1
            lease.connection.abort()

    def _is_distrusted(self, port: Port, lease: Lease) -> bool:
        return lease.opened_at < self._failed_at.get(port, lease.opened_at)

    def _make_room(self, port: Port) -> deque[Lease]:
        """Return a place for the port's connections.

        Before another is opened, those that perhaps no checkout would come across any more are parted with, of all
        ports: a restarted host has other ports, and nobody asks for the former ones.
        """
        for other in list(self._idle):
            if other.address == port.address and other.wire == port.wire and other.life < port.life:
                self._distrust(other)
            elif kept := [lease for lease in self._idle.pop(other) if not self._gave_up(lease)]:
                self._idle[other] = deque(kept)
        return self._idle.setdefault(port, deque())

    def _part(self, lease: Lease) -> None:
        """Close it in a task of its own: a peer that does not answer delays nobody."""
        task = asyncio.get_running_loop().create_task(lease.connection.close())
        self._parting.add(task)
        task.add_done_callback(self._parting.discard)

    def __repr__(self) -> str:
        return f"Pool({self.statistics()})"


class _Loan:
    """One borrowing."""

    __slots__ = ("_deadline", "_lease", "_pool", "_port")

    def __init__(self, pool: Pool, port: Port, deadline: Deadline) -> None:
        self._pool, self._port, self._deadline = pool, port, deadline

    async def __aenter__(self) -> Lease:
        self._lease = await self._pool.borrow(self._port, self._deadline)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.give_back(self._port, self._lease, failed=isinstance(error, TransportError))
