"""Keeps a run's events in a file, one JSON line each; several lives of the run append to one file.

Invariants: the caller never waits for the disk: a bounded queue, and one thread that writes, owned and joined here.
What is in the file is whole lines in the order of the calls; an event that could not be kept is counted, and a
``Missed`` line stands in its place as soon as one can be written. A disk that is full or fails does not end the run:
events wait in the queue, the write is tried again, and only what no longer fits into the queue is missed. What a life
had not finished writing when it was killed is cut off by the next one.
Nothing is synced: what was written survives kill -9 of the process, not a power loss.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from penstock.controller.events import Missed, RunEvent
from penstock.errors import BadArgument, DataPlaneWriteError, EventsCorrupt

__all__ = ["EVENTS_NAME", "EventFile", "EventFileStatistics", "iter_events", "read_events"]

EVENTS_NAME = "events.jsonl"  # in a run's folder
_BATCH = 1000  # events of one write
_CHUNK = 1 << 16  # bytes; of reading back for the end of the last whole line
_FULL = "the queue of events to be written was full"

_log = logging.getLogger(__name__)
_decoder = msgspec.json.Decoder(RunEvent)
_UNREADABLE = (
    msgspec.MsgspecError,
    UnicodeDecodeError,
    RecursionError,
)  # what decoding says of bytes that are no event


class EventFileStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the file was opened.

    Attributes:
        written: lines of the file, those that tell of missed events among them.
        waiting: events that are not yet.
        missed: events that never will be.
        size_bytes: of the file.
        failing: why it cannot be written at present; "" = it can.
    """

    written: int
    waiting: int
    missed: int
    size_bytes: int
    failing: str


class EventFile:
    """A listener that appends each event to ``path``.

    Args:
        path: the file; it and its folders are made if they are not there.
        max_queued: events that may wait for the disk.
        retry_s: a write that failed is tried again after this long.

    Raises:
        DataPlaneWriteError: the file cannot be opened, or another process writes to it.
    """

    def __init__(self, path: Path, *, max_queued: int = 50_000, retry_s: float = 1.0) -> None:
        if max_queued < 1:
            raise BadArgument(f"max_queued must be at least 1, got {max_queued}")
        self.path = path
        self._max_queued = max_queued
        self._retry_s = retry_s
        self._encoder = msgspec.json.Encoder(enc_hook=float)  # a trainer's metrics may be numpy's numbers
        self._changed = threading.Condition()
        self._queue: deque[RunEvent] = deque()
        self._gap = 0  # events that were missed after the last one in the queue
        self._last = (0.0, 0)  # when the last of them was, and in which life
        self._closed = False
        self._written = self._missed = self._out = 0
        self._failing = ""
        self._descriptor, self._size = _open(path)
        self._writer = threading.Thread(target=self._write, name=f"events to {path.name}", daemon=True)
        self._writer.start()

    def __repr__(self) -> str:
        now = self.statistics()
        state = "closed" if self._closed else f"failing: {now.failing}" if now.failing else "open"
        return f"EventFile({str(self.path)!r}, {state}, written={now.written}, missed={now.missed})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: RunEvent) -> None:
        """Take ``event``; from any thread; never waits for the disk."""
        with self._changed:
            if self._closed:
                self._missed += 1
                return
            if len(self._queue) >= self._max_queued:
                self._missed += 1
                self._gap += 1
                self._last = event.at, event.life
                return
            self._queue.append(event)
            self._changed.notify()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, then end the thread; what cannot be written is given up, counted and logged. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join(timeout_s)
        if self._writer.is_alive():
            _log.error("%s: the disk did not answer within %g s; %r is left to it", self.path, timeout_s, self)

    def statistics(self) -> EventFileStatistics:
        with self._changed:
            return EventFileStatistics(
                written=self._written,
                waiting=self._out + len(self._queue),
                missed=self._missed,
                size_bytes=self._size,
                failing=self._failing,
            )

    # -- the thread that writes ---------------------------------------------------------------------------------------

    def _write(self) -> None:
        try:
            while batch := self._next_batch():
                if not self._append(batch):
                    self._give_up()
                    return
        finally:
            os.close(self._descriptor)

    def _next_batch(self) -> list[RunEvent]:
        """Return what waits, at most ``_BATCH`` events; none = closed, and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._out = len(batch)
            if self._gap:  # there is room again, behind everything that was before them
                at, life = self._last
                self._queue.append(Missed(at=at, life=life, events=self._gap, why=_FULL))
                self._gap = 0
            return batch

    def _append(self, batch: Sequence[RunEvent]) -> bool:
        """Write ``batch``, however often it takes; False: it could not be, and the file is closed."""
        data = b"".join(self._line(event) for event in batch)
        closing = False
        while not self._try_write(data):
            if closing:
                return False
            with self._changed:
                closing = self._changed.wait_for(lambda: self._closed, self._retry_s)
        with self._changed:
            self._written += len(batch)
            self._out = 0
            self._size += len(data)
        return True

    def _line(self, event: RunEvent) -> bytes:
        """Return an event's line, which can be read back: one that is not would make the whole file unreadable."""
        try:
            line = self._encoder.encode(event)
            _decoder.decode(line)
        except (TypeError, UnicodeEncodeError, *_UNREADABLE) as error:  # a metric that is no number, half a character
            why = f"an event of type {type(event).__name__} cannot be written: {error}"
            _log.warning("%s: %s", self.path, why)
            with self._changed:
                self._missed += 1
            line = self._encoder.encode(Missed(at=event.at, life=event.life, events=1, why=ascii(why)))
        return line + b"\n"

    def _try_write(self, data: bytes) -> bool:
        try:
            if self._failing:
                os.ftruncate(self._descriptor, self._size)  # what the write that failed may have left
            _write_all(self._descriptor, data)
        except OSError as error:
            self._failed(str(error.strerror or error))
            return False
        if self._failing:
            _log.warning("%s is written again (it was: %s)", self.path, self._failing)
            self._failing = ""
        return True

    def _failed(self, why: str) -> None:
        if why != self._failing:
            _log.error("%s cannot be written: %s; the run goes on, its events wait in memory", self.path, why)
        self._failing = why

    def _give_up(self) -> None:
        with self._changed:
            self._missed += self._out + len(self._queue)
            self._out = 0
            self._queue.clear()
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, self._size)
        _log.error("%s: %d events were not kept: %s", self.path, self._missed, self._failing)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_events(path: Path) -> list[RunEvent]:
    """Return the events of a file, those of all lives, oldest first; see ``iter_events``."""
    return list(iter_events(path))


