"""The plane is killed, stopped and comes back empty under a run; the event loop turns all the time."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.controller.events import Again, Ordered, Paused, Recovered, Trained
from penstock.errors import DataPlaneError
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from tests.controller.planes import QUICK, Lag, balanced, kill_plane, life, local, stopped, told
from tests.controller.toys import GROUP, Cast

SOON_S = 30.0
BACK_TO_WORK_S = 10.0  # wide: measured in hundredths of a second, aimed at 2
BLOCKED_S = 0.3  # wide: a call that blocks takes longer than this in every fault below


@asynccontextmanager
async def running(folder: Path, plane: Any = QUICK, **options: Any) -> AsyncIterator[tuple[Cast, LocalDataPlaneClient]]:
    """A run on a local plane, with a client of the test's own; the run is stopped at the end."""
    keeper = await asyncio.to_thread(local, folder, plane)
    try:
        async with life(lambda: local(folder, plane), folder, **{"max_steps": None, **options}) as made:
            driving = asyncio.create_task(made.controller.run())
            try:
                yield made, keeper
            finally:
                made.controller.stop()
                await asyncio.wait_for(driving, SOON_S)
    finally:
        await asyncio.to_thread(keeper.close)


def each_once(made: Cast) -> None:
    shop = made.trainer.shop
    assert set(shop.prompts.values()) == {1}
    assert set(shop.trained.values()) == {1}
    steps = [event.step for event in made.of(Trained)]
    assert steps == list(range(1, len(steps) + 1))


def back_at(client: LocalDataPlaneClient, incarnation: int) -> float:
    """Wait until another life of the plane answers a ping; return the moment, in seconds since the epoch."""
    until = time.monotonic() + SOON_S
    while time.monotonic() < until:
        try:
            client.ping(timeout_s=0.2)
            if client.get_capabilities(timeout_s=0.2).incarnation != incarnation:
                return time.time()
        except DataPlaneError:
            continue
    raise AssertionError("the plane did not come back")


async def kill_and_time(made: Cast, keeper: LocalDataPlaneClient) -> float:
    """kill -9 of the plane; return how long after it was back a step was made again."""
    before = await asyncio.to_thread(kill_plane, keeper)
    back = await asyncio.to_thread(back_at, keeper, before)
    until = time.monotonic() + SOON_S
    while not (later := [event.at for event in made.of(Trained) if event.at > back]):
        assert time.monotonic() < until, "no step is made any more"
        await asyncio.sleep(0.002)
    return float(later[0] - back)


# -- killed -----------------------------------------------------------------------------------------------------------


async def killed_often(folder: Path, kills: int, seed: int) -> list[float]:
    made_of = random.Random(seed)
    took = []
    async with running(folder) as (made, keeper):
        await told(made, Trained)
        for _ in range(kills):
            await asyncio.sleep(made_of.uniform(0.0, 0.1))
            took.append(await kill_and_time(made, keeper))
    each_once(made)
    assert len(made.of(Recovered)) > 1
    assert not any(event.empty for event in made.of(Recovered))
    with local(folder) as client:
        assert client.audit().residue == 0
        assert client.audit().partitions[0].lost == {}
    return took


def test_a_plane_that_is_killed_again_and_again_holds_up_nothing(tmp_path: Path) -> None:
    """At any moment of the run; it is started again by whoever misses it, and the next step follows at once."""
    assert max(asyncio.run(killed_often(tmp_path, 3, 1))) < BACK_TO_WORK_S


@pytest.mark.slow
def test_the_time_from_the_plane_back_to_the_next_step(tmp_path: Path) -> None:
    """Twelve kills: the figures are printed (pytest -s)."""
    took = asyncio.run(killed_often(tmp_path, 12, 2))
    print(f"\nplane back to next step: p50 {statistics.median(took):.3f} s, max {max(took):.3f} s of {len(took)} kills")
    assert max(took) < BACK_TO_WORK_S


