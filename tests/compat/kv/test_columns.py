"""Columns in both directions, without a plane."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import NonTensorStack, TensorDict

from penstock.compat.transfer_queue import columns
from penstock.errors import BadArgument, RefusedType


def test_dense_columns_come_back_jagged_without_a_copy() -> None:
    """Scalars stay dense; equal lengths share their offsets, so that torch lets them be combined."""
    x, y = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    read = columns.as_read(TensorDict({"x": x, "y": y, "s": torch.ones(2), "m": torch.ones(2, 0, 4)}, batch_size=[2]))
    assert read["x"].layout is torch.jagged
    assert read["x"].values().data_ptr() == x.data_ptr()
    assert [row.tolist() for row in (read["x"] * read["y"]).unbind()] == x.tolist()
    assert not read["s"].is_nested
    assert [row.shape for row in read["m"].unbind()] == [(0, 4), (0, 4)]


def test_a_row_is_a_batch_of_one() -> None:
    """Tensors get a dimension, other values become a column; a TensorDict must be one already."""
    batch = columns.of_row({"x": torch.ones(3), "s": torch.tensor(1), "t": "text"})
    assert (batch["x"].shape, batch["s"].shape, batch.get("t").tolist()) == ((1, 3), (1,), ["text"])
    assert columns.of_row(batch) is batch
    nested = torch.nested.as_nested_tensor([torch.ones(2)], layout=torch.jagged)
    two = TensorDict({"x": torch.ones(2, 3)}, batch_size=[2])
    for odd in (
        [1],
        two,
        TensorDict({}, batch_size=[]),
        {"x": nested},
        {columns.MARK: torch.ones(1)},
        {3: torch.ones(1)},
    ):
        with pytest.raises(BadArgument):
            columns.of_row(odd)


def test_a_parser_sees_plain_columns_and_changes_values_alone() -> None:
    """Tensors as they are, nested and other columns as lists; names and numbers of rows are checked."""
    nested = torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    given = TensorDict({"x": torch.ones(2, 3), "r": nested, "t": NonTensorStack("a", "b")}, batch_size=[2])
    seen: dict[str, Any] = {}

    def parser(batch: dict[str, Any]) -> dict[str, Any]:
        seen.update(batch)
        return {**batch, "t": ["c", "d"]}

    assert columns.parsed(given, None) is given
    assert columns.parsed(given, parser)["t"] == ["c", "d"]
    assert (type(seen["x"]), type(seen["r"]), seen["t"]) == (torch.Tensor, list, ["a", "b"])
    for odd in (lambda b: {**b, "new": b["x"]}, lambda b: {"x": b["x"]}, lambda b: {**b, "t": ["only one"]}):
        with pytest.raises(BadArgument, match="data_parser"):
            columns.parsed(given, odd)
    for wrong in ("no callable", lambda b: None):
        with pytest.raises(RefusedType, match="data_parser"):
            columns.parsed(given, wrong)  # type: ignore[arg-type]
