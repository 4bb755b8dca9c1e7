"""Blocking calls made for an event loop: lanes of threads, and jobs that are received or taken back.

Invariants: nothing here blocks the event loop, beyond a lock that is held for some instructions; a job is run once or
withdrawn, never both; the result of a job whose awaiter has left is handed to ``unclaimed``, exactly once, whichever
of the two was faster; a lane has at most ``limit`` threads, makes them when they are needed and ends them all.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane.recall import Recall
from penstock.retry import Deadline

__all__ = ["Job", "Lane", "LaneStatistics", "Task", "Work"]

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """A lane at this moment; ``busy`` of its ``threads`` are in a call, ``waiting`` calls have none yet."""

    name: str
    limit: int
    threads: int
    busy: int
    waiting: int


class Work(Protocol):
    """What a lane runs. ``queued``: it had to wait for a thread; the lane sets it."""

    queued: bool

    def run(self) -> None:
        """Called once, in a thread of the lane; raises nothing."""


class Task:
    """Work that nobody waits for."""

    def __init__(self, body: Callable[[], object]) -> None:
        self.queued = False
        self._body = body

    def run(self) -> None:
        try:
            self._body()
        except Exception:  # top frame: nobody waits for it; the thread goes on with the next
            log.exception("what follows a call that was left failed")


class Lane:
    """Threads for one kind of call.

    Args:
        name: of its threads, "penstock-aio-<name>-<n>", and in errors.
        limit: the most threads.
        option: the argument that raises the limit, for errors.
    """

    def __init__(self, name: str, limit: int, option: str = "") -> None:
        self.name = name
        self.limit = limit
        self._option = option
        self._changed = threading.Condition()  # reentrant: a finalizer may end the lane in the middle of anything
        self._waiting: dict[Work, None] = {}  # in order
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._ended = False

    def submit(self, work: Work) -> bool:
        """Have ``work`` run by a thread; returns False if the lane has ended.

        Raises:
            DataPlaneUnavailable: the lane has no thread, and this process has none left.
        """
        with self._changed:
            if self._ended:
                return False
            self._waiting[work] = None
            work.queued = len(self._waiting) > self._idle and not self._grow()
            if not self._threads:
                del self._waiting[work]
                raise DataPlaneUnavailable(f"this process has no thread left for the {self.name} of its client")
            self._changed.notify()
            return True

    def withdraw(self, work: Work) -> bool:
        """Take ``work`` back if no thread has begun it; returns whether that is so."""
        with self._changed:
            if work not in self._waiting:
                return False
            del self._waiting[work]
            return True

    def end(self) -> None:
        """Take no more work: the threads end after what they have. Fit for finalizers."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def withdraw_all(self) -> list[Work]:
        """Take back, and return, what no thread has begun."""
        with self._changed:
            unbegun = list(self._waiting)
            self._waiting.clear()
            return unbegun

    def join(self, deadline: Deadline) -> list[str]:
        """Wait for the threads to end; returns the names of those that have not."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(deadline.remaining())
        return [thread.name for thread in self._threads if thread.is_alive()]

    def full(self, method: str, deadline: Deadline) -> DataPlaneTimeout:
        """The error of a call that got no thread in time."""
        more = f"give the client a larger {self._option}, or make another" if self._option else "make another client"
        return DataPlaneTimeout(
            f"{method}: not begun within {deadline.timeout_s:g} s, and nothing was sent: all {self.limit} threads that "
            f"this client has for {self.name} are in calls; {more}",
            missing=[f"a free thread for {self.name}"],
            elapsed_s=deadline.elapsed(),
        )

    def statistics(self) -> LaneStatistics:
        with self._changed:
            threads = len(self._threads)
            return LaneStatistics(self.name, self.limit, threads, threads - self._idle, len(self._waiting))

    def _grow(self) -> bool:
        if len(self._threads) == self.limit:
            return False
        name = f"penstock-aio-{self.name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the process may have no more
            return False
        self._threads.append(thread)
        return True

    def _work(self) -> None:
        while True:
            work = self._next()
            if work is None:
                return
            work.run()
            del work  # and with it what the call was given, while the thread waits for another

    def _next(self) -> Work | None:
        with self._changed:
            self._idle += 1
            try:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                return self._pop() if self._waiting else None
            finally:
                self._idle -= 1

    def _pop(self) -> Work:
        work = next(iter(self._waiting))
        del self._waiting[work]
        return work

    def __repr__(self) -> str:
        now = self.statistics()
        return f"Lane({now.name}: {now.busy} of at most {now.limit} threads busy, {now.waiting} waiting)"


class Job(Generic[T]):
    """One call: made where a loop runs, run by a lane's thread, received or left on its loop.

    Args:
        method: what is called, for errors.
        body: the call; it is told whether it had to wait for a thread.
        unclaimed: called, in a thread, with a result that came after the awaiter had left.
    """

    def __init__(self, method: str, body: Callable[[bool], T], unclaimed: Callable[[T], None]) -> None:
        self.method = method
        self.queued = False
        self.recall = Recall()
        self._body = body
        self._unclaimed = unclaimed
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[T] = self.loop.create_future()
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._left = False
        self._came: list[T] = []  # the result, once there is one that ``unclaimed`` has not had

    # -- in the lane's thread -----------------------------------------------------------------------------------------

    def run(self) -> None:
        self._came, error = self._context.run(_outcome, self._body, self.queued, self.recall)
        value = self._came[0] if error is None else None
        if not self._deliver(value, error):
            self.dispose()
        del self, error  # an error leads to its frames, and those to this one

    def dispose(self) -> None:
        """Hand a result that nobody received to ``unclaimed``."""
        with self._lock:
            came, self._came = self._came, []
        for value in came:
            try:
                self._unclaimed(value)
            except Exception:  # top frame: nobody waits for it; the thread goes on with the next
                log.exception("the result of a call that was left could not be given back")

    def _deliver(self, value: T | None, error: BaseException | None) -> bool:
        with self._lock:
            if self._left:
                return False
        return self._post(value, error)

    def _post(self, value: T | None, error: BaseException | None) -> bool:
        try:
            self.loop.call_soon_threadsafe(self._arrive, value, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return False
        return True

    # -- on the loop --------------------------------------------------------------------------------------------------

    def _arrive(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():  # left, or failed
            return
        if isinstance(error, StopIteration):  # no future takes one, and its awaiter would wait for ever
            error = RuntimeError(f"the call raised {error!r}")
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)

    @property
    def failed(self) -> bool:
        """The call has ended with an error; there is nothing to leave."""
        return self.future.done() and not self.future.cancelled() and self.future.exception() is not None

    def leave(self) -> bool:
        """Say that nobody awaits it any more; returns whether a result has come, for ``dispose``."""
        with self._lock:
            self._left = True
            return bool(self._came)

    # -- from any thread ----------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """End the wait with ``error``, whatever becomes of the call."""
        with self._lock:
            self._left = True
        self._post(None, error)


def _outcome(body: Callable[[bool], T], queued: bool, recall: Recall) -> tuple[list[T], BaseException | None]:
    """Call ``body``. Not a method of the job, which leads to the error, and an error to its frames."""
    recall.cover()
    try:
        return [body(queued)], None
    except BaseException as error:  # noqa: BLE001  # top frame of the call: its awaiter raises it again
        return [], error
