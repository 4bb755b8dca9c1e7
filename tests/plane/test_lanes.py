"""Lanes: at most so many threads, work in order, and every result received or given back, once."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.plane.lanes import Job, Lane, Task
from penstock.retry import Deadline

SOON_S = 20.0


class Gate(Task):
    """Work that says when it has begun, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        super().__init__(self._pass)

    def _pass(self) -> None:
        self.begun.set()
        assert self.let_go.wait(SOON_S)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.001)


def ended(lane: Lane) -> None:
    lane.end()
    assert lane.join(Deadline(SOON_S)) == []


# -- lanes ------------------------------------------------------------------------------------------------------------


def test_threads_are_made_when_needed_up_to_the_limit() -> None:
    """An idle thread is used again; busy ones bring another, until there are ``limit``; then work waits, in order."""
    lane, done = Lane("calls", 2), list[int]()
    for n in range(3):
        assert lane.submit(Task(partial(done.append, n)))
        wait_for(lambda: len(done) > n and lane.statistics().busy == 0)  # noqa: B023 - called within this turn
    assert lane.statistics().threads == 1
    gates = [Gate(), Gate()]
    for gate in gates:
        lane.submit(gate)
        assert gate.begun.wait(SOON_S)
        assert not gate.queued
    late = [Task(partial(done.append, n)) for n in (3, 4)]
    assert [(lane.submit(task), task.queued) for task in late] == [(True, True)] * 2
    assert (lane.statistics().threads, lane.statistics().busy, lane.statistics().waiting) == (2, 2, 2)
    assert "2 of at most 2 threads busy, 2 waiting" in repr(lane)
    for gate in gates:
        gate.let_go.set()
    ended(lane)
    assert done == [0, 1, 2, 3, 4]


def test_threads_are_named_and_end_with_their_lane() -> None:
    """After ``end`` nothing is taken, what was taken is done, and no thread is left."""
    lane, gate, done = Lane("puts", 1), Gate(), list[int]()
    lane.submit(gate)
    lane.submit(Task(lambda: done.append(1)))
    assert gate.begun.wait(SOON_S)
    names = [thread.name for thread in threading.enumerate()]
    assert "penstock-aio-puts-1" in names
    lane.end()
    assert not lane.submit(Task(lambda: done.append(2)))
    assert lane.join(Deadline(0)) == ["penstock-aio-puts-1"]
    gate.let_go.set()
    ended(lane)
    assert done == [1]


def test_work_is_run_or_withdrawn_never_both() -> None:
    """What has begun cannot be withdrawn; what was withdrawn is never begun."""
    lane, gate, done = Lane("calls", 1), Gate(), list[int]()
    lane.submit(gate)
    assert gate.begun.wait(SOON_S)
    tasks = [Task(partial(done.append, n)) for n in range(3)]
    for task in tasks:
        lane.submit(task)
    assert not lane.withdraw(gate)
    assert lane.withdraw(tasks[0])
    assert not lane.withdraw(tasks[0])
    assert lane.withdraw_all() == tasks[1:]
    gate.let_go.set()
    ended(lane)
    assert done == []


