"""Columns to per-row values and back, for the reference model: plain, row by row, independent of the payload codec.

Invariants: what is split is copied, so that a caller's later write changes nothing stored; joining the values of a
split gives equal columns, dense where the rows have one shape and nested (jagged) where not; a column's dtype and rank
are those of each of its rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
import xxhash
from tensordict import NonTensorData, NonTensorStack, TensorDict, TensorDictBase

from penstock.errors import BadArgument, RefusedType
from penstock.requests import FieldSpec

OBJECT = "object"  # the dtype of non-tensor columns


@dataclass(frozen=True)
class Column:
    """One field of a put: a value per row, a tensor of the row's shape or, for ``dtype`` "object", any plain value."""

    spec: FieldSpec
    values: list[Any]
    ragged: bool

    def nbytes(self, row: int) -> int:
        return len(_bytes(self.values[row]))

    def checksum(self) -> int:
        hashed = xxhash.xxh3_64(repr(self.spec).encode())
        for value in self.values:
            hashed.update(repr(getattr(value, "shape", None)).encode() + _bytes(value))
        return hashed.intdigest()


def split(fields: Any, n_rows: int, strict: bool) -> list[Column]:
    """Return the columns of a TensorDict or a mapping; ``strict`` refuses non-tensor ones."""
    if isinstance(fields, TensorDictBase):
        if fields.batch_size[:1] != torch.Size([n_rows]):
            raise BadArgument(f"fields have batch size {list(fields.batch_size)} for {n_rows} rows")
    elif not isinstance(fields, Mapping):
        raise BadArgument(f"fields must be a TensorDict or a mapping, got {type(fields).__name__}")
    # A TensorDict's items() hides the wrapper of non-tensor data, get() does not.
    return [_column(name, fields.get(name), n_rows, strict) for name in fields.keys()]  # noqa: SIM118


def join(spec: FieldSpec | None, values: Sequence[Any]) -> Any:
    """Return the column of ``values``; no values at all give an empty column of the field's dtype."""
    if spec is not None and spec.dtype == OBJECT:
        return NonTensorStack(*[NonTensorData(v) for v in values]) if values else NonTensorStack(batch_size=(0,))
    if not values:
        return torch.empty((0,) * (1 + (spec.rank if spec else 0)), dtype=_dtype(spec))
    if len({v.shape for v in values}) == 1:
        return torch.stack(list(values))
    return _nested(values)


def table(columns: Mapping[str, Any], n_rows: int) -> TensorDict:
    return TensorDict(dict(columns), batch_size=[n_rows])


def _column(name: Any, data: Any, n_rows: int, strict: bool) -> Column:
    if not isinstance(name, str) or not name:
        raise BadArgument(f"field names must be non-empty strings, got {name!r}")
    values = _plain_values(name, data, n_rows)
    if values is not None:
        return _object_column(name, values, n_rows, strict)
    rows = _tensor_rows(name, data)
    if len(rows) != n_rows:
        raise BadArgument(f"field {name!r} has {len(rows)} rows for {n_rows} sample_ids")
    kinds = sorted({(_short(t.dtype), t.dim()) for t in rows})
    if len(kinds) > 1:
        raise RefusedType(f"field {name!r}: the rows differ in dtype or rank: {kinds}")
    dtype, rank = kinds[0] if kinds else (_short(_dtype_of(data)), max(_rank_of(data), 0))
    ragged = rank > 0 and (isinstance(data, (list, tuple)) or (isinstance(data, torch.Tensor) and data.is_nested))
    return Column(FieldSpec(name, dtype, rank), [_owned(name, t) for t in rows], ragged)


