"""The reference model's columns: what was put comes back, and the payload codec says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import NonTensorData, TensorDict

from penstock.errors import BadArgument, DataPlaneBadRequest, RefusedType
from penstock.payload import codec
from penstock.plane import columns

NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(0)], layout=torch.jagged)


def there_and_back(fields: Any, n_rows: int, strict: bool = True) -> TensorDict:
    split = columns.split(fields, n_rows, strict)
    return columns.table({c.spec.name: columns.join(c.spec, c.values) for c in split}, n_rows)


@pytest.mark.parametrize(
    ("column", "n_rows", "dtype", "rank", "ragged"),
    [
        (torch.arange(3), 3, "int64", 0, False),
        (torch.zeros(3, 2, dtype=torch.bfloat16), 3, "bfloat16", 1, False),
        (torch.zeros(0, 4), 0, "float32", 1, False),
        (NESTED, 2, "float32", 1, True),
        ([torch.ones(2, 3), torch.ones(1, 3)], 2, "float32", 2, True),
        ([torch.tensor(1), torch.tensor(2)], 2, "int64", 0, False),
        (np.zeros((2, 2), dtype=">f4"), 2, "float32", 1, False),
        ([True, False], 2, "bool", 0, False),
        ([1.5, 2.0], 2, "float64", 0, False),
    ],
)
def test_columns_are_described(column: Any, n_rows: int, dtype: str, rank: int, ragged: bool) -> None:
    """dtype and rank are those of a row; a list of tensors or a nested tensor is ragged."""
    (got,) = columns.split({"c": column}, n_rows, strict=True)
    assert (got.spec.dtype, got.spec.rank, got.ragged, len(got.values)) == (dtype, rank, ragged, n_rows)


@pytest.mark.parametrize(
    ("fields", "n_rows", "kind"),
    [
        ({"x": ["a"]}, 1, RefusedType),
        ({"x": [1, 2.0]}, 2, RefusedType),
        ({"x": {"y": torch.ones(1)}}, 1, RefusedType),
        ({"x": "abc"}, 3, RefusedType),
        ({"x": object()}, 1, RefusedType),
        ({"x": [torch.ones(1), torch.ones(1).int()]}, 2, RefusedType),
        (TensorDict({"x": NonTensorData("hello")}, batch_size=[1]), 1, RefusedType),
        ({"x": torch.tensor(1)}, 1, BadArgument),
        ({"x": torch.ones(2)}, 1, BadArgument),
        ({"x": [torch.ones(2)]}, 2, BadArgument),
        (TensorDict({"x": torch.ones(2)}, batch_size=[2]), 1, BadArgument),
        ("abc", 3, DataPlaneBadRequest),
    ],
)
def test_what_is_refused_here_the_codec_refuses(fields: Any, n_rows: int, kind: type[Exception]) -> None:
    """The reference model and the payload codec refuse the same columns."""
    with pytest.raises(kind):
        columns.split(fields, n_rows, strict=True)
    with pytest.raises(DataPlaneBadRequest):
        codec.encode(fields, n_rows, strict_tensors=True)


def test_non_tensors_pass_when_allowed() -> None:
    """With strict off values of every plain kind come back equal and of their type."""
    values: list[Any] = ["", None, b"", {}, [], {"a": [1, 2.5, True]}, "x"]
    got = there_and_back({"c": values}, len(values), strict=False)["c"].tolist()
    assert [(type(v), v) for v in got] == [(type(v), v) for v in values]
    one = there_and_back(TensorDict({"c": NonTensorData("same")}, batch_size=[2]), 2, strict=False)
    assert one["c"].tolist() == ["same", "same"]


def test_two_ragged_dimensions_come_back() -> None:
    """Rows that differ in two dimensions come back row by row equal."""
    rows = [torch.ones(2, 3), torch.zeros(4, 5)]
    got = there_and_back({"c": rows}, 2)["c"].unbind()
    assert all(torch.equal(a, b) for a, b in zip(got, rows, strict=True))


def test_checksums_tell_contents_apart() -> None:
    """A column's checksum changes with its values, shapes, dtype and name, and with nothing else."""
    base = torch.zeros(2, 2)
    variants = [
        {"c": base},
        {"d": base},
        {"c": base.int()},
        {"c": torch.zeros(2, 1)},
        {"c": torch.tensor([[0.0, 0.0], [0.0, 1.0]])},
        {"c": [torch.zeros(1), torch.zeros(3)]},
        {"c": [torch.zeros(3), torch.zeros(1)]},
    ]
    sums = [columns.split(fields, 2, strict=True)[0].checksum() for fields in variants]
    assert len(set(sums)) == len(sums)
    assert columns.split({"c": base.clone()}, 2, strict=True)[0].checksum() == sums[0]
