"""From a loop to threads and back: lanes, deadlines, cancellation and the end, on calls that are only functions."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane import crossing as module
from penstock.plane.courier import MAX_ERRANDS
from penstock.plane.crossing import MAX_CALLS, MAX_CLAIMS, MAX_PUTS, Crossing
from penstock.plane.lanes import Job, Lane
from penstock.plane.recall import recallable
from penstock.retry import Deadline

SOON_S = 20.0


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test's coroutine on a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **options), 3 * SOON_S))

    return run


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.001)


class Held:
    """A call that returns when it is let go, or is recalled if it may be; notes with what deadline it was made."""

    def __init__(self, result: str = "result", *, recalls: bool = True) -> None:
        self.result = result
        self.recalls = recalls
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.left: list[float | None] = []

    def __call__(self, left: float | None) -> str:
        self.left.append(left)
        self.begun.set()
        if self.recalls:
            with recallable(self.let_go.set):
                assert self.let_go.wait(SOON_S)
        else:
            assert self.let_go.wait(SOON_S)
        return self.result


def started(
    crossing: Crossing, lane: Lane, call: Callable[[float | None], str], timeout_s: float | None = SOON_S, **more: Any
) -> asyncio.Task[str]:
    return asyncio.create_task(crossing.run(lane, "method", call, timeout_s, 30.0, **more))


def quick(left: float | None) -> float | None:
    return left


async def close(crossing: Crossing, shut: Callable[[], None] = lambda: None) -> None:
    await crossing.close(shut, SOON_S)
    assert [name for lane in crossing._lanes for name in lane.join(Deadline(0))] == []


# -- lanes and deadlines ----------------------------------------------------------------------------------------------


def test_the_default_limits_are_below_what_a_client_may_have_under_way() -> None:
    """All lanes full, a local client still takes every call."""
    assert MAX_CLAIMS + MAX_PUTS + MAX_CALLS + module.MAX_AFTERCARE <= MAX_ERRANDS


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "8"])
def test_limits_are_positive_integers(wrong: Any) -> None:
    """Anything else is a BadArgument that names the option."""
    for option in ("max_claims", "max_puts", "max_calls"):
        with pytest.raises(BadArgument, match=option):
            Crossing(**{"max_claims": 1, "max_puts": 1, "max_calls": 1, option: wrong})


@on_loop
async def test_a_full_lane_holds_up_no_other() -> None:
    """With every claim thread and every put thread in a call, other calls pass, and the end is reached."""
    crossing, claim, put = Crossing(1, 1, 1), Held(), Held()
    tasks = [started(crossing, crossing.claims, claim), started(crossing, crossing.puts, put)]
    await until(lambda: claim.begun.is_set() and put.begun.is_set())
    assert await crossing.run(crossing.calls, "ping", quick, 5.0, 30.0) == 5.0
    put.let_go.set()
    claim.let_go.set()
    assert await asyncio.gather(*tasks) == ["result", "result"]
    await close(crossing)


@on_loop
async def test_a_call_that_finds_a_thread_gets_its_timeout_as_it_is() -> None:
    """Nothing is taken off and nothing filled in: None stays the inner client's to read, and 0 is 0."""
    crossing = Crossing(1, 1, 3)
    for timeout_s in (None, 0.0, 7.5):
        assert await crossing.run(crossing.calls, "method", quick, timeout_s, 30.0) == timeout_s
    await close(crossing)


@on_loop
async def test_waiting_for_a_thread_counts() -> None:
    """A call that had to wait gets what is left of its time, of the default where it gave none."""
    crossing, first = Crossing(1, 1, 1), Held()
    blocked = started(crossing, crossing.claims, first)
    await until(first.begun.is_set)
    waited = time.monotonic()
    late = [
        asyncio.create_task(crossing.run(crossing.claims, "method", quick, timeout_s, 30.0))
        for timeout_s in (SOON_S, None)
    ]
    await until(lambda: crossing.claims.statistics().waiting == 2)
    await asyncio.sleep(0.05)
    waited = time.monotonic() - waited
    first.let_go.set()
    for left, given in zip(await asyncio.gather(*late), (SOON_S, 30.0), strict=True):
        assert left is not None
        assert left <= given - 0.05
    await blocked
    await close(crossing)


