"""A run in which nothing moves says what is missing and who owes it, as the plane and the controller know it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.controller.event_file import EVENTS_NAME, iter_events
from penstock.controller.events import Stalled, Trained
from penstock.controller.record import ControllerRecord, RecordFile
from penstock.errors import ControllerError
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.testing.crew import Crew
from penstock.testing.faults import stop
from tests.controller.lives import serve_plane, steer, work
from tests.controller.planes import QUICK, life, local, told
from tests.controller.toys import GROUP, Cast

get_temp_dir()  # before the session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends

STALL_S = 0.6
SOON_S = 30.0


async def stalled(folder: Path, prepare: Callable[[Cast], None], plane: Any = QUICK, **options: Any) -> list[str]:
    """Run until it says that it stalls; return what it says. Each sentence is there once."""
    with local(folder, plane):
        options = {"orphan_grace_s": 60.0, "stall_timeout_s": STALL_S, **options}
        async with life(lambda: local(folder, plane), folder, **options) as made:
            prepare(made)
            running = asyncio.create_task(made.controller.run())
            event = await told(made, Stalled)
            made.controller.stop()
            await asyncio.wait_for(running, SOON_S)
    assert STALL_S <= event.seconds < STALL_S + 5.0
    assert len(set(event.owed)) == len(event.owed)
    assert isinstance(event.owed, list)
    return list(event.owed)


def the_one(sentences: list[str], *parts: str) -> str:
    """Return the sentence that holds all of ``parts``; there is exactly one."""
    found = [sentence for sentence in sentences if all(part in sentence for part in parts)]
    assert len(found) == 1, sentences
    return found[0]


def test_a_row_that_was_never_put_is_named_with_its_group_and_its_putter(tmp_path: Path) -> None:
    """A sibling is stuck: the group has one row of two, and the session that put it is named."""

    def prepare(made: Cast) -> None:
        made.generator.sizes = lambda prompt: 1 if prompt == 1 else GROUP

    owed = asyncio.run(stalled(tmp_path, prepare, max_prompts=3))
    the_one(owed, "'run.1.0' has 1 of 2 rows", f"pid {os.getpid()} ")
    the_one(owed, "2 of 3 groups", "ready")
    the_one(owed, "not fit to be trained", "run.1.0")


def test_a_column_that_no_stage_produces_is_named_with_its_stage(tmp_path: Path) -> None:
    """The partition starves: nobody has claimed its rows for the task that owes the column."""
    owed = asyncio.run(stalled(tmp_path, lambda made: None, fields=("x", "score"), tasks=("judge", "train")))
    the_one(owed, "field 'score' is not produced", "task 'train'", "task 'judge' has not acknowledged", "nobody")


def test_a_tag_that_never_comes_is_named(tmp_path: Path) -> None:
    """``ready_tag``: the groups are whole, and no later stage has said that they are ready."""
    owed = asyncio.run(stalled(tmp_path, lambda made: None, ready_tag="judged"))
    the_one(owed, "not fit to be trained", "'judged'", "run.0.0")


def test_a_plane_that_is_full_is_named_with_what_fills_it(tmp_path: Path) -> None:
    """Room for two groups, and a step that takes three: the put that waits and the rows that hold the room."""
    plane = msgspec.structs.replace(QUICK, max_rows=2 * GROUP)
    owed = asyncio.run(stalled(tmp_path, lambda made: None, plane))
    the_one(owed, "rows", "has waited for room", "nobody holds a lease")
    the_one(owed, "generators owe")


def test_a_replica_that_is_silent_is_named(tmp_path: Path) -> None:
    """Before it is reaped, too."""

    def prepare(made: Cast) -> None:
        made.generator.delay = lambda prompt: 3600.0
        made.controller.register("worker-7", "rollout")

    owed = asyncio.run(stalled(tmp_path, prepare, replica_dead_s=1.0))
    the_one(owed, "'worker-7' has been silent")
    the_one(owed, "generators owe 6 groups", "run.0.0")


def test_a_trainer_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """With the step that it owes."""

    def prepare(made: Cast) -> None:
        made.trainer.delay_s = 3600.0

    owed = asyncio.run(stalled(tmp_path, prepare, step_stop_s=0.1))
    the_one(owed, "the trainer owes step 1")


def test_a_worker_whose_heart_has_stopped_is_named_and_goes_on(tmp_path: Path) -> None:
    """SIGSTOP of a worker's process between its put and its commit: its session's silence and its group are told."""
    with Crew([stop("worker", at="between", nth=2, for_s=2.0)], tmp_path, limit_s=45.0) as crew:
        crew.start("plane", serve_plane, str(tmp_path), 1 << 20)
        crew.start("trainer", work, str(tmp_path), "trainer")
        crew.start("worker", work, str(tmp_path), "worker")
        options = {"max_steps": 2, "stall_timeout_s": 1.0, "orphan_grace_s": 60.0}
        crew.start("controller", steer, str(tmp_path), True, options)
        crew.play()
        (fired,) = crew.fired
    events = list(iter_events(tmp_path / EVENTS_NAME))
    sentences = next(event.owed for event in events if isinstance(event, Stalled))
    silence = the_one(sentences, f"pid {fired.pid} ", "1 groups that it put to are not whole")
    assert silence.startswith("the heartbeat of") or "without a goodbye: silent" in silence  # late, or too late by now
    the_one(sentences, f"pid {fired.pid} ", "group 'run.", "is not committed")
    assert [event.step for event in events if isinstance(event, Trained)] == [1, 2]


def test_a_run_that_may_not_stall_ends_with_what_is_owed(tmp_path: Path) -> None:
    """``on_stall="abort"``: the sentences are the error's."""

    async def run() -> None:
        with NoOpDataPlaneClient() as plane:
            async with life(plane.peer, tmp_path, stall_timeout_s=0.2, on_stall="abort") as made:
                made.trainer.delay_s = 3600.0
                with pytest.raises(ControllerError, match="the trainer owes step 1"):
                    await asyncio.wait_for(made.controller.run(), SOON_S)

    asyncio.run(run())


def test_a_disk_that_hangs_is_a_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes on while the record is not saved: the watchdog says so although the machine waits."""
    release, save = threading.Event(), RecordFile.save

    def slow(self: RecordFile, record: ControllerRecord) -> None:
        if record.step == 1:
            release.wait(SOON_S)
        save(self, record)

    monkeypatch.setattr(RecordFile, "save", slow)

    async def run() -> None:
        with NoOpDataPlaneClient() as plane:
            async with life(plane.peer, tmp_path, stall_timeout_s=0.2, max_steps=2) as made:
                running = asyncio.create_task(made.controller.run())
                event = await told(made, Stalled, 2)
                release.set()
                assert "controller.json" in event.owed[0]
                assert (await running).step == 2

    asyncio.run(run())
