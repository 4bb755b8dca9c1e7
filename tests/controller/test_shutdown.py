"""A run ends when it is asked to, in every state, within its limit, and leaves nothing; what hangs is named."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.config import ClientConfig
from penstock.controller.config import ControllerConfig
from penstock.controller.events import Dispatched, Finished, Ordered, Paused, RunEvent
from penstock.controller.record import ControllerRecord, RecordFile
from penstock.controller.shutdown import Shutdown, stack_of
from penstock.controller.single import RunResult
from penstock.errors import ControllerError
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from tests.controller.toys import Cast, Shop, cast, config
from tests.server.harness import PlaneProcess

LIMIT_S = 5.0  # of any shutdown; the default configuration aims at 4.5
SOON_S = 20.0
QUICK: dict[str, Any] = {"heartbeat_s": 0.2, "dead_after_s": 0.8, "resume_grace_s": 0.8, "max_bytes": 16 << 20}


# -- the steps of an end ----------------------------------------------------------------------------------------------


def test_a_step_that_hangs_is_left_behind_and_named_down_to_where_it_waits(tmp_path: Path) -> None:
    """The next step is done all the same; the stacks show the innermost wait of the one that hangs."""

    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    async def hangs() -> None:
        await waits_for_ever()

    async def run() -> list[str]:
        shutdown = Shutdown(tmp_path, 5.0)
        await shutdown.step("the slow one", hangs(), 0.05)
        await shutdown.step("the next", asyncio.sleep(0), 1.0)
        return shutdown.overdue

    assert asyncio.run(run()) == ["the slow one"]
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "left behind: the slow one" in stacks
    assert "in waits_for_ever" in stacks
    assert "most recent call first" in stacks  # all threads, by faulthandler


def test_a_step_that_fails_is_told_and_the_next_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No stacks are written for a failure."""

    async def fails() -> None:
        raise OSError("gone")

    async def run() -> list[str]:
        shutdown = Shutdown(tmp_path, 5.0)
        await shutdown.step("the goodbye", fails(), 1.0)
        return shutdown.overdue

    assert asyncio.run(run()) == []
    assert "the goodbye failed" in caplog.text
    assert not (tmp_path / "stacks.txt").exists()


def test_all_steps_together_have_one_limit(tmp_path: Path) -> None:
    """What an earlier step has used up a later one does not have."""

    async def run() -> tuple[list[str], float]:
        shutdown = Shutdown(tmp_path, 0.2)
        began = time.monotonic()
        for name in ("one", "two", "three"):
            await shutdown.step(name, asyncio.sleep(3600), 0.15)
        return shutdown.overdue, time.monotonic() - began

    overdue, took = asyncio.run(run())
    assert overdue == ["one", "two", "three"]
    assert took < 2.0


