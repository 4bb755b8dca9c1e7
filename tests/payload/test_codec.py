"""What a put may carry comes back bit for bit; what it may not is refused by field and type."""

from __future__ import annotations

import datetime as dt
import enum
import importlib.machinery
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import LazyStackedTensorDict, NonTensorData, NonTensorStack, TensorDict

from penstock.errors import BadArgument, RefusedType
from penstock.payload import codec
from penstock.plane import checks
from penstock.requests import FieldSpec
from tests.payload.room import Room
from tests.payload.values import DTYPES, plain, random_tensor, same_bits, same_rows

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def back(room: Room, fields: Any, rows: int, *, strict: bool = False) -> dict[str, Any]:
    place = room.put(fields, rows, strict=strict)
    columns = room.whole(place)
    room.arena.release(place.block_id)
    return columns


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.integers(0, 4), shapes, st.integers(0, 99))
def test_dense_tensors_of_every_dtype_come_back_to_the_bit(
    room: Room, dtype: str, rows: int, row_shape: tuple[int, ...], seed: int
) -> None:
    """Any shape, no rows and empty rows included, NaN payloads included."""
    tensor = random_tensor(dtype, (rows, *row_shape), seed)
    assert same_bits(back(room, {"x": tensor}, rows, strict=True)["x"], tensor)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(DTYPES), st.integers(0, 3), st.data())
def test_lists_of_tensors_come_back_row_by_row(room: Room, dtype: str, rank: int, data: st.DataObject) -> None:
    """Ragged in any dimension or in none; 0-d, empty and equal rows included."""
    row = st.lists(st.integers(0, 4), min_size=rank, max_size=rank).map(tuple)
    rows = [random_tensor(dtype, s, n) for n, s in enumerate(data.draw(st.lists(row, min_size=1, max_size=5)))]
    found = back(room, {"x": rows}, len(rows), strict=True)["x"]
    assert same_rows(found, rows)
    if len({r.shape for r in rows}) == 1:
        assert isinstance(found, torch.Tensor)
        assert not found.is_nested


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(plain, max_size=5))
def test_plain_values_come_back_equal_and_of_the_same_type(room: Room, values: list[Any]) -> None:
    """None, b"", "", {} and [] are five different values."""
    found = back(room, {"x": NonTensorStack(*[NonTensorData(v) for v in values])}, len(values))["x"]
    assert found == values
    assert list(map(repr, found)) == list(map(repr, values))


def test_all_ways_to_give_a_ragged_field_are_one() -> None:
    """List, jagged, strided nested and lazily stacked rows make the same block."""
    rows = [torch.arange(n, dtype=torch.float32) for n in (3, 0, 2)]
    lazy = LazyStackedTensorDict(*[TensorDict({"x": row}, []) for row in rows])
    given_as = [
        {"x": rows},
        {"x": tuple(rows)},
        {"x": [row.numpy() for row in rows]},
        {"x": torch.nested.as_nested_tensor(rows, layout=torch.jagged)},
        {"x": torch.nested.as_nested_tensor(rows, layout=torch.strided)},
        TensorDict({"x": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, [3]),
        lazy,
    ]
    contents = set()
    for fields in given_as:
        batch = codec.encode(fields, 3)
        assert batch.specs == [FieldSpec("x", "float32", 1)]
        assert batch.lengths == [3, 0, 2]
        assert batch.row_bytes == [12, 0, 8]
        contents.add(batch.write_into(bytearray(batch.nbytes), 1))
    assert len(contents) == 1


def odd_tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).view(4, 6)
    with_holes = torch.nested.narrow(
        base, dim=1, start=torch.tensor([1, 0, 2, 3]), length=torch.tensor([2, 1, 4, 0]), layout=torch.jagged
    )
    rows = [torch.ones(2, n) for n in (3, 1, 0, 2)]
    return {
        "transposed": base.t()[:4],
        "strided": base[:, ::2],
        "expanded": torch.ones(4, 1).expand(4, 5),
        "grad": torch.ones(4, 2, requires_grad=True),
        "conj": torch.randn(4, 2, dtype=torch.complex64).conj(),
        "negative": torch.randn(4, 2, dtype=torch.complex64).conj().imag,
        "fortran": torch.from_numpy(np.asfortranarray(np.arange(8.0).reshape(4, 2))),
        "offset": torch.arange(99)[7:11],
        "with_holes": with_holes,
        "ragged_last": torch.nested.as_nested_tensor(rows, layout=torch.jagged),
        "jagged_grad": torch.nested.nested_tensor(rows, layout=torch.strided, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.ones(4)),
    }


