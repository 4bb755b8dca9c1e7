"""Blocks from other hosts: the client, for tasks of a loop and, over a thread of its own, for everybody else.

Invariants: every block that was asked for has an outcome, its bytes or an error; what is handed out has passed its
checks; a fetch ends by its deadline; ``close`` leaves no thread and no connection behind.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from penstock.config import Integrity
from penstock.endpoint.connection import Wire
from penstock.errors import BadArgument, DataPlaneError, DataPlaneUnavailable
from penstock.retry import Deadline, RetryStatistics
from penstock.transport.config import TransportConfig
from penstock.transport.layers import Layers
from penstock.transport.loop_thread import LoopThread, Waiting
from penstock.transport.pool import Pool, PoolStatistics
from penstock.transport.ports import Ports
from penstock.transport.reading import SlotReader
from penstock.transport.timing import Timing
from penstock.transport.wanted import Fetched, Wanted

__all__ = ["AsyncPayloadClient", "PayloadClient", "TransportStatistics"]


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """Counts since the client was made.

    Attributes:
        blocks, bytes: that have arrived and passed their checks.
        reading, bytes_reading: under way now.
        rounds, calls, reads: the retries of the layers 3, 2 and 1. ``reads.attempts`` are read attempts; what is
            quarantined is named by port in ``reads``, by host and life in ``calls``.
        pool: the connections.
    """

    blocks: int
    bytes: int
    reading: int
    bytes_reading: int
    rounds: RetryStatistics
    calls: RetryStatistics
    reads: RetryStatistics
    pool: PoolStatistics


class AsyncPayloadClient:
    """For the tasks of one event loop.

    Args:
        wires: by name ("tcp", "ucx", "memory"); each is made when first used, on the loop.
        config: limits.
        integrity: what is verified before a block is handed out.
        timing: clock, sleep and random source; deadlines are on its clock.
    """

    def __init__(
        self,
        wires: Mapping[str, Callable[[], Wire]],
        config: TransportConfig | None = None,
        integrity: Integrity = "full",
        *,
        timing: Timing | None = None,
    ) -> None:
        if not wires:
            raise BadArgument("a payload client needs at least one wire")
        self.config = config or TransportConfig()
        timing = timing or Timing()
        self._checkers = ThreadPoolExecutor(1, thread_name_prefix="penstock-verify")  # its thread starts when needed
        self._pool = Pool(
            wires,
            max_age_s=self.config.pool_endpoint_max_age_s,
            max_idle=self.config.pool_max_idle,
            clock=timing.clock,
        )
        reader = SlotReader(integrity, self.config.attempt_timeout_s, self._checkers, self.config.check_in_thread_bytes)
        self._closed = False
        self._running: set[asyncio.Future[list[Fetched | DataPlaneError]]] = set()
        self._layers = Layers(self._pool, Ports(wires, self.config.prefer), reader, self.config, timing)

    async def fetch(self, wanted: Sequence[Wanted], deadline: Deadline) -> list[Fetched | DataPlaneError]:
        """Return, for each of ``wanted`` in order, the block or the error that says why it did not come.

        Errors: ``StaleSlotError`` (locate it again), ``CorruptPayload`` (damaged at every place),
        ``TransportError`` (no host could be got at; later it may), ``DataPlaneTimeout`` (the deadline came first),
        ``DataPlaneReadError`` (it will not do). Their ``attempts`` are read attempts.

        Raises:
            BadArgument: a buffer is not as long as its block.
            DataPlaneUnavailable: the client is closed.
        """
        if self._closed:
            raise DataPlaneUnavailable("the payload client is closed")
        work = asyncio.ensure_future(self._layers.fetch(wanted, deadline))
        self._running.add(work)
        try:
            return await work
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise DataPlaneUnavailable("the payload client was closed during the fetch") from None
        finally:
            self._running.discard(work)

    async def close(self) -> None:
        """End every fetch under way, which raise, and part with every connection. Idempotent."""
        self._closed = True
        for work in self._running:
            work.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._pool.close()
        self._checkers.shutdown(wait=True, cancel_futures=True)  # a check takes moments
        self._layers.let_go()

    def statistics(self) -> TransportStatistics:
        """Return the counts at this moment. From any thread."""
        layers = self._layers
        return TransportStatistics(
            blocks=layers.blocks,
            bytes=layers.bytes,
            reading=layers.gates.reads,
            bytes_reading=layers.gates.bytes,
            rounds=layers.rounds.statistics(),
            calls=layers.calls.statistics(),
            reads=layers.rotation.statistics(),
            pool=self._pool.statistics(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncPayloadClient({self._layers!r}, {self._pool!r})"


class PayloadClient:
    """The same for callers without a loop, from any thread. Arguments as for ``AsyncPayloadClient``."""

    def __init__(
        self,
        wires: Mapping[str, Callable[[], Wire]],
        config: TransportConfig | None = None,
        integrity: Integrity = "full",
        *,
        timing: Timing | None = None,
    ) -> None:
        self._client = AsyncPayloadClient(wires, config, integrity, timing=timing)
        self.config = self._client.config
        self._thread = LoopThread("penstock-transport", self._client.close)
        weakref.finalize(self, self._thread.ask_to_stop).atexit = False  # at exit there is an order to keep

    def fetch(
        self, wanted: Sequence[Wanted], deadline: Deadline, waiting: Waiting = nullcontext
    ) -> list[Fetched | DataPlaneError]:
        """See ``AsyncPayloadClient.fetch``. ``waiting``: a context that the caller waits in.

        Raises:
            BadArgument: a buffer is not as long as its block.
            DataPlaneUnavailable: the client is closed, or this is a forked child.
        """
        wanted = list(wanted)
        return self._thread.run(lambda: self._client.fetch(wanted, deadline), deadline, waiting) if wanted else []

    def close(self, timeout_s: float = math.inf) -> None:
        """End every read under way and every connection, and join the thread. Idempotent.

        Waits no longer than ``timeout_s``, nor than ``config.close_timeout_s``: what has not ended by then ends alone.
        """
        self._thread.stop(min(timeout_s, self.config.close_timeout_s))

    def statistics(self) -> TransportStatistics:
        """Return the counts at this moment."""
        return self._client.statistics()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PayloadClient({self._client!r}, {self._thread!r})"


def _is_cancelled() -> bool:
    """Whether it is the calling task that was cancelled, and not only what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
