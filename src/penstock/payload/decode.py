"""Blocks and row references become columns again.

Fields whose rows are exactly one block in order are views of it. Any other selection is one gather per field into fresh
memory: whole runs of rows are copied as one, the rest row by row or, for short rows, by one computed index. Rows of
equal shape come back dense, others as a jagged nested tensor (strided where more than the first dimension differs; a
list where torch has no nested tensor of the dtype), object columns as lists.

Invariants: every reference is checked against the block's header before a byte is copied; after a gather the blocks are
looked at again, so that a recycled slot is ``StaleSlotError`` and never somebody else's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec
import numpy as np

from penstock.errors import CorruptPayload, DataPlaneReadError
from penstock.payload.block import BlockHeader, Bytes, ColumnPlace, Shapes
from penstock.payload.buffers import SHARED, Buffers
from penstock.payload.dtypes import ITEM_BYTES, OBJECT
from penstock.payload.rows import Ints, copy_runs, row_starts, take_rows
from penstock.requests import Source

if TYPE_CHECKING:
    import torch

Values: TypeAlias = Any  # a dense or nested tensor, or a list of values (of tensors, where torch cannot nest the dtype)


class OpenBlock(Protocol):
    """A block whose bytes can be read: in shared memory (``mapping.BlockReader``), or fetched from another host."""

    header: BlockHeader
    shared: Bytes

    def private(self) -> Bytes:
        """Return the block's bytes to keep: a write to them is nobody else's business."""

    def check_still(self) -> None:
        """Raise ``StaleSlotError`` if ``shared`` is not this block any more."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows of a selection that lie in one block: ``rows`` of the block go to ``at`` in the result."""

    reader: OpenBlock
    rows: Ints
    at: Ints


class Offsets:
    """Shares one offsets tensor between the jagged columns of a read that have the same lengths.

    torch tells two jagged dimensions apart by the identity of their offsets: without this, ``mask * logprobs`` fails.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[torch.Tensor, int, int]] = {}

    def of(self, lengths: Ints) -> tuple[torch.Tensor, int, int]:
        """Return the offsets, the smallest and the largest of ``lengths``."""
        import torch

        key = lengths.tobytes()
        if key not in self._known:
            offsets = np.zeros(len(lengths) + 1, np.int64)
            np.cumsum(lengths, out=offsets[1:])
            self._known[key] = (torch.from_numpy(offsets), int(lengths.min()), int(lengths.max()))
        return self._known[key]


def gather(
    readers: Sequence[OpenBlock], sources: Sequence[Source], n: int, *, buffers: Buffers = SHARED
) -> dict[str, Values]:
    """Build the columns of ``n`` rows.

    Args:
        readers: the open blocks, aligned with ``Located.blocks``. They are the caller's to close.
        sources: which fields lie where, as in ``Located.sources``.
        n: the rows asked for; none of them is no column, whatever the fields.

        buffers: where the memory of gathered columns comes from and returns to.

    Raises:
        CorruptPayload: a reference or a field does not exist in its block.
        StaleSlotError: a block was recycled during the read; nothing was served.
    """
    offsets = Offsets()
    columns: dict[str, Values] = {}
    for source in sources if n else ():
        whole = _whole(readers, source, n)
        groups = [] if whole else _groups(readers, source, n)
        for name in source.fields:
            columns[name] = _view(whole, name, offsets) if whole else _gathered(groups, name, n, offsets, buffers)
        for reader in (whole,) if whole else (group.reader for group in groups):
            reader.check_still()
    return columns


def read_block(reader: OpenBlock, fields: Sequence[str] | None = None) -> dict[str, Values]:
    """Return columns of one whole block as views; ``fields`` None = all."""
    offsets = Offsets()
    return {name: _view(reader, name, offsets) for name in (reader.header.columns if fields is None else fields)}


def to_tensordict(columns: Mapping[str, Values], n: int) -> Any:
    """Return columns as a TensorDict of batch size ``[n]``; lists become NonTensorStacks."""
    from tensordict import NonTensorData, NonTensorStack, TensorDict

    def wrapped(values: Values) -> Any:
        if not isinstance(values, list):
            return values
        return NonTensorStack(*[NonTensorData(value) for value in values])

    return TensorDict({name: wrapped(values) for name, values in columns.items()}, batch_size=[n])


# -- references -----------------------------------------------------------------------------------------------------


def _whole(readers: Sequence[OpenBlock], source: Source, n: int) -> OpenBlock | None:
    """Return the block that the source's rows are, all of them and in order; None if they are not one."""
    if not n or len(source.block) != n or not 0 <= source.block[0] < len(readers):
        return None
    reader = readers[source.block[0]]
    one = reader.header.rows == n and source.block.count(source.block[0]) == n
    return reader if one and source.index == _in_order(n) else None


