"""Steps one after another, in a task that lives while there are any."""

from __future__ import annotations

import asyncio

from penstock.endpoint.in_order import InOrder, Step
from penstock.errors import TransportError


def test_steps_are_carried_out_in_order_and_the_task_ends_with_them() -> None:
    """Also those that come while one is under way, and after a pause."""

    async def run() -> None:
        done: list[int] = []
        steps = InOrder("test", done.clear)  # type: ignore[arg-type]

        def step(n: int) -> Step:
            async def act() -> None:
                await asyncio.sleep(0)
                done.append(n)

            return act

        for n in range(3):
            steps.add(step(n))
        assert len(steps) == 3
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        steps.add(step(3))
        await asyncio.sleep(0.01)
        assert done == [0, 1, 2, 3]

    asyncio.run(run())


def test_a_failure_is_told_once_and_ends_it() -> None:
    """What was queued is not begun, what comes later neither; a bug is told as a failure."""

    async def run() -> None:
        told: list[str] = []

        async def fail() -> None:
            raise TransportError("no route", code="refused")

        async def bug() -> None:
            raise ZeroDivisionError("oops")

        async def never() -> None:
            told.append("never")

        for step, why in ((fail, "no route"), (bug, "ZeroDivisionError: oops")):
            told.clear()
            steps = InOrder("test", told.append)
            steps.add(step)
            steps.add(never)
            await asyncio.sleep(0.01)
            steps.add(never)
            await asyncio.sleep(0.01)
            assert told == [why]

    asyncio.run(run())


def test_a_stop_cancels_what_is_under_way() -> None:
    """And is no failure; it can be repeated."""

    async def run() -> None:
        told: list[str] = []
        steps = InOrder("test", told.append)

        async def hang() -> None:
            await asyncio.sleep(100)

        steps.add(hang)
        await asyncio.sleep(0)
        task = steps.stop()
        assert task is not None
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert steps.stop() is None
        assert told == []

    asyncio.run(run())
