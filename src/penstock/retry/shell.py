"""Runs the retry machine in the calling thread: carries out its attempts and its waits, and logs each round.

Invariants: no lock is held and no pool thread is kept during a wait; the worker threads of a round have ended when the
round has; an exception of ``attempt`` is not an answer and goes up unchanged.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias, TypeVar

from penstock.errors import BadArgument
from penstock.retry.backoff import RandomSource
from penstock.retry.books import Books, RetryStatistics
from penstock.retry.deadline import Clock, Deadline
from penstock.retry.machine import Attempt, Begin, Effect, Retry, Timer, Wait
from penstock.retry.policy import DEFAULT, Policy
from penstock.retry.result import Answer, RetryResult
from penstock.retry.run import Run

__all__ = ["AttemptFunction", "Retrier"]

log = logging.getLogger(__name__)

T = TypeVar("T")

ONE_ENDPOINT = ("",)  # for callers that talk to one service only

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
        run: Run[T] = Run(path, Retry(self.policy, self._books.health), self._books, log)
        effects = run.decide([Begin(tuple(keys), tuple(endpoints), deadline.at)], began)
        while effects:
            effects = self._carry_out(run, effects, attempt, deadline)
        return RetryResult(path, {key: run.settled[key] for key in keys}, self._clock() - began)

    def statistics(self) -> RetryStatistics:
        """Return the counts at this moment."""
        return self._books.statistics(self._clock())

    def _carry_out(
        self, run: Run[T], effects: Sequence[Effect], attempt: AttemptFunction[T], deadline: Deadline
    ) -> list[Effect]:
        attempts = [effect for effect in effects if isinstance(effect, Attempt)]
        if not attempts:
            self._wait(effects)
            return run.decide([Timer()], self._clock())
        answers = self._try_all(attempts, lambda one: attempt(one.keys, one.endpoint, deadline))
        outcomes = [o for one, replies in zip(attempts, answers, strict=True) for o in run.take(one, replies)]
        following = run.decide(outcomes, self._clock())
        if run.round_over:
            run.log_round(attempts[0].round, following)
        return following

    def _try_all(
        self, attempts: Sequence[Attempt], try_once: Callable[[Attempt], Sequence[Answer[T]]]
    ) -> list[Sequence[Answer[T]]]:
        workers = min(self.policy.workers, len(attempts))
        if workers == 1:
            return [try_once(attempt) for attempt in attempts]
        with ThreadPoolExecutor(workers, thread_name_prefix="penstock-retry") as pool:
            return list(pool.map(try_once, attempts))

    def _wait(self, effects: Sequence[Effect]) -> None:
        for wait in effects:
            assert isinstance(wait, Wait)
            seconds = self._rng.uniform(wait.at_least_s, wait.at_most_s)
            self._sleep(seconds)
            self._books.count_wait(seconds)

    def __repr__(self) -> str:
        return f"Retrier({self._books!r})"
