"""The retry machine: of a set of keys under one deadline, which go again, when, where, and when to give up.

Pure: no I/O, no clock, no randomness (a ``Wait`` is a range, its shell draws from it). ``TRANSITIONS`` and ``VERDICTS``
are the whole of its behaviour; a missing entry is an ``IllegalTransition``.

Invariants: no attempt starts at or past the deadline, later batches of a round included; a round tries only keys that
failed in the round before; a key is tried ``max_attempts`` times at most; every key ends exactly once, done or given
up; ``Finished`` comes last and once; a ``Wait`` is followed by an attempt, unless deadline or budget run out meanwhile.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from penstock.errors import BadArgument, IllegalTransition
from penstock.retry.backoff import ceiling_s
from penstock.retry.health import Health
from penstock.retry.policy import Kind, Policy, Reason

__all__ = ["Attempt", "Begin", "Effect", "Event", "Finished", "GiveUp", "Outcome", "Retry", "State", "Timer", "Wait"]

_REMEMBERED_EVENTS = 8


# -- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """Try these keys, at any of these endpoints (preferred first), until ``deadline_at`` on the clock of ``now``.

    ``tried``: the endpoint at which a first attempt has been made already; its outcome is the first round's.
    """

    keys: tuple[str, ...]
    endpoints: tuple[str, ...]
    deadline_at: float
    tried: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one key of the attempt numbered ``attempt`` came to. ``code`` is the endpoint's own word for it."""

    attempt: int
    key: str
    kind: Kind
    code: str = ""


@dataclass(frozen=True, slots=True)
class Timer:
    """A wait is over; or, while attempts are out, the deadline may have come."""


Event: TypeAlias = Begin | Outcome | Timer


# -- effects --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """Try ``keys`` at ``endpoint`` now; answer with one ``Outcome`` per key."""

    number: int
    round: int
    endpoint: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a time drawn uniformly from ``[at_least_s, at_most_s]``, then send ``Timer``."""

    at_least_s: float
    at_most_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """``key`` is not tried again. ``code`` is its last answer's, "" if it was never tried."""

    key: str
    reason: Reason
    code: str
    attempts: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Every key is done or given up."""


Effect: TypeAlias = Attempt | Wait | GiveUp | Finished


# -- the tables -----------------------------------------------------------------------------------------------------


class State(enum.Enum):
    IDLE = "idle"
    TRYING = "trying"  # attempts are out
    WAITING = "waiting"  # between two rounds
    FINISHED = "finished"


class Verdict(enum.Enum):
    """What an answer means for its key."""

    DONE = "done"
    END = "end"  # given up at once
    AGAIN = "again"  # unless a limit is reached


class Standing(enum.Enum):
    """What an answer says about the endpoint that gave it."""

    ANSWERED = "answered"
    FAILED = "failed"
    NEITHER = "neither"  # alive, but no reason to send it more


class Step(enum.Enum):
    """What the machine does with an event."""

    BEGIN = "begin"
    OUTCOME = "take an outcome"
    NEXT_ROUND = "next round"
    CHECK_DEADLINE = "check the deadline"
    IGNORE = "ignore"


# (state, event) -> what is done, and the states that it may lead to
TRANSITIONS: dict[tuple[State, type[Event]], tuple[Step, frozenset[State]]] = {
    (State.IDLE, Begin): (Step.BEGIN, frozenset({State.TRYING, State.FINISHED})),
    (State.TRYING, Outcome): (Step.OUTCOME, frozenset({State.TRYING, State.WAITING, State.FINISHED})),
    (State.TRYING, Timer): (Step.CHECK_DEADLINE, frozenset({State.TRYING, State.FINISHED})),
    (State.WAITING, Timer): (Step.NEXT_ROUND, frozenset({State.TRYING, State.FINISHED})),
    (State.FINISHED, Outcome): (Step.IGNORE, frozenset({State.FINISHED})),  # an answer after the deadline
    (State.FINISHED, Timer): (Step.IGNORE, frozenset({State.FINISHED})),
}

VERDICTS: dict[Kind, tuple[Verdict, Standing]] = {
    Kind.OK: (Verdict.DONE, Standing.ANSWERED),
    Kind.MISSING: (Verdict.END, Standing.ANSWERED),
    Kind.FATAL: (Verdict.END, Standing.NEITHER),
    Kind.RETRYABLE: (Verdict.AGAIN, Standing.FAILED),
    Kind.CORRUPT: (Verdict.AGAIN, Standing.FAILED),
    Kind.BACKPRESSURE: (Verdict.AGAIN, Standing.NEITHER),
}

_END_REASON = {Kind.MISSING: Reason.MISSING, Kind.FATAL: Reason.FATAL}


@dataclass(slots=True)
class _Key:
    """One key's story so far."""

    name: str
    attempts: int = 0
    corrupt: int = 0
    backpressure_s: float = 0.0
    kind: Kind | None = None
    code: str = ""


