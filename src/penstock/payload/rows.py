"""Rows of one block's column copied elsewhere, as bytes: no torch, no dtype but its size.

Invariant: callers have checked every index against the block's header; what is copied is O(bytes) with as few calls as
the selection allows.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from penstock.payload.block import Bytes, ColumnPlace
from penstock.payload.dtypes import ITEM_BYTES

Ints: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = npt.NDArray[np.uint8]  # (rows, bytes of a row)

_LOOP_BYTES = 512  # mean length of a run from which one copy per run beats one computed index per element
_WIDEST = 8  # bytes of numpy's widest integer


def take_rows(source: Rows, rows: Ints, target: Rows, at: Ints) -> None:
    """Copy ``target[at] = source[rows]`` (``at`` ascends): by slices where they are slices."""
    first, last = int(at[0]), int(at[-1]) + 1
    if last - first != len(at):
        item = np.dtype(f"V{source.shape[1]}")
        target.view(item)[at] = source.view(item)[rows]
    elif (np.diff(rows) == 1).all():
        target[first:last] = source[rows[0] : rows[-1] + 1]
    else:
        np.take(source, rows, axis=0, out=target[first:last], mode="clip")  # "raise" would go through a buffer


def row_starts(place: ColumnPlace, rows: int) -> Ints:
    """Return where each row of a block's column begins, in bytes."""
    item = ITEM_BYTES[place.header.dtype]
    if place.shapes is None:
        return np.arange(rows, dtype=np.int64) * (math.prod(place.header.row_shape) * item)
    sizes = np.prod(place.shapes, axis=1) * item
    starts: Ints = np.cumsum(sizes) - sizes
    return starts


def copy_runs(source: Bytes, starts: Ints, out: Bytes, at: Ints, sizes: Ints, item: int) -> None:
    """Copy byte ranges; ranges that follow each other on both sides are one."""
    if not len(starts):
        return
    breaks = np.flatnonzero((starts[1:] != starts[:-1] + sizes[:-1]) | (at[1:] != at[:-1] + sizes[:-1])) + 1
    heads = np.concatenate(([0], breaks))
    starts, at, sizes = starts[heads], at[heads], np.add.reduceat(sizes, heads)
    if int(sizes.sum()) < _LOOP_BYTES * len(sizes):
        _copy_elements(source, starts // item, out, at // item, sizes // item, item)
        return
    from_view, to_view = source.data, out.data
    for start, to, size in zip(starts.tolist(), at.tolist(), sizes.tolist(), strict=True):
        to_view[to : to + size] = from_view[start : start + size]


def _copy_elements(source: Bytes, starts: Ints, out: Bytes, at: Ints, counts: Ints, item: int) -> None:
    """The same in elements, by one index per element: for runs so short that a copy each would cost more."""
    unit = np.dtype(f"V{item}") if item > _WIDEST else np.dtype(f"u{item}")
    within = np.arange(int(counts.sum()), dtype=np.int64)
    firsts = np.cumsum(counts) - counts
    out.view(unit)[np.repeat(at - firsts, counts) + within] = source.view(unit)[
        np.repeat(starts - firsts, counts) + within
    ]
