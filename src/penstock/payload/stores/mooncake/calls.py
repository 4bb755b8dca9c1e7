"""Every call of one client on a thread of ours: under a deadline, never after its close, its reply counted.

The library has no deadlines: ``setup`` with a wrong address hangs for minutes, a transfer for one. It also crashes the
process when it is called after ``close``. So a caller waits here and leaves at its deadline; the thread stays until the
library lets go of it.

Invariants: nobody waits past the deadline; ``close`` of the library is its client's last call and comes when no other
is under way, however long that takes; a thread that is stuck is known and counted (``stuck``).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.mooncake.codes import LATE, MISALIGNED, RAISED
from penstock.payload.stores.mooncake.library import Client
from penstock.retry import Deadline

__all__ = ["Calls", "Job"]

log = logging.getLogger(__name__)

T = TypeVar("T")

LANES = 4  # calls of one client side by side


class Job(Generic[T]):
    """One call that is to be made, is under way, or is done."""

    __slots__ = ("_arguments", "_done", "_function", "_lock", "abandoned", "error", "value")

    def __init__(self, function: Callable[..., T], arguments: Sequence[Any]) -> None:
        self._function = function
        self._arguments = arguments
        self._lock = threading.Lock()
        self._done = threading.Event()
        self.value: T | None = None
        self.error: BaseException | None = None
        self.abandoned = False

    def run(self) -> None:
        """Make the call, unless nobody waits for it any more."""
        if self.abandoned:
            return
        try:
            self.value = self._function(*self._arguments)
        except Exception as error:  # noqa: BLE001  # top frame: whoever waits hears of it
            self.error = error
        self._done.set()

    def wait(self, deadline: Deadline) -> bool:
        """Wait for its end; False = it did not come in time."""
        if self._done.wait(deadline.remaining()):
            return True
        self.abandoned = True
        return self._done.is_set()

    def refuse(self, error: DataPlaneUnavailable) -> None:
        """Send home who waits; the call itself goes on."""
        if not self._done.is_set():
            self.error = error
            self._done.set()


class Calls:
    """The threads of one client. They are started as needed, and end after ``retire`` when the last call has.

    ``may_close`` is asked before the client is closed; one that may not be is left behind, as if its process had died.
    """

    def __init__(
        self,
        client: Client,
        *,
        lanes: int = LANES,
        name: str = "mooncake",
        may_close: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._lanes = lanes
        self._name = name
        self._may_close = may_close
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[Job[Any]] = set()  # waiting for a thread, or under way
        self._retired = False
        self.ended = threading.Event()

    @property
    def stuck(self) -> int:
        """Calls under way that nobody waits for any more."""
        return sum(job.abandoned for job in tuple(self._open))

    def submit(self, function: Callable[..., T], *arguments: Any) -> Job[T]:
        """Have a call made.

        Raises:
            DataPlaneUnavailable: the client is closed.
        """
        job = Job(function, arguments)
        with self._lock:
            if self._retired:
                raise DataPlaneUnavailable("this connection to the store is closed")
            self._open.add(job)
            if len(self._threads) < min(len(self._open), self._lanes):
                self._start_thread()
        self._jobs.put(job)
        return job

    def codes(self, job: Job[list[int]], expected: int, deadline: Deadline) -> list[int]:
        """Return the answer to ``job``: one code per key, our own where the library gave none that fits.

        Raises:
            DataPlaneUnavailable: closed while waiting.
        """
        if not job.wait(deadline):
            return [LATE] * expected
        if job.error is not None:
            return [self._raised(job.error)] * expected
        codes = job.value
        if not isinstance(codes, list) or len(codes) != expected or not all(isinstance(code, int) for code in codes):
            log.warning("the store answered %d keys with %r, believed none", expected, _short(codes))
            return [MISALIGNED] * expected
        return codes

    def one(self, function: Callable[..., int], *arguments: Any, deadline: Deadline) -> int:
        """Make a call that answers one code."""
        job = self.submit(function, *arguments)
        if not job.wait(deadline):
            return LATE
        if job.error is not None:
            return self._raised(job.error)
        return job.value if isinstance(job.value, int) else MISALIGNED

    def retire(self, *, refuse: str = "") -> None:
        """Take no more calls; close the client when the last one has ended. ``refuse``: send those who wait home."""
        with self._lock:
            if refuse:
                for job in self._open:
                    job.refuse(DataPlaneUnavailable(refuse))
            if self._retired:
                return
            self._retired = True
            if not self._open:
                self._end()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end after ``retire``; False = a call is stuck, its thread goes on until it is not."""
        return self.ended.wait(timeout_s)

    def _start_thread(self) -> None:
        number = len(self._threads)
        thread = threading.Thread(target=self._work, name=f"penstock-{self._name}-{number}", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            with self._lock:
                self._open.discard(job)
                if self._retired and not self._open:
                    self._end()

    def _end(self) -> None:
        """Close the client, in a thread that nobody needs: no call is under way, and none will be.

        One that was never called is not open. The master, which may be why, is not asked about its close, nor is the
        client kept: while a store is away there is one such client for each try.
        """
        if not self._threads:
            self.ended.set()
            return
        for _ in self._threads:
            self._jobs.put(None)
        threading.Thread(target=self._close, name=f"penstock-{self._name}-close", daemon=True).start()

    def _close(self) -> None:
        try:
            if self._may_close():
                self._client.close()
            else:
                _LEFT_BEHIND.append(self._client)
                log.warning("a connection to the store is left behind: closing it would wait for a silent master")
        except Exception:  # top frame: there is nobody left to tell but the log
            log.exception("closing a connection to the store failed")
        self.ended.set()

    def _raised(self, error: BaseException) -> int:
        if isinstance(error, DataPlaneUnavailable):
            raise error
        log.warning("the store's library raised %s: %s", type(error).__name__, error)
        return RAISED

    def __repr__(self) -> str:
        state = "retired" if self._retired else "open"
        return f"Calls({state}, {len(self._threads)} threads, {len(self._open)} calls, {self.stuck} stuck)"


_LEFT_BEHIND: list[Client] = []  # their destructor would close them


def _short(value: object) -> str:
    return repr(value)[:80]