def test_a_task_that_fails_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the thread goes on with the next."""
    lane, done = Lane("aftercare", 1), []
    lane.submit(Task(lambda: 1 / 0))
    lane.submit(Task(lambda: done.append(1)))
    ended(lane)
    assert done == [1]
    assert "ZeroDivisionError" in caplog.text


def test_without_threads_work_is_refused_or_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no thread left refuses the first work; a lane that has one lets more wait for it."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lane, gate, done = Lane("calls", 4), Gate(), []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(DataPlaneUnavailable, match="no thread left"):
            lane.submit(Task(lambda: done.append(0)))
    lane.submit(gate)
    assert gate.begun.wait(SOON_S)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        late = Task(lambda: done.append(1))
        lane.submit(late)
        assert late.queued
    gate.let_go.set()
    ended(lane)
    assert done == [1]


def test_an_idle_thread_keeps_nothing_of_its_last_call() -> None:
    """What a call was given is let go of when the call ends, not when the next one comes."""

    class Payload:
        pass

    lane, payload = Lane("puts", 1), Payload()
    gone = weakref.ref(payload)
    lane.submit(Task(partial(id, payload)))
    del payload
    wait_for(lambda: gone() is None)
    ended(lane)


def test_a_full_lane_says_what_to_do() -> None:
    """The error names the lane, its limit and the option."""
    error = Lane("claims", 7, "max_claims").full("claim_meta", Deadline(0))
    for words in ("claim_meta", "nothing was sent", "all 7 threads", "claims", "max_claims"):
        assert words in str(error)
    assert error.missing == ["a free thread for claims"]


# -- jobs -------------------------------------------------------------------------------------------------------------


def job_of(body: Callable[[], Any], unclaimed: Callable[[Any], None] = lambda _: None) -> Job[Any]:
    return Job("call", lambda _: body(), unclaimed)


def test_a_result_or_error_is_received() -> None:
    """The awaiter gets what the call returned or raised, the very object."""
    error = KeyError("x")

    def fail() -> None:
        raise error

    async def main() -> None:
        good, bad = job_of(lambda: 7), job_of(fail)
        for job in (good, bad):
            await asyncio.to_thread(job.run)
        assert await good.future == 7
        with pytest.raises(KeyError) as caught:
            await bad.future
        assert caught.value is error
        assert (good.failed, bad.failed) == (False, True)

    asyncio.run(main())


def test_a_call_that_raises_stop_iteration_does_not_hang() -> None:
    """No future takes a StopIteration; its awaiter gets a RuntimeError instead of nothing."""

    async def main() -> None:
        job = job_of(lambda: next(iter(())))
        await asyncio.to_thread(job.run)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(job.future, SOON_S)

    asyncio.run(main())


@pytest.mark.parametrize("leaves", ["before the call", "before it arrives", "after it arrives"])
def test_a_result_that_nobody_receives_is_disposed_of_once(leaves: str) -> None:
    """Whichever of leaving and arriving comes first, ``unclaimed`` gets the result, and gets it once."""
    unclaimed: list[int] = []

    async def main() -> None:
        job = job_of(lambda: 7, unclaimed.append)
        came = job.leave() if leaves == "before the call" else False
        thread = threading.Thread(target=job.run)
        thread.start()
        thread.join(SOON_S)  # blocks the loop on purpose: nothing can arrive meanwhile
        if leaves == "after it arrives":
            await asyncio.sleep(0)
            assert job.future.done()
        if leaves != "before the call":
            came = job.leave()
            assert came
        if came:
            job.dispose()
            job.dispose()

    asyncio.run(main())
    assert unclaimed == [7]


def test_a_result_for_a_loop_that_is_closed_is_disposed_of() -> None:
    """A loop that ended without cancelling its tasks receives nothing; the call's thread gives the result back."""
    unclaimed: list[int] = []

    async def main() -> Job[Any]:
        return job_of(lambda: 7, unclaimed.append)

    asyncio.run(main()).run()
    assert unclaimed == [7]


def test_disposing_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it, so it is not raised."""

    async def main() -> Job[Any]:
        return job_of(lambda: 0, lambda zero: print(1 // zero))

    asyncio.run(main()).run()
    assert "could not be given back" in caplog.text


def test_a_job_that_was_failed_ends_at_once_and_disposes_of_its_result() -> None:
    """Its awaiter has the error; what the call brings later is nobody's."""
    unclaimed: list[int] = []

    async def main() -> None:
        job = job_of(lambda: 7, unclaimed.append)
        job.fail(DataPlaneUnavailable("closed"))
        with pytest.raises(DataPlaneUnavailable):
            await job.future
        await asyncio.to_thread(job.run)

    asyncio.run(main())
    assert unclaimed == [7]


def test_an_error_that_nobody_receives_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio does not complain about the error of a call that was left."""

    async def main() -> None:
        job = job_of(lambda: 1 / 0)
        job.leave()
        await asyncio.to_thread(job.run)

    asyncio.run(main())
    gc.collect()
    assert caplog.text == ""
