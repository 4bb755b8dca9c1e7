"""The block: one put's columns, contiguous, self-describing and checksummed.

    prelude (64 bytes)   magic, version, header length, block id, block length, shapes length, xxh3-64 of these three
    header               msgpack: rows, and per column name, kind, dtype, row shape, bytes, xxh3-64
    shapes               int64 (rows, rank) per ragged column; for an object column the bytes of each row
    columns              in header order, each padded with zeros to 64 bytes, checksummed with its padding

Invariants: every byte of a block is covered by exactly one checksum; column places follow from order and length, so a
header cannot point anywhere; ``parse`` reads nothing outside the buffer and raises nothing but ``CorruptPayload``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from penstock.errors import CorruptPayload
from penstock.payload.dtypes import ITEM_BYTES, OBJECT

Bytes: TypeAlias = npt.NDArray[np.uint8]
Readable: TypeAlias = Bytes | memoryview | bytes | bytearray
Shapes: TypeAlias = npt.NDArray[np.int64]
Kind: TypeAlias = Literal["dense", "ragged", "object"]

ALIGN = 64  # a cache line, and enough for any vector load
MAGIC = b"PENSTOCK"
VERSION = 1
MAX_ROWS = 2**31
MAX_RANK = 60  # of one row; torch's iterators end at 64 dimensions

_PRELUDE = struct.Struct("<8sIIQQQ")  # magic, version, header bytes, block id, block bytes, shapes bytes
_CHECKSUM = struct.Struct("<Q")
PRELUDE_BYTES = 64
_CHECKSUM_AT = _PRELUDE.size
_CHECKED_AGAIN_AT = _CHECKSUM_AT + _CHECKSUM.size
_MAX_BYTES = float(2**62)  # above it int64 sums could wrap


class ColumnHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One column as written in the header. ``row_shape`` is empty unless dense; ``checksum`` has a fixed width."""

    name: str
    kind: Kind
    dtype: str
    rank: int
    row_shape: tuple[int, ...]
    nbytes: int
    checksum: bytes