def test_a_plane_that_lives_in_memory_comes_back_empty(tmp_path: Path) -> None:
    """Its rows are gone: the controller says so, lets their prompts go again, and trains each once."""

    async def run() -> None:
        plane = msgspec.structs.replace(QUICK, durability="memory")
        async with running(tmp_path, plane) as (made, keeper):
            made.trainer.delay_s = 0.05
            await told(made, Trained, 2)
            before = await asyncio.to_thread(kill_plane, keeper)
            await asyncio.to_thread(back_at, keeper, before)
            back = await told(made, Recovered, 2)
            assert back.empty
            assert back.kept == 0
            assert back.again > 0
            assert any("empty" in event.why for event in made.of(Again))
            await told(made, Trained, len(made.of(Trained)) + 3)
        each_once(made)

    asyncio.run(run())


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_the_loop_turns_while_the_plane_is_stopped_killed_and_the_run_ends(tmp_path: Path) -> None:
    """SIGSTOP for two seconds, kill -9, an end: no call of the plane is made on the event loop."""
    lag = Lag()

    async def run() -> None:
        async with lag.measured(), running(tmp_path, call_timeout_s=1.0) as (made, keeper):
            await told(made, Trained)
            pid = keeper.status().pid
            with stopped(pid):
                await asyncio.sleep(2.0)
            await told(made, Trained, len(made.of(Trained)) + 2)
            assert made.of(Paused), "the stop was not noticed"
            await kill_and_time(made, keeper)
        each_once(made)

    asyncio.run(run())
    assert lag.blocked_s < BLOCKED_S, f"loop {lag.loop_s:.3f} s, machine {lag.machine_s:.3f} s"


def slow_disk(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[float]:
    """Let every fsync take so long; returns the moments of all."""
    real, calls = os.fsync, list[float]()

    def fsync(descriptor: int) -> None:
        calls.append(time.monotonic())
        time.sleep(seconds)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return calls


def test_the_loop_turns_while_the_record_is_written_to_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second an fsync: the run is slow, and nothing else is."""
    calls = slow_disk(monkeypatch, 0.5)
    lag = Lag()

    async def run() -> None:
        with NoOpDataPlaneClient() as plane:
            async with lag.measured(), life(plane.peer, tmp_path, max_steps=1) as made:
                assert (await made.controller.run()).step == 1

    asyncio.run(run())
    assert len(calls) >= 4
    assert lag.blocked_s < BLOCKED_S, f"loop {lag.loop_s:.3f} s, machine {lag.machine_s:.3f} s"


def test_a_call_that_blocks_the_loop_is_seen(tmp_path: Path) -> None:
    """The measure itself: a listener that sleeps is what nobody may do."""
    lag = Lag()

    async def run() -> None:
        with NoOpDataPlaneClient() as plane:
            async with lag.measured(), life(plane.peer, tmp_path, max_steps=1) as made:
                made.controller._listeners.append(
                    lambda event: time.sleep(2 * BLOCKED_S) if isinstance(event, Ordered) else None
                )
                await made.controller.run()

    asyncio.run(run())
    assert lag.blocked_s > BLOCKED_S


def test_a_signal_to_the_plane_alone_is_no_end_of_the_run(tmp_path: Path) -> None:
    """SIGTERM ends an auto-started plane in order; the run starts another and goes on with its rows."""

    async def run() -> None:
        async with running(tmp_path) as (made, keeper):
            await told(made, Trained)
            now = await asyncio.to_thread(keeper.status)
            os.kill(now.pid, signal.SIGTERM)
            await asyncio.to_thread(back_at, keeper, now.incarnation)
            await told(made, Trained, len(made.of(Trained)) + 2)
        each_once(made)
        books = await asyncio.to_thread(_books, tmp_path)
        balanced(books, len(made.trainer.shop.trained))
        assert len(made.trainer.shop.trained) % GROUP == 0

    asyncio.run(run())


def _books(folder: Path) -> Any:
    with local(folder) as client:
        return client.audit()


def test_events_are_told_on_the_loop_and_in_order(tmp_path: Path) -> None:
    """Listeners need no lock: one thread tells them all."""
    threads: set[int] = set()

    async def run() -> None:
        with NoOpDataPlaneClient() as plane:
            async with life(plane.peer, tmp_path, max_steps=2) as made:
                made.controller._listeners.append(lambda event: threads.add(threading.get_ident()))
                await made.controller.run()
        stamps = [event.at for event in made.events]
        assert stamps == sorted(stamps)

    asyncio.run(run())
    assert threads == {threading.get_ident()}