@dataclass(slots=True)
class _Flight:
    """One attempt that is out."""

    endpoint: str
    out: set[str]
    tally: dict[Standing, int] = field(default_factory=lambda: dict.fromkeys(Standing, 0))


class Retry:
    """Decides about one set of keys. ``health`` is shared with the other runs of the same client."""

    def __init__(self, policy: Policy, health: Health) -> None:
        self.policy = policy
        self.health = health
        self.state = State.IDLE
        self.round = 0
        self._keys: dict[str, _Key] = {}  # those that have not ended
        self._flights: dict[int, _Flight] = {}
        self._batches: deque[list[str]] = deque()  # of this round, not yet sent out
        self._endpoints: tuple[str, ...] = ()
        self._last_endpoint = self._tried = ""
        self._deadline_at = 0.0
        self._wait_began = 0.0
        self._attempts = 0
        self._events: deque[Event] = deque(maxlen=_REMEMBERED_EVENTS)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return what is to be done, in order.

        Raises:
            IllegalTransition: the event does not fit the state; nothing changed.
        """
        entry = TRANSITIONS.get((self.state, type(event)))
        if entry is None:
            raise self._illegal(event)
        step, leads_to = entry
        effects = self._STEPS[step](self, event, now)
        assert self.state in leads_to, f"{step} led to {self.state}"
        self._events.append(event)
        return effects

    # -- steps: one per entry of the table ------------------------------------------------------------------------

    def _begin(self, event: Event, now: float) -> list[Effect]:
        assert isinstance(event, Begin)
        if not event.endpoints or (event.tried and event.tried not in event.endpoints):
            raise BadArgument("a retry needs at least one endpoint, and what was tried is one of them")
        self._keys = {name: _Key(name) for name in event.keys}
        self._endpoints = tuple(dict.fromkeys(event.endpoints))
        self._deadline_at = event.deadline_at
        self._tried = event.tried
        return self._start_round(now) if self._keys else self._finish()

    def _outcome(self, event: Event, now: float) -> list[Effect]:
        assert isinstance(event, Outcome)
        flight = self._flights.get(event.attempt)
        if flight is None or event.key not in flight.out:
            raise self._illegal(event)
        verdict, standing = VERDICTS[event.kind]
        flight.out.discard(event.key)
        flight.tally[standing] += 1
        effects = self._judge(self._keys[event.key], event, verdict)
        if not flight.out:
            self._land(event.attempt, now)
            effects += self._launch(now)
        if not self._flights:
            effects += self._end_round(now)
        return effects

    def _next_round(self, _event: Event, now: float) -> list[Effect]:
        for key in self._keys.values():
            if key.kind is Kind.BACKPRESSURE:
                key.backpressure_s += now - self._wait_began
        return self._start_round(now)

    def _check_deadline(self, _event: Event, now: float) -> list[Effect]:
        if now < self._deadline_at:
            return []
        for number, flight in list(self._flights.items()):
            flight.tally[Standing.FAILED] += len(flight.out)  # silence until the deadline is a failure
            self._land(number, now)
        return self._give_up_all(Reason.DEADLINE)

    def _ignore(self, _event: Event, _now: float) -> list[Effect]:
        return []

    _STEPS: ClassVar[dict[Step, Callable[[Retry, Event, float], list[Effect]]]] = {
        Step.BEGIN: _begin,
        Step.OUTCOME: _outcome,
        Step.NEXT_ROUND: _next_round,
        Step.CHECK_DEADLINE: _check_deadline,
        Step.IGNORE: _ignore,
    }

    # -- rounds ---------------------------------------------------------------------------------------------------

    def _start_round(self, now: float) -> list[Effect]:
        reason = self._obstacle(now)
        if reason is not None:
            return self._give_up_all(reason)
        tried, self._tried = self._tried, ""
        self._last_endpoint = tried or self.health.eligible(self._candidates(), now)[0]
        self.round += 1
        self.state = State.TRYING
        names = list(self._keys)
        size = self.policy.batch or len(names)
        self._batches.extend(names[i : i + size] for i in range(0, len(names), size))
        return self._launch(now)

    def _launch(self, now: float) -> list[Effect]:
        """Send out batches of this round, as many as there are workers free, while there is time."""
        effects: list[Effect] = []
        while self._batches and len(self._flights) < self.policy.workers and now < self._deadline_at:
            names = self._batches.popleft()
            for name in names:
                self._keys[name].attempts += 1
            self._attempts += 1
            self._flights[self._attempts] = _Flight(self._last_endpoint, set(names))
            effects.append(Attempt(self._attempts, self.round, self._last_endpoint, tuple(names)))
        return effects

    def _end_round(self, now: float) -> list[Effect]:
        if not self._keys:
            return self._finish()
        reason = self._obstacle(now)  # batches that were not sent out fall to the deadline here
        left = self._deadline_at - now
        at_most = max(self._ceiling(key) for key in self._keys.values())
        if reason is None and not self.policy.jitter and at_most >= left:
            reason = Reason.DEADLINE  # the next attempt would come too late: do not wait for nothing
        if reason is not None:
            return self._give_up_all(reason)
        self.state = State.WAITING
        self._wait_began = now
        return [Wait(0.0, min(at_most, left)) if self.policy.jitter else Wait(at_most, at_most)]

    def _obstacle(self, now: float) -> Reason | None:
        """Why no round can start now."""
        if now >= self._deadline_at:
            return Reason.DEADLINE
        return None if self._candidates() else Reason.BUDGET

    def _candidates(self) -> list[str]:
        """The endpoints that may be tried, the one after the last used first."""
        if self.round == 0:
            return list(self._endpoints)
        turn = self._endpoints.index(self._last_endpoint) + 1
        return [e for e in self._endpoints[turn:] + self._endpoints[:turn] if self.health.may_retry(e)]

    def _ceiling(self, key: _Key) -> float:
        """Return the longest wait before this key's next attempt.

        A round waits for its most patient key: backpressure is the endpoint's, not the key's, and the other keys of
        the round would only press on it.
        """
        policy = self.policy
        retry = max(0, key.attempts - 1)
        if key.kind is not Kind.BACKPRESSURE:
            return ceiling_s(retry, policy.base_s, policy.cap_s)
        left = policy.backpressure_budget_s - key.backpressure_s
        return min(left, ceiling_s(retry, policy.backpressure_base_s, max(policy.cap_s, policy.backpressure_base_s)))

    # -- ends -----------------------------------------------------------------------------------------------------

    def _judge(self, key: _Key, answer: Outcome, verdict: Verdict) -> list[Effect]:
        key.kind, key.code = answer.kind, answer.code
        key.corrupt += answer.kind is Kind.CORRUPT
        if verdict is Verdict.DONE:
            del self._keys[key.name]
            return []
        reason = _END_REASON[answer.kind] if verdict is Verdict.END else self._limit_of(key)
        return [] if reason is None else [self._give_up(key, reason)]

    def _limit_of(self, key: _Key) -> Reason | None:
        """The limit that this key has reached, if any."""
        if key.kind is Kind.CORRUPT and key.corrupt >= self.policy.corrupt_attempts:
            return Reason.CORRUPT
        if key.attempts >= self.policy.max_attempts:
            return Reason.ATTEMPTS
        if key.kind is Kind.BACKPRESSURE and key.backpressure_s >= self.policy.backpressure_budget_s:
            return Reason.BACKPRESSURE
        return None

    def _give_up(self, key: _Key, reason: Reason) -> GiveUp:
        del self._keys[key.name]
        return GiveUp(key.name, reason, key.code, key.attempts)

    def _give_up_all(self, reason: Reason) -> list[Effect]:
        return [*[self._give_up(key, reason) for key in list(self._keys.values())], *self._finish()]

    def _finish(self) -> list[Effect]:
        self.state = State.FINISHED
        self._batches.clear()
        return [Finished()]

    def _land(self, number: int, now: float) -> None:
        """An attempt is complete: tell the endpoint's health, once."""
        flight = self._flights.pop(number)
        failed, answered = flight.tally[Standing.FAILED], flight.tally[Standing.ANSWERED]
        self.health.record(flight.endpoint, failed=failed, answered=answered, now=now)

    # -- for those who watch --------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        out = [name for flight in self._flights.values() for name in flight.out]
        assert len(out) == len(set(out)), "a key is out twice"
        assert set(out) <= set(self._keys), "a key that has ended is still out"
        assert all(flight.out for flight in self._flights.values()), "a complete attempt was not counted"
        assert bool(self._flights) == (self.state is State.TRYING), f"{self.state} with {len(self._flights)} attempts"
        assert bool(self._keys) == (self.state in (State.TRYING, State.WAITING)), (
            f"{self.state}: {len(self._keys)} keys"
        )
        assert all(key.attempts <= self.policy.max_attempts for key in self._keys.values()), "too many attempts"

    def _illegal(self, event: Event) -> IllegalTransition:
        return IllegalTransition(f"{self!r} cannot take {event!r}", history=_told(self._events))

    def __repr__(self) -> str:
        return (
            f"Retry({self.state.value}, round {self.round}, {len(self._keys)} keys, {len(self._flights)} attempts out)"
        )


def _told(events: Iterable[Event]) -> list[str]:
    return [f"Begin({len(e.keys)} keys)" if isinstance(e, Begin) else repr(e) for e in events]
