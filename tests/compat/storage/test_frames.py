"""Values as bytes: they come back as they were, or are refused, and damaged bytes are an error of ours."""

from __future__ import annotations

import contextlib
import enum
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import NonTensorData, TensorDict

from penstock.compat.transfer_queue_storage.frames import ALIGN, decode, encode, length
from penstock.errors import CorruptPayload, RefusedType
from penstock.payload.dtypes import ITEM_BYTES

DTYPES = [getattr(torch, name) for name in ITEM_BYTES if hasattr(torch, name)]


def joined(value: Any) -> bytearray:
    return bytearray().join(encode("0@f", value))


def there_and_back(value: Any) -> Any:
    return decode("0@f", memoryview(joined(value)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4), (1, 1, 1, 1, 1, 1, 1, 2)], ids=str)
def test_tensors_come_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Every dtype and shape, empty and scalar ones too, comes back bit by bit."""
    size = torch.Size(shape).numel() * dtype.itemsize
    tensor = torch.arange(size, dtype=torch.uint8).remainder(2).view(dtype).view(shape)
    back = there_and_back(tensor)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert back.contiguous().reshape(-1).view(torch.uint8).tolist() == tensor.reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0)[::3],
        torch.zeros(3, requires_grad=True),
        torch.tensor([1 + 2j]).conj(),
        torch.zeros(1).expand(5),
    ],
    ids=["transposed", "strided", "grad", "conjugate", "expanded"],
)
def test_tensors_of_any_layout_come_back_equal(tensor: torch.Tensor) -> None:
    """Views, gradients and lazy conjugates are stored as their numbers."""
    assert torch.equal(there_and_back(tensor), tensor.detach().resolve_conj())


def test_a_tensor_is_not_copied_and_lies_aligned() -> None:
    """Encoding refers to the tensor's own memory; decoding lies over the bytes given, whose data begins aligned."""
    tensor = torch.arange(100.0)
    head, body = encode("0@f", tensor)
    assert np.frombuffer(body, np.uint8).ctypes.data == tensor.data_ptr()
    assert head.nbytes % ALIGN == 0
    stored = joined(tensor)
    decode("0@f", memoryview(stored))[0] = 7.0
    assert decode("0@f", memoryview(stored))[0] == 7.0


def test_a_value_that_begins_anywhere_is_readable() -> None:
    """Bytes that a store hands out at an odd address are copied to where their dtype may lie."""
    stored = bytearray(b"x") + joined(torch.arange(5, dtype=torch.int64))
    assert decode("0@f", memoryview(stored)[1:]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**64 - 1,
        1.5,
        float("inf"),
        "",
        "söme text",
        b"",
        b"\0\xff",
        [],
        {},
        (),
        [1, "a", None, [b"x", (1, (2, "z"))]],
        {"idx": 1, "deep": {"er": (1, 2)}, 7: [True]},
    ],
    ids=repr,
)
def test_plain_values_come_back(value: Any) -> None:
    """Python's plain values come back equal and of the same type, tuples and None too."""
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">i2").reshape(2, 3),
        np.array([], np.float16),
        np.array(3.5),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array(["2024-01-01"], "datetime64[D]"),
        np.arange(4)[::2],
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_come_back(array: np.ndarray[Any, Any]) -> None:
    """Arrays come back with dtype, byte order and shape, in memory of their own; their scalars stay scalars."""
    back = there_and_back(array)
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tolist() == array.tolist()
    assert back.flags.writeable
    for scalar in array.reshape(-1)[:1]:
        assert type(there_and_back(scalar)) is type(scalar)
        assert there_and_back(scalar) == scalar


def test_mixtures_come_back() -> None:
    """Tensors, arrays and TensorDicts within dicts and lists come back; a wrapped value comes back without its wrap."""
    back = there_and_back({"t": [torch.arange(3)], "a": (np.arange(2),), "d": TensorDict({"x": torch.ones(2)}, [2])})
    assert back["t"][0].tolist() == [0, 1, 2]
    assert back["a"][0].tolist() == [0, 1]
    assert back["d"].batch_size == torch.Size([2])
    assert back["d"]["x"].tolist() == [1, 1]
    assert there_and_back(NonTensorData({"a": 1})) == {"a": 1}


class _Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({1, 2}, "set"),
        (_Colour.RED, "_Colour"),
        (object(), "object"),
        (print, "builtin_function"),
        (bytearray(b"x"), "bytearray"),
        ([{"a": {(1, 2): 3}}], "dict key of type tuple"),
        (np.array([object()]), "dtype object"),
        (np.zeros(1, [("a", int)]), "dtype"),
        (2**64, "int"),
        ("\ud800", "str"),
        (torch.zeros(2).to_sparse(), "sparse"),
        (torch.nested.nested_tensor([torch.zeros(1)]), "nested"),
        (torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8), "quint8"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_would_come_back_as_something_else_is_refused(value: Any, said: str) -> None:
    """A type outside the closed set is a TypeError that names the key and the type; nothing is pickled."""
    with pytest.raises(RefusedType, match=said) as caught:
        encode("3@odd", value)
    assert caught.value.keys == ["3@odd"]


def test_endless_values_are_refused() -> None:
    """A list that contains itself is refused, not followed."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RefusedType):
        encode("0@f", endless)


@given(st.data())
def test_damaged_bytes_are_an_error_of_ours(data: st.DataObject) -> None:
    """Cut, flipped or invented bytes decode to some value or raise ``CorruptPayload``, nothing else."""
    whole = joined(data.draw(st.sampled_from([torch.arange(4), {"a": (1, np.arange(2))}, "text"])))
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[: at + 1] if data.draw(st.booleans()) else whole
    damaged[at] ^= data.draw(st.integers(0, 255))
    for given_bytes in (damaged, bytearray(data.draw(st.binary(max_size=200)))):
        with contextlib.suppress(CorruptPayload):
            decode("0@f", memoryview(given_bytes))


def test_a_cut_value_is_never_served() -> None:
    """Any prefix of a value, and a value with more behind it, is refused."""
    whole = joined(torch.arange(40.0))
    for cut in [*range(0, len(whole), 7), len(whole) - 1]:
        with pytest.raises(CorruptPayload, match="0@f"):
            decode("0@f", memoryview(whole[:cut]))
    with pytest.raises(CorruptPayload):
        decode("0@f", memoryview(whole + b"\0"))


def test_length_is_that_of_the_bytes() -> None:
    """The length told beforehand is that of what is stored."""
    for value in (torch.zeros(5), "text", torch.zeros(0)):
        assert length(encode("0@f", value)) == len(joined(value))