def iter_events(path: Path) -> Iterator[RunEvent]:
    """Yield the events of a file; ``path`` may be a run's folder. A last line that was never finished is left out.

    Raises:
        BadArgument: there is no such file, or it cannot be read.
        EventsCorrupt: a line before the last is no event.
    """
    path = path / EVENTS_NAME if path.is_dir() else path
    try:
        with path.open("rb") as file:
            yield from _events(path, file)
    except OSError as error:
        raise BadArgument(f"no events can be read from {path}: {error.strerror or error}") from error


def _events(path: Path, lines: Iterator[bytes]) -> Iterator[RunEvent]:
    for number, line in enumerate(lines, start=1):
        try:
            event = _decoder.decode(line)
        except _UNREADABLE as error:
            if not line.endswith(b"\n"):
                return  # its writer was killed, or is at it
            what = f"{path}, line {number} is no event, and others follow: {error or type(error).__name__}"
            raise EventsCorrupt(f"{what}; it is damaged, or a newer Penstock wrote it", line=number) from error
        yield event


# -- the file ----------------------------------------------------------------------------------------------------------


def _open(path: Path) -> tuple[int, int]:
    """Return a descriptor that appends to ``path``, and the file's size; its last line is whole."""
    descriptor = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no forked child that outlives us keeps it, as flock's
        return descriptor, _mend(path, descriptor)
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise DataPlaneWriteError(
                f"another process writes events to {path}; each run has a file of its own"
            ) from error
        raise DataPlaneWriteError(f"{path} cannot take events: {error.strerror or error}") from error


def _mend(path: Path, descriptor: int) -> int:
    """Finish or cut off a last line without an end; return the size."""
    size = os.fstat(descriptor).st_size
    tail = _after_last_newline(descriptor, size)
    if not tail:
        return size
    try:
        _decoder.decode(tail)
    except _UNREADABLE:
        os.ftruncate(descriptor, size - len(tail))
        _log.warning("%s: cut off the %d bytes of a line that was never finished", path, len(tail))
        return size - len(tail)
    _write_all(descriptor, b"\n")
    return size + 1


def _after_last_newline(descriptor: int, size: int) -> bytes:
    tail, end = b"", size
    while end and b"\n" not in tail:
        start = max(0, end - _CHUNK)
        tail = os.pread(descriptor, end - start, start) + tail
        end = start
    return tail[tail.rfind(b"\n") + 1 :]


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