@pytest.mark.parametrize(("timeout_s", "default_s"), [(0.05, 30.0), (0.0, 30.0), (None, 0.05)])
@on_loop
async def test_a_call_that_gets_no_thread_in_time_is_not_made(timeout_s: float | None, default_s: float) -> None:
    """It is a DataPlaneTimeout at its deadline that says that the lane is full; the call never begins."""
    crossing, first, second = Crossing(1, 1, 1), Held(), Held()
    blocked = started(crossing, crossing.claims, first)
    await until(first.begun.is_set)
    with pytest.raises(DataPlaneTimeout, match=r"claim_meta: not begun .* all 1 threads .* max_claims") as caught:
        await crossing.run(crossing.claims, "claim_meta", second, timeout_s, default_s)
    assert caught.value.missing == ["a free thread for claims"]
    first.let_go.set()
    await blocked
    await close(crossing)
    assert second.left == []


@on_loop
async def test_a_thread_that_comes_too_late_does_not_make_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the loop had no time to say so: the thread itself sees that the deadline has passed."""
    monkeypatch.setattr(module, "_expire", lambda *_: None)
    monkeypatch.setattr(module, "LEAST_S", 0.01)
    crossing, first, second = Crossing(1, 1, 1), Held(), Held()
    blocked = started(crossing, crossing.claims, first)
    await until(first.begun.is_set)
    late = started(crossing, crossing.claims, second, 0.01)
    await asyncio.sleep(0.05)
    first.let_go.set()
    with pytest.raises(DataPlaneTimeout, match="not begun"):
        await late
    await blocked
    await close(crossing)
    assert second.left == []


@on_loop
async def test_bad_deadlines_are_refused_before_anything_is_done() -> None:
    """A negative or infinite timeout_s is a BadArgument, of close too, which closes nothing then."""
    crossing = Crossing(1, 1, 1)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BadArgument):
            await crossing.run(crossing.calls, "method", quick, wrong, 30.0)
        with pytest.raises(BadArgument):
            await crossing.close(pytest.fail, wrong)
    assert crossing.statistics().calls == 0
    await close(crossing)


@on_loop
async def test_a_call_sees_the_context_of_its_caller() -> None:
    """Context variables, of loggers and tracers for one, are those of the awaiting task."""
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    who.set("me")
    crossing = Crossing(1, 1, 1)
    assert await crossing.run(crossing.calls, "method", lambda _: who.get(), None, 30.0) == "me"
    await close(crossing)


def test_two_loops_share_one_crossing() -> None:
    """Calls of several loops, each in a thread, get their own results; closing in one closes for both."""
    crossing = Crossing(2, 2, 2)
    got: dict[int, list[int]] = {}

    def mine(me: int, n: int, _: float | None) -> tuple[int, int]:
        return me, n

    async def main(me: int) -> None:
        calls = [crossing.run(crossing.calls, "method", partial(mine, me, n), None, 30.0) for n in range(50)]
        got[me] = [n for who, n in await asyncio.gather(*calls) if who == me]
        await crossing.close(lambda: None, SOON_S)

    def loop(me: int) -> None:
        try:
            asyncio.run(main(me))
        except DataPlaneUnavailable:
            got.setdefault(me, [])

    threads = [threading.Thread(target=loop, args=(me,)) for me in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    assert list(range(50)) in got.values()
    assert all(of in ([], list(range(50))) for of in got.values())


@on_loop
async def test_a_call_keeps_nothing_alive_once_it_has_ended() -> None:
    """What it was given goes with it, error or not, without the garbage collector."""

    class Payload:
        pass

    async def call(crossing: Crossing, *, fails: bool) -> weakref.ref[Payload]:
        payload = Payload()

        def body(_: float | None) -> None:
            assert payload
            if fails:
                raise KeyError

        with contextlib.suppress(KeyError):
            await crossing.run(crossing.calls, "method", body, None, 30.0)
        return weakref.ref(payload)

    crossing = Crossing(1, 1, 1)
    gc.disable()
    try:
        for fails in (False, True):
            payload = await call(crossing, fails=fails)
            await until(lambda: payload() is None)  # noqa: B023 - called within this turn
    finally:
        gc.enable()
    await close(crossing)


# -- cancellation -----------------------------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@on_loop
async def test_a_cancelled_call_that_waits_for_a_thread_is_never_made() -> None:
    """It is withdrawn from its lane."""
    crossing, first, second = Crossing(1, 1, 1), Held(), Held()
    blocked, late = started(crossing, crossing.claims, first), started(crossing, crossing.claims, second)
    await until(lambda: first.begun.is_set() and crossing.claims.statistics().waiting == 1)
    await cancelled(late)
    assert crossing.claims.statistics().waiting == 0
    first.let_go.set()
    await blocked
    await close(crossing)
    assert second.left == []


@on_loop
async def test_a_cancelled_call_is_recalled_at_once() -> None:
    """Its thread is free again though nothing let the call go; there is nothing to give back."""
    crossing, call, given_back = Crossing(1, 1, 1), Held(), list[str]()
    task = started(crossing, crossing.claims, call, give_back=given_back.append)
    await until(call.begun.is_set)
    await cancelled(task)
    await until(lambda: crossing.claims.statistics().busy == 0)
    assert given_back == []
    assert crossing.statistics().left == 1
    await close(crossing)


@on_loop
async def test_what_a_call_brings_that_cannot_be_recalled_is_given_back() -> None:
    """The awaiter goes at once; the result is given back when it comes, in the call's own thread."""
    crossing, call, threads = Crossing(1, 1, 1), Held(recalls=False), list[str]()
    given_back: list[str] = []

    def give_back(result: str) -> None:
        threads.append(threading.current_thread().name)
        given_back.append(result)

    task = started(crossing, crossing.claims, call, give_back=give_back)
    await until(call.begun.is_set)
    await cancelled(task)
    assert given_back == []
    call.let_go.set()
    await until(lambda: given_back)
    assert (given_back, threads) == (["result"], ["penstock-aio-claims-1"])
    assert crossing.statistics().given_back == 1
    await close(crossing)