@pytest.mark.parametrize("name", list(odd_tensors()))
def test_tensors_of_unusual_memory_are_carried(room: Room, name: str) -> None:
    """Non-contiguous, expanded, requiring grad, conjugated, with holes: values as seen by the user."""
    tensor = odd_tensors()[name]
    found = back(room, {"x": tensor}, 4, strict=True)["x"]
    assert same_rows(found, [row.detach() for row in tensor.unbind()])
    assert not found.requires_grad


def test_rows_of_unusual_memory_are_carried_in_lists(room: Room) -> None:
    """Strided rows, rows that require grad, parameters and views of one tensor."""
    rows = [torch.arange(10.0)[::3], torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.zeros(0))]
    found = back(room, {"x": rows}, 3, strict=True)["x"]
    assert [row.tolist() for row in found.unbind()] == [[0.0, 3.0, 6.0, 9.0], [1.0, 1.0], []]


def test_a_default_device_changes_nothing(room: Room) -> None:
    """Columns are read and written on the CPU wherever the user's factories put theirs."""
    rows = [torch.ones(n) for n in (2, 0)]
    fields = {"x": torch.zeros(2, 0), "r": rows, "n": [1, 2], "a": np.arange(2)}
    with torch.device("meta"):
        found = back(room, fields, 2)
        assert {str(column.device) for column in found.values()} == {"cpu"}
    assert same_rows(found["r"], rows)


def test_long_lists_are_copied_in_parts(room: Room) -> None:
    """More elements than one torch.cat takes here, rows larger than that included."""
    rows = [torch.arange(n, dtype=torch.int32) for n in (40_000, 1, 30_000, 5_000, 0, 70_000, 3)]
    assert same_rows(back(room, {"x": rows}, 7, strict=True)["x"], rows)


def test_a_jagged_tensor_over_a_part_of_its_values_gives_that_part(room: Room) -> None:
    """Offsets that begin after zero and end before the values do."""
    part = torch.nested.nested_tensor_from_jagged(torch.arange(20), torch.tensor([3, 5, 5, 9, 12]))
    found = back(room, {"x": part}, 4, strict=True)["x"]
    assert [row.tolist() for row in found.unbind()] == [[3, 4], [], [5, 6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.arange(6, dtype=">i4").reshape(3, 2), "int32"),
        (np.arange(6, dtype=np.uint16)[::-2], "uint16"),
        (np.array([True, False, True]), "bool"),
        (np.broadcast_to(np.float16(1.5), (3, 2)), "float16"),
        (np.zeros((3, 0)), "float64"),
        (np.array([1 + 2j] * 3), "complex128"),
        (np.lib.stride_tricks.as_strided(np.arange(9), (3, 2), (24, 8)), "int64"),
    ],
)
def test_numeric_arrays_pass_strict_mode(room: Room, array: np.ndarray[Any, Any], dtype: str) -> None:
    """Any byte order, stride or writability."""
    found = back(room, {"x": array}, 3, strict=True)["x"]
    assert str(found.dtype) == f"torch.{dtype}"
    assert found.numpy().tolist() == array.tolist()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("values", "dtype"), [([1, -(2**63)], "int64"), ([0.1, 2.0], "float64"), ([True, False], "bool")]
)
def test_python_numbers_are_a_column_of_scalars(room: Room, values: list[Any], dtype: str, strict: bool) -> None:
    """One number per row: lossless, and the same in both modes."""
    batch = codec.encode({"x": values}, 2, strict_tensors=strict)
    assert batch.specs == [FieldSpec("x", dtype, 0)]
    assert back(room, {"x": values}, 2)["x"].tolist() == values
    scalars = [np.array(v)[()] for v in values]
    assert codec.encode({"x": scalars}, 2).specs == batch.specs


NON_TENSORS: list[Any] = [
    ["a", "b"],
    [b"a", b""],
    [None, None],
    [1, "a"],
    [{}, {}],
    [[1], [2]],
    np.array(["a", "b"]),
    np.array([1, "a"], dtype=object),
    NonTensorStack(NonTensorData("a"), NonTensorData("b")),
    NonTensorData("a", batch_size=[2]),
]


