"""One value of one row as bytes: a tensor as it lies in memory, anything else as msgpack of a closed set of types.

Invariants: what comes back has the type, dtype, shape and bytes of what was given, or an error named the key; no value
is pickled and no bytes can run code; a frame says itself what it holds, so that nobody needs TransferQueue's column
schema to read it (a column whose dtype changed half-way stays readable); a tensor's bytes begin at a multiple of 64.
Carried: tensors, NumPy arrays and scalars, None, bool, int (64 bits), float, str, bytes, and lists, tuples, dicts and
TensorDicts of these.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict, TensorDictBase

from penstock.errors import CorruptPayload, RefusedType
from penstock.payload.dtypes import ITEM_BYTES

__all__ = ["ALIGN", "Pieces", "decode", "encode", "length"]

Pieces: TypeAlias = list[memoryview]

_HEAD = struct.Struct("<4sBBBBQ")  # magic, version, kind, dtype, rank, payload bytes; then the shape
_MAGIC = b"PTQV"
_VERSION = 1
ALIGN = 64  # a cache line, and the widest load of a vector unit
_TENSOR, _OBJECT = 1, 2
_DTYPES = tuple(name for name in ITEM_BYTES if hasattr(torch, name))
_CODES = {getattr(torch, name): code for code, name in enumerate(_DTYPES)}
_EXT_TUPLE, _EXT_ARRAY, _EXT_SCALAR, _EXT_TENSOR, _EXT_TENSORDICT = range(1, 6)
_ARRAY_KINDS = "biufcSUMm"  # of NumPy dtypes: those whose bytes mean the same everywhere
_PLAIN = (type(None), bool, int, float, str, bytes)
_ARRAY_DTYPE = re.compile(rf"[<>|][{_ARRAY_KINDS}]\d+(\[\d*\w+\])?", re.ASCII)  # as NumPy writes them
_BROKEN = (msgspec.DecodeError, struct.error, RuntimeError, ValueError, TypeError, IndexError, OverflowError)


def encode(key: str, value: Any) -> Pieces:
    """Return ``value`` as pieces of memory, to be stored one after the other; a tensor's bytes are not copied.

    Raises:
        RefusedType: (also ``TypeError``) a type that is not carried; names the key and the type.
    """
    if isinstance(value, torch.Tensor):
        return _tensor_pieces(key, value)
    try:
        body = _encoder.encode(_packed(key, value))
    except (OverflowError, RecursionError, UnicodeEncodeError, msgspec.MsgspecError) as refused:
        raise RefusedType(f"{key!r}: {type(value).__name__} is not carried: {refused}", keys=[key]) from refused
    return [memoryview(_head(_OBJECT, 0, (), len(body))), memoryview(body)]


def length(pieces: Pieces) -> int:
    """Return the bytes of a value's pieces together."""
    return sum(piece.nbytes for piece in pieces)


def decode(key: str, view: memoryview) -> Any:
    """Return the value. A tensor lies over ``view``, which must be the caller's own to write to.

    Raises:
        CorruptPayload: the bytes are no frame, or not a whole one.
    """
    try:
        return _decoded(view)
    except _BROKEN as broken:
        raise CorruptPayload(f"{key!r}: no readable value: {broken}", keys=[key]) from broken