def test_stacks_that_cannot_be_written_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder may be gone, or the disk full: the end goes on."""

    async def run() -> None:
        await Shutdown(tmp_path / "nowhere", 5.0).step("the slow one", asyncio.sleep(3600), 0.01)

    asyncio.run(run())
    assert "cannot be written" in caplog.text
    assert "the slow one" in caplog.text


def test_the_stack_of_a_task_goes_down_to_its_innermost_wait() -> None:
    """``Task.get_stack`` would show the outermost coroutine alone."""

    async def inner() -> None:
        await asyncio.sleep(3600)

    async def outer() -> None:
        await inner()

    async def run() -> list[str]:
        task = asyncio.create_task(outer())
        await asyncio.sleep(0)
        names = [frame.f_code.co_name for frame in stack_of(task)]
        task.cancel()
        return names

    assert asyncio.run(run())[:3] == ["outer", "inner", "sleep"]


# -- a run in every state ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """What a run began in this process is gone after it."""
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + SOON_S
    while (left := set(threading.enumerate()) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[PlaneProcess]:
    with PlaneProcess(tmp_path / "plane", **QUICK) as process:
        yield process


def joined(plane: PlaneProcess) -> DataPlaneClient:
    return LocalDataPlaneClient(plane.data_dir, config=ClientConfig(timeout_s=2.0))


@asynccontextmanager
async def life(connect: Callable[[], DataPlaneClient], folder: Path, **options: Any) -> AsyncIterator[Cast]:
    """A cast, closed after the run."""
    changes = {name: options.pop(name) for name in list(options) if name in ControllerConfig.__struct_fields__}
    made = cast(connect, folder, options.pop("shop", Shop()), config(**{"max_steps": 1000, **changes}), **options)
    try:
        yield made
    finally:
        await made.generator._plane.close(timeout_s=1.0)
        await made.trainer._plane.close(timeout_s=1.0)


async def told(made: Cast, kind: type[RunEvent]) -> None:
    """Wait for an event."""
    until = time.monotonic() + SOON_S
    while not made.of(kind):
        assert time.monotonic() < until, f"no {kind.__name__}: {made.events}"
        await asyncio.sleep(0.005)


async def ends(running: asyncio.Task[RunResult], began: float) -> float:
    """How long it took from ``began``."""
    await asyncio.wait([running], timeout=4 * LIMIT_S)
    assert running.done(), "the run does not end"
    return time.monotonic() - began


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_stop_before_the_run_begins_is_heeded(tmp_path: Path) -> None:
    """``stop`` comes from anywhere, at any time; nothing is dispatched."""

    async def run() -> None:
        plane = NoOpDataPlaneClient()
        async with life(plane.peer, tmp_path) as made:
            made.controller.stop("never mind")
            result = await asyncio.wait_for(made.controller.run(), LIMIT_S)
            assert (result.reason, result.dispatched) == ("never mind", 0)
        plane.close()

    asyncio.run(run())


def test_stop_while_the_plane_never_comes(plane: PlaneProcess, tmp_path: Path) -> None:
    """A life that finds no plane waits for it, and not longer than it is wanted."""

    async def run() -> None:
        async with life(lambda: joined(plane), tmp_path, recover_deadline_s=100.0) as made:
            plane.kill()  # it is served by hand: nobody starts another
            running = asyncio.create_task(made.controller.run())
            await asyncio.sleep(0.3)
            made.controller.stop()
            assert await ends(running, time.monotonic()) < LIMIT_S
            assert running.result().dispatched == 0

    asyncio.run(run())


def test_stop_while_the_plane_is_away(plane: PlaneProcess, tmp_path: Path) -> None:
    """In the middle of a recovery: what is out stays open, for the next life."""

    async def run() -> None:
        async with life(lambda: joined(plane), tmp_path, recover_deadline_s=100.0, call_timeout_s=0.5) as made:
            running = asyncio.create_task(made.controller.run())
            await told(made, Ordered)
            plane.kill()
            await told(made, Paused)
            made.controller.stop()
            assert await ends(running, time.monotonic()) < LIMIT_S
            result = running.result()
            assert result.dispatched == result.trained + result.open

    asyncio.run(run())


def test_a_plane_that_never_comes_ends_the_run_by_its_deadline(plane: PlaneProcess, tmp_path: Path) -> None:
    """The error says what to do."""

    async def run() -> None:
        async with life(lambda: joined(plane), tmp_path, recover_deadline_s=0.4) as made:
            plane.kill()
            with pytest.raises(ControllerError, match="start it again"):
                await asyncio.wait_for(made.controller.run(), SOON_S)
            (last,) = made.of(Finished)
            assert not last.ok

    asyncio.run(run())


@pytest.mark.parametrize("who", ["generate run.0.0", "train step 1"])
@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_work_that_ignores_its_end_holds_up_nobody(how: str, who: str, tmp_path: Path) -> None:
    """It is left behind, and ``stacks.txt`` says which it is and where it stands."""
    release = asyncio.Event()

    async def ignores(*_: Any) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    async def run() -> None:
        plane = NoOpDataPlaneClient()
        async with life(plane.peer, tmp_path, step_stop_s=0.2) as made:
            if who.startswith("generate"):
                made.generator.generate = ignores  # type: ignore[method-assign, assignment]
            else:
                made.trainer.train = ignores  # type: ignore[method-assign, assignment]
            running = asyncio.create_task(made.controller.run())
            await told(made, Dispatched if who.startswith("generate") else Ordered)
            await asyncio.sleep(0.05)
            began = time.monotonic()
            if how == "stop":
                made.controller.stop()
            else:
                running.cancel()
            assert await ends(running, began) < LIMIT_S
        release.set()
        plane.close()

    asyncio.run(run())
    stacks = (tmp_path / "stacks.txt").read_text()
    assert who in stacks.splitlines()[0]
    assert "in ignores" in stacks


def test_a_generator_that_ignores_its_deadline_is_given_up(tmp_path: Path) -> None:
    """``generate_timeout_s`` holds whatever the generator does: its prompt goes again, and is trained."""
    stuck: list[str] = []
    release = asyncio.Event()

    async def run() -> None:
        plane = NoOpDataPlaneClient()
        async with life(plane.peer, tmp_path, max_steps=2, generate_timeout_s=0.2) as made:
            whole = made.generator.generate

            async def generate(prompt: Any, weight_version: int, group_id: str) -> None:
                if group_id == "run.1.0":
                    stuck.append(group_id)
                    while not release.is_set():
                        try:
                            await release.wait()
                        except asyncio.CancelledError:
                            continue
                await whole(prompt, weight_version, group_id)

            made.generator.generate = generate  # type: ignore[method-assign]
            running = asyncio.create_task(made.controller.run())
            await asyncio.wait([running], timeout=SOON_S)
            in_time = running.done()
            release.set()
            assert (await running).step == 2
            assert in_time
            assert made.trainer.shop.prompts[1] == 1
        plane.close()

    asyncio.run(run())
    assert stuck == ["run.1.0"]


def test_a_trainer_that_blocks_a_thread_holds_up_nobody(tmp_path: Path) -> None:
    """Its thread is its own; the run does not wait for it longer than ``step_stop_s``."""
    release = threading.Event()

    async def run() -> None:
        plane = NoOpDataPlaneClient()
        async with life(plane.peer, tmp_path, step_stop_s=0.3) as made:

            async def train(meta: Any, step: int) -> Any:
                await asyncio.to_thread(release.wait)

            made.trainer.train = train  # type: ignore[method-assign]
            running = asyncio.create_task(made.controller.run())
            await told(made, Ordered)
            began = time.monotonic()
            made.controller.stop()
            assert await ends(running, began) < 2.0
            assert running.result().open > 0
        release.set()
        plane.close()

    asyncio.run(run())


def test_a_step_that_ends_in_time_is_settled_before_the_end(tmp_path: Path) -> None:
    """``step_stop_s`` is for this: its rows are popped, and the next life begins after it."""

    async def run() -> None:
        plane = NoOpDataPlaneClient()
        async with life(plane.peer, tmp_path) as made:
            made.trainer.delay_s = 0.3
            running = asyncio.create_task(made.controller.run())
            await told(made, Ordered)
            made.controller.stop()
            assert await ends(running, time.monotonic()) < LIMIT_S
            assert running.result().step == 1
            assert made.trainer.shop.record is not None
        plane.close()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_a_plane_that_is_stopped_does_not_hold_up_the_end(how: str, plane: PlaneProcess, tmp_path: Path) -> None:
    """SIGSTOP: it answers nothing, not even the goodbye."""

    async def run() -> None:
        async with life(lambda: joined(plane), tmp_path, call_timeout_s=30.0) as made:
            running = asyncio.create_task(made.controller.run())
            await told(made, Ordered)
            with stopped(plane.pid):
                await asyncio.sleep(0.2)
                began = time.monotonic()
                if how == "stop":
                    made.controller.stop()
                else:
                    running.cancel()
                assert await ends(running, began) < LIMIT_S

    asyncio.run(run())


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_a_disk_that_hangs_does_not_hold_up_the_end(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is being saved and the disk does not answer: the error names the file."""
    release, hangs, save = threading.Event(), threading.Event(), RecordFile.save

    def slow(self: RecordFile, record: ControllerRecord) -> None:
        if record.step == 1:
            hangs.set()
            release.wait(SOON_S)
        save(self, record)

    monkeypatch.setattr(RecordFile, "save", slow)

    async def run() -> None:
        plane = NoOpDataPlaneClient()
        async with life(plane.peer, tmp_path) as made:
            running = asyncio.create_task(made.controller.run())
            await asyncio.to_thread(hangs.wait, SOON_S)
            began = time.monotonic()
            if how == "stop":
                made.controller.stop()
            else:
                running.cancel()
            assert await ends(running, began) < LIMIT_S
            if how == "stop":
                assert "controller.json" in str(running.exception())
            else:
                assert running.cancelled()
        release.set()
        plane.close()

    asyncio.run(run())


