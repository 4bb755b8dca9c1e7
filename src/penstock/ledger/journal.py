"""The journal: what a plane that died has promised. Append-only segments of framed entries, written before replies.

Invariants: an entry is recovered exactly as it was appended, or not at all; what ``flush`` returned from survives
kill -9; recovery yields a prefix of what was appended that holds everything flushed. Only a bad tail of the last
segment with no valid frame behind it is cut; anything else is ``JournalCorrupt`` and needs ``repair``. A journal that
failed to write never writes again. A segment's header names the first segment that counts: that is how a finished
checkpoint drops what it restated, in one step, before a file is unlinked.

The directory's lock is the caller's business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import msgspec

from penstock.errors import BadArgument, DataPlaneWriteError
from penstock.ledger.facts import Entry
from penstock.ledger.journal_files import DirectoryFiles, SegmentFiles, segment_name
from penstock.ledger.journal_format import HEADER_BYTES, encode_entry, encode_header, new_header, seal
from penstock.ledger.journal_recovery import Damage, Recovery, repair_segments
from penstock.points import reached

__all__ = ["AnyJournal", "Damage", "Journal", "JournalStatistics", "MemoryJournal"]


class JournalStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since ``open``; sizes in bytes.

    Attributes:
        segments, size_bytes: files that count, and their sum.
        recovered: entries that recovery yielded.
        cut_bytes: the bad tail that recovery cut.
        appended, flushes: entries and writes of this life.
    """

    segments: int
    size_bytes: int
    recovered: int
    cut_bytes: int
    appended: int
    flushes: int