@pytest.mark.parametrize("value", NON_TENSORS, ids=lambda v: str(type(v).__name__))
@pytest.mark.parametrize("in_tensordict", [False, True])
def test_a_non_tensor_leaf_is_refused_by_name_in_strict_mode(value: Any, in_tensordict: bool) -> None:
    """RefusedType (a TypeError) that says "non-tensor", in a dict and in a TensorDict, whose items() may hide it."""
    fields: Any = {"x": torch.zeros(2), "note": value}
    if in_tensordict and repr(value) != "[[1], [2]]":  # of which a TensorDict makes a tensor
        fields = TensorDict(fields, batch_size=[2])
    with pytest.raises(RefusedType, match=r"'note'.*non-tensor"):
        codec.encode(fields, 2)


@pytest.mark.parametrize("value", NON_TENSORS, ids=lambda v: str(type(v).__name__))
def test_the_same_leaf_is_carried_when_not_strict(room: Room, value: Any) -> None:
    """As the list of its rows."""
    expected = value.tolist() if hasattr(value, "tolist") else value
    assert back(room, {"x": value}, 2)["x"] == expected
    assert codec.encode({"x": value}, 2, strict_tensors=False).specs == [FieldSpec("x", "object", 0)]


class Colour(enum.Enum):
    RED = 1


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "value",
    [
        object(),
        (1, 2),
        {1, 2},
        Colour.RED,
        Text("a"),
        np.float64(1.0),
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        {("a", "b"): 1},
        {b"k": 1},
        {True: 1},
        [[object()]],
        torch.zeros(1),
        bytearray(b"a"),
        1j,
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_would_come_back_as_something_else_is_refused(value: Any) -> None:
    """Never pickled, never silently a list, a str or a float; the error names field and type."""
    with pytest.raises(RefusedType, match="'odd'"):
        codec.encode({"odd": [None, value]}, 2, strict_tensors=False)


@pytest.mark.parametrize("value", ["a\ud800", 2**64, -(2**63) - 1], ids=["surrogate", "too large", "too small"])
def test_plain_values_that_cannot_be_written_are_bad_arguments(value: Any) -> None:
    """A ValueError that names the field."""
    with pytest.raises(BadArgument, match="'x'"):
        codec.encode({"x": [None, value]}, 2, strict_tensors=False)


def test_values_nested_too_deep_or_in_a_circle_are_bad_arguments() -> None:
    """Before a decoder somewhere else recurses to its death."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(BadArgument, match="deeper"):
        codec.encode({"x": [circle]}, 1, strict_tensors=False)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.zeros(2, device="meta"), "meta"),
        ([torch.zeros(1, device="meta")] * 2, "meta"),
        ([torch.zeros(2).to_sparse(), torch.zeros(2).to_sparse()], "sparse"),
        ([torch.zeros(2), torch.zeros(2, dtype=torch.int64)], "int64"),
        ([torch.zeros(2), torch.zeros(2, 2)], "rank"),
        ([np.zeros(2), np.zeros(2, np.int32)], "int32"),
        (np.zeros(2, "M8[s]"), "datetime64"),
        (np.zeros(2, [("a", "i4")]), "a"),
        (np.zeros(2, np.longdouble), "float"),
        (TensorDict({"y": torch.zeros(2)}, [2]), "nested TensorDict"),
        ("ab", "str"),
        ({1: 2, 3: 4}, "dict"),
        (None, "NoneType"),
        ([torch.zeros(2), None], "Tensor"),
        ([torch.zeros(2), [1.0, 2.0]], "Tensor"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_columns_of_other_types_are_refused_in_both_modes(value: Any, says: str, strict: bool) -> None:
    """RefusedType names the field and what it is."""
    with pytest.raises(RefusedType, match=rf"'odd'.*{says}"):
        codec.encode({"odd": value}, 2, strict_tensors=strict)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3),
        torch.zeros(()),
        np.float64(1.0) * np.ones(()),
        [torch.zeros(1)] * 3,
        [1, 2, 3],
        ["a"],
        NonTensorData("a"),
        torch.nested.as_nested_tensor([torch.zeros(1)], layout=torch.jagged),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_column_of_the_wrong_number_of_rows_is_a_bad_argument(value: Any) -> None:
    """A ValueError that names the field; nothing is broadcast, nothing cut."""
    with pytest.raises((BadArgument, RefusedType), match="'odd'") as error:
        codec.encode({"odd": value}, 2, strict_tensors=False)
    assert isinstance(error.value, BadArgument) or isinstance(value, np.floating)


def test_a_tensordict_of_the_wrong_batch_size_is_a_bad_argument() -> None:
    """Its batch size is the row count, not a hint."""
    for batch_size in ([3], []):
        with pytest.raises(BadArgument, match="batch size"):
            codec.encode(TensorDict({}, batch_size), 2)


@pytest.mark.parametrize("fields", [[("x", 1)], "x", None, torch.zeros(2)])
def test_fields_that_are_no_mapping_are_refused(fields: Any) -> None:
    """Names come with columns."""
    with pytest.raises(RefusedType, match="mapping"):
        codec.encode(fields, 2)


def test_names_are_text() -> None:
    """A field's name is a str that can be written."""
    with pytest.raises(RefusedType):
        codec.encode({1: torch.zeros(2)}, 2)
    with pytest.raises(BadArgument):
        codec.encode({"\ud800": torch.zeros(2)}, 2)


def test_batches_of_no_rows(room: Room) -> None:
    """Every kind of column keeps its dtype and its row shape; an empty list has none to keep."""
    fields = {
        "dense": torch.zeros(0, 3, 4, dtype=torch.bfloat16),
        "nested": torch.nested.nested_tensor_from_jagged(torch.zeros(0, 2), torch.tensor([0])),
        "text": np.array([], dtype=object),
    }
    found = back(room, fields, 0)
    assert (found["dense"].shape, found["dense"].dtype) == ((0, 3, 4), torch.bfloat16)
    assert (len(found["nested"]), found["nested"].dtype) == (0, torch.float32)
    assert found["text"] == []
    with pytest.raises(BadArgument, match="empty list"):
        codec.encode({"x": []}, 0)


def test_a_batch_of_no_fields_is_a_batch() -> None:
    """The plane decides what it means."""
    batch = codec.encode({}, 3)
    assert (batch.specs, batch.row_bytes, batch.lengths) == ([], [0, 0, 0], None)


def test_what_the_plane_is_told(room: Room) -> None:
    """Specs per row, bytes per row, lengths of the first ragged field."""
    batch = codec.encode(
        {
            "dense": torch.zeros(2, 3, 4),
            "eq": [torch.zeros(5), torch.zeros(5)],
            "ids": [torch.zeros(2, 3, dtype=torch.int16), torch.zeros(0, 3, dtype=torch.int16)],
            "s": ["", "abc"],
        },
        2,
        strict_tensors=False,
    )
    assert batch.specs == [
        FieldSpec("dense", "float32", 2),
        FieldSpec("eq", "float32", 1),
        FieldSpec("ids", "int16", 2),
        FieldSpec("s", "object", 0),
    ]
    assert batch.row_bytes == [48 + 20 + 12 + 1, 48 + 20 + 0 + 4]
    assert batch.lengths == [5, 5]


def test_the_codec_does_not_pickle_and_loads_torch_late() -> None:
    """Importing it costs neither torch nor tensordict; objects of plain values need neither."""
    code = (
        "import sys\nfrom penstock.payload import codec, decode\n"
        "b = codec.encode({'x': ['a', None]}, 2, strict_tensors=False)\nb.write_into(bytearray(b.nbytes), 1)\n"
        "print([m for m in ('torch', 'tensordict') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_block_goes_only_into_a_place_of_its_size() -> None:
    """A grant of another size is the caller's mistake, found before a byte is written."""
    batch = codec.encode({"x": torch.zeros(2)}, 2)
    for size in (batch.nbytes - 1, batch.nbytes + 64):
        with pytest.raises(BadArgument):
            batch.write_into(bytearray(size), 1)


@pytest.mark.parametrize("name", ["torch", "tensordict"])
def test_a_module_that_another_thread_is_importing_is_not_asked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first puts of several threads meet while one of them imports torch: its half knows no Tensor yet."""
    half = types.ModuleType(name)
    half.__spec__ = importlib.machinery.ModuleSpec(name, None)
    half.__spec__._initializing = True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, half)
    assert codec.loaded(name) is None
    batch = codec.encode({"x": ["a", "b"]}, 2, strict_tensors=False)
    assert [column.name for column in batch.columns] == ["x"]
    assert checks._scalar(3) == 3
