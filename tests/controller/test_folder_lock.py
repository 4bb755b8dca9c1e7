"""One controller at a time drives a run; the lock ends with its process, and not before its last write."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.controller.events import Ordered
from penstock.controller.folder_lock import LOCK_NAME, FolderLock
from penstock.controller.record import ControllerRecord, RecordFile
from penstock.errors import ControllerError
from penstock.plane.noop import NoOpDataPlaneClient
from tests.controller.planes import life, run_to_end, told

SOON_S = 20.0
HOLDER = """
import sys
from pathlib import Path
from penstock.controller.folder_lock import FolderLock
FolderLock(Path(sys.argv[1])).take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[FolderLock]:
    made = FolderLock(tmp_path / "run")
    yield made
    made.leave()


def test_a_folder_is_made_and_locked_once(lock: FolderLock, tmp_path: Path) -> None:
    """A second controller of this process is refused, by whatever path; after the first has left it is not."""
    lock.take()
    assert (tmp_path / "run" / LOCK_NAME).read_text() == str(os.getpid())
    other = FolderLock(tmp_path / "run" / ".." / "run")
    with pytest.raises(ControllerError, match="of this process drives"):
        other.take()
    other.leave()
    lock.leave()
    lock.leave()
    third = FolderLock(tmp_path / "run")
    third.take()
    third.leave()


def test_another_process_is_named_and_its_end_frees_the_folder(lock: FolderLock, tmp_path: Path) -> None:
    """kill -9 leaves no lock behind."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ControllerError, match=f"process {holder.pid} drives"):
            lock.take()
        holder.kill()
    lock.take()


def test_a_folder_that_cannot_be_used_is_an_error_that_says_so(tmp_path: Path) -> None:
    """A file in its place."""
    (tmp_path / "file").touch()
    with pytest.raises(ControllerError, match="cannot use the run's folder"):
        FolderLock(tmp_path / "file").take()
    with pytest.raises(ControllerError, match="cannot use the run's folder"):
        FolderLock(tmp_path / "file").take()  # and is not held by us


def test_work_under_way_holds_the_folder(lock: FolderLock, tmp_path: Path) -> None:
    """Who has left begins nothing more; what he had begun ends first."""
    begun, release = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        release.wait(SOON_S)

    lock.take()
    working = threading.Thread(target=lock.use, args=(slow,))
    working.start()
    begun.wait(SOON_S)
    lock.leave()
    with pytest.raises(ControllerError, match="is over"):
        lock.use(slow)
    with pytest.raises(ControllerError, match="drives"):
        FolderLock(tmp_path / "run").take()
    release.set()
    working.join()
    after = FolderLock(tmp_path / "run")
    after.take()
    after.leave()


def test_two_controllers_do_not_drive_one_run(tmp_path: Path) -> None:
    """The second is refused before it has done anything; the first goes on to its end."""

    async def run() -> None:
        with NoOpDataPlaneClient() as plane:
            async with life(plane.peer, tmp_path, max_steps=3) as first, life(plane.peer, tmp_path) as second:
                first.trainer.delay_s = 0.05
                running = asyncio.create_task(first.controller.run())
                await told(first, Ordered)
                with pytest.raises(ControllerError, match="drives the run"):
                    await second.controller.run()
                assert second.events == []
                assert (await running).step == 3

    asyncio.run(run())


def test_a_write_that_hung_does_not_fall_into_the_next_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The life that was cancelled in it is over; the next one waits outside until the disk has answered."""
    release, hangs, save = threading.Event(), threading.Event(), RecordFile.save

    def slow(self: RecordFile, record: ControllerRecord) -> None:
        if record.life == 1 and record.step == 1:
            hangs.set()
            release.wait(SOON_S)
        save(self, record)

    monkeypatch.setattr(RecordFile, "save", slow)

    async def run() -> None:
        with NoOpDataPlaneClient() as plane:
            async with life(plane.peer, tmp_path) as made:
                shop = made.trainer.shop
                running = asyncio.create_task(made.controller.run())
                await asyncio.to_thread(hangs.wait, SOON_S)
                running.cancel()
                await asyncio.wait([running])
            with pytest.raises(ControllerError, match="drives the run"):
                await run_to_end(plane.peer, tmp_path, shop=shop)
            release.set()
            while True:
                try:
                    result, again = await run_to_end(plane.peer, tmp_path, shop=shop)
                    break
                except ControllerError:  # the thread is on its way out
                    await asyncio.sleep(0.01)
            assert result.step == 4
            assert set(again.trainer.shop.prompts.values()) == {1}

    asyncio.run(run())
