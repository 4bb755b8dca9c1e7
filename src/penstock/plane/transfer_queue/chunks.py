"""A put's columns cut into blocks by rows, so that what is left of a put never holds much more memory than its rows.

Invariants: the blocks hold the rows in order, each at least one; a block is no longer than ``CHUNK_BYTES``, or holds a
single row; types, lengths and sizes are those of the put as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from penstock.errors import DataPlaneError, RefusedType
from penstock.payload import block, codec
from penstock.payload.columns import Batch
from penstock.payload.compact import picked
from penstock.plane.transfer_queue.stored import PutColumn

__all__ = ["content_of", "cut", "described", "lengths_of"]

CHUNK_BYTES = 256 * 1024  # TransferQueue's cost of a row is that of 20-50 KiB


def cut(fields: Any, n_rows: int, *, strict_tensors: bool) -> list[Batch]:
    """Return a put as the batches of its blocks, at least one.

    Raises:
        BadArgument, RefusedType: as ``codec.encode``.
    """
    try:
        whole = codec.encode(fields, n_rows, strict_tensors=strict_tensors)
        ends = _ends(whole)
        if len(ends) <= 1:
            return [whole]
        data = np.empty(whole.nbytes, np.uint8)
        whole.write_into(data, 0)
    except DataPlaneError:
        raise
    except (RuntimeError, TypeError, ValueError, MemoryError) as odd:  # torch's and numpy's own words
        raise RefusedType(f"put_samples: the columns cannot be laid out: {type(odd).__name__}: {odd}") from odd
    header = block.parse(data, 0)
    return [picked(data, header, range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def described(batches: Sequence[Batch]) -> list[PutColumn]:
    """Return the columns of a put, its rows' sizes and lengths."""
    found = []
    for at, column in enumerate(batches[0].columns):
        parts = [(batch.columns[at], batch.rows) for batch in batches]
        sizes = [n for part, rows in parts for n in part.row_bytes(rows).tolist()]
        shapes = [part.shapes for part, _ in parts if part.kind == "ragged" and part.shapes is not None]
        lengths = [int(n) for rows in shapes for n in rows[:, 0]] if shapes else None
        found.append(PutColumn(column.spec, sizes, lengths))
    return found


def lengths_of(columns: Sequence[PutColumn]) -> list[int] | None:
    """Return each row's length in the first ragged field; None when no field is ragged."""
    return next((column.lengths for column in columns if column.lengths is not None), None)


def content_of(contents: Sequence[int]) -> int:
    """Return one number for a put's blocks: equal for two puts of equal columns."""
    return xxhash.xxh3_64_intdigest(np.asarray(contents, np.uint64).tobytes())


def _ends(batch: Batch) -> list[int]:
    """Return after which rows a block ends."""
    ends: list[int] = []
    held = 0
    for row, nbytes in enumerate(batch.row_bytes):
        if held and held + nbytes > CHUNK_BYTES:
            ends.append(row)
            held = 0
        held += nbytes
    return [*ends, batch.rows] if batch.rows else []
