"""Columns: what may be put, and that it comes back bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import NonTensorData, TensorDict

from penstock.errors import DataPlaneBadRequest
from penstock.testing.conformance_world import Flow, World, ints, names, raises, same, same_tensor

_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
)


def _there_and_back(flow: Flow, column: Any, n_rows: int, prefix: str = "k") -> Any:
    keys = names(prefix, n_rows)
    flow.client.put_samples(keys, flow.name, {"c": column})
    return flow.get(keys, "c")["c"]


def _nested(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nested.nested_tensor(list(rows), layout=torch.jagged)


def every_dtype_comes_back_bit_for_bit(w: World) -> None:
    """bool, ints, half, bfloat16, float8 and complex columns round-trip, dense and ragged, bit for bit."""
    for dtype in _DTYPES:
        dense = torch.tensor([[0, 1, 2], [3, 1, 0]]).to(torch.float32).to(dtype)
        same_tensor(_there_and_back(w.flow(), dense, 2), dense, f"dense {dtype}")
        ragged = [dense[0], dense[1, :1]]
        same_tensor(_there_and_back(w.flow(), ragged, 2), _nested(ragged), f"ragged {dtype}")


def odd_floats_keep_their_bits(w: World) -> None:
    """NaNs, infinities, negative zero and subnormals keep their bits."""
    column = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])
    same_tensor(_there_and_back(w.flow(), column, 5), column)


def shapes_come_back(w: World) -> None:
    """Columns of one, many and zero-sized dimensions keep their shape: (N,), (N, 1), (N, 2, 3), (N, 0), (N, 0, 4)."""
    for shape in ((3,), (3, 1), (3, 2, 3), (3, 0), (3, 0, 4)):
        column = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
        same_tensor(_there_and_back(w.flow(), column, 3), column, f"shape {shape}")


def one_row_keeps_its_dimension(w: World) -> None:
    """A batch of one row comes back as (1, ...), not squeezed."""
    same_tensor(_there_and_back(w.flow(), ints(7), 1), ints(7))


def ragged_rows_come_back_nested(w: World) -> None:
    """Rows of different lengths come back as one nested tensor; rows of no length at all are rows."""
    rows = [torch.arange(3), torch.arange(0), torch.arange(5)]
    same_tensor(_there_and_back(w.flow(), _nested(rows), 3), _nested(rows))
    wide = [torch.ones(2, 4), torch.zeros(3, 4)]
    same_tensor(_there_and_back(w.flow(), _nested(wide), 2), _nested(wide), "ragged rows of rank 2")


def results_are_dense_when_shapes_agree(w: World) -> None:
    """The layout of a result follows from its rows: dense when their shapes agree, nested when not, however put."""
    flow = w.flow()
    flow.client.put_samples(["a", "b"], flow.name, {"c": [torch.ones(2), torch.ones(3)]})
    flow.client.put_samples(["d", "e"], flow.name, {"c": torch.zeros(2, 2)})
    flow.client.put_samples(["f", "g"], flow.name, {"c": _nested([torch.ones(2), torch.ones(2)])})
    same_tensor(flow.get(["a", "d"], "c")["c"], torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "equal rows of two puts")
    same_tensor(flow.get(["d", "b"], "c")["c"], _nested([torch.zeros(2), torch.ones(3)]), "unequal rows of two puts")
    same_tensor(flow.get(["f", "g"], "c")["c"], torch.ones(2, 2), "equal rows that were put nested")


def all_empty_rows_come_back(w: World) -> None:
    """A ragged put whose rows are all of length zero comes back as (N, 0)."""
    same_tensor(_there_and_back(w.flow(), [torch.ones(0), torch.ones(0)], 2), torch.ones(2, 0))


def lists_and_arrays_are_columns(w: World) -> None:
    """Lists of tensors and numeric numpy arrays are tensor columns, in strict mode too."""
    same_tensor(_there_and_back(w.flow(), [torch.tensor(1), torch.tensor(2)], 2), ints(1, 2), "0-d tensors")
    array = np.arange(6, dtype=np.int32).reshape(3, 2)
    same_tensor(_there_and_back(w.flow(), array, 3), torch.from_numpy(array.copy()), "array")
    same_tensor(_there_and_back(w.flow(), array[::-1], 3), torch.from_numpy(array[::-1].copy()), "reversed array")


def any_memory_layout_is_accepted(w: World) -> None:
    """Non-contiguous, expanded and requires-grad tensors are stored by value; what is read needs no grad."""
    base = torch.arange(12.0).reshape(3, 4)
    same_tensor(_there_and_back(w.flow(), base.t(), 4), base.t().contiguous(), "transposed")
    same_tensor(_there_and_back(w.flow(), base[:, ::2], 3), base[:, ::2].contiguous(), "strided")
    same_tensor(_there_and_back(w.flow(), torch.ones(1).expand(3), 3), torch.ones(3), "expanded")
    got = _there_and_back(w.flow(), base.clone().requires_grad_(), 3)
    same_tensor(got, base, "requires grad")
    same(got.requires_grad, False, "requires_grad of what was read")


def mixed_dtypes_in_one_column_are_refused(w: World) -> None:
    """A list of tensors of different dtypes or ranks is refused, never cast."""
    flow = w.flow()
    for rows in ([torch.ones(2), torch.ones(2).int()], [torch.ones(2), torch.ones(2, 2)]):
        with raises(DataPlaneBadRequest, TypeError, naming=["c"]):
            flow.client.put_samples(["a", "b"], flow.name, {"c": rows})
    same(flow.keys(), [], "rows")


def non_tensors_are_refused(w: World) -> None:
    """By default a non-tensor leaf is a TypeError that says "non-tensor" and names the field; nothing is put."""
    flow = w.flow()
    for fields in (
        TensorDict({"x": NonTensorData("hello")}, batch_size=[1]),
        {"x": ["hello"]},
        {"x": np.array(["hello"])},
        {"x": [{"a": 1}]},
        {"x": [None]},
    ):
        with raises(DataPlaneBadRequest, TypeError, naming=["non-tensor", "x"]):
            flow.client.put_samples(["a"], flow.name, fields)
    same(flow.keys(), [], "rows")
