"""The file of a run's events: what is told is there, in order; what is not is counted; the caller never waits."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.controller.event_file import EVENTS_NAME, EventFile, read_events
from penstock.controller.events import Committed, Missed, Paused, Popped, RunEvent, Started, Trained
from penstock.errors import BadArgument, DataPlaneWriteError, EventsCorrupt

WAIT_S = 30.0


def paused(number: int, life: int = 1) -> Paused:
    return Paused(at=float(number), life=life, why=f"reason {number}")


def lines_of(events: list[RunEvent]) -> bytes:
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)


def test_what_was_told_is_read_back_in_order(tmp_path: Path) -> None:
    """Every event of every kind of field comes back equal; the file's folders are made."""
    told: list[RunEvent] = [
        Started(at=1.5, life=1, step=0, cursor=0, open_prompts=0),
        Committed(
            at=2.0, life=1, group_id="r.0.0", prompt=0, keys=["r.0.0_g0"], version=0, end_version=1, size_bytes=9
        ),
        Trained(at=3.0, life=1, step=1, groups=["r.0.0"], rows=1, seconds=0.5, metrics={"reward": 0.25}),
        Popped(at=3.5, life=1, step=1, keys=["r.0.0_g0"], lost=["r.0.0_g0"]),
        *(paused(i) for i in range(3000)),
    ]
    path = tmp_path / "deep" / "run" / EVENTS_NAME
    with EventFile(path) as events:
        for event in told:
            events(event)
    assert read_events(path) == read_events(path.parent) == told
    now = events.statistics()
    assert (now.written, now.waiting, now.missed, now.failing) == (len(told), 0, 0, "")
    assert now.size_bytes == path.stat().st_size
    assert "closed" in repr(events)


def test_lives_append_to_one_file(tmp_path: Path) -> None:
    """The next life's events stand behind those of the last."""
    path = tmp_path / EVENTS_NAME
    for life in (1, 2, 3):
        with EventFile(path) as events:
            events(paused(life, life))
    assert [event.life for event in read_events(path)] == [1, 2, 3]


