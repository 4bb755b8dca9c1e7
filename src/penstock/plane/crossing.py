"""From an event loop to a blocking client and back: which lane a call takes, and what its cancellation and the end do.

Invariants: a call's deadline runs from the moment it is made, the wait for a thread included; calls that may wait long
(claims, puts) have threads of their own, so that none of them can hold up the calls that end their wait; a call whose
awaiter leaves is withdrawn, or recalled, and what it brings is given back; the end wakes every claim at once, ends
every thread, and is reached whether or not anybody waits for it. No client is held: one that is dropped is collected.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from penstock.errors import DataPlaneUnavailable
from penstock.plane import checks
from penstock.plane.lanes import Job, Lane, LaneStatistics, Task, Work
from penstock.retry import Deadline

__all__ = ["MAX_CALLS", "MAX_CLAIMS", "MAX_PUTS", "AsyncStatistics", "Crossing"]

log = logging.getLogger(__name__)

# Together they stay below the calls that one local client may have under way (``courier.MAX_ERRANDS``).
MAX_CLAIMS = 128
MAX_PUTS = 64
MAX_CALLS = 32
MAX_AFTERCARE = 4
CLOSE_S = 30.0
LEAST_S = 0.1  # a call with no time at all still gets a thread that has just answered the one before

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AsyncStatistics:
    """Counts since the client was made, and its lanes now.

    Attributes:
        calls: calls made, refused ones not included.
        left: calls whose awaiter was cancelled before he had their outcome.
        given_back: results of those that came all the same and were given back: leases of claims.
    """

    calls: int
    left: int
    given_back: int
    lanes: tuple[LaneStatistics, ...]


class Crossing:
    """The lanes of one client.

    Args:
        max_claims: threads for claims that wait.
        max_puts: threads for puts with columns, which wait for room when the plane is full.
        max_calls: threads for everything else.
    """

    def __init__(self, max_claims: int, max_puts: int, max_calls: int) -> None:
        self.claims = Lane("claims", checks.count(max_claims, "max_claims", least=1), "max_claims")
        self.puts = Lane("puts", checks.count(max_puts, "max_puts", least=1), "max_puts")
        self.calls = Lane("calls", checks.count(max_calls, "max_calls", least=1), "max_calls")
        self._aftercare = Lane("aftercare", MAX_AFTERCARE)
        self._lanes = (self.claims, self.puts, self.calls, self._aftercare)
        self._returnable: set[Job[Any]] = set()  # under way, and nothing has happened if their result is given back
        self._lock = threading.Lock()
        self._closing = False
        self._closed: concurrent.futures.Future[None] | None = None
        self._pid = os.getpid()
        self._made = self._left = self._given_back = 0

    async def run(
        self,
        lane: Lane,
        method: str,
        call: Callable[[float | None], T],
        timeout_s: float | None,
        default_s: float,
        give_back: Callable[[T], None] | None = None,
    ) -> T:
        """Make ``call`` in a thread of ``lane`` and return its result.

        Args:
            lane: one of this crossing's.
            method: for errors.
            call: takes the ``timeout_s`` that is left for it.
            timeout_s: the caller's; handed on as it is when a thread is free.
            default_s: what None means.
            give_back: undoes a result that nobody received; None = there is nothing to undo.

        Raises:
            DataPlaneUnavailable: the client is closed, or was while its claim waited.
            DataPlaneTimeout: no thread was free in time.
        """
        deadline = Deadline(checks.seconds(timeout_s, "timeout_s", default_s))
        begin_by = Deadline(max(deadline.timeout_s, LEAST_S))

        def body(queued: bool) -> T:
            if queued and begin_by.expired():
                raise lane.full(method, deadline)
            return call(deadline.remaining() if queued else timeout_s)

        job = Job(method, body, self._undoing(give_back))
        self._begin(lane, job, returnable=give_back is not None)
        expiry = job.loop.call_later(begin_by.remaining(), _expire, lane, job, deadline) if job.queued else None
        try:
            return await job.future
        except BaseException:
            self._leave(lane, job)
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            self._returnable.discard(job)
            del job  # an error that it holds leads back to this frame

    async def close(self, shut: Callable[[], None], timeout_s: float | None) -> None:
        """End everything: claims at once, ``shut`` the client, then the threads. Idempotent.

        It goes on in a thread of its own when its awaiter is cancelled; the interpreter waits for that thread.
        """
        deadline = Deadline(checks.seconds(timeout_s, "timeout_s", CLOSE_S))
        with self._lock:
            if self._closed is None:
                self._closing = True
                self._fail_all()  # before the client ends them: it cannot say that nothing has come of them
                self._closed = self._start_closing(shut, deadline)
        await asyncio.wrap_future(self._closed)

    def drop(self) -> None:
        """Nobody has the client any more: let the threads end. Fit for finalizers."""
        for lane in self._lanes:
            lane.end()

    @property
    def closing(self) -> bool:
        """It was closed, or is being."""
        return self._closing

    def statistics(self) -> AsyncStatistics:
        lanes = tuple(lane.statistics() for lane in self._lanes)
        return AsyncStatistics(self._made, self._left, self._given_back, lanes)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _begin(self, lane: Lane, job: Job[T], *, returnable: bool) -> None:
        if os.getpid() != self._pid:
            raise DataPlaneUnavailable("a client does not survive a fork: make a new one in the child process")
        if returnable:
            self._returnable.add(job)
        try:
            if self._closing or not lane.submit(job):
                raise DataPlaneUnavailable(f"{job.method}: the client is closed")
        except DataPlaneUnavailable:
            self._returnable.discard(job)
            raise
        with self._lock:
            self._made += 1

    def _leave(self, lane: Lane, job: Job[T]) -> None:
        """The awaiter goes without a result: nothing shall come of the call, as far as that is possible."""
        if job.failed:
            return
        with self._lock:
            self._left += 1
        if lane.withdraw(job):
            return
        follow = job.dispose if job.leave() else job.recall.ask
        try:
            self._aftercare.submit(Task(follow))  # not here: a recall may take a lock, giving back asks the plane
        except DataPlaneUnavailable as no_thread:
            log.warning("%s: left, and not recalled: %s", job.method, no_thread)

    def _undoing(self, give_back: Callable[[T], None] | None) -> Callable[[T], None]:
        def undo(result: T) -> None:
            if give_back is None or self._closing:  # the end of the session gives back what it had
                return
            with self._lock:
                self._given_back += 1
            give_back(result)

        return undo

    # -- the end ------------------------------------------------------------------------------------------------------

    def _start_closing(self, shut: Callable[[], None], deadline: Deadline) -> concurrent.futures.Future[None]:
        closed: concurrent.futures.Future[None] = concurrent.futures.Future()
        closed.set_running_or_notify_cancel()  # whoever is cancelled while he awaits it does not cancel it
        thread = threading.Thread(target=self._shut, args=(shut, deadline, closed), name="penstock-aio-close")
        try:
            thread.start()
        except RuntimeError as none_left:
            raise DataPlaneUnavailable(f"close: nothing is closed yet, try again: {none_left}") from none_left
        return closed

    def _fail_all(self) -> None:
        """End the calls that no thread has begun, and those that have not happened once the session has ended."""
        self.drop()
        unbegun: list[Work] = [work for lane in self._lanes for work in lane.withdraw_all()]
        for work in {*unbegun, *self._returnable}:
            if isinstance(work, Job):
                work.fail(DataPlaneUnavailable(f"{work.method}: the client was closed"))

    def _shut(self, shut: Callable[[], None], deadline: Deadline, closed: concurrent.futures.Future[None]) -> None:
        try:
            try:
                shut()
            finally:
                self._join(deadline)
        except BaseException as error:  # noqa: BLE001  # top frame of the thread: who awaits the close raises it
            closed.set_exception(error)
        else:
            closed.set_result(None)

    def _join(self, deadline: Deadline) -> None:
        alive = [name for lane in self._lanes for name in lane.join(deadline)]
        if alive:
            log.warning(
                "%.1f s after the client was closed these threads are still in a call: %s", deadline.elapsed(), alive
            )


def _expire(lane: Lane, job: Job[T], deadline: Deadline) -> None:
    """On the loop, at the deadline of a call that waits for a thread."""
    if lane.withdraw(job) and not job.future.done():
        job.future.set_exception(lane.full(job.method, deadline))