def _plain_values(name: str, data: Any, n_rows: int) -> list[Any] | None:
    """Return the values of a non-tensor column, None for a column of tensors."""
    if isinstance(data, NonTensorData):
        return [data.data] * n_rows
    if isinstance(data, NonTensorStack):
        return list(data.tolist())
    if isinstance(data, (TensorDictBase, Mapping)):
        raise RefusedType(f"field {name!r}: a nested {type(data).__name__} is not carried; give its leaves names")
    if isinstance(data, (torch.Tensor, np.ndarray, np.generic)):
        return None if not isinstance(data, (np.ndarray, np.generic)) or data.dtype.kind in "biufc" else _listed(data)
    if not isinstance(data, (list, tuple)):
        raise RefusedType(f"field {name!r}: {type(data).__name__}, a non-tensor, is not carried")
    tensors = all(isinstance(v, (torch.Tensor, np.ndarray)) for v in data)
    return None if (tensors and data) or _one_number_type(data) else list(data)


def _listed(array: Any) -> list[Any]:
    return list(array.tolist()) if array.ndim else [array.item()]


def _one_number_type(data: Sequence[Any]) -> bool:
    kinds = {type(v) for v in data}
    return len(kinds) == 1 and kinds <= {bool, int, float}


def _object_column(name: str, values: list[Any], n_rows: int, strict: bool) -> Column:
    if strict:
        shown = type(values[0]).__name__ if values else "an empty list"
        raise RefusedType(f"field {name!r}: non-tensor data ({shown}) is refused; strict_tensors=False carries it")
    if len(values) != n_rows:
        raise BadArgument(f"field {name!r} has {len(values)} rows for {n_rows} sample_ids")
    try:
        copies = [msgspec.msgpack.decode(msgspec.msgpack.encode(v)) for v in values]
    except (TypeError, ValueError, OverflowError, RecursionError) as bad:
        raise RefusedType(f"field {name!r}: a non-tensor value cannot be carried: {bad}") from bad
    return Column(FieldSpec(name, OBJECT, 0), copies, ragged=False)


def _tensor_rows(name: str, data: Any) -> list[torch.Tensor]:
    if isinstance(data, (list, tuple)):
        return [v if isinstance(v, torch.Tensor) else _from_numpy(name, np.asarray(v)) for v in data]
    tensor = data if isinstance(data, torch.Tensor) else _from_numpy(name, np.asarray(data))
    if tensor.dim() == 0:
        raise BadArgument(f"field {name!r} is a 0-d tensor; the first dimension must be the rows")
    return list(tensor.unbind(0))


def _from_numpy(name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # a copy: writable, native order
    except TypeError as bad:
        raise RefusedType(f"field {name!r}: numpy {array.dtype} is not carried: {bad}") from bad


def _owned(name: str, row: torch.Tensor) -> torch.Tensor:
    try:
        return row.detach().to("cpu").clone(memory_format=torch.contiguous_format)
    except RuntimeError as odd:  # sparse, or without data
        raise RefusedType(f"field {name!r}: a {row.layout} tensor on {row.device} is not carried: {odd}") from odd


def _nested(values: Sequence[torch.Tensor]) -> torch.Tensor:
    ragged_dims = sum(len(set(sizes)) > 1 for sizes in zip(*(v.shape for v in values), strict=True))
    if ragged_dims == 1:
        return torch.nested.nested_tensor(list(values), layout=torch.jagged)
    with warnings.catch_warnings():  # strided nesting warns that it is a prototype; jagged holds one ragged dim
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(list(values))


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.reshape(-1).view(torch.uint8).numpy().tobytes()
    return msgspec.msgpack.encode(value)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(spec: FieldSpec | None) -> torch.dtype:
    return getattr(torch, spec.dtype) if spec else torch.get_default_dtype()


def _dtype_of(data: Any) -> torch.dtype:
    if isinstance(data, np.ndarray):
        return torch.from_numpy(np.empty(0, data.dtype.newbyteorder("="))).dtype
    return data.dtype if isinstance(data, torch.Tensor) else torch.get_default_dtype()


def _rank_of(data: Any) -> int:
    return data.ndim - 1 if isinstance(data, (torch.Tensor, np.ndarray)) else 0
