"""A batch ready to be written: its columns, its size, what the plane must know of it, and the writing itself.

Invariants: ``nbytes`` is known before any byte is copied and does not depend on the block id; ``write_into`` copies
each column once, writes every byte of the block, and makes the block readable only with its last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash

from penstock.errors import BadArgument
from penstock.payload import block
from penstock.payload.block import Bytes, ColumnHeader, Kind, Plan, Shapes
from penstock.payload.dtypes import ITEM_BYTES
from penstock.requests import FieldSpec

_NO_CHECKSUM = bytes(8)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One field of a batch.

    Attributes:
        row_shape: the shape of every row of a dense column; empty for others.
        shapes: (rows, rank) of a ragged column; (rows, 1) encoded bytes of an object column; None when dense.
        copy_into: copies the column's bytes into a buffer of exactly ``nbytes`` and yields how many are in place, part
            by part, the last time ``nbytes``: each part is hashed while it is still in the processor's cache.
    """

    name: str
    kind: Kind
    dtype: str
    rank: int
    row_shape: tuple[int, ...]
    shapes: Shapes | None
    nbytes: int
    copy_into: Callable[[Bytes], Iterator[int]]

    @property
    def spec(self) -> FieldSpec:
        """The field's type as the plane keeps it; the values of an object column have no rank."""
        return FieldSpec(self.name, self.dtype, 0 if self.kind == "object" else self.rank)

    def row_bytes(self, rows: int) -> npt.NDArray[np.int64]:
        """Return the payload bytes of each row."""
        item = ITEM_BYTES[self.dtype]
        if self.shapes is None:
            return np.full(rows, math.prod(self.row_shape) * item, np.int64)
        sizes: npt.NDArray[np.int64] = np.prod(self.shapes, axis=1, dtype=np.int64) * item
        return sizes


class Batch:
    """Columns of ``rows`` rows, laid out but not yet copied."""

    def __init__(self, rows: int, columns: Sequence[Column]) -> None:
        self.rows = rows
        self.columns = tuple(columns)

    def __repr__(self) -> str:
        return f"<Batch rows={self.rows} fields={[c.name for c in self.columns]} nbytes={self.nbytes}>"

    @cached_property
    def _plan(self) -> Plan:
        headers = [
            ColumnHeader(c.name, c.kind, c.dtype, c.rank, c.row_shape, c.nbytes, _NO_CHECKSUM) for c in self.columns
        ]
        return block.plan(self.rows, headers, [c.shapes for c in self.columns if c.shapes is not None])

    @property
    def nbytes(self) -> int:
        """The size of the block, header included."""
        return self._plan.nbytes

    @property
    def specs(self) -> list[FieldSpec]:
        """The fields' types, in order."""
        return [c.spec for c in self.columns]

    @property
    def row_bytes(self) -> list[int]:
        """Payload bytes of each row, all fields together."""
        total = np.zeros(self.rows, np.int64)
        for column in self.columns:
            total += column.row_bytes(self.rows)
        return total.tolist()

    @property
    def lengths(self) -> list[int] | None:
        """Each row's length in the first ragged field; None when no field is ragged."""
        for column in self.columns:
            if column.kind == "ragged" and column.shapes is not None:
                return [int(n) for n in column.shapes[:, 0].tolist()]
        return None

    def write_into(self, buf: Bytes | memoryview | bytearray, block_id: int) -> int:
        """Copy the batch into ``buf`` as block ``block_id``.

        Args:
            buf: writable, exactly ``nbytes`` long.
            block_id: the id under which the block will be asked for.

        Returns:
            ``content``: equal for two batches of equal columns.
        """
        out = np.frombuffer(buf, np.uint8)
        if len(out) != self.nbytes:
            raise BadArgument(f"a block of {self.nbytes} bytes does not go into a place of {len(out)}")
        block.erase(out)
        checksums = []
        at = self._plan.body
        for column in self.columns:
            place = out[at : at + block.padded(column.nbytes)]
            checksums.append(_copy_and_hash(column, place))
            at += len(place)
        block.seal(out, block_id, self._plan, checksums)
        return block.content_of(self._plan, checksums)


def _copy_and_hash(column: Column, place: Bytes) -> int:
    """Fill the column's place, padding included; return the checksum of all of it (see ``block.column_checksum``)."""
    hasher = xxhash.xxh3_64()
    hashed = 0
    for copied in column.copy_into(place[: column.nbytes]):
        hasher.update(place[hashed:copied].data)
        hashed = copied
    place[column.nbytes :] = 0
    hasher.update(place[hashed:].data)
    return hasher.intdigest()
