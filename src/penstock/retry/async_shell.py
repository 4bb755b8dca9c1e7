"""Runs the retry machine in the calling task: the same decisions as ``shell``, carried out by an event loop.

Invariants: the run ends at its deadline, whatever its attempts do: those still out then are cancelled and have ended
when ``run`` returns or raises; an exception of ``attempt`` is not an answer and goes up unchanged; a wait holds
nothing. Made for nesting: an attempt of one retrier may be a whole run of another, under the same deadline.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeAlias, TypeVar

from penstock.errors import BadArgument
from penstock.retry.backoff import RandomSource
from penstock.retry.books import Books, RetryStatistics
from penstock.retry.deadline import Clock, Deadline
from penstock.retry.health import Health
from penstock.retry.machine import Attempt, Begin, Effect, Retry, Timer, Wait
from penstock.retry.policy import DEFAULT, Kind, Policy, Reason
from penstock.retry.result import Answer, RetryResult, Settled
from penstock.retry.run import Run
from penstock.retry.shell import ONE_ENDPOINT

__all__ = ["AsyncAttempt", "AsyncRetrier"]

log = logging.getLogger(__name__)

T = TypeVar("T")

AsyncAttempt: TypeAlias = Callable[[Sequence[str], str, Deadline], Awaitable[Sequence[Answer[T]]]]
"""``await attempt(keys, endpoint, deadline)`` tries once and answers per key, in order."""


class AsyncRetrier:
    """As ``Retrier``, for tasks of one event loop.

    Args:
        level: at which a round with failures is logged; DEBUG for a retrier that runs inside another's attempts.
    """

    def __init__(
        self,
        policy: Policy = DEFAULT,
        *,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: RandomSource | None = None,
        level: int = logging.INFO,
    ) -> None:
        self.policy = policy
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._level = level
        self._books = Books(policy)

    @property
    def health(self) -> Health:
        """What is known of the endpoints."""
        return self._books.health

    async def run(
        self,
        path: str,
        keys: Sequence[str],
        attempt: AsyncAttempt[T],
        *,
        deadline: Deadline,
        endpoints: Sequence[str] = ONE_ENDPOINT,
        tried: str = "",
    ) -> RetryResult[T]:
        """Try ``keys`` until each has succeeded or is given up; see ``Retrier.run``, and for ``tried`` ``Begin``.

        Raises:
            BadArgument: no endpoint, or a deadline on another clock.
        """
        self._require_same_clock(deadline)
        began = self._clock()
        self._books.count_run()
        run: Run[T] = Run(path, Retry(self.policy, self._books.health), self._books, log, level=self._level)
        effects = run.decide([Begin(tuple(keys), tuple(endpoints), deadline.at, tried)], began)
        carry_out = self._one_at_a_time if self.policy.workers == 1 else self._side_by_side
        try:
            await carry_out(run, effects, attempt, deadline)
        except asyncio.CancelledError:
            if deadline.expired():  # the run round this one was quicker to notice
                run.decide([Timer()], self._clock())
            raise
        return RetryResult(path, {key: run.settled[key] for key in keys}, self._clock() - began)

    async def settle(
        self, path: str, key: str, attempt: AsyncAttempt[T], *, deadline: Deadline, endpoints: Sequence[str]
    ) -> Settled[T]:
        """As ``run``, for one key and at the price of the attempt alone while that succeeds.

        A failed first attempt is the machine's first: it is counted, classed and logged like any other. The first
        attempt itself keeps to the deadline, or is ended by who called.

        Raises:
            BadArgument: no endpoint, or a deadline on another clock.
        """
        if deadline.expired() or not endpoints:
            return (await self.run(path, [key], attempt, deadline=deadline, endpoints=endpoints)).settled[key]
        self._require_same_clock(deadline)
        endpoint = self._books.eligible(endpoints, self._clock())[0]
        try:
            made = list(await attempt([key], endpoint, deadline))
        except asyncio.CancelledError:
            if deadline.expired():  # silence until the deadline is a failure
                self._books.count_lone(path, endpoint, Kind.RETRYABLE, Reason.DEADLINE.value, self._clock())
            raise
        if len(made) == 1 and made[0].kind is Kind.OK:
            self._books.count_lone(path, endpoint, Kind.OK, made[0].code, self._clock())
            return Settled(made[0].value, None, made[0].code, 1)
        first = [made]

        async def again(keys: Sequence[str], where: str, until: Deadline) -> Sequence[Answer[T]]:
            return first.pop() if first else await attempt(keys, where, until)

        result = await self.run(path, [key], again, deadline=deadline, endpoints=endpoints, tried=endpoint)
        end = result.settled[key]
        if end.attempts or not made:
            return end
        self._books.count_lone(path, endpoint, made[0].kind, made[0].code, self._clock())
        return Settled(None, end.reason, made[0].code, 1)  # the deadline came during the first attempt

    def passes_over(self, endpoint: str, endpoints: Sequence[str]) -> bool:
        """Whether ``endpoint`` is held now, while another one of ``endpoints`` is free."""
        return endpoint not in self._books.eligible(endpoints, self._clock())

    def statistics(self) -> RetryStatistics:
        """Return the counts at this moment. From any thread."""
        return self._books.statistics(self._clock())

    def _require_same_clock(self, deadline: Deadline) -> None:
        if deadline.clock != self._clock:
            raise BadArgument("the deadline is on another clock than the retrier")

    async def _one_at_a_time(
        self, run: Run[T], effects: list[Effect], attempt: AsyncAttempt[T], deadline: Deadline
    ) -> None:
        """Without a task for each attempt: this is the path of every read."""
        while effects:
            effect = effects[0]
            if isinstance(effect, Wait):
                effects = await self._wait(run, effect)
                continue
            assert isinstance(effect, Attempt)
            try:
                async with asyncio.timeout(deadline.remaining()) as limit:
                    answers = await attempt(effect.keys, effect.endpoint, deadline)
            except TimeoutError:
                if not limit.expired():
                    raise
                effects = run.decide([Timer()], max(self._clock(), deadline.at))
                continue
            effects = self._landed(run, effect, answers)

    async def _side_by_side(
        self, run: Run[T], effects: list[Effect], attempt: AsyncAttempt[T], deadline: Deadline
    ) -> None:
        out: dict[asyncio.Future[Sequence[Answer[T]]], Attempt] = {}
        landed: deque[asyncio.Future[Sequence[Answer[T]]]] = deque()
        news = asyncio.Event()

        def land(task: asyncio.Future[Sequence[Answer[T]]]) -> None:
            landed.append(task)
            news.set()

        try:
            while effects or out:
                for effect in effects:
                    if isinstance(effect, Attempt):
                        task = asyncio.ensure_future(attempt(effect.keys, effect.endpoint, deadline))
                        task.add_done_callback(land)
                        out[task] = effect
                if not out:
                    assert isinstance(effects[0], Wait)
                    effects = await self._wait(run, effects[0])
                elif await _within(news.wait(), deadline):
                    news.clear()
                    effects = []
                    while landed:
                        done = landed.popleft()
                        effects += self._landed(run, out.pop(done), done.result())
                else:
                    run.decide([Timer()], max(self._clock(), deadline.at))
                    return
        finally:
            await _end(out)

    def _landed(self, run: Run[T], attempt: Attempt, answers: Sequence[Answer[T]]) -> list[Effect]:
        following = run.decide(run.take(attempt, answers), self._clock())
        if run.round_over:
            run.log_round(attempt.round, following)
        return following

    async def _wait(self, run: Run[T], wait: Wait) -> list[Effect]:
        seconds = self._rng.uniform(wait.at_least_s, wait.at_most_s)
        await self._sleep(seconds)
        self._books.count_wait(seconds)
        return run.decide([Timer()], self._clock())

    def __repr__(self) -> str:
        return f"AsyncRetrier({self._books!r})"


async def _within(news: Awaitable[object], deadline: Deadline) -> bool:
    """Wait for ``news``; False: the deadline came first."""
    try:
        async with asyncio.timeout(deadline.remaining()):
            await news
    except TimeoutError:
        return False
    return True


async def _end(tasks: Collection[asyncio.Future[Sequence[Answer[T]]]]) -> None:
    """Cancel ``tasks`` and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)