@lru_cache(maxsize=8)
def _in_order(n: int) -> list[int]:
    return list(range(n))


def _groups(readers: Sequence[OpenBlock], source: Source, n: int) -> list[_Group]:
    """Split a selection by block, in O(n log n) whatever the number of blocks."""
    blocks = np.asarray(source.block, np.int64)
    rows = np.asarray(source.index, np.int64)
    if len(blocks) != n or len(rows) != n:
        raise CorruptPayload(f"{n} rows were asked for; {len(blocks)} blocks and {len(rows)} indices are given")
    if n and (blocks.min() < 0 or blocks.max() >= len(readers)):
        raise CorruptPayload(f"a row lies in block {blocks.min()} or {blocks.max()} of {len(readers)}")
    order = np.argsort(blocks, kind="stable")
    ordered = blocks[order]
    groups = []
    for at in np.split(order, np.flatnonzero(np.diff(ordered)) + 1) if n else []:
        reader = readers[blocks[at[0]]]
        found = rows[at]
        if found.min() < 0 or found.max() >= reader.header.rows:
            raise CorruptPayload(f"row {found.max()} of block {reader.header.block_id} does not exist")
        groups.append(_Group(reader, found, at))
    return groups


def _place(reader: OpenBlock, name: str) -> ColumnPlace:
    place = reader.header.columns.get(name)
    if place is None:
        raise CorruptPayload(f"block {reader.header.block_id} has no field {name!r}")
    return place


def _data(data: Bytes, place: ColumnPlace) -> Bytes:
    return data[place.offset : place.end]


# -- whole blocks ---------------------------------------------------------------------------------------------------


def _view(reader: OpenBlock, name: str, offsets: Offsets) -> Values:
    place = _place(reader, name)
    if place.header.kind == OBJECT:
        return _objects(_data(reader.shared, place), place)
    data = _data(reader.private(), place)
    if place.shapes is None:
        return _tensor(data, place.header.dtype, (reader.header.rows, *place.header.row_shape))
    return _from_shapes(data, place.header.dtype, place.shapes, offsets)


def _objects(data: Bytes, place: ColumnPlace) -> list[Any]:
    return [_value(chunk, place.header.name) for chunk in _cut(data, place.shapes)]


def _cut(data: Bytes, lengths: Shapes | None) -> Iterator[bytes]:
    if lengths is None:
        raise CorruptPayload("an object column without lengths")
    encoded = data.tobytes()
    at = 0
    for length in lengths[:, 0].tolist():
        yield encoded[at : at + length]
        at += length


def _value(encoded: bytes, name: str) -> Any:
    try:
        return msgspec.msgpack.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptPayload(f"a value of field {name!r} cannot be read: {error}") from error