class _Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    rows: int
    columns: tuple[ColumnHeader, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ColumnPlace:
    """A column found in a block: its header, where its bytes begin, and its rows' shapes (None when dense)."""

    header: ColumnHeader
    offset: int
    shapes: Shapes | None

    @property
    def end(self) -> int:
        """One past the column's last byte, padding not included."""
        return self.offset + self.header.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class BlockHeader:
    """What a block says of itself, checked against the buffer it lies in."""

    block_id: int
    rows: int
    nbytes: int
    columns: dict[str, ColumnPlace]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The layout of a block that is about to be written; ``columns`` carry no checksums yet."""

    rows: int
    columns: tuple[ColumnHeader, ...]
    shapes: tuple[Shapes, ...]
    header_bytes: int
    body: int
    nbytes: int


def padded(nbytes: int) -> int:
    """Return ``nbytes`` rounded up to the alignment of columns."""
    return -(-nbytes // ALIGN) * ALIGN


def plan(rows: int, columns: Sequence[ColumnHeader], shapes: Sequence[Shapes]) -> Plan:
    """Lay out a block. ``shapes`` are those of the columns that are not dense, in order."""
    header_bytes = len(msgspec.msgpack.encode(_Header(rows, tuple(columns))))
    body = padded(PRELUDE_BYTES + padded(header_bytes) + sum(s.nbytes for s in shapes))
    nbytes = body + sum(padded(c.nbytes) for c in columns)
    return Plan(rows, tuple(columns), tuple(shapes), header_bytes, body, nbytes)


def erase(out: Bytes) -> None:
    """Make ``out`` no block at all, so that a late reader of an earlier one there sees it gone before it changes."""
    out[:PRELUDE_BYTES] = 0


def seal(out: Bytes, block_id: int, planned: Plan, checksums: Sequence[int]) -> None:
    """Write prelude, header and shapes round columns that are in place."""
    columns = tuple(
        msgspec.structs.replace(column, checksum=_CHECKSUM.pack(checksum))
        for column, checksum in zip(planned.columns, checksums, strict=True)
    )
    encoded = msgspec.msgpack.encode(_Header(planned.rows, columns))
    at = PRELUDE_BYTES + padded(len(encoded))
    out[PRELUDE_BYTES : planned.body] = 0
    out[PRELUDE_BYTES : PRELUDE_BYTES + len(encoded)] = np.frombuffer(encoded, np.uint8)
    for shape in planned.shapes:
        out[at : at + shape.nbytes] = np.ascontiguousarray(shape, np.int64).reshape(-1).view(np.uint8)
        at += shape.nbytes
    shapes_bytes = sum(s.nbytes for s in planned.shapes)
    prelude = _PRELUDE.pack(MAGIC, VERSION, len(encoded), block_id, planned.nbytes, shapes_bytes)
    head = prelude + bytes(_CHECKSUM.size) + bytes(PRELUDE_BYTES - _CHECKED_AGAIN_AT)
    checksum = _header_checksum(head, out[PRELUDE_BYTES : planned.body])
    head = prelude + _CHECKSUM.pack(checksum) + head[_CHECKED_AGAIN_AT:]
    out[:PRELUDE_BYTES] = np.frombuffer(head, np.uint8)


def parse(buf: Readable, expected_block_id: int | None = None, *, checked: bool = True) -> BlockHeader:
    """Read a block's header.

    Args:
        buf: exactly the block's bytes.
        expected_block_id: whose block this must be; None = whoever's it says.
        checked: verify the header's own checksum (bounds are always verified).

    Raises:
        CorruptPayload: the bytes are not such a block.
    """
    data = np.frombuffer(buf, np.uint8)
    if len(data) < PRELUDE_BYTES:
        raise CorruptPayload(f"a block of {len(data)} bytes is shorter than its prelude of {PRELUDE_BYTES}")
    head = data[:PRELUDE_BYTES].tobytes()
    magic, version, header_bytes, block_id, nbytes, shapes_bytes = _PRELUDE.unpack_from(head)
    shapes_at = PRELUDE_BYTES + padded(header_bytes)
    body = padded(shapes_at + shapes_bytes)
    if magic != MAGIC or version != VERSION:
        raise CorruptPayload(f"no block of version {VERSION} begins here (magic {magic!r}, version {version})")
    if nbytes != len(data) or body > nbytes:
        raise CorruptPayload(f"block {block_id} says {nbytes} bytes, {body} before its columns; {len(data)} are there")
    if checked and _header_checksum(head, data[PRELUDE_BYTES:body]) != _CHECKSUM.unpack_from(head, _CHECKSUM_AT)[0]:
        raise CorruptPayload(f"the header of block {block_id} does not match its checksum")
    if expected_block_id is not None and block_id != expected_block_id:
        raise CorruptPayload(f"block {block_id} lies where block {expected_block_id} should")
    header = _decode_header(data[PRELUDE_BYTES : PRELUDE_BYTES + header_bytes].tobytes(), block_id)
    shapes = data[shapes_at : shapes_at + shapes_bytes]
    return BlockHeader(block_id, header.rows, nbytes, _places(header, shapes, body, nbytes, block_id))


def block_id_at(buf: Bytes) -> int | None:
    """Return the id of the block that begins at ``buf``, None if none does. A cheap look, not a verification."""
    if len(buf) < PRELUDE_BYTES:
        return None
    magic, _, _, block_id, _, _ = _PRELUDE.unpack_from(buf[:PRELUDE_BYTES].tobytes())
    return int(block_id) if magic == MAGIC else None


def has_moved_on(buf: Bytes, block_id: int) -> bool:
    """Return whether the place of ``block_id`` is erased or holds another block whole: recycled, not damaged."""
    if len(buf) < PRELUDE_BYTES or not buf[:PRELUDE_BYTES].any():
        return True
    head = buf[:PRELUDE_BYTES].tobytes()
    magic, _, header_bytes, found, _, shapes_bytes = _PRELUDE.unpack_from(head)
    if magic != MAGIC or found == block_id:
        return False
    body = padded(PRELUDE_BYTES + padded(header_bytes) + shapes_bytes)
    checksum = _CHECKSUM.unpack_from(head, _CHECKSUM_AT)[0]
    return bool(_header_checksum(head, buf[PRELUDE_BYTES:body]) == checksum)


def verify(buf: Readable, header: BlockHeader) -> None:
    """Compare every column with its checksum.

    Raises:
        CorruptPayload: naming the first column that differs.
    """
    data = np.frombuffer(buf, np.uint8)
    for name, place in header.columns.items():
        if _CHECKSUM.pack(column_checksum(data, place.offset, place.header.nbytes)) != place.header.checksum:
            raise CorruptPayload(f"field {name!r} of block {header.block_id} does not match its checksum")


def column_checksum(data: Bytes, offset: int, nbytes: int) -> int:
    """Return xxh3-64 of a column and its padding."""
    return xxhash.xxh3_64_intdigest(data[offset : offset + padded(nbytes)].data)


def content_of(planned: Plan, checksums: Sequence[int]) -> int:
    """Return xxh3-64 over names, types, shapes and checksums: equal for two puts of equal columns, in any order."""
    ragged = iter(planned.shapes)
    parts = []
    for column, checksum in zip(planned.columns, checksums, strict=True):
        shapes = b"" if column.kind == "dense" else next(ragged).tobytes()
        parts.append((column.name, column.dtype, column.kind, column.row_shape, checksum, shapes))
    return xxhash.xxh3_64_intdigest(msgspec.msgpack.encode((planned.rows, sorted(parts))))


def _header_checksum(head: bytes, rest: Bytes) -> int:
    hasher = xxhash.xxh3_64(head[:_CHECKSUM_AT])
    hasher.update(head[_CHECKED_AGAIN_AT:])
    hasher.update(rest.data)
    return hasher.intdigest()


def _decode_header(encoded: bytes, block_id: int) -> _Header:
    try:
        header = msgspec.msgpack.decode(encoded, type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptPayload(f"the header of block {block_id} cannot be read: {error}") from error
    if not 0 <= header.rows <= MAX_ROWS:
        raise CorruptPayload(f"block {block_id} says it has {header.rows} rows")
    return header


def _places(header: _Header, shapes: Bytes, at: int, nbytes: int, block_id: int) -> dict[str, ColumnPlace]:
    places: dict[str, ColumnPlace] = {}
    shapes_at = 0
    for column in header.columns:
        why = _malformed(column) or ("its name comes twice" if column.name in places else "")
        found = None
        if not why and column.kind != "dense":
            end = shapes_at + header.rows * column.rank * 8
            if end > len(shapes):
                why = "its row shapes lie outside the header"
            else:
                found = shapes[shapes_at:end].view(np.int64).reshape(header.rows, column.rank)
                shapes_at = end
        if not why and _size(column, header.rows, found) != column.nbytes:
            why = f"its shape does not make {column.nbytes} bytes"
        if not why and at + padded(column.nbytes) > nbytes:
            why = "it lies outside the block"
        if why:
            raise CorruptPayload(f"field {column.name!r} of block {block_id}: {why}")
        places[column.name] = ColumnPlace(column, at, found)
        at += padded(column.nbytes)
    if at != nbytes or shapes_at != len(shapes):
        raise CorruptPayload(f"block {block_id} has bytes that belong to no field")
    return places


def _malformed(column: ColumnHeader) -> str:
    if column.dtype not in ITEM_BYTES or (column.kind == "object") != (column.dtype == OBJECT):
        return f"unknown {column.kind} dtype {column.dtype!r}"
    if not 0 <= column.rank <= MAX_RANK or column.nbytes < 0 or any(d < 0 for d in column.row_shape):
        return "a negative or excessive size"
    if math.prod(max(d, 1) for d in column.row_shape) * ITEM_BYTES[column.dtype] > _MAX_BYTES:
        return "a row of excessive size"
    wanted = column.rank if column.kind == "dense" else 0
    if len(column.row_shape) != wanted or (column.kind == "object" and column.rank != 1):
        return "its rank and its row shape disagree"
    if column.kind == "ragged" and column.rank < 1:
        return "a ragged column of scalars"
    return "" if len(column.checksum) == _CHECKSUM.size else "a checksum of the wrong width"


def _size(column: ColumnHeader, rows: int, shapes: Shapes | None) -> int:
    """Return the bytes that the shapes call for, -1 where they are nonsense."""
    item = ITEM_BYTES[column.dtype]
    if shapes is None:
        return rows * math.prod(column.row_shape) * item
    if not shapes.size:
        return 0
    extents = np.maximum(shapes, 1).astype(np.float64)  # floats do not wrap; a zero must not hide the other extents
    with np.errstate(over="ignore"):
        if int(shapes.min()) < 0 or not float(np.prod(extents, axis=1).sum()) * item <= _MAX_BYTES:
            return -1
    return int(np.prod(shapes, axis=1).sum()) * item
