"""The runner in a task: the machine's decisions on an event loop, ended by the deadline, fit for nesting."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence

import pytest

from penstock.errors import BadArgument
from penstock.retry import Answer, AsyncRetrier, Deadline, Kind, Policy, Reason
from penstock.retry.async_shell import AsyncAttempt

OK: Answer[str] = Answer(Kind.OK, "value")
LOST: Answer[str] = Answer(Kind.RETRYABLE, code="reset")
GONE: Answer[str] = Answer(Kind.MISSING, code="gone")


class Time:
    """A clock that only its own sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def retrier(policy: Policy) -> tuple[AsyncRetrier, Time]:
    t = Time()
    return AsyncRetrier(policy, clock=t.clock, sleep=t.sleep, rng=random.Random(5)), t


def scripted(*rounds: Sequence[Answer[str]]) -> AsyncAttempt[str]:
    script = iter(rounds)

    async def attempt(_keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        return next(script)

    return attempt


def test_it_decides_as_the_machine_says_one_after_the_other() -> None:
    """Only failed keys go again, after a jittered wait; values that came are kept."""
    retry, t = retrier(Policy())
    result = asyncio.run(retry.run("get", ["a", "b"], scripted([OK, LOST], [LOST], [OK]), deadline=t_deadline(t)))
    assert [(end.value, end.attempts) for end in result.settled.values()] == [("value", 1), ("value", 3)]
    assert len(t.naps) == 2
    counts = retry.statistics()
    assert (counts.runs, counts.attempts, counts.retries) == (1, 3, 2)
    assert counts.waited_s == pytest.approx(sum(t.naps))


def t_deadline(t: Time, timeout_s: float = 30.0) -> Deadline:
    return Deadline(timeout_s, t.clock)


def test_attempts_of_one_round_run_side_by_side_and_no_more_than_allowed() -> None:
    """Four workers have four attempts out, and a fifth starts when one has landed."""
    retry, t = retrier(Policy(batch=1, workers=4))
    running, most = 0, 0

    async def attempt(_keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return [OK]

    result = asyncio.run(retry.run("get", [str(i) for i in range(20)], attempt, deadline=t_deadline(t)))
    assert result.failures == {}
    assert most == 4


def test_a_key_that_fails_waits_for_its_round() -> None:
    """Rounds stay rounds when attempts run side by side: what failed goes again when the others have landed."""
    retry, t = retrier(Policy(batch=1, workers=2))
    asked: list[str] = []

    async def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        asked.append(keys[0])
        return [LOST if keys[0] == "a" and asked.count("a") < 3 else OK]

    result = asyncio.run(retry.run("get", ["a", "b", "c"], attempt, deadline=t_deadline(t)))
    assert asked == ["a", "b", "c", "a", "a"]
    assert (result.failures, len(t.naps)) == ({}, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_attempt_that_never_ends_is_cancelled_at_the_deadline(workers: int) -> None:
    """The caller's deadline wins over attempts that ignore it, and they have ended when the run has."""
    retry = AsyncRetrier(Policy(batch=1, workers=workers))
    ended: list[str] = []

    async def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        if keys[0] == "quick":
            return [OK]
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(keys[0])
        return [OK]

    began = time.monotonic()
    result = asyncio.run(retry.run("get", ["quick", "slow"], attempt, deadline=Deadline(0.05)))
    assert time.monotonic() - began < 10
    assert {key: end.reason for key, end in result.settled.items()} == {"quick": None, "slow": Reason.DEADLINE}
    assert ended == ["slow"]
    assert retry.statistics().quarantined == ("",)  # silence until the deadline is a failure


def test_nested_runs_end_together_at_the_one_deadline() -> None:
    """A run inside a run inside a run: one deadline for all, and each layer says so."""
    outer, inner = AsyncRetrier(Policy(batch=1, workers=2)), AsyncRetrier(Policy())

    async def never(_keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        await asyncio.Event().wait()
        return [OK]

    async def attempt(keys: Sequence[str], _endpoint: str, deadline: Deadline) -> Sequence[Answer[str]]:
        result = await inner.run("inner", keys, never, deadline=deadline)
        assert result.settled[keys[0]].reason is Reason.DEADLINE
        return [LOST]

    began = time.monotonic()
    result = asyncio.run(outer.run("outer", ["a", "b"], attempt, deadline=Deadline(0.05)))
    assert time.monotonic() - began < 10
    assert {end.reason for end in result.settled.values()} == {Reason.DEADLINE}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cancelled_run_leaves_no_attempt_behind(workers: int) -> None:
    """Cancellation reaches the attempts and is waited for."""
    retry = AsyncRetrier(Policy(batch=1, workers=workers))
    ended: list[str] = []

    async def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(keys[0])
        return [OK]

    async def main() -> None:
        task = asyncio.ensure_future(retry.run("get", ["a", "b"], attempt, deadline=Deadline(30.0)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == ["a", "b"][:workers]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [ZeroDivisionError, TimeoutError])
def test_an_exception_of_an_attempt_goes_up_unchanged(workers: int, error: type[Exception]) -> None:
    """What was not classed is not retried, be it a timeout."""
    retry, t = retrier(Policy(batch=1, workers=workers))

    async def attempt(_keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        raise error("a bug")

    with pytest.raises(error, match="a bug"):
        asyncio.run(retry.run("get", ["k", "l"], attempt, deadline=t_deadline(t)))


def test_answers_that_do_not_fit_are_not_believed_and_clocks_must_be_one() -> None:
    """The same checks as in the calling thread."""
    retry, t = retrier(Policy())
    result = asyncio.run(retry.run("get", ["k"], scripted([], [OK, OK], [OK]), deadline=t_deadline(t)))
    assert result.settled["k"].attempts == 3
    with pytest.raises(BadArgument, match="another clock"):
        asyncio.run(retry.run("get", ["k"], scripted([OK]), deadline=Deadline(1.0)))


@pytest.mark.parametrize(("level", "lines"), [(logging.INFO, 2), (logging.DEBUG, 0)])
def test_each_round_is_one_line(caplog: pytest.LogCaptureFixture, level: int, lines: int) -> None:
    """However many attempts a round has; an inner retrier's rounds are for DEBUG."""
    t = Time()
    retry = AsyncRetrier(Policy(batch=1, workers=4), clock=t.clock, sleep=t.sleep, level=level)

    async def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        return [OK if t.naps[1:] else LOST]

    with caplog.at_level(logging.INFO, logger="penstock.retry"):
        asyncio.run(retry.run("get", ["x", "y", "z"], attempt, deadline=t_deadline(t)))
    assert len(caplog.records) == lines
    assert all("3 of 3 keys failed (3 x reset)" in record.getMessage() for record in caplog.records)


# -- one key, at the price of its attempt -----------------------------------------------------------------------------


def test_settling_one_key_counts_as_a_run_does() -> None:
    """Whether the first attempt succeeds, fails once or is final: the same end and the same counts as by ``run``."""
    for script in ([[OK]], [[LOST], [OK]], [[LOST]] * 3, [[GONE]], [[], [OK]]):
        seen = []
        for settling in (True, False):
            retry, t = retrier(Policy(max_attempts=3))
            at = {"deadline": t_deadline(t), "endpoints": ["a", "b"]}
            attempt = scripted(*script)
            if settling:
                end = asyncio.run(retry.settle("get", "k", attempt, **at))  # type: ignore[arg-type]
            else:
                end = asyncio.run(retry.run("get", ["k"], attempt, **at)).settled["k"]  # type: ignore[arg-type]
            seen.append((end, t.naps, retry.statistics()))
        assert seen[0] == seen[1], script


def test_a_first_attempt_goes_where_the_machine_would_have_sent_it() -> None:
    """Past what is held; its failure is that endpoint's, and the next attempt is at the following one."""
    retry, t = retrier(Policy(max_attempts=3))
    retry.health.quarantine.failed("a", t.now)
    asked: list[str] = []

    async def attempt(_keys: Sequence[str], endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        asked.append(endpoint)
        retry.health.quarantine.lift("a")  # meanwhile: no reason to blame another for what "b" did
        return [LOST if len(asked) == 1 else OK]

    end = asyncio.run(retry.settle("get", "k", attempt, deadline=t_deadline(t), endpoints=["a", "b", "c"]))
    assert (asked, end.attempts) == (["b", "c"], 2)
    assert retry.statistics().quarantined == ("b",)


def test_a_first_attempt_that_takes_until_the_deadline_counts_as_failed() -> None:
    """Its endpoint is held, and it is not tried again."""
    retry, t = retrier(Policy(max_attempts=3))

    async def attempt(_keys: Sequence[str], _endpoint: str, deadline: Deadline) -> Sequence[Answer[str]]:
        t.now = deadline.at
        return [LOST]

    end = asyncio.run(retry.settle("get", "k", attempt, deadline=t_deadline(t), endpoints=["a"]))
    assert (end.reason, end.code, end.attempts) == (Reason.DEADLINE, "reset", 1)
    assert (retry.statistics().attempts, retry.statistics().quarantined) == (1, ("a",))
    late = asyncio.run(retry.settle("get", "k", attempt, deadline=t_deadline(t, 0.0), endpoints=["a"]))
    assert (late.reason, late.attempts) == (Reason.DEADLINE, 0)


@pytest.mark.parametrize("failures", [0, 1])
def test_an_inner_run_that_is_ended_from_outside_at_the_deadline_blames_its_endpoint(failures: int) -> None:
    """Silence until the deadline is a failure, whichever layer notices first; cancelled before it, nobody is blamed."""
    for timeout_s, blamed in ((0.05, True), (30.0, False)):
        outer, inner = AsyncRetrier(Policy(batch=1, workers=2)), AsyncRetrier(Policy(base_s=0.0, cap_s=0.0))
        waits = asyncio.Event()

        async def never(
            _keys: Sequence[str],
            _endpoint: str,
            _deadline: Deadline,
            left: list[int] = [failures],  # noqa: B006
            waits: asyncio.Event = waits,
        ) -> Sequence[Answer[str]]:
            if left[0]:
                left[0] -= 1
                return [LOST]
            waits.set()
            await asyncio.Event().wait()
            return [OK]

        async def attempt(
            keys: Sequence[str], _endpoint: str, deadline: Deadline, inner: AsyncRetrier = inner
        ) -> Sequence[Answer[str]]:
            await inner.settle("inner", keys[0], never, deadline=deadline, endpoints=["x", "y"])
            return [OK]

        async def main(
            timeout_s: float = timeout_s,
            outer: AsyncRetrier = outer,
            waits: asyncio.Event = waits,
            attempt: AsyncAttempt[str] = attempt,
        ) -> None:
            work = asyncio.ensure_future(outer.run("outer", ["k"], attempt, deadline=Deadline(timeout_s)))
            await waits.wait()
            if timeout_s > 1:
                work.cancel()
            await asyncio.gather(work, return_exceptions=True)

        asyncio.run(main())
        last = ("x", "y")[failures]
        assert (last in inner.statistics().quarantined) == blamed


@pytest.mark.parametrize("failures", [0, 1])
def test_a_run_that_is_cancelled_at_its_deadline_blames_who_was_silent(failures: int) -> None:
    """The run round it noticed the deadline first: whether it was the first attempt that was out or a later one."""
    retry, t = retrier(Policy(base_s=0.0, cap_s=0.0))
    waits = asyncio.Event()
    answers = [LOST] * failures

    async def attempt(_keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        if answers:
            return [answers.pop()]
        waits.set()
        await asyncio.Event().wait()
        return [OK]

    async def main() -> None:
        deadline = t_deadline(t, 10.0)
        work = asyncio.ensure_future(retry.settle("get", "k", attempt, deadline=deadline, endpoints=["x", "y"]))
        await waits.wait()
        t.now = deadline.at
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(main())
    assert retry.statistics().quarantined == ("x", "y")[: failures + 1]


def test_an_endpoint_is_passed_over_while_it_is_held_and_another_is_free() -> None:
    """Not for being second, and not when all are held: nobody starves."""
    retry, t = retrier(Policy())
    assert not retry.passes_over("b", ["a", "b"])
    retry.health.quarantine.failed("b", t.now)
    assert retry.passes_over("b", ["a", "b"])
    assert not retry.passes_over("b", ["b"])
    retry.health.quarantine.failed("a", t.now)
    assert not retry.passes_over("b", ["a", "b"])
    t.now += 30.0
    assert not retry.passes_over("b", ["a", "b"])