def test_a_cancelled_run_ends_in_order(plane: PlaneProcess, tmp_path: Path) -> None:
    """Cancelling the task that awaits ``run``, as ``asyncio.run`` does at Ctrl-C: generators end, the session too."""

    async def run() -> None:
        async with life(lambda: joined(plane), tmp_path) as made:
            made.generator.delay = lambda prompt: 3600.0 if prompt > 4 else 0.0
            running = asyncio.create_task(made.controller.run())
            await told(made, Ordered)
            sessions = len((await asyncio.to_thread(_status, plane)).sessions)
            began = time.monotonic()
            running.cancel()
            assert await ends(running, began) < LIMIT_S
            assert running.cancelled()
            others = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            assert not others
            left = len((await asyncio.to_thread(_status, plane)).sessions)
            assert left == sessions - 1, "the controller's session is still there"

    asyncio.run(run())


def _status(plane: PlaneProcess) -> Any:
    with LocalDataPlaneClient(plane.data_dir, start=False) as client:
        return client.status()


PROGRAM = """
import asyncio, sys
from pathlib import Path
from penstock.config import ClientConfig, PlaneConfig
from penstock.plane.local import LocalDataPlaneClient
from tests.controller.lives import NoWeights
from tests.controller.toys import Numbers, config
from penstock.controller.single import SingleController
folder = Path(sys.argv[1])

class Never:
    async def generate(self, prompt, weight_version, group_id):
        print("generating", flush=True)
        await asyncio.sleep(3600)
    async def last_step(self):
        return None

client = LocalDataPlaneClient(folder / "plane", plane=PlaneConfig(linger_s=0.1))
print("plane", client.status().pid, flush=True)
controller = SingleController(client, config(), prompts=Numbers(), generator=Never(), trainer=Never(),
                              weights=NoWeights(0.0), folder=folder)
asyncio.run(controller.run())
"""


def test_ctrl_c_ends_a_process_and_its_plane(tmp_path: Path) -> None:
    """SIGINT to a program that awaits a run: it says KeyboardInterrupt, ends in time, and its plane ends after it."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stderr is not None
    try:
        pid = int(program.stdout.readline().split()[1])
        assert program.stdout.readline() == "generating\n"
        began = time.monotonic()
        program.send_signal(signal.SIGINT)
        code = program.wait(4 * LIMIT_S)
        took = time.monotonic() - began
        said = program.stderr.read()
    finally:
        program.kill()
        program.stdout.close()
        program.stderr.close()
    assert took < LIMIT_S
    assert code == -signal.SIGINT
    assert said.strip().endswith("KeyboardInterrupt")
    until = time.monotonic() + SOON_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until, "the plane is still there"
        time.sleep(0.02)
