"""The bytes of a journal segment: one header, then frames. Pure functions; no file is touched here.

    header   magic, version, journal id, segment number, first segment that counts, index of its first entry, checksum
    frame    marker, length, xxh3-64 of the payload, payload (one msgpack ``Entry``)

Invariants: a frame's checksum is seeded with its segment number and offset, so that a frame is valid only where it was
written; the marker makes the search for a valid frame behind damage a plain byte search. Numbers are little-endian.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec
import xxhash

from penstock.ledger.facts import JOURNAL_VERSION, Entry

__all__ = [
    "FRAME_BYTES",
    "HEADER_BYTES",
    "Bytes",
    "Header",
    "decode_entry",
    "encode_entry",
    "encode_header",
    "find_frame",
    "frame_end",
    "new_header",
    "read_header",
    "seal",
]

Bytes: TypeAlias = bytes | bytearray | memoryview

_MAGIC = b"PENSTOCK"
_HEADER = struct.Struct("<8sIQQQQ")
_CHECKSUM = struct.Struct("<Q")
_MARKER = b"\xc1\xf3pk"  # 0xc1 is the one byte that msgpack never uses as a tag
_FRAME = struct.Struct("<4sIQ")
_SPREAD = 0x9E3779B97F4A7C15  # odd, from the golden ratio: keeps (number, offset) pairs apart in 64 bits
_MASK = (1 << 64) - 1

HEADER_BYTES = _HEADER.size + _CHECKSUM.size
FRAME_BYTES = _FRAME.size

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)
encode_entry = _encoder.encode
decode_entry = _decoder.decode


class Header(msgspec.Struct, frozen=True):
    """What a segment says of itself.

    Attributes:
        version: of the format; another one is not read.
        journal_id: random, the same in all segments of one journal.
        number: of this segment; grows by one, never reused.
        base: the first segment that counts; older ones have been restated by a finished checkpoint.
        first_entry: how many entries the journal had before this segment.
    """

    version: int
    journal_id: int
    number: int
    base: int
    first_entry: int


def encode_header(header: Header) -> bytes:
    """Return the first ``HEADER_BYTES`` of a segment."""
    raw = _HEADER.pack(_MAGIC, header.version, header.journal_id, header.number, header.base, header.first_entry)
    return raw + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(raw))


def read_header(data: Bytes) -> Header | None:
    """Return a segment's header, None when it is torn or damaged."""
    if len(data) < HEADER_BYTES:
        return None
    raw = bytes(data[: _HEADER.size])
    magic, version, journal_id, number, base, first_entry = _HEADER.unpack(raw)
    (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    if magic != _MAGIC or checksum != xxhash.xxh3_64_intdigest(raw):
        return None
    return Header(version, journal_id, number, base, first_entry)


def new_header(journal_id: int, number: int, base: int, first_entry: int) -> Header:
    """Return the header of a segment that this version writes."""
    return Header(JOURNAL_VERSION, journal_id, number, base, first_entry)


def _checksum(payload: Bytes, number: int, offset: int) -> int:
    return xxhash.xxh3_64_intdigest(payload, (number * _SPREAD + offset) & _MASK)


def seal(payload: Bytes, number: int, offset: int) -> bytes:
    """Return the frame header of ``payload`` at ``offset`` of segment ``number``."""
    return _FRAME.pack(_MARKER, len(payload), _checksum(payload, number, offset))


def frame_end(data: memoryview, number: int, offset: int) -> int:
    """Return where the frame at ``offset`` ends, 0 when no valid frame begins there."""
    start = offset + FRAME_BYTES
    if start > len(data):
        return 0
    marker, length, checksum = _FRAME.unpack_from(data, offset)
    end: int = start + length
    if marker != _MARKER or length == 0 or end > len(data):
        return 0
    return end if checksum == _checksum(data[start:end], number, offset) else 0


def find_frame(data: bytes, number: int, offset: int) -> int:
    """Return the offset of the first valid frame at or behind ``offset``; ``len(data)`` when there is none."""
    view = memoryview(data)
    at = data.find(_MARKER, offset)
    while at >= 0:
        if frame_end(view, number, at):
            return at
        at = data.find(_MARKER, at + 1)
    return len(data)
