"""One call from a caller's side: hand it over, wait for its outcome within the deadline, turn that into reply or error.

Invariants: the reply counts as taken only when the context that got it ends without an exception; a caller who goes
away in any other manner (deadline, signal, recall, an exception while he uses the reply) leaves his call abandoned.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from penstock.errors import DataPlaneError, DataPlaneTimeout, DataPlaneUnavailable, error_of
from penstock.plane import events as ev
from penstock.plane.events import Ended, Event, Settled, Submit, Verdict
from penstock.plane.recall import recallable
from penstock.requests import (
    MUTATIONS,
    Ack,
    Audit,
    Capabilities,
    CheckConsumption,
    Claim,
    Clear,
    Commit,
    Damaged,
    Depth,
    Enlist,
    Evict,
    Failed,
    Goodbye,
    Grant,
    Heartbeat,
    Hold,
    HostReport,
    ListMetadata,
    ListRows,
    Locate,
    OpenSession,
    Ping,
    Pop,
    PutTags,
    Record,
    RegisterPartition,
    Release,
    Renew,
    Request,
    Reserve,
    ResumeSession,
    Seal,
    Shutdown,
    Status,
    Why,
)
from penstock.retry import Deadline

__all__ = ["Exchange", "Outcome", "Waiter", "failure", "method_of"]

LEAST_S = 0.1  # a call with no time at all still gives a plane that can answer at once this long to do so
_VERDICT_S = 0.5  # whether anything was sent is known at once; if not, the outcome is unknown

_OF_NO_PARTITION = (
    Capabilities,
    Commit,
    Damaged,
    Enlist,
    Goodbye,
    Heartbeat,
    Hold,
    HostReport,
    OpenSession,
    Ping,
    Reserve,
    ResumeSession,
    Seal,
    Shutdown,
    Status,
)

# What a request is called by those who read its errors: the method that makes it.
_METHODS: dict[type[Request], str] = {
    RegisterPartition: "register_partition",
    Grant: "put_samples",
    Commit: "put_samples",
    PutTags: "put_samples",
    Claim: "claim_meta",
    Ack: "ack",
    Release: "release",
    Renew: "renew",
    CheckConsumption: "check_consumption_status",
    Locate: "get_samples",
    Damaged: "get_samples",
    Reserve: "put_samples",
    Seal: "put_samples",
    Hold: "get_samples",
    Clear: "clear_samples",
    Pop: "pop",
    Evict: "evict",
    Ping: "ping",
    ListMetadata: "list_metadata",
    ListRows: "list_rows",
    Depth: "depth",
    Capabilities: "get_capabilities",
    Audit: "audit",
    Why: "why",
    Status: "status",
}

Outcome = Settled | Ended
R = TypeVar("R", bound=Record)


class Waiter:
    """One caller's wait for an outcome: the first that any thread sets."""

    __slots__ = ("_lock", "_unsettled", "outcome")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._unsettled = [True]
        self.outcome: Outcome | None = None

    def settle(self, outcome: Outcome) -> None:
        try:
            self._unsettled.pop()  # one thread only gets past here
        except IndexError:
            return
        self.outcome = outcome
        self._lock.release()

    def give_up(self) -> None:
        """Let the wait end with no outcome."""
        try:
            self._unsettled.pop()
        except IndexError:
            return
        self._lock.release()

    def wait(self, timeout_s: float) -> Outcome | None:
        if self.outcome is None and self._lock.acquire(timeout=timeout_s):
            self._lock.release()
        return self.outcome


class Line(Protocol):
    """What an exchange needs of the link."""

    @property
    def incarnation(self) -> int: ...

    def hand_over(self, event: Event, waiter: Waiter | None = None) -> None:
        """Give an event to the thread that owns the session, and wake it."""

    def note(self, event: Event) -> None:
        """The same, without hurry."""

    def number(self) -> int:
        """Return a number that no errand has had."""

    def state(self) -> str:
        """What there is to say about the connection."""


class Exchange(Generic[R]):
    """Asks on entry, gives the reply to the body of the ``with``.

    ``method``: what the caller called, for messages; "" = the one that makes such requests.
    """

    def __init__(
        self,
        line: Line,
        body: Request,
        kind: type[R],
        deadline: Deadline,
        *,
        once: bool,
        remembered: bool,
        method: str = "",
    ) -> None:
        self._line = line
        self._method = method or method_of(type(body))
        self._body = body
        self._kind = kind
        self._deadline = deadline
        self._number = line.number()
        self._submit = Submit(self._number, body, deadline.at, once, remembered)
        self._waiter = Waiter()
        self._open = False  # begun, and neither taken nor left

    def __enter__(self) -> R:
        try:
            self._open = True
            with recallable(self._waiter.give_up):
                self._line.hand_over(self._submit, self._waiter)
                outcome = self._waiter.wait(self._patience())
            return self._timed_out() if outcome is None else self._reply(outcome)
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._take()
        else:
            self._leave()

    def __del__(self) -> None:
        # A signal can fall between the entry and the body of a ``with``.
        self._leave()

    def _patience(self) -> float:
        left = min(self._deadline.remaining(), threading.TIMEOUT_MAX)
        return left if self._submit.once else max(left, LEAST_S)

    def _take(self) -> None:
        if self._open:
            self._open = False
            self._line.note(ev.Take(self._number))

    def _leave(self) -> None:
        if self._open:
            self._open = False
            self._line.hand_over(ev.Leave(self._number))

    def _reply(self, outcome: Outcome) -> R:
        if isinstance(outcome, Ended):
            self._open = False
            raise self._ended(outcome, outcome.why)
        if isinstance(outcome.body, Failed):
            self._take()
            raise failure(outcome.body, outcome.incarnation)
        assert isinstance(outcome.body, self._kind), outcome
        return outcome.body

    def _timed_out(self) -> R:
        self._leave()
        outcome = self._waiter.wait(_VERDICT_S)
        state = self._line.state()
        if isinstance(outcome, Ended) and outcome.verdict is Verdict.NOTHING:
            raise self._ended(outcome, f"not sent within {self._deadline.timeout_s:g} s: {state}")
        unknown = Ended(self._number, Verdict.UNKNOWN, "")
        raise self._ended(unknown, f"no answer within {self._deadline.timeout_s:g} s: {state}")

    def _ended(self, ended: Ended, why: str) -> DataPlaneError:
        asked = self._method
        cls = DataPlaneUnavailable if ended.verdict is Verdict.NOTHING else DataPlaneTimeout
        doubt = ended.verdict is Verdict.UNKNOWN and isinstance(self._body, MUTATIONS)
        moral = "; the outcome is unknown, repeating is safe" if doubt else ""
        partition = None if isinstance(self._body, _OF_NO_PARTITION) else self._body.partition
        return cls(
            f"{asked}: {why}{moral}",
            partition=partition,
            missing=[f"the plane's answer to {asked}"],
            attempts=1,
            elapsed_s=self._deadline.elapsed(),
            incarnation=self._line.incarnation,
        )


def method_of(kind: type[Request]) -> str:
    """Return the name of the client's method that makes such requests."""
    return _METHODS.get(kind, kind.__name__)


def failure(failed: Failed, incarnation: int) -> DataPlaneError:
    """Return the error that the plane answered with."""
    return error_of(failed.code)(
        failed.message,
        partition=failed.partition,
        keys=failed.keys,
        missing=failed.missing,
        elapsed_s=failed.elapsed_s,
        incarnation=incarnation,
    )
