"""Fields become columns: what a put may carry, and the refusal of the rest by field and type.

Accepted: dense tensors (N, ...), jagged or strided nested tensors, lists of tensors of one dtype and rank, numeric
numpy arrays and lists of them, lists of Python numbers of one type (int64, float64, bool). With
``strict_tensors=False`` also columns of str, bytes, int, float, bool, None, and lists and dicts of them (lists, numpy
arrays of strings or objects, NonTensorData, NonTensorStack). Nested TensorDicts are refused: flatten them first.

Invariants: never pickle; nothing is cast; what comes back compares equal and has the type that was put. The mode widens
what is accepted and never changes what an accepted value becomes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from penstock.errors import BadArgument, RefusedType
from penstock.payload.block import MAX_RANK, MAX_ROWS, Bytes, Shapes
from penstock.payload.columns import Batch, Column
from penstock.payload.dtypes import ITEM_BYTES, OBJECT

if TYPE_CHECKING:
    import torch

_NUMBERS = (bool, int, float)
_MAX_DEPTH = 100  # of nested lists and dicts; msgpack decoders recurse
_PART_BYTES = 1 << 20  # copied and hashed in turn: 64 MiB take 8.2 ms so, and 11.2 ms one after the other (1 MiB of L2)
_CAT_ELEMENTS = 32_768  # from as many torch.cat goes parallel (ATen GRAIN_SIZE), 4 x slower for rows of this size
_NUMERIC_KINDS = "biufc"


def encode(fields: Any, n_rows: int, *, strict_tensors: bool = True) -> Batch:
    """Turn the fields of ``n_rows`` rows into a batch. Nothing is copied yet: they must not change until it is written.

    Args:
        fields: a TensorDict, or a mapping of field names to columns (see the module's docstring).
        n_rows: the rows every column must have.
        strict_tensors: refuse non-tensor columns.

    Raises:
        RefusedType: a column of a type that is not carried; names field and type.
        BadArgument: a column of the wrong number of rows, or malformed; names the field.
    """
    if not 0 <= n_rows <= MAX_ROWS:
        raise BadArgument(f"a batch has 0 to {MAX_ROWS} rows, not {n_rows}")
    return Batch(n_rows, [_column(name, value, n_rows, strict_tensors) for name, value in _leaves(fields, n_rows)])


def _leaves(fields: Any, n_rows: int) -> Iterator[tuple[str, Any]]:
    """Yield the fields. ``TensorDict.items()`` may leave non-tensor data out, so keys are walked."""
    tensordict = _tensordict()
    if tensordict is not None and isinstance(fields, tensordict.TensorDictBase):
        if tuple(fields.batch_size[:1]) != (n_rows,):
            raise BadArgument(f"the TensorDict has batch size {list(fields.batch_size)}; {n_rows} rows were named")
        lazy = isinstance(fields, tensordict.LazyStackedTensorDict) and fields.stack_dim == 0
        for name in fields.keys():  # noqa: SIM118 - iterating a TensorDict walks its rows
            yield _name(name), _stacked(fields, name) if lazy else fields.get(name)
    elif isinstance(fields, Mapping):
        for name, value in fields.items():
            yield _name(name), value
    else:
        raise RefusedType(f"fields must be a TensorDict or a mapping, not {_type(fields)}")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise RefusedType(f"a field's name is a str, not {_type(name)} {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise BadArgument(f"field {name!r}: its name is not valid text: {error}") from error
    return name


def _stacked(fields: Any, name: str) -> Any:
    """Return a field of a lazily stacked TensorDict row by row: ragged tensors do not stack."""
    rows = [row.get(name) for row in fields.tensordicts]
    return rows if rows and all(_is_tensor(row) for row in rows) else fields.get(name)


def _column(name: str, value: Any, rows: int, strict: bool) -> Column:
    tensordict = _tensordict()
    if _is_tensor(value):
        column = _nested(name, value) if value.is_nested else _dense(name, value)
    elif isinstance(value, np.ndarray):
        column = _from_numpy(name, value, strict)
    elif isinstance(value, list | tuple):
        column = _from_list(name, value, strict)
    elif tensordict is not None and tensordict.is_non_tensor(value):
        column = _objects(name, value.tolist() if value.batch_size else [value.data], strict, _type(value))
    elif tensordict is not None and isinstance(value, tensordict.TensorDictBase):
        raise RefusedType(f"field {name!r} is a nested TensorDict; flatten it first: flatten_keys('.')")
    else:
        raise _refused(name, _type(value), strict)
    return column if _rows_of(column, value) == rows else _wrong_rows(name, _rows_of(column, value), rows)


def _rows_of(column: Column, value: Any) -> int:
    if column.shapes is not None:
        return len(column.shapes)
    return len(value)


def _wrong_rows(name: str, found: int, rows: int) -> Column:
    raise BadArgument(f"field {name!r} has {found} rows; {rows} were named")


# -- tensors --------------------------------------------------------------------------------------------------------


def _dense(name: str, tensor: torch.Tensor) -> Column:
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise RefusedType(f"field {name!r} is a {_kind(tensor)} tensor, which is not carried")
    if tensor.dim() == 0:
        raise BadArgument(f"field {name!r} is a 0-d tensor; a column has a first dimension of rows")
    dtype = _dtype_name(name, tensor.dtype)
    shape = tuple(tensor.shape)
    _check_rank(name, len(shape) - 1)
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    return Column(name, "dense", dtype, len(shape) - 1, shape[1:], None, nbytes, _copier(tensor.detach()))


def _copier(tensor: torch.Tensor) -> Callable[[Bytes], Iterator[int]]:
    """A plain tensor is one memcpy on this thread: torch's threads gain little and stall each other on busy cores."""
    import torch

    plain = tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()

    def copy(out: Bytes) -> Iterator[int]:
        if plain and len(out):
            source = tensor.view(-1).view(torch.uint8).numpy()
            for start in range(0, len(out), _PART_BYTES):
                end = min(start + _PART_BYTES, len(out))
                np.copyto(out[start:end], source[start:end])
                yield end
        elif len(out):
            torch.frombuffer(out, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
            yield len(out)

    return copy


def _nested(name: str, tensor: torch.Tensor) -> Column:
    """A jagged tensor without holes is one copy of its values; any other nested tensor goes row by row."""
    parts = _jagged_parts(tensor)
    if parts is None:
        return _pieces(name, tensor.detach().unbind(), tensor.dtype, tensor.dim() - 1)
    offsets = parts[1].cpu().numpy()
    values = parts[0].detach()[int(offsets[0]) : int(offsets[-1])]
    dtype = _dtype_name(name, values.dtype)
    shapes = np.empty((len(offsets) - 1, values.dim()), np.int64)
    shapes[:, 0] = np.diff(offsets)
    shapes[:, 1:] = values.shape[1:]
    nbytes = values.numel() * ITEM_BYTES[dtype]
    return Column(name, "ragged", dtype, values.dim(), (), shapes, nbytes, _copier(values))


def _jagged_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(values, offsets) of a jagged tensor whose second dimension is the ragged one and that has no holes.

    They are read from where torch 2.5 to 2.13 keep them: through its dispatcher they cost 0.1 ms a column, as much as
    the copy of a small one. A torch that keeps them elsewhere is asked the public way.
    """
    import torch

    if tensor.layout is not torch.jagged:
        return None
    try:
        inside: Any = tensor
        at, lengths, values, offsets = inside._ragged_idx, inside._lengths, inside._values, inside._offsets  # noqa: SLF001
    except AttributeError:
        at, lengths = (2 if isinstance(tensor.shape[1], int) else 1), tensor.lengths()  # type: ignore[attr-defined]
        values, offsets = tensor.values(), tensor.offsets()  # type: ignore[attr-defined]
    return (values, offsets) if at == 1 and lengths is None else None


def _pieces(name: str, rows: Sequence[torch.Tensor], dtype: torch.dtype | None = None, rank: int = 1) -> Column:
    """A list of tensors, one per row."""
    import torch

    kinds = set(map(attrgetter("dtype", "ndim", "layout", "is_cpu"), rows)) or {(dtype, rank, torch.strided, True)}
    if len({(k[0], k[1]) for k in kinds}) > 1:
        found = ", ".join(sorted(f"{_short(k[0])} of rank {k[1]}" for k in kinds))
        raise RefusedType(f"field {name!r}: the tensors of one field have one dtype and one rank, not {found}")
    if any(k[2] is not torch.strided for k in kinds) or any(row.is_meta for row in rows if not row.is_cpu):
        raise RefusedType(f"field {name!r} holds sparse, nested or meta tensors, which are not carried")
    first, rank = next((k[0], k[1]) for k in kinds)
    if any(not k[3] for k in kinds):
        rows = [row.detach().cpu() for row in rows]
    if rank == 0:
        return _dense(name, torch.stack([row.detach() for row in rows]))
    dtype_name = _dtype_name(name, first)
    _check_rank(name, rank)
    shapes = _shapes(rows, rank)
    nbytes = int(np.prod(shapes, axis=1).sum()) * ITEM_BYTES[dtype_name]
    return Column(name, "ragged", dtype_name, rank, (), shapes, nbytes, _concatenator(rows, first, shapes))


def _shapes(rows: Sequence[torch.Tensor], rank: int) -> Shapes:
    import torch

    if rank == 1:
        return np.fromiter(map(torch.Tensor.numel, rows), np.int64, len(rows)).reshape(-1, 1)
    return np.array([row.shape for row in rows], np.int64).reshape(len(rows), rank)


def _concatenator(rows: Sequence[torch.Tensor], dtype: torch.dtype, shapes: Shapes) -> Callable[[Bytes], Iterator[int]]:
    import torch

    ends = np.cumsum(np.prod(shapes, axis=1))

    def copy(out: Bytes) -> Iterator[int]:
        if not len(out):
            return
        flat = torch.frombuffer(out, dtype=dtype)
        pieces = list(rows) if shapes.shape[1] == 1 else [row.reshape(-1) for row in rows]
        start = first = 0
        while first < len(pieces):
            last = max(int(np.searchsorted(ends, start + _CAT_ELEMENTS)), first + 1)
            end = int(ends[last - 1])
            with torch.no_grad():
                torch.cat(pieces[first:last], out=flat[start:end])
            start, first = end, last
            yield end * flat.element_size()

    return copy


# -- numpy, lists, objects ------------------------------------------------------------------------------------------


def _from_numpy(name: str, array: np.ndarray[Any, Any], strict: bool) -> Column:
    if array.ndim == 0:
        raise BadArgument(f"field {name!r} is a 0-d array; a column has a first dimension of rows")
    if array.dtype.kind in _NUMERIC_KINDS:
        return _dense(name, _tensor_of(name, array))
    if array.dtype.kind in "OUST" and array.ndim == 1:
        return _objects(name, array.tolist(), strict, f"numpy array of {array.dtype}")
    raise _refused(name, f"numpy array of {array.dtype}", strict)


def _tensor_of(name: str, array: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a numeric array as a tensor, sharing its memory where torch can."""
    import torch

    if array.dtype.name not in ITEM_BYTES:
        raise RefusedType(f"field {name!r}: numpy arrays of {array.dtype} are not carried")
    native = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if not native.flags.writeable or any(stride < 0 for stride in native.strides):
        native = native.copy()  # torch knows neither read-only memory nor negative strides
    return torch.from_numpy(native)


def _from_list(name: str, values: Sequence[Any], strict: bool) -> Column:
    kinds = set(map(type, values))
    if kinds and all(map(_is_tensor_type, kinds)):
        return _pieces(name, values)
    if kinds and all(issubclass(kind, np.ndarray | np.generic) for kind in kinds) and _numeric(values):
        return _pieces(name, [_tensor_of(name, np.asarray(value)) for value in values])
    if len(kinds) == 1 and kinds <= set(_NUMBERS):
        return _dense(name, _numbers(name, values))
    if not values and strict:
        raise BadArgument(f"field {name!r} is an empty list, which has no dtype; give a tensor of no rows")
    return _objects(name, values, strict, f"list of {', '.join(sorted(k.__name__ for k in kinds)) or 'nothing'}")


def _numeric(values: Sequence[Any]) -> bool:
    return all(value.dtype.kind in _NUMERIC_KINDS for value in values)


def _numbers(name: str, values: Sequence[Any]) -> torch.Tensor:
    import torch

    dtype = {bool: torch.bool, int: torch.int64, float: torch.float64}[type(values[0])]
    try:
        return torch.tensor(values, dtype=dtype, device="cpu")  # whatever the default device
    except (OverflowError, RuntimeError) as error:
        raise BadArgument(f"field {name!r} holds an int beyond 64 bits: {error}") from error


def _objects(name: str, values: Sequence[Any], strict: bool, kind: str) -> Column:
    if strict:
        raise _refused(name, kind, strict)
    for value in values:
        _check_value(name, value, _MAX_DEPTH)
    encoder = msgspec.msgpack.Encoder()
    try:
        chunks = [encoder.encode(value) for value in values]
    except (OverflowError, UnicodeEncodeError, ValueError) as error:
        raise BadArgument(f"field {name!r} holds a value that cannot be written: {error}") from error
    shapes = np.fromiter(map(len, chunks), np.int64, len(chunks)).reshape(-1, 1)
    data = b"".join(chunks)

    def copy(out: Bytes) -> Iterator[int]:
        out[:] = np.frombuffer(data, np.uint8)
        yield len(out)

    return Column(name, "object", OBJECT, 1, (), shapes, len(data), copy)


def _check_value(name: str, value: Any, depth: int) -> None:
    """Refuse what would come back as something else: tuples, subclasses, numpy scalars, keys other than str and int."""
    kind = type(value)
    if value is None or kind in {str, bytes, int, float, bool}:
        return
    if depth == 0:
        raise BadArgument(f"field {name!r} holds lists and dicts nested deeper than {_MAX_DEPTH}")
    if kind is list:
        for item in value:
            _check_value(name, item, depth - 1)
    elif kind is dict:
        for key, item in value.items():
            if type(key) not in {str, int}:
                raise RefusedType(f"field {name!r}: a dict's key of type {_type(key)} is not carried")
            _check_value(name, item, depth - 1)
    else:
        raise RefusedType(f"field {name!r}: a value of type {_type(value)} is not carried")


# -- words ----------------------------------------------------------------------------------------------------------


def _refused(name: str, kind: str, strict: bool) -> RefusedType:
    if strict:
        return RefusedType(f"field {name!r} is a non-tensor ({kind}); strict_tensors=False carries plain values")
    return RefusedType(f"field {name!r}: a column of type {kind} is not carried (non-tensor)")


def loaded(name: str) -> Any:
    """Return a module that has been imported to its end; None = no value can be one of its.

    Another thread may just be importing it (the first put of each of several threads): its half is of no use.
    """
    module = sys.modules.get(name)
    return None if module is None or getattr(module.__spec__, "_initializing", False) else module


def _tensordict() -> Any:
    return loaded("tensordict")


def _is_tensor(value: object) -> bool:
    return _is_tensor_type(type(value))


def _is_tensor_type(kind: type) -> bool:
    torch = loaded("torch")
    return torch is not None and issubclass(kind, torch.Tensor)


def _dtype_name(name: str, dtype: torch.dtype) -> str:
    if _short(dtype) not in ITEM_BYTES:
        raise RefusedType(f"field {name!r}: tensors of {dtype} are not carried")
    return _short(dtype)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(tensor: torch.Tensor) -> str:
    if tensor.is_quantized or tensor.is_meta:
        return "quantized" if tensor.is_quantized else "meta"
    return str(tensor.layout).removeprefix("torch.")


def _check_rank(name: str, rank: int) -> None:
    if rank > MAX_RANK:
        raise BadArgument(f"field {name!r} has rows of rank {rank}; at most {MAX_RANK} is carried")


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