@functools.lru_cache(maxsize=1024)  # rows of a column have few shapes
def _head(kind: int, dtype: int, shape: tuple[int, ...], nbytes: int) -> bytes:
    head = _HEAD.pack(_MAGIC, _VERSION, kind, dtype, len(shape), nbytes) + struct.pack(f"<{len(shape)}Q", *shape)
    return head.ljust(-(-len(head) // ALIGN) * ALIGN, b"\0")


def _tensor_pieces(key: str, tensor: torch.Tensor) -> Pieces:
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _CODES:
        what = "nested tensor" if tensor.is_nested else f"{tensor.layout} tensor of {tensor.dtype}"
        raise RefusedType(f"{key!r}: a {what} is not carried as the value of one row", keys=[key])
    plain = _in_one_piece(tensor)
    nbytes = plain.nbytes
    head = memoryview(_head(_TENSOR, _CODES[plain.dtype], tuple(plain.shape), nbytes))
    return [head, plain.view(-1).view(torch.uint8).numpy().data] if nbytes else [head]


def _in_one_piece(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's numbers in one piece of this machine's memory: mostly it is that already."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.to("cpu")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _decoded(view: memoryview) -> Any:
    magic, version, kind, dtype, rank, nbytes = _HEAD.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"begins with {magic!r}, version {version}")
    shape = struct.unpack_from(f"<{rank}Q", view, _HEAD.size)
    start = -(-(_HEAD.size + 8 * rank) // ALIGN) * ALIGN
    if view.nbytes != start + nbytes:
        raise ValueError(f"{view.nbytes} bytes, {start + nbytes} were written")
    if kind == _OBJECT:
        return _decoder.decode(view[start:])
    if kind != _TENSOR:
        raise ValueError(f"kind {kind}")
    return _tensor(view, start, nbytes, getattr(torch, _DTYPES[dtype]), shape)


def _tensor(view: memoryview, start: int, nbytes: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if math.prod(shape) * dtype.itemsize != nbytes:
        raise ValueError(f"{nbytes} bytes for shape {shape} of {dtype}")
    if not nbytes:
        return torch.empty(shape, dtype=dtype)
    raw = torch.frombuffer(view, dtype=torch.uint8, offset=start)
    if raw.data_ptr() % dtype.itemsize:  # where a value begins is the store's business
        raw = raw.clone()
    return raw.view(dtype).view(shape)


# -- values that are no tensors ---------------------------------------------------------------------------------------


def _packed(key: str, value: Any) -> Any:
    """Return ``value`` with everything that msgpack does not know, or would change, wrapped in extensions."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_packed(key, item) for item in value]
    if kind is dict:
        return _packed_dict(key, value)
    if kind is tuple:
        return msgspec.msgpack.Ext(_EXT_TUPLE, _encoder.encode([_packed(key, item) for item in value]))
    if isinstance(value, NonTensorData | NonTensorStack):
        return _packed(key, value.tolist())
    if isinstance(value, torch.Tensor):
        return msgspec.msgpack.Ext(_EXT_TENSOR, b"".join(_tensor_pieces(key, value)))
    if isinstance(value, TensorDictBase):
        body = [list(value.batch_size), _packed_dict(key, dict(value.items()))]
        return msgspec.msgpack.Ext(_EXT_TENSORDICT, _encoder.encode(body))
    if isinstance(value, np.ndarray | np.generic):
        return _packed_array(key, value)
    raise RefusedType(f"{key!r}: a value of type {kind.__qualname__} is not carried", keys=[key])


def _packed_dict(key: str, value: Mapping[Any, Any]) -> dict[Any, Any]:
    for name in value:
        if type(name) not in (str, int):
            raise RefusedType(f"{key!r}: a dict key of type {type(name).__qualname__} is not carried", keys=[key])
    return {name: _packed(key, item) for name, item in value.items()}


def _packed_array(key: str, value: np.ndarray[Any, Any] | np.generic) -> msgspec.msgpack.Ext:
    array = np.asarray(value)
    if array.dtype.kind not in _ARRAY_KINDS:
        raise RefusedType(f"{key!r}: an array of dtype {array.dtype} is not carried", keys=[key])
    body = _encoder.encode((array.dtype.str, array.shape, array.tobytes()))
    return msgspec.msgpack.Ext(_EXT_SCALAR if isinstance(value, np.generic) else _EXT_ARRAY, body)


def _opened(code: int, data: memoryview) -> Any:
    if code == _EXT_TUPLE:
        return tuple(_decoder.decode(data))
    if code == _EXT_TENSOR:
        return _decoded(memoryview(bytearray(data)))  # memory of its own
    if code == _EXT_TENSORDICT:
        batch_size, items = _decoder.decode(data)
        return TensorDict(items, batch_size=batch_size)
    if code not in (_EXT_ARRAY, _EXT_SCALAR):
        raise ValueError(f"extension {code}")
    dtype, shape, raw = _decoder.decode(data)
    if not _ARRAY_DTYPE.fullmatch(dtype):
        raise ValueError(f"array of dtype {dtype!r}")
    array = np.frombuffer(raw, dtype).reshape(shape)
    return array.copy() if code == _EXT_ARRAY else array[()]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_opened)