def _tensor(data: Bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return ``data`` as a tensor over the same memory, its storage just these bytes."""
    import torch

    kind = _torch_dtype(dtype)
    if not math.prod(shape):
        return torch.empty(shape, dtype=kind, device="cpu")
    return torch.frombuffer(data, dtype=kind).view(shape)


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise DataPlaneReadError(f"torch {torch.__version__} has no dtype {name!r}; the writer's torch is newer")
    return found


def _from_shapes(data: Bytes, dtype: str, shapes: Shapes, offsets: Offsets) -> Values:
    """Return ragged rows, laid out one after the other in ``data``, in the simplest form that holds them."""
    import torch

    rows, rank = shapes.shape
    if not rows:
        return torch.empty((0,) * (rank + 1), dtype=_torch_dtype(dtype), device="cpu")
    if (shapes == shapes[0]).all():
        return _tensor(data, dtype, (rows, *map(int, shapes[0])))
    if (shapes[:, 1:] == shapes[0, 1:]).all():
        at, shortest, longest = offsets.of(np.ascontiguousarray(shapes[:, 0]))
        values = _tensor(data, dtype, (int(shapes[:, 0].sum()), *map(int, shapes[0, 1:])))
        return torch.nested.nested_tensor_from_jagged(values, at, min_seqlen=shortest, max_seqlen=longest)
    return _strided(_tensor(data, dtype, (len(data) // ITEM_BYTES[dtype],)), shapes)


def _strided(flat: torch.Tensor, shapes: Shapes) -> Values:
    import torch

    sizes = np.prod(shapes, axis=1).tolist()
    rows = [row.view(shape) for row, shape in zip(flat.split_with_sizes(sizes), shapes.tolist(), strict=True)]
    try:
        return torch.nested.as_nested_tensor(rows, layout=torch.strided)
    except (NotImplementedError, RuntimeError):  # not every dtype has one
        return rows


# -- selections -----------------------------------------------------------------------------------------------------


def _gathered(groups: Sequence[_Group], name: str, n: int, offsets: Offsets, buffers: Buffers) -> Values:
    places = [_place(group.reader, name) for group in groups]
    dtypes = {(place.header.dtype, place.header.rank) for place in places}
    if len(dtypes) > 1:
        raise CorruptPayload(f"field {name!r} has several types: {sorted(dtypes)}")
    header = places[0].header
    if header.kind == OBJECT:
        return _gathered_objects(groups, places, n)
    if all(place.header.kind == "dense" and place.header.row_shape == header.row_shape for place in places):
        out = buffers.take(n * math.prod(header.row_shape) * ITEM_BYTES[header.dtype])
        _gather_dense(groups, places, out, n)
        return _tensor(out, header.dtype, (n, *header.row_shape))
    shapes = np.empty((n, header.rank), np.int64)
    for group, place in zip(groups, places, strict=True):
        shapes[group.at] = place.header.row_shape if place.shapes is None else place.shapes[group.rows]
    return _from_shapes(_gather_ragged(groups, places, shapes, buffers), header.dtype, shapes, offsets)


def _gathered_objects(groups: Sequence[_Group], places: Sequence[ColumnPlace], n: int) -> list[Any]:
    values: list[Any] = [None] * n
    for group, place in zip(groups, places, strict=True):
        chunks = list(_cut(_data(group.reader.shared, place), place.shapes))
        for row, at in zip(group.rows.tolist(), group.at.tolist(), strict=True):
            values[at] = _value(chunks[row], place.header.name)
    return values


def _gather_dense(groups: Sequence[_Group], places: Sequence[ColumnPlace], out: Bytes, n: int) -> None:
    """Copy rows of one size: ``take`` copies each row as one."""
    if not len(out):
        return
    target = out.reshape(n, -1)
    for group, place in zip(groups, places, strict=True):
        source = _data(group.reader.shared, place).reshape(group.reader.header.rows, -1)
        take_rows(source, group.rows, target, group.at)


def _gather_ragged(groups: Sequence[_Group], places: Sequence[ColumnPlace], shapes: Shapes, buffers: Buffers) -> Bytes:
    item = ITEM_BYTES[places[0].header.dtype]
    sizes = np.prod(shapes, axis=1) * item
    ends = np.cumsum(sizes)
    out = buffers.take(int(ends[-1]))
    for group, place in zip(groups, places, strict=True):
        source = _data(group.reader.shared, place)
        starts = row_starts(place, group.reader.header.rows)[group.rows]
        copy_runs(source, starts, out, (ends - sizes)[group.at], sizes[group.at], item)
    return out
