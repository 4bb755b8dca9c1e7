"""A block rewritten without its dead rows, byte by byte: the owner does it, and knows no torch.

Invariants: the new block keeps the id, the fields and the order of the rows that it keeps; the old one is verified
first, so that damage is never sealed under a new checksum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from penstock.errors import BadArgument
from penstock.payload import block
from penstock.payload.block import BlockHeader, Bytes, ColumnPlace, Readable
from penstock.payload.columns import Batch, Column
from penstock.payload.dtypes import ITEM_BYTES
from penstock.payload.rows import copy_runs, row_starts, take_rows


def compacted(data: Readable, block_id: int, keep: Sequence[int]) -> Batch:
    """Return the rows ``keep`` of a block as a batch; nothing is copied before its ``write_into``.

    Args:
        data: the block's bytes; they must stay until the batch has been written.
        block_id: whose they must be.
        keep: indices of rows, ascending.

    Raises:
        CorruptPayload: the block is damaged.
        BadArgument: a row does not exist.
    """
    source = np.frombuffer(data, np.uint8)
    header = block.parse(source, block_id)
    block.verify(source, header)
    return picked(source, header, keep)


def picked(data: Bytes, header: BlockHeader, keep: Sequence[int]) -> Batch:
    """As ``compacted``, of a block that the caller knows to be whole: nothing is verified."""
    rows = np.asarray(keep, np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() >= header.rows or (np.diff(rows) <= 0).any()):
        raise BadArgument(f"rows to keep of block {header.block_id} must ascend within its {header.rows} rows")
    return Batch(len(rows), [_kept(data, header, place, rows) for place in header.columns.values()])


def _kept(
    data: Bytes, header: BlockHeader, place: ColumnPlace, rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> Column:
    column = place.header
    source = data[place.offset : place.end]
    item = ITEM_BYTES[column.dtype]
    shapes = None if place.shapes is None else place.shapes[rows]
    copy: Callable[[Bytes], Iterator[int]]
    if shapes is None:
        row_bytes = math.prod(column.row_shape) * item
        nbytes = len(rows) * row_bytes

        def copy(out: Bytes) -> Iterator[int]:
            if len(out):
                every = np.arange(len(rows))
                take_rows(source.reshape(header.rows, -1), rows, out.reshape(len(rows), -1), every)
            yield len(out)
    else:
        sizes = np.prod(shapes, axis=1) * item
        nbytes = int(sizes.sum())

        def copy(out: Bytes) -> Iterator[int]:
            copy_runs(source, row_starts(place, header.rows)[rows], out, np.cumsum(sizes) - sizes, sizes, item)
            yield len(out)

    return Column(column.name, column.kind, column.dtype, column.rank, column.row_shape, shapes, nbytes, copy)