@given(cut=st.integers(min_value=0), kept=st.integers(min_value=0, max_value=3))
def test_a_torn_last_line_is_left_out_and_then_cut_off(
    cut: int, kept: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever a kill tore the last line, the others are read, and the next life writes behind them."""
    path = tmp_path_factory.mktemp("torn") / EVENTS_NAME
    whole: list[RunEvent] = [paused(i) for i in range(kept)]
    last = lines_of([Paused(why="x" * 200)])
    torn = last[: cut % len(last)]
    path.write_bytes(lines_of(whole) + torn)
    unfinished = [Paused(why="x" * 200)] if len(torn) == len(last) - 1 else []  # only its newline is missing
    assert read_events(path) == [*whole, *unfinished]
    with EventFile(path) as events:
        events(paused(99))
    assert read_events(path) == [*whole, *unfinished, paused(99)]


def test_a_torn_line_longer_than_one_look_is_cut_off(tmp_path: Path) -> None:
    """The end of the last whole line is found however far back it is."""
    path = tmp_path / EVENTS_NAME
    path.write_bytes(lines_of([paused(0)]) + lines_of([Paused(why="y" * 300_000)])[:-5])
    with EventFile(path) as events:
        events(paused(1))
    assert read_events(path) == [paused(0), paused(1)]


@pytest.mark.parametrize("damage", [b"{}", b"not json", b"", b"\xff\xfe", b"[" * 5000, b'{"type":"Paused","why":3}'])
def test_damage_before_the_tail_names_its_line(damage: bytes, tmp_path: Path) -> None:
    """A whole line that is no event is an error with its number: nothing is guessed."""
    path = tmp_path / EVENTS_NAME
    path.write_bytes(lines_of([paused(0), paused(1)]) + damage + b"\n" + lines_of([paused(2)]))
    with pytest.raises(EventsCorrupt, match="line 3") as caught:
        read_events(path)
    assert caught.value.line == 3


@given(st.binary(max_size=300))
def test_any_bytes_are_events_or_a_documented_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """The reader's errors are ``EventsCorrupt`` alone."""
    path = tmp_path_factory.mktemp("fuzz") / EVENTS_NAME
    path.write_bytes(data)
    with contextlib.suppress(EventsCorrupt):
        read_events(path)


def test_no_file_is_a_bad_argument(tmp_path: Path) -> None:
    """A path that is not there is the caller's mistake, named."""
    with pytest.raises(BadArgument, match=r"events\.jsonl"):
        read_events(tmp_path)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    """Two processes do not write into one file; once the first is dead the next one may, though a child of it lives."""
    path = tmp_path / EVENTS_NAME
    code = f"""
import os, time
from pathlib import Path
from penstock.controller.event_file import EventFile
events = EventFile(Path({str(path)!r}))
child = os.fork()
if not child:
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    child = int(writer.stdout.readline())
    try:
        with pytest.raises(DataPlaneWriteError, match="another process"):
            EventFile(path)
        writer.kill()
        writer.wait(WAIT_S)
        os.kill(child, 0)  # it lives
        EventFile(path).close()
    finally:
        writer.kill()
        os.kill(child, signal.SIGKILL)
        writer.stdout.close()
    with pytest.raises(DataPlaneWriteError, match="cannot take events"):
        EventFile(tmp_path)


class Stuck:
    """A disk that does not answer until it is told to."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._write = os.write

    def write(self, descriptor: int, data: bytes) -> int:
        self.reached.set()
        assert self.go_on.wait(WAIT_S)
        return self._write(descriptor, data)


def test_a_full_queue_drops_counts_and_says_so_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs the caller goes on; what did not fit is a number in the file, where it is missing."""
    disk, path = Stuck(), tmp_path / EVENTS_NAME
    monkeypatch.setattr(os, "write", disk.write)
    events = EventFile(path, max_queued=10)
    events(paused(0))
    assert disk.reached.wait(WAIT_S)
    for number in range(1, 31):
        events(paused(number))
    assert events.statistics().missed == 20
    assert events.statistics().waiting == 11
    disk.go_on.set()
    events.close(WAIT_S)
    read = read_events(path)
    assert read[:-1] == [paused(i) for i in range(11)]
    assert isinstance(read[-1], Missed)
    assert (read[-1].events, read[-1].at, read[-1].life) == (20, 30.0, 1)
    assert events.statistics().missed == 20


def test_a_disk_that_hangs_does_not_hang_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``close`` returns at its deadline and says what it leaves."""
    disk = Stuck()
    monkeypatch.setattr(os, "write", disk.write)
    events = EventFile(tmp_path / EVENTS_NAME)
    events(paused(0))
    assert disk.reached.wait(WAIT_S)
    events.close(timeout_s=0.01)
    assert "did not answer" in caplog.text
    disk.go_on.set()
    events.close(WAIT_S)
    assert read_events(tmp_path) == [paused(0)]


class Full:
    """A disk that takes half of what it is given, then nothing, until there is room."""

    def __init__(self) -> None:
        self.failures, self.room = 0, False
        self.failed = threading.Event()
        self._write = os.write
        self._half = True

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room:
            return self._write(descriptor, data)
        if self._half:
            self._half = False
            return self._write(descriptor, bytes(data[: len(data) // 2]))
        self._half = True
        self.failures += 1
        if self.failures >= 2:
            self.failed.set()
        raise OSError(28, "No space left on device")


def test_a_full_disk_keeps_events_waiting_and_the_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed write is undone and tried again; when there is room nothing is missing. Both are logged, once each."""
    disk = Full()
    monkeypatch.setattr(os, "write", disk.write)
    with EventFile(tmp_path / EVENTS_NAME, retry_s=0.01) as events:
        events(paused(0))
        assert disk.failed.wait(WAIT_S)
        assert "No space left" in events.statistics().failing
        assert "failing" in repr(events)
        events(paused(1))
        disk.room = True
    assert read_events(tmp_path) == [paused(0), paused(1)]
    assert events.statistics().missed == 0
    said = [record.levelno for record in caplog.records]
    assert said == [logging.ERROR, logging.WARNING]


def test_a_disk_that_stays_full_is_given_up_at_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be written by then is counted and logged; the file holds whole lines only."""
    path = tmp_path / EVENTS_NAME
    path.write_bytes(lines_of([paused(0)]))
    disk = Full()
    monkeypatch.setattr(os, "write", disk.write)
    events = EventFile(path, retry_s=60.0)
    for number in (1, 2, 3):
        events(paused(number))
    events.close(WAIT_S)
    assert disk.failures
    assert events.statistics().missed == 3
    assert "3 events were not kept" in caplog.text
    assert path.read_bytes() == lines_of([paused(0)])


def test_a_real_limit_of_the_kernel_is_survived(tmp_path: Path) -> None:
    """Past the process's file size limit writes fail for real, after a part of them: only whole lines stay."""
    path = tmp_path / EVENTS_NAME
    code = f"""
import resource
from pathlib import Path
from penstock.controller.event_file import EventFile
from penstock.controller.events import Paused
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
events = EventFile(Path({str(path)!r}), retry_s=0.01)
for number in range(50):
    events(Paused(why=f"reason {{number}}"))
events.close()
now = events.statistics()
assert now.failing and now.missed, now
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr
    read_events(path)
    assert path.read_bytes()[-1:] in (b"", b"\n")


def test_numbers_of_numpy_and_not_finite_ones_are_kept(tmp_path: Path) -> None:
    """A trainer's metrics are whatever it measured; what is not finite comes back as None."""
    metrics: dict[str, Any] = {"a": np.float32(0.5), "b": float("nan"), "c": float("inf"), "d": np.int64(3)}
    with EventFile(tmp_path / EVENTS_NAME) as events:
        events(Trained(step=1, groups=[], rows=0, seconds=0.0, metrics=metrics))
    (read,) = read_events(tmp_path)
    assert isinstance(read, Trained)
    assert read.metrics == {"a": 0.5, "b": None, "c": None, "d": 3.0}


@pytest.mark.parametrize("why", ["\ud800", object(), None, 3])
def test_an_event_that_cannot_be_written_is_missed_and_named(why: object, tmp_path: Path) -> None:
    """One line that cannot be read back would make the file unreadable: a line that says so stands in its place."""
    with EventFile(tmp_path / EVENTS_NAME) as events:
        events(paused(0))
        events(Paused(at=7.0, why=why))  # type: ignore[arg-type]
        events(paused(1))
    before, missed, after = read_events(tmp_path)
    assert (before, after) == (paused(0), paused(1))
    assert isinstance(missed, Missed)
    assert (missed.events, missed.at) == (1, 7.0)
    assert "Paused" in missed.why
    assert events.statistics().missed == 1


def test_after_close_events_are_counted_only(tmp_path: Path) -> None:
    """A late event breaks nothing; closing twice is closing."""
    events = EventFile(tmp_path / EVENTS_NAME)
    events.close()
    events.close()
    events(paused(0))
    assert events.statistics().missed == 1
    assert read_events(tmp_path) == []
    assert not any("events.jsonl" in thread.name for thread in threading.enumerate())
    with pytest.raises(BadArgument):
        EventFile(tmp_path / "other", max_queued=0)


def test_kill_9_leaves_a_file_that_is_read(tmp_path: Path) -> None:
    """A writer killed in full flight leaves a prefix of what it told, at worst with one torn line."""
    path = tmp_path / EVENTS_NAME
    code = f"""
from pathlib import Path
from penstock.controller.event_file import EventFile
from penstock.controller.events import Paused
events = EventFile(Path({str(path)!r}))
print("go", flush=True)
number = 0
while True:
    if events.statistics().waiting < 1000:
        events(Paused(at=float(number), why="z" * 500))
        number += 1
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"go\n"
        while path.stat().st_size < 200_000:
            assert writer.poll() is None
    finally:
        writer.kill()
        assert writer.wait(WAIT_S) == -signal.SIGKILL
        if writer.stdout is not None:
            writer.stdout.close()
    numbers = [event.at for event in read_events(path)]
    assert numbers == [float(i) for i in range(len(numbers))]
    assert len(numbers) > 100
    with EventFile(path) as events:
        events(paused(0))
    assert read_events(path)[-1] == paused(0)
