"""The runner: carries out what the machine decides, on an injected clock; counts, logs and believes nobody."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from penstock.errors import BadArgument, BatchError, CorruptPayload, DataPlaneReadError, DataPlaneTimeout
from penstock.retry import DEFAULT, FIELD, NONE, Answer, Deadline, Kind, Policy, Reason, Retrier
from penstock.retry.run import MISALIGNED

OK: Answer[str] = Answer(Kind.OK, "value")
LOST: Answer[str] = Answer(Kind.RETRYABLE, code="-800")


class Time:
    """A clock that only its own sleep moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.naps: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def retrier(policy: Policy = DEFAULT) -> tuple[Retrier, Time]:
    t = Time()
    return Retrier(policy, clock=t.clock, sleep=t.sleep, rng=random.Random(5)), t


def scripted(*rounds: Sequence[Answer[str]]) -> Callable[[Sequence[str], str, Deadline], Sequence[Answer[str]]]:
    """An attempt function that answers as the script says, round by round, and then fails the test."""
    script = iter(rounds)
    return lambda _keys, _endpoint, _deadline: next(script)


def test_the_first_success_needs_no_sleep() -> None:
    """A call that succeeds costs one attempt and no wait."""
    retry, t = retrier()
    result = retry.run("get", ["k"], scripted([OK]))
    assert (result.settled["k"].value, result.settled["k"].attempts, result.failures) == ("value", 1, {})
    assert t.naps == []


def test_only_failed_keys_come_again_and_values_are_kept() -> None:
    """The value of a key that came in the first round survives the rounds of the others."""
    retry, t = retrier()
    asked = []

    def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        asked.append(list(keys))
        return [LOST if key == "y" and len(asked) < 3 else Answer(Kind.OK, key * 2) for key in keys]

    result = retry.run("get", ["x", "y", "x", "z"], attempt)
    assert asked == [["x", "y", "z"], ["y"], ["y"]]
    assert {key: end.value for key, end in result.settled.items()} == {"x": "xx", "y": "yy", "z": "zz"}
    assert [result.settled[key].attempts for key in "xyz"] == [1, 3, 1]
    assert len(t.naps) == 2


def test_the_callers_deadline_wins_over_the_policys() -> None:
    """Shorter or longer: the caller's counts; it reaches the attempt; and all ends by it."""
    for timeout_s in (1.0, 100.0):
        retry, t = retrier(Policy(max_attempts=10**6, bucket_tokens=0.0))
        deadline = Deadline(timeout_s, t.clock)
        seen: list[Deadline] = []

        def attempt(
            _keys: Sequence[str], _e: str, given: Deadline, seen: list[Deadline] = seen
        ) -> Sequence[Answer[str]]:
            seen.append(given)
            return [LOST]

        result = retry.run("get", ["k"], attempt, deadline=deadline)
        assert result.settled["k"].reason is Reason.DEADLINE
        assert t.now == pytest.approx(timeout_s)
        assert set(map(id, seen)) == {id(deadline)}


def test_a_deadline_on_another_clock_is_refused() -> None:
    """Two clocks cannot be compared."""
    retry, _ = retrier()
    with pytest.raises(BadArgument, match="another clock"):
        retry.run("get", ["k"], scripted([OK]), deadline=Deadline(1.0, time.monotonic))


def test_field_sleeps_a_second_between_four_tries() -> None:
    """One try plus three retries, exactly 1 s apart, and then each key's failure is raised."""
    retry, t = retrier(FIELD)
    result = retry.run("tensor get", ["a", "b"], scripted([OK, LOST], [LOST], [LOST], [LOST]))
    assert t.naps == [1.0, 1.0, 1.0]
    with pytest.raises(
        BatchError, match=r"tensor get: 1 of 2 keys failed within 3.000 s \(attempts: 1\): 'b'"
    ) as caught:
        result.require_all(DataPlaneReadError, partition="train")
    failure = caught.value.failures["b"]
    assert type(failure) is DataPlaneReadError
    assert (failure.attempts, failure.keys, failure.partition) == (4, ["b"], "train")
    assert "last code -800" in str(failure)


def test_errors_tell_deadline_and_damage_apart() -> None:
    """A key that ran out of time is a DataPlaneTimeout, a damaged one CorruptPayload, others the caller's class."""
    retry, t = retrier()
    bad: Answer[str] = Answer(Kind.CORRUPT, code="-801")

    def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        t.now += 0.6
        return [{"late": LOST, "bad": bad, "gone": Answer(Kind.MISSING)}[key] for key in keys]

    result = retry.run("get", ["late", "bad", "gone"], attempt, deadline=Deadline(1.0, t.clock))
    with pytest.raises(BatchError) as caught:
        result.require_all(DataPlaneReadError)
    kinds = {key: type(error) for key, error in caught.value.failures.items()}
    assert kinds == {"late": DataPlaneTimeout, "bad": CorruptPayload, "gone": DataPlaneReadError}


def test_when_all_succeeded_nothing_is_raised() -> None:
    """``require_all`` is silent on success."""
    retry, _ = retrier()
    retry.run("get", ["k"], scripted([OK])).require_all(DataPlaneReadError)