@pytest.mark.parametrize("moment", ["before the result arrives", "after it has arrived"])
@on_loop
async def test_a_result_that_came_and_was_not_received_is_given_back(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation in the very turn of the loop in which the result arrives loses nothing."""
    crossing, given_back, threads = Crossing(1, 1, 1), list[str](), list[str]()
    arrive = Job._arrive

    def give_back(result: str) -> None:
        threads.append(threading.current_thread().name)
        given_back.append(result)

    def cancel_then(self: Job[Any], value: Any, error: BaseException | None) -> None:
        if moment == "before the result arrives":
            task.cancel()
        arrive(self, value, error)
        if moment == "after it has arrived":
            assert self.future.done()
            task.cancel()

    monkeypatch.setattr(Job, "_arrive", cancel_then)
    task = started(crossing, crossing.claims, lambda _: "result", give_back=give_back)
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: given_back)
    monkeypatch.undo()
    await close(crossing)
    assert (given_back, threads) == (["result"], ["penstock-aio-aftercare-1"])


def test_a_loop_that_ends_without_its_tasks_loses_nothing() -> None:
    """Neither the call under way nor its result: both are given back when the call ends."""
    crossing, call, given_back = Crossing(1, 1, 1), Held(recalls=False), list[str]()
    loop = asyncio.new_event_loop()
    task = loop.create_task(crossing.run(crossing.claims, "method", call, SOON_S, 30.0, given_back.append))
    while not call.begun.is_set():
        loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    call.let_go.set()
    end = time.monotonic() + SOON_S
    while not given_back:
        assert time.monotonic() < end
        time.sleep(0.001)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    asyncio.run(close(crossing))
    assert given_back == ["result"]


@on_loop
async def test_an_error_is_no_cancellation() -> None:
    """A call that fails counts as ended, not as left."""
    crossing = Crossing(1, 1, 1)

    def fail(_: float | None) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await crossing.run(crossing.calls, "method", fail, None, 30.0)
    assert (crossing.statistics().calls, crossing.statistics().left) == (1, 0)
    assert crossing.statistics().lanes[-1].threads == 0
    await close(crossing)


# -- the end ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_closing_wakes_claims_at_once_and_then_waits_for_the_rest() -> None:
    """Claims raise DataPlaneUnavailable before the client has closed; what was sent else ends as the client says."""
    crossing, claim, put, queued, shutting = Crossing(1, 1, 1), Held(), Held(), Held(), threading.Event()
    given_back: list[str] = []
    tasks = [
        started(crossing, crossing.claims, claim, give_back=given_back.append),
        started(crossing, crossing.claims, queued, give_back=given_back.append),
    ]
    putting = started(crossing, crossing.puts, put)
    await until(lambda: claim.begun.is_set() and put.begun.is_set())

    def shut() -> None:
        assert shutting.wait(SOON_S)
        claim.let_go.set()
        put.let_go.set()

    closing = asyncio.create_task(crossing.close(shut, SOON_S))
    for task in tasks:
        with pytest.raises(DataPlaneUnavailable, match="method: the client was closed"):
            await task
    assert not closing.done()
    assert not putting.done()
    shutting.set()
    assert await putting == "result"
    await closing
    await close(crossing, pytest.fail)
    assert (given_back, queued.left) == ([], [])
    with pytest.raises(DataPlaneUnavailable, match="method: the client is closed"):
        await crossing.run(crossing.calls, "method", quick, None, 30.0)


@on_loop
async def test_a_close_that_is_cancelled_goes_on() -> None:
    """Its awaiter goes; who closes again waits for the same end, and the client is shut once."""
    crossing, begun, shutting, shut_times = Crossing(1, 1, 1), threading.Event(), threading.Event(), list[int]()

    def shut() -> None:
        begun.set()
        assert shutting.wait(SOON_S)
        shut_times.append(1)

    first = asyncio.create_task(crossing.close(shut, SOON_S))
    await until(begun.is_set)
    await cancelled(first)
    again = [asyncio.create_task(crossing.close(pytest.fail, SOON_S)) for _ in range(3)]
    await asyncio.sleep(0)
    shutting.set()
    await asyncio.gather(*again)
    assert shut_times == [1]
    await close(crossing)


@on_loop
async def test_a_close_that_is_cancelled_before_it_begins_to_wait_closes_all_the_same() -> None:
    """The thread is under way before the first point at which a cancellation can strike."""
    crossing, shut = Crossing(1, 1, 1), threading.Event()

    async def closing() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await crossing.close(shut.set, SOON_S)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(closing())
    await until(shut.is_set)
    await close(crossing, pytest.fail)


@on_loop
async def test_a_client_that_fails_to_close_says_so_to_all_who_close(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is raised after the threads have ended; threads that do not end are named."""
    crossing, call = Crossing(1, 1, 1), Held(recalls=False)
    task = started(crossing, crossing.puts, call)
    await until(call.begun.is_set)

    def shut() -> None:
        raise DataPlaneTimeout("no answer")

    for _ in range(2):
        with pytest.raises(DataPlaneTimeout, match="no answer"):
            await crossing.close(shut, 0.05)
    assert "penstock-aio-puts-1" in caplog.text
    call.let_go.set()
    assert await task == "result"


@on_loop
async def test_a_close_that_gets_no_thread_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was closed; the next close closes."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    crossing, shut = Crossing(1, 1, 1), threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(DataPlaneUnavailable, match="try again"):
            await crossing.close(shut.set, SOON_S)
    assert not shut.is_set()
    await close(crossing, shut.set)
    assert shut.is_set()


@on_loop
async def test_a_process_without_threads_refuses_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not begin has not happened, and is forgotten; a call that can be made later is."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    crossing = Crossing(1, 1, 1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(DataPlaneUnavailable, match="no thread left"):
            await crossing.run(crossing.claims, "method", quick, None, 30.0, lambda _: None)
    assert crossing._returnable == set()
    assert await crossing.run(crossing.claims, "method", quick, 5.0, 30.0) == 5.0
    await close(crossing)


@on_loop
async def test_a_forked_child_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent's threads are not there: it does not wait for them."""
    crossing = Crossing(1, 1, 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 0)
        with pytest.raises(DataPlaneUnavailable, match="fork"):
            await crossing.run(crossing.calls, "method", quick, None, 30.0)
    await close(crossing)
