"""Reading a journal back, and repairing one that is damaged.

Invariants: recovery changes no file before it has read all of them; it yields each entry once, in order; every byte of
the segments that count is covered by a checksum, or it is the tail that is cut. Repair commits with one rename: a crash
in its middle leaves the damaged journal as it was, or the repaired one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NoReturn

import msgspec

from penstock.errors import JournalCorrupt
from penstock.ledger.facts import JOURNAL_VERSION, Entry
from penstock.ledger.journal_files import SegmentFiles, segment_name, segment_number
from penstock.ledger.journal_format import (
    FRAME_BYTES,
    HEADER_BYTES,
    Header,
    decode_entry,
    encode_header,
    find_frame,
    frame_end,
    new_header,
    read_header,
    seal,
)

__all__ = ["Damage", "Recovery", "repair_segments"]

_REMEDY = (
    "start with --repair to keep what is valid (the damaged files are kept aside as *.damaged), or restore the "
    "directory from a backup"
)
_REPAIRING = "repair.tmp"


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of a journal that could not be read."""

    file: str
    offset: int
    nbytes: int
    why: str


def _corrupt(file: str, offset: int, why: str, remedy: str = _REMEDY) -> NoReturn:
    raise JournalCorrupt(f"{file} at byte {offset}: {why}; {remedy}", missing=[f"{file}@{offset}"])


def _read(files: SegmentFiles, number: int) -> bytes:
    name = segment_name(number)
    try:
        return files.read(name)
    except OSError as error:
        _corrupt(files.where(name), 0, f"cannot be read ({error.strerror or error})", "mend the disk, then start again")


def _numbers(files: SegmentFiles) -> list[int]:
    try:
        names = files.names()
    except OSError as error:
        _corrupt(files.where(""), 0, f"cannot be listed ({error.strerror or error})", "mend the disk, then start again")
    return sorted(n for n in map(segment_number, names) if n is not None)


def _base_of(files: SegmentFiles, numbers: list[int]) -> int:
    """Return the first segment that counts: bases grow, so the newest whole header knows."""
    for number in reversed(numbers):
        header = read_header(_read(files, number))
        if header is not None:
            return header.base
    return 1


class Recovery:
    """One reading of a journal. ``entries()`` to its end, then ``finish()``."""

    def __init__(self, files: SegmentFiles) -> None:
        self.journal_id = 0
        self.base = 1
        self.next_entry = 0
        self.recovered = 0
        self.cut_bytes = 0
        self._files = files
        self._sizes: dict[int, int] = {}
        self._stale: list[int] = []
        self._cut: tuple[int, int] | None = None  # (segment, new size); size 0 = the file goes

    def entries(self) -> Iterator[Entry]:
        """Yield every entry of the segments that count. Changes no file."""
        numbers = self._live_segments()
        for number in numbers:
            yield from self._segment(number, last=number == numbers[-1])

    def finish(self) -> dict[int, int]:
        """Cut the bad tail, unlink what no longer counts; return the size of each segment that does."""
        if self._cut is not None:
            number, size = self._cut
            if size:
                self._files.truncate(segment_name(number), size)
            else:
                self._files.unlink(segment_name(number))
        for number in self._stale:
            self._files.unlink(segment_name(number))
        return dict(self._sizes)

    def _live_segments(self) -> list[int]:
        numbers = _numbers(self._files)
        if not numbers:
            return []
        self.base = _base_of(self._files, numbers)
        self._stale = [n for n in numbers if n < self.base]
        live = [n for n in numbers if n >= self.base]
        missing = set(range(self.base, numbers[-1] + 1)).difference(live)
        if missing:
            _corrupt(self._files.where(segment_name(min(missing))), 0, "the segment is missing")
        return live

    def _segment(self, number: int, last: bool) -> Iterator[Entry]:
        data = _read(self._files, number)
        if not self._check_header(data, number, last):
            return
        view, offset, entries = memoryview(data), HEADER_BYTES, 0
        while end := frame_end(view, number, offset):
            yield self._decode(view[offset + FRAME_BYTES : end], number, offset)
            offset, entries = end, entries + 1
        self.next_entry += entries
        self.recovered += entries
        self._sizes[number] = offset
        if offset < len(data):
            self._cut_tail(data, number, offset, last)

    def _check_header(self, data: bytes, number: int, last: bool) -> bool:
        """Whether the segment is to be read; False: it is the torn beginning of the last one."""
        header = read_header(data)
        file = self._files.where(segment_name(number))
        if header is None:
            self._cut_tail(data, number, 0, last)
            return False
        if header.version != JOURNAL_VERSION:
            remedy = "start the version of Penstock that wrote it"
            _corrupt(file, 0, f"journal version {header.version}, this is {JOURNAL_VERSION}", remedy)
        if not self._sizes:  # the oldest segment that counts: nothing to compare it with
            self.journal_id, self.next_entry = header.journal_id, header.first_entry
        if header.number != number or header.journal_id != self.journal_id:
            _corrupt(file, 0, "the segment belongs to another place or another journal")
        if header.first_entry != self.next_entry:
            _corrupt(file, 0, f"{header.first_entry} entries should lie before it, there are {self.next_entry}")
        return True

    def _cut_tail(self, data: bytes, number: int, offset: int, last: bool) -> None:
        file = self._files.where(segment_name(number))
        if not last:
            _corrupt(file, offset, "damaged, and later segments exist")
        valid = find_frame(data, number, offset)
        if valid < len(data):
            _corrupt(file, offset, f"damaged, and a valid record lies behind at byte {valid}")
        self._cut = (number, offset)
        self.cut_bytes = len(data) - offset

    def _decode(self, payload: memoryview, number: int, offset: int) -> Entry:
        try:
            return decode_entry(payload)
        except msgspec.MsgspecError as error:
            _corrupt(self._files.where(segment_name(number)), offset, f"a valid record is not an entry ({error})")