@pytest.mark.parametrize("reply", [[], [OK], [OK, OK, OK]], ids=["empty", "short", "long"])
def test_answers_that_do_not_fit_the_keys_are_not_believed(reply: list[Answer[str]]) -> None:
    """A short or long list gives nobody a value, on the first try and on a retry."""
    retry, _ = retrier()
    result = retry.run("get", ["x", "y"], scripted(reply, reply, [OK, OK]))
    assert [result.settled[key].attempts for key in "xy"] == [3, 3]
    assert retry.statistics().outcomes["get", MISALIGNED] == 4


def test_an_exception_of_an_attempt_goes_up_unchanged() -> None:
    """What was not classed is not retried."""
    retry, _ = retrier()

    def attempt(_keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        retry.run("get", ["k"], attempt)


def test_batches_of_a_round_run_side_by_side() -> None:
    """Four workers try four batches at the same time, in threads that have ended when the round has."""
    retry = Retrier(FIELD)
    together = threading.Barrier(4, timeout=30)

    def attempt(keys: Sequence[str], _endpoint: str, _deadline: Deadline) -> Sequence[Answer[str]]:
        together.wait()
        return [OK] * len(keys)

    result = retry.run("get", [str(i) for i in range(1600)], attempt)
    assert result.failures == {}
    assert retry.statistics().attempts == 4
    assert not [t for t in threading.enumerate() if t.name.startswith("penstock-retry")]


def test_a_wait_holds_no_lock() -> None:
    """While one caller waits, another runs to its end on the same retrier."""
    t = Time()

    def sleep(seconds: float) -> None:
        t.sleep(seconds)
        assert retry.run("other", ["k"], scripted([OK])).failures == {}
        assert retry.statistics().runs >= 2

    retry = Retrier(clock=t.clock, sleep=sleep, rng=random.Random(1))
    assert retry.run("get", ["k"], scripted([LOST], [OK])).failures == {}
    assert len(t.naps) == 1


def test_a_wait_keeps_no_worker_thread() -> None:
    """The pool of a round is gone before the wait begins."""
    t, alive = Time(), []

    def sleep(seconds: float) -> None:
        t.sleep(seconds)
        alive.append([thread for thread in threading.enumerate() if thread.name.startswith("penstock-retry")])

    retry = Retrier(Policy(batch=1, workers=4), clock=t.clock, sleep=sleep)
    retry.run("get", ["x", "y"], lambda keys, _e, _d: [LOST if t.now == 0 else OK for _ in keys])
    assert alive == [[]]


def test_threads_share_one_retrier() -> None:
    """Counts are exact when many callers run at once."""
    retry = Retrier(NONE)

    def call() -> None:
        for _ in range(50):
            retry.run("get", ["k"], lambda keys, _e, _d: [LOST for _ in keys])

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    counts = retry.statistics()
    assert (counts.runs, counts.attempts, counts.retries) == (200, 200, 0)
    assert counts.outcomes == {("get", "-800"): 200}
    assert counts.given_up == {("get", "attempts"): 200}


def test_statistics_are_one_moments_picture() -> None:
    """Counts by path and code; tokens and quarantine by endpoint; a later run does not change an earlier picture."""
    retry, t = retrier()
    retry.run("put", ["x", "y"], scripted([LOST, LOST], [OK, LOST], [OK]), endpoints=["a", "b"])
    before = retry.statistics()
    assert before.outcomes == {("put", "-800"): 3, ("put", "ok"): 2}
    assert (before.runs, before.attempts, before.retries, before.given_up) == (1, 3, 2, {})
    assert before.waited_s == pytest.approx(sum(t.naps))
    assert before.tokens == {"a": 9.0, "b": 9.65}  # b: half of its first batch failed, then one success
    assert before.quarantined == ("a",)
    retry.run("get", ["k"], scripted([LOST], [LOST], [OK]), endpoints=["c", "d"])
    assert retry.statistics().quarantined == ("a", "d")  # c answered after its failure
    assert before.runs == 1
    assert "2 runs, 6 attempts, 4 retries" in repr(retry)


def test_each_round_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A round with failures is one INFO line with counts, codes and abbreviated keys; a good one is DEBUG."""
    retry, _ = retrier()
    keys = [f"k{i}" for i in range(20)]
    with caplog.at_level(logging.DEBUG, logger="penstock.retry"):
        retry.run("byte get", keys, scripted([LOST] * 20, [OK] * 20))
    first, second = caplog.records
    assert (first.levelname, second.levelname) == ("INFO", "DEBUG")
    assert first.getMessage().startswith("byte get: round 1: 20 of 20 keys failed (20 x -800): 'k0', ")
    assert first.getMessage().endswith("and 12 more; again within 0.050 s")


def test_batches_of_one_round_are_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """However many attempts a round takes, it is logged once."""
    retry, _ = retrier(Policy(batch=1, max_attempts=1))
    with caplog.at_level(logging.INFO, logger="penstock.retry"):
        retry.run("get", ["x", "y", "z"], lambda keys, _e, _d: [LOST for _ in keys])
    assert [record.getMessage() for record in caplog.records] == [
        "get: round 1: 3 of 3 keys failed (3 x -800): 'x', 'y', 'z'; no further round"
    ]
