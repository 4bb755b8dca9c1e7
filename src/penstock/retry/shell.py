"""Runs the retry machine in the calling thread: carries out its attempts and its waits, and logs each round.

Invariants: no lock is held and no pool thread is kept during a wait; the worker threads of a round have ended when the
round has; an exception of ``attempt`` is not an answer and goes up unchanged; a list of answers that does not fit the
keys is not believed, none of it.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeAlias, TypeVar

from penstock.errors import BadArgument, abbreviate
from penstock.retry.backoff import RandomSource
from penstock.retry.books import Books, RetryStatistics
from penstock.retry.deadline import Clock, Deadline
from penstock.retry.machine import Attempt, Begin, Effect, Event, GiveUp, Outcome, Retry, Timer, Wait
from penstock.retry.policy import DEFAULT, Kind, Policy
from penstock.retry.result import Answer, RetryResult, Settled

__all__ = ["AttemptFunction", "Retrier"]

log = logging.getLogger(__name__)

T = TypeVar("T")

ONE_ENDPOINT = ("",)  # for callers that talk to one service only
MISALIGNED = "misaligned"  # the code of answers that do not fit the keys

AttemptFunction: TypeAlias = Callable[[Sequence[str], str, Deadline], Sequence[Answer[T]]]
"""``attempt(keys, endpoint, deadline)`` tries once, keeps to the deadline, and answers per key, in order."""


class Retrier:
    """One client's retries: its policy, and what it learns of its endpoints. Fit for use from several threads."""

    def __init__(
        self,
        policy: Policy = DEFAULT,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        rng: RandomSource | None = None,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._books = Books(policy)

    def run(
        self,
        path: str,
        keys: Sequence[str],
        attempt: AttemptFunction[T],
        *,
        deadline: Deadline | None = None,
        endpoints: Sequence[str] = ONE_ENDPOINT,
    ) -> RetryResult[T]:
        """Try ``keys`` until each has succeeded or is given up. A key given twice is tried once.

        Args:
            path: what is done, for logs and counts ("tensor get").
            keys: what it is done to.
            attempt: tries some of them once at one endpoint; called from worker threads if the policy has several.
            deadline: the caller's, on this retrier's clock; without one, the policy's ``timeout_s`` from now.
            endpoints: where it may be tried, preferred first.

        Raises:
            BadArgument: no endpoint, or a deadline on another clock.
        """
        deadline = deadline or Deadline(self.policy.timeout_s, self._clock)
        if deadline.clock != self._clock:
            raise BadArgument("the deadline is on another clock than the retrier")
        began = self._clock()
        self._books.count_run()
        run = _Run(path, Retry(self.policy, self._books.health), attempt, deadline)
        effects = self._decide(run, [Begin(tuple(keys), tuple(endpoints), deadline.at)])
        while effects:
            effects = self._carry_out(run, effects)
        return RetryResult(path, {key: run.settled[key] for key in keys}, self._clock() - began)

    def statistics(self) -> RetryStatistics:
        """Return the counts at this moment."""
        return self._books.statistics(self._clock())

    def _decide(self, run: _Run[T], events: Sequence[Event]) -> list[Effect]:
        effects = self._books.decide(run.path, run.machine, events, self._clock())
        for effect in effects:
            if isinstance(effect, GiveUp):
                run.settled[effect.key] = Settled(None, effect.reason, effect.code, effect.attempts)
        return [effect for effect in effects if isinstance(effect, Attempt | Wait)]

    def _carry_out(self, run: _Run[T], effects: Sequence[Effect]) -> list[Effect]:
        attempts = [effect for effect in effects if isinstance(effect, Attempt)]
        if not attempts:
            self._wait(effects)
            return self._decide(run, [Timer()])
        outcomes = run.take(attempts, self._try_all(run, attempts))
        following = self._decide(run, outcomes)
        if not any(isinstance(effect, Attempt) for effect in following):
            run.log_round(attempts[0].round, following)
        return following

    def _try_all(self, run: _Run[T], attempts: Sequence[Attempt]) -> list[Sequence[Answer[T]]]:
        workers = min(self.policy.workers, len(attempts))
        if workers == 1:
            return [run.try_once(attempt) for attempt in attempts]
        with ThreadPoolExecutor(workers, thread_name_prefix="penstock-retry") as pool:
            return list(pool.map(run.try_once, attempts))

    def _wait(self, effects: Sequence[Effect]) -> None:
        for wait in effects:
            assert isinstance(wait, Wait)
            seconds = self._rng.uniform(wait.at_least_s, wait.at_most_s)
            self._sleep(seconds)
            self._books.count_wait(seconds)

    def __repr__(self) -> str:
        return f"Retrier({self._books!r})"


class _Run(Generic[T]):
    """One call of ``Retrier.run``: its machine and how its keys have ended so far."""

    def __init__(self, path: str, machine: Retry, attempt: AttemptFunction[T], deadline: Deadline) -> None:
        self.path = path
        self.machine = machine
        self.settled: dict[str, Settled[T]] = {}
        self._attempt = attempt
        self._deadline = deadline
        self._round: list[Outcome] = []  # outcomes of the round so far

    def try_once(self, attempt: Attempt) -> Sequence[Answer[T]]:
        """Make one attempt; answers that do not fit its keys count as not having come."""
        answers = self._attempt(attempt.keys, attempt.endpoint, self._deadline)
        if len(answers) == len(attempt.keys):
            return answers
        log.warning("%s: %d answers for %d keys, believed none", self.path, len(answers), len(attempt.keys))
        return [Answer(Kind.RETRYABLE, code=MISALIGNED)] * len(attempt.keys)

    def take(self, attempts: Sequence[Attempt], answers: Sequence[Sequence[Answer[T]]]) -> list[Outcome]:
        """Keep the values that came; return what the machine needs to know."""
        outcomes = []
        for attempt, replies in zip(attempts, answers, strict=True):
            for key, answer in zip(attempt.keys, replies, strict=True):
                outcomes.append(Outcome(attempt.number, key, answer.kind, answer.code))
                if answer.kind is Kind.OK:
                    self.settled[key] = Settled(answer.value, None, answer.code, attempt.round)
        self._round += outcomes
        return outcomes

    def log_round(self, number: int, following: Sequence[Effect]) -> None:
        """One line per round: at DEBUG when all went well, at INFO when some did not."""
        outcomes, self._round = self._round, []
        failed = [outcome for outcome in outcomes if outcome.kind is not Kind.OK]
        if not failed:
            log.debug("%s: round %d: %d keys done", self.path, number, len(outcomes))
            return
        codes = Counter(outcome.code or outcome.kind.value for outcome in failed).most_common()
        waits = [f"again within {effect.at_most_s:.3f} s" for effect in following if isinstance(effect, Wait)]
        log.info(
            "%s: round %d: %d of %d keys failed (%s): %s; %s",
            self.path,
            number,
            len(failed),
            len(outcomes),
            ", ".join(f"{count} x {code}" for code, count in codes),
            abbreviate([outcome.key for outcome in failed]),
            *(waits or ["no further round"]),
        )