def repair_segments(files: SegmentFiles) -> list[Damage]:
    """Rewrite a damaged journal with its valid frames; return what was dropped. A sound one is left alone."""
    if _is_sound(files):
        return []
    numbers = _numbers(files)
    base = _base_of(files, numbers)
    segments = {number: _read(files, number) for number in numbers if number >= base}
    headers = {number: read_header(data) for number, data in segments.items()}
    damage: list[Damage] = []
    payloads = [p for number, data in segments.items() for p in _salvage(files, number, data, damage)]
    damage += _gaps(files, range(base, numbers[-1]), segments)
    _write_repaired(files, numbers[-1] + 1, next((h for h in headers.values() if h), None), payloads)
    damaged = {d.file for d in damage}
    for number in numbers:
        name = segment_name(number)
        if files.where(name) in damaged:
            files.rename(name, f"{name}.damaged")
        else:
            files.unlink(name)
    return damage


def _is_sound(files: SegmentFiles) -> bool:
    try:
        for _ in Recovery(files).entries():
            pass
    except JournalCorrupt:
        return False
    return True


def _salvage(files: SegmentFiles, number: int, data: bytes, damage: list[Damage]) -> Iterator[bytes]:
    """Yield the payloads of a segment's valid frames; note each stretch between them."""
    file = files.where(segment_name(number))
    offset, view = HEADER_BYTES, memoryview(data)
    if read_header(data) is None:
        damage.append(Damage(file=file, offset=0, nbytes=min(len(data), HEADER_BYTES), why="damaged header"))
    while offset < len(data):
        start = find_frame(data, number, offset)
        if start > offset:
            damage.append(Damage(file=file, offset=offset, nbytes=start - offset, why="damaged records"))
        offset = start
        if end := frame_end(view, number, start):
            payload = data[start + FRAME_BYTES : end]
            offset = end
            try:
                decode_entry(payload)
            except msgspec.MsgspecError as error:
                damage.append(Damage(file=file, offset=start, nbytes=end - start, why=f"not an entry ({error})"))
            else:
                yield payload


def _gaps(files: SegmentFiles, wanted: range, present: Collection[int]) -> list[Damage]:
    return [
        Damage(file=files.where(segment_name(n)), offset=0, nbytes=0, why="the segment is missing")
        for n in wanted
        if n not in present
    ]


def _write_repaired(files: SegmentFiles, number: int, known: Header | None, payloads: list[bytes]) -> None:
    header = new_header(known.journal_id if known else 1, number, base=number, first_entry=0)
    out = bytearray(encode_header(header))
    for payload in payloads:
        out += seal(payload, number, len(out))
        out += payload
    files.unlink(_REPAIRING)
    files.create(_REPAIRING, bytes(out))
    files.rename(_REPAIRING, segment_name(number))
