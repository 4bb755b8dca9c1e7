"""The next batches are fetched while the current one trains: in order, a few ahead, in bounded memory.

Invariants: a result belongs to the ticket that its fetch was begun for, whatever timed out, failed or was called off
before; at most ``depth`` batches are ahead of the caller; no fetch begins while the results that wait, with one as
large as the largest so far, exceed ``max_bytes``, unless none waits; after ``close`` there is no thread, and whoever
waited has been told.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable
from penstock.records import KVBatchMeta
from penstock.retry import Deadline
from penstock.transport.prefetch_desk import Desk, PrefetchStatistics, Ticket

__all__ = [
    "PrefetchStatistics",
    "Prefetched",
    "Prefetcher",
    "Resolved",
    "Table",
    "Ticket",
    "resolved_bytes",
    "row_by_row",
]

log = logging.getLogger(__name__)

M = TypeVar("M")
T = TypeVar("T")

_EXIT_S = 2.0  # at the interpreter's exit, for all of them together
_GRACE_S = 1.0  # a fetch keeps to its timeout; so much more is waited for it


@dataclass(frozen=True, slots=True)
class Prefetched(Generic[M, T]):
    """One batch as ``batches`` hands it out: what was asked for, and its value or why there is none."""

    asked: M
    value: T | None
    error: BaseException | None

    def require(self) -> T:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value] # a value may be None; an error says that there is none


@dataclass(frozen=True, slots=True)
class Resolved(Generic[T]):
    """A batch, row by row: ``columns`` has the rows of ``meta``, in order; ``missing`` are the keys that were not."""

    columns: T
    meta: KVBatchMeta
    missing: tuple[str, ...]


class Table(Protocol):
    """What ``get_data`` returns, as far as it matters here: a ``TensorDict``."""

    def bytes(self) -> int:
        """How much memory its columns take."""


def resolved_bytes(resolved: Resolved[Table]) -> int:
    """``nbytes_of`` for a prefetcher of ``row_by_row``."""
    return resolved.columns.bytes()


def row_by_row(get_data: Callable[..., tuple[T, KVBatchMeta]]) -> Callable[[KVBatchMeta, float], Resolved[T]]:
    """Return a prefetcher's ``fetch`` over a client's ``get_data``: a row that cannot be read costs that row."""

    def fetch(meta: KVBatchMeta, timeout_s: float) -> Resolved[T]:
        columns, read = get_data(meta, on_failed="drop", timeout_s=timeout_s)
        there = set(read.sample_ids)
        return Resolved(columns, read, tuple(key for key in meta.sample_ids if key not in there))

    return fetch


class Prefetcher(Generic[M, T]):
    """Fetches what is submitted, one batch after the other, in a thread of its own.

    Args:
        fetch: ``fetch(asked, timeout_s)`` gets one batch, and keeps to its time; ``row_by_row(client.get_data)``, or
            a function that claims and reads. What it raises is raised by ``result``.
        depth: batches that may be ahead.
        max_bytes: of results that wait to be taken, and of the one that is being fetched, as far as can be foreseen.
        nbytes_of: the size of a result; ``resolved_bytes`` for batches of a client.
        timeout_s: of one fetch.
    """

    def __init__(
        self,
        fetch: Callable[[M, float], T],
        *,
        depth: int = 2,
        max_bytes: int = 1 << 30,
        nbytes_of: Callable[[T], int] = lambda _: 0,
        timeout_s: float = 30.0,
    ) -> None:
        if depth < 1 or max_bytes < 1:
            raise BadArgument(f"depth and max_bytes must be 1 or more, got {depth!r} and {max_bytes!r}")
        self.depth, self.max_bytes = depth, max_bytes
        self.timeout_s = Deadline(timeout_s).timeout_s
        self._pid = os.getpid()
        self._desk: Desk[M, T] = Desk(max_bytes)
        self._work = (fetch, nbytes_of)
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._desk.close).atexit = False
        _live.add(self)

    def submit(self, asked: M) -> Ticket:
        """Have ``asked`` fetched, after all that was submitted before; does not wait.

        Raises:
            BadArgument: ``depth`` batches are ahead already: take one first, or cancel one.
            DataPlaneUnavailable: the prefetcher is closed, or this is a forked child.
        """
        self._require_own_process()
        ticket = self._desk.submit(asked, self.depth)
        if self._thread is None:
            self._thread = self._start()
        return ticket

    def result(self, ticket: Ticket, timeout_s: float | None = None) -> T:
        """Return what ``ticket``'s fetch returned, or raise what it raised; wait for it if need be.

        Args:
            ticket: a batch that has not been taken or cancelled.
            timeout_s: how long to wait; None = as long as its fetch may take, and one before it that was cancelled.

        Raises:
            DataPlaneTimeout: it is not there yet. The ticket stays good.
            BadArgument: there is no such batch: it was taken or cancelled.
            DataPlaneUnavailable: the prefetcher is closed, or this is a forked child.
        """
        self._require_own_process()
        job = self._desk.take(ticket, self._patience(timeout_s))
        return Prefetched(job.asked, job.value, job.error).require()

    def cancel(self, ticket: Ticket) -> bool:
        """Forget a batch; False if it was taken or cancelled before. What its fetch still brings is thrown away."""
        self._require_own_process()
        return self._desk.cancel(ticket)

    def batches(self, asked: Iterable[M]) -> Iterator[Prefetched[M, T]]:
        """Go through ``asked`` in order, ``depth`` batches ahead. A batch that fails does not end the others.

        ``asked`` is advanced in the calling thread, before a batch is handed out: what has to wait for new rows
        belongs into ``fetch``.
        """
        coming = iter(asked)
        ahead: deque[tuple[M, Ticket]] = deque()
        try:
            self._fill(coming, ahead)
            while ahead:
                item, ticket = ahead[0]
                outcome = self._outcome(item, ticket)
                ahead.popleft()
                self._fill(coming, ahead)
                yield outcome
        finally:
            for _, ticket in ahead:
                self._desk.cancel(ticket)

    def close(self, timeout_s: float | None = None) -> None:
        """Call everything off and join the thread: a fetch under way ends by its timeout. Idempotent."""
        self._desk.close()
        if os.getpid() != self._pid:
            return
        if self._thread is None or threading.current_thread() is self._thread:
            return
        self._thread.join(self.timeout_s + _GRACE_S if timeout_s is None else timeout_s)
        if self._thread.is_alive():
            log.warning("a fetch under way did not end within its %g s; its thread ends with it", self.timeout_s)

    def statistics(self) -> PrefetchStatistics:
        """Return the counts at this moment."""
        return self._desk.statistics()

    def _fill(self, coming: Iterator[M], ahead: deque[tuple[M, Ticket]]) -> None:
        while len(ahead) < self.depth:
            try:
                item = next(coming)
            except StopIteration:
                return
            ahead.append((item, self.submit(item)))

    def _outcome(self, item: M, ticket: Ticket) -> Prefetched[M, T]:
        try:
            job = self._desk.take(ticket, self._patience())
        except DataPlaneTimeout as late:
            self._desk.cancel(ticket)
            return Prefetched(item, None, late)
        return Prefetched(item, job.value, job.error)

    def _patience(self, timeout_s: float | None = None) -> Deadline:
        return Deadline(2 * self.timeout_s + _GRACE_S if timeout_s is None else timeout_s)

    def _start(self) -> threading.Thread:
        thread = threading.Thread(
            target=_run, args=(self._desk, *self._work, self.timeout_s), name="penstock-prefetch", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as none_left:
            raise DataPlaneUnavailable(f"no prefetcher can be had in this process: {none_left}") from none_left
        return thread

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            raise DataPlaneUnavailable("a prefetcher does not survive a fork: make a new one in the child process")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Prefetcher(depth {self.depth}, {self.statistics()})"


def _run(desk: Desk[M, T], fetch: Callable[[M, float], T], nbytes_of: Callable[[T], int], timeout_s: float) -> None:
    while (job := desk.next_job()) is not None:
        try:
            value = fetch(job.asked, timeout_s)
            nbytes = nbytes_of(value)
        except BaseException as error:  # noqa: BLE001
            # top frame of the thread: whoever takes the batch gets it, a cancellation or an exit too; the others go on
            desk.deliver(job, None, 0, error)
        else:
            desk.deliver(job, value, nbytes, None)
            del value
        del job


_live: weakref.WeakSet[Prefetcher[Any, Any]] = weakref.WeakSet()


def _exit_all() -> None:
    """The interpreter ends: no fetch is to run into what is left of it."""
    until = Deadline(_EXIT_S)
    for prefetcher in list(_live):
        prefetcher.close(until.remaining())


atexit.register(_exit_all)
