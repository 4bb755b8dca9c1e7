"""The desk between those who ask for batches and the thread that fetches them.

Invariants: a job is begun once, in order of submission; it is its ticket's for ever; a job that was taken or cancelled
is nobody's, and counts no bytes; the desk knows neither callers nor thread, so that both can end.
"""

from __future__ import annotations

import enum
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable
from penstock.retry import Deadline

__all__ = ["Desk", "Job", "PrefetchStatistics", "State", "Ticket"]

M = TypeVar("M")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Names one submitted batch; good for one ``result``."""

    number: int


@dataclass(frozen=True, slots=True)
class PrefetchStatistics:
    """Counts since the prefetcher was made.

    Attributes:
        submitted, fetched, failed, cancelled: batches.
        late: times that a result was not there in time.
        ahead: batches submitted and not taken.
        waiting_bytes: of the results that are there and not taken.
    """

    submitted: int = 0
    fetched: int = 0
    failed: int = 0
    cancelled: int = 0
    late: int = 0
    ahead: int = 0
    waiting_bytes: int = 0


class State(enum.Enum):
    QUEUED = "queued"
    FETCHING = "fetching"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Job(Generic[M, T]):
    """One batch: what was asked for, and what came of it."""

    asked: M
    state: State = State.QUEUED
    value: T | None = None
    error: BaseException | None = None
    nbytes: int = 0


class Desk(Generic[M, T]):
    """Thread-safe, and safe in a forked child, where it does nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.closed = False
        self._max_bytes = max_bytes
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._jobs: OrderedDict[int, Job[M, T]] = OrderedDict()  # submitted; neither taken nor cancelled
        self._largest = 0
        self._submitted = self._fetched = self._failed = self._cancelled = self._late = 0

    # -- for callers --------------------------------------------------------------------------------------------------

    def submit(self, asked: M, depth: int) -> Ticket:
        with self._changed:
            self._require_open()
            if len(self._jobs) >= depth:
                raise BadArgument(f"{len(self._jobs)} batches are ahead, and depth is {depth}: take one first")
            self._submitted += 1
            self._jobs[self._submitted] = Job(asked)
            self._changed.notify_all()
            return Ticket(self._submitted)

    def take(self, ticket: Ticket, patience: Deadline) -> Job[M, T]:
        """Wait for the batch and let go of it."""
        with self._changed:
            job = self._jobs.get(ticket.number)
            self._changed.wait_for(
                lambda: self.closed or job is None or job.state is State.DONE or ticket.number not in self._jobs,
                patience.remaining(),
            )
            self._require_open()
            if job is None or ticket.number not in self._jobs:
                raise BadArgument(f"there is no batch {ticket.number}: it was taken or cancelled")
            if job.state is not State.DONE:
                self._late += 1
                words = f"batch {ticket.number} is still {job.state.value} after {patience.elapsed():.3f} s"
                raise DataPlaneTimeout(words, missing=[f"batch {ticket.number}"], elapsed_s=patience.elapsed())
            del self._jobs[ticket.number]
            self._changed.notify_all()
            return job

    def cancel(self, ticket: Ticket) -> bool:
        with self._changed:
            job = self._jobs.pop(ticket.number, None)
            self._cancelled += job is not None
            self._changed.notify_all()
            return job is not None

    def close(self) -> None:
        if os.getpid() != self._pid:
            return  # the lock may be held by a thread that is not here
        with self._changed:
            self.closed = True
            self._cancelled += len(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()

    def statistics(self) -> PrefetchStatistics:
        with self._changed:
            return PrefetchStatistics(
                submitted=self._submitted,
                fetched=self._fetched,
                failed=self._failed,
                cancelled=self._cancelled,
                late=self._late,
                ahead=len(self._jobs),
                waiting_bytes=self._waiting_bytes(),
            )

    # -- for the thread that fetches ----------------------------------------------------------------------------------

    def next_job(self) -> Job[M, T] | None:
        """Wait until a batch may be fetched; None: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._startable() is not None)
            job = None if self.closed else self._startable()
            if job is not None:
                job.state = State.FETCHING
            return job

    def deliver(self, job: Job[M, T], value: T | None, nbytes: int, error: BaseException | None) -> None:
        """What has become of ``job``. Nobody will see it if that was cancelled meanwhile."""
        with self._changed:
            job.value, job.nbytes, job.error = value, nbytes, error
            job.state = State.DONE
            self._largest = max(self._largest, nbytes)
            self._fetched += error is None
            self._failed += error is not None
            self._changed.notify_all()

    def _startable(self) -> Job[M, T] | None:
        job = next((job for job in self._jobs.values() if job.state is State.QUEUED), None)
        waiting = self._waiting_bytes()
        return None if waiting and waiting + self._largest > self._max_bytes else job

    def _waiting_bytes(self) -> int:
        return sum(job.nbytes for job in self._jobs.values())

    def _require_open(self) -> None:
        if self.closed:
            raise DataPlaneUnavailable("the prefetcher is closed")