class Journal:
    """A directory's journal, open for recovery and then for writing.

    ``for entry in journal.entries(): ...`` comes first; then ``append`` and ``flush`` (or ``with``, which closes).
    """

    def __init__(self, files: SegmentFiles, segment_bytes: int, damage: list[Damage]) -> None:
        self.damage = damage
        self._files = files
        self._segment_bytes = segment_bytes
        self._recovery = Recovery(files)
        self._buffer = bytearray()
        self._sizes: dict[int, int] = {}  # live segment -> bytes, oldest first
        self._number = self._base = self._journal_id = self._entries = 0
        self._checkpoint: int | None = None
        self._opening = False  # a checkpoint was begun and nothing has been written into it
        self._failed = ""
        self._reading = self._ready = False
        self._closed = False
        self._appended = self._flushes = 0

    @classmethod
    def open(
        cls, path: Path, segment_bytes: int, repair: bool = False, *, files: SegmentFiles | None = None
    ) -> Journal:
        """Open the journal in directory ``path``; a fresh directory is an empty journal.

        Args:
            path: the directory; made if it is not there.
            segment_bytes: a segment is closed at this size.
            repair: rewrite a damaged journal with what is valid in it; ``damage`` then says what was dropped, and the
                damaged files are kept beside it as ``*.damaged``.
            files: where segments lie, if not in ``path``.

        Raises:
            JournalCorrupt: a segment cannot be read, so that there is nothing to repair from.
            DataPlaneWriteError: the directory cannot be made or listed, or the repaired journal not be written.
        """
        if segment_bytes <= HEADER_BYTES:
            raise BadArgument(f"segment_bytes must exceed {HEADER_BYTES}, got {segment_bytes!r}")
        try:
            files = files if files is not None else DirectoryFiles(path)
            return cls(files, segment_bytes, repair_segments(files) if repair else [])
        except OSError as error:
            raise DataPlaneWriteError(f"the journal at {path} cannot be opened: {error.strerror or error}") from error

    def entries(self) -> Iterator[Entry]:
        """Yield what was appended, oldest first; afterwards the journal may be written.

        Raises:
            JournalCorrupt: damage that is not a torn tail; names file, offset and remedy. Nothing was changed.
        """
        if self._reading:
            raise BadArgument("entries() is consumed once, before the first append")
        self._reading = True
        yield from self._recovery.entries()
        with self._writing("finish its recovery"):
            self._sizes = self._recovery.finish()
        self._journal_id = self._recovery.journal_id or int.from_bytes(os.urandom(8), "little")
        self._entries, self._base = self._recovery.next_entry, self._recovery.base
        self._number = max(self._sizes, default=0)
        self._ready = True

    def append(self, entry: Entry) -> None:
        """Buffer ``entry``. It is not safe before ``flush`` has returned."""
        self._must_be_writable()
        assert entry.checkpoint or not self._opening, "a checkpoint's opening comes first: the rest builds on it"
        self._opening = False
        if not self._number:
            self._start_segment(self._base)
        payload = encode_entry(entry)
        self._buffer += seal(payload, self._number, self._sizes[self._number] + len(self._buffer))
        self._buffer += payload
        self._entries += 1
        self._appended += 1

    def flush(self) -> None:
        """Hand everything buffered to the kernel, in one write.

        Raises:
            DataPlaneWriteError: it could not be written (disk full, I/O error). What of it reached the file is not
                known; this journal writes nothing any more.
        """
        self._must_be_writable()
        if not self._buffer:
            return
        with self._writing(f"write {len(self._buffer)} bytes"):
            self._files.append(segment_name(self._number), self._buffer)
        reached("journal.written")
        self._sizes[self._number] += len(self._buffer)
        self._flushes += 1
        self._buffer.clear()
        if self._sizes[self._number] >= self._segment_bytes:
            self._start_segment(self._base)

    def begin_checkpoint(self) -> None:
        """From here on the caller restates everything alive, among its other entries. Begins anew if one was begun."""
        self.flush()
        self._start_segment(self._base)
        self._checkpoint = self._number
        self._opening = True

    def end_checkpoint(self) -> None:
        """Everything alive has been restated: older segments stop counting, then go."""
        self.flush()
        if self._checkpoint is None:
            raise BadArgument("end_checkpoint without begin_checkpoint")
        base, self._checkpoint = self._checkpoint, None
        self._start_segment(base)
        reached("journal.rebased")
        with self._writing("unlink segments before its checkpoint"):
            for number in [n for n in self._sizes if n < base]:
                self._files.unlink(segment_name(number))
                del self._sizes[number]

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments that count, what is buffered included."""
        return sum(self._sizes.values()) + len(self._buffer)

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(
            segments=len(self._sizes),
            size_bytes=self.size_bytes,
            recovered=self._recovery.recovered,
            cut_bytes=self._recovery.cut_bytes,
            appended=self._appended,
            flushes=self._flushes,
        )

    def close(self) -> None:
        """Flush what is buffered, unless the journal has failed, and close its file. Idempotent."""
        if self._closed:
            return
        try:
            if self._buffer and not self._failed:
                self.flush()
        finally:
            self._closed = True
            self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._failed or ("writable" if self._ready else "not recovered")
        return f"Journal({len(self._sizes)} segments, {self.size_bytes} bytes, {self._appended} appended, {state})"

    def _start_segment(self, base: int) -> None:
        number = self._number + 1
        header = encode_header(new_header(self._journal_id, number, base, self._entries))
        with self._writing("start a segment"):
            self._files.create(segment_name(number), header)
        reached("journal.rotated")
        self._number, self._base = number, base
        self._sizes[number] = len(header)

    def _must_be_writable(self) -> None:
        if self._failed:
            raise DataPlaneWriteError(self._failed)
        if self._closed:
            raise DataPlaneWriteError("the journal is closed")
        if not self._ready:
            raise DataPlaneWriteError("the journal has not been recovered: consume entries() first")

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Translate an I/O error, once, and for good."""
        try:
            yield
        except OSError as error:
            where = self._files.where(segment_name(self._number))
            self._failed = (
                f"the journal could not {what} at {where}: {error.strerror or error}; nothing more is written"
            )
            raise DataPlaneWriteError(self._failed) from error


class MemoryJournal:
    """The journal of durability ``memory``: nothing is kept, nothing is recovered."""

    damage: tuple[Damage, ...] = ()
    size_bytes = 0

    def __init__(self) -> None:
        self._appended = 0

    def entries(self) -> Iterator[Entry]:
        return iter(())

    def append(self, entry: Entry) -> None:  # noqa: ARG002
        self._appended += 1

    def flush(self) -> None: ...

    def begin_checkpoint(self) -> None: ...

    def end_checkpoint(self) -> None: ...

    def statistics(self) -> JournalStatistics:
        return JournalStatistics(segments=0, size_bytes=0, recovered=0, cut_bytes=0, appended=self._appended, flushes=0)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MemoryJournal({self._appended} appended, none kept)"


AnyJournal: TypeAlias = Journal | MemoryJournal
