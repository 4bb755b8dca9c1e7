"""A thread that runs an event loop for callers who have none; and its end, at close, at exit and in a fork's child.

Invariants: started when first used; after ``stop`` nothing runs in it and every caller has been answered; a forked
child has no such thread, leaves the loop's descriptors, which are its parent's too, alone, and says so if asked.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar

from penstock.errors import DataPlaneTimeout, DataPlaneUnavailable
from penstock.retry import Deadline

__all__ = ["LoopThread", "Waiting"]

T = TypeVar("T")

Waiting: TypeAlias = Callable[[Callable[[], object]], AbstractContextManager[object]]
"""Makes a context for a wait, of what would end the wait at once, from any thread."""

_GRACE_S = 1.0  # calls keep to their deadlines; a loop that is this late does not run
_EXIT_S = 2.0  # at the interpreter's exit, for all of them together


class LoopThread:
    """Runs coroutines for callers in other threads.

    Args:
        name: the thread's.
        at_end: run by the loop as its last, when all else has been cancelled.
    """

    def __init__(self, name: str, at_end: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._at_end = at_end
        self._pid = os.getpid()
        self._lock = threading.Lock()  # held for no longer than it takes to start the thread or to hand work over
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether there is a thread, in this process."""
        return self._thread is not None and self._thread.is_alive() and os.getpid() == self._pid

    def run(
        self, work: Callable[[], Coroutine[Any, Any, T]], deadline: Deadline, waiting: Waiting = contextlib.nullcontext
    ) -> T:
        """Run ``work()`` on the loop and return what it returns. ``waiting``: a context that the caller waits in.

        Raises:
            DataPlaneUnavailable: it is stopped, or this is a forked child.
            DataPlaneTimeout: the loop does not answer.
        """
        future = self._submit(work)
        try:
            with waiting(future.cancel):
                return future.result(deadline.remaining() + _GRACE_S)
        except concurrent.futures.CancelledError:
            raise DataPlaneUnavailable("the call was taken back, or the payload client closed during it") from None
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()  # just now; or the error is the work's own
            raise DataPlaneTimeout(f"{self._name} does not run: no answer {_GRACE_S:g} s past the deadline") from None
        finally:
            future.cancel()  # of one that was interrupted or is late

    def stop(self, timeout_s: float = _EXIT_S) -> None:
        """Cancel what runs, run ``at_end``, and join the thread. Idempotent. In a forked child: nothing."""
        self.ask_to_stop()
        if self.running and self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def ask_to_stop(self) -> None:
        """As ``stop``, without waiting for it. From any thread."""
        if os.getpid() != self._pid:
            return  # the lock may be held by a thread that is not here
        with self._lock:
            first, self._stopping = not self._stopping, True
            if first and self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._loop.stop)

    def _submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        if os.getpid() != self._pid:
            raise DataPlaneUnavailable("a payload client does not survive a fork: make a new one in the child process")
        with self._lock:
            if self._stopping:
                raise DataPlaneUnavailable("the payload client is closed")
            loop = self._loop or self._start()
            return asyncio.run_coroutine_threadsafe(work(), loop)

    def _start(self) -> asyncio.AbstractEventLoop:
        try:
            loop = asyncio.new_event_loop()
        except OSError as none_left:
            raise DataPlaneUnavailable(f"no payload client can be had in this process: {none_left}") from none_left
        thread = threading.Thread(target=_run, args=(loop, self._at_end), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as none_left:
            loop.close()
            raise DataPlaneUnavailable(f"no payload client can be had in this process: {none_left}") from none_left
        self._loop, self._thread = loop, thread
        _threads.add(self)
        return loop

    def __repr__(self) -> str:
        state = "stopped" if self._stopping else "running" if self.running else "not started"
        return f"LoopThread({self._name}, {state})"


def _run(loop: asyncio.AbstractEventLoop, at_end: Callable[[], Awaitable[None]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        try:
            loop.run_until_complete(_end(at_end))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


async def _end(at_end: Callable[[], Awaitable[None]]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await at_end()


_threads: weakref.WeakSet[LoopThread] = weakref.WeakSet()  # those that were started
_inherited: list[LoopThread] = []  # a parent's: kept, so that nothing of theirs is closed by the garbage collector


def _exit_all() -> None:
    threads = list(_threads)
    for thread in threads:
        thread.ask_to_stop()
    until = time.monotonic() + _EXIT_S
    for thread in threads:
        thread.stop(max(0.0, until - time.monotonic()))


def _drop_all() -> None:
    _inherited.extend(_threads)
    _threads.clear()


atexit.register(_exit_all)
os.register_at_fork(after_in_child=_drop_all)
