"""Columns as TransferQueue's callers give them and expect them back.

Invariants: what is read is jagged wherever rows are tensors of at least one dimension, those of one shape too, as
TransferQueue returns it; that costs no copy of the data; columns whose rows have equal lengths share their offsets, so
that torch lets them be combined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import NonTensorStack, TensorDict, TensorDictBase

from penstock.errors import BadArgument, RefusedType
from penstock.plane import checks

__all__ = ["MARK", "Parser", "as_read", "marks", "of_batch", "of_row", "parsed"]

Parser = Callable[[Any], Any]
MARK = "tq:row"  # a column of no bytes: what makes a row of which nothing but tags was put


def marks(n_rows: int) -> dict[str, torch.Tensor]:
    """Return the column that makes ``n_rows`` rows without contents."""
    return {MARK: torch.empty((n_rows, 0), dtype=torch.uint8)}


def of_row(fields: object) -> TensorDict:
    """Return one row's fields as a batch of one.

    Args:
        fields: a dict of values without a batch dimension, or a TensorDict of batch size 1.

    Raises:
        BadArgument: another type or batch size, or a nested tensor, which is a batch by itself.
    """
    if isinstance(fields, TensorDictBase):
        return of_batch(fields, 1)
    if not isinstance(fields, Mapping):
        raise BadArgument(f"fields must be a dict or a TensorDict, got {type(fields).__name__}")
    batch: dict[str, Any] = {}
    for name, value in zip(checks.names(list(fields), "field names"), fields.values(), strict=True):
        if isinstance(value, torch.Tensor):
            if value.is_nested:
                raise BadArgument(f"field {name!r} is a nested tensor: put several rows with kv_batch_put")
            batch[name] = value.unsqueeze(0)
        else:
            batch[name] = NonTensorStack(value)
    return of_batch(TensorDict(batch, batch_size=[1]), 1)


def of_batch(fields: object, n_rows: int) -> TensorDict:
    """Return ``fields``, a TensorDict of ``n_rows`` rows without the column that is ours."""
    if not isinstance(fields, TensorDictBase):
        raise BadArgument(f"fields must be a TensorDict, got {type(fields).__name__}")
    if tuple(fields.batch_size[:1]) != (n_rows,):
        raise BadArgument(f"fields have batch size {list(fields.batch_size)} for {n_rows} keys")
    if MARK in fields.keys():  # noqa: SIM118 - a TensorDict is no mapping
        raise BadArgument(f"the field name {MARK!r} is taken")
    return fields


def parsed(fields: TensorDict, parser: Parser | None) -> TensorDict | dict[str, Any]:
    """Return what ``parser`` makes of the columns: a dict with the same names and numbers of rows.

    It runs here, in the process that puts, and gets tensors as they are, nested and non-tensor columns as lists.
    """
    if parser is None:
        return fields
    if not callable(parser):
        raise RefusedType(f"data_parser must be callable, got {type(parser).__name__}")
    given = {name: _plain(fields.get(name)) for name in fields.keys()}  # noqa: SIM118
    made = parser(given)
    if not isinstance(made, dict):
        raise RefusedType(f"data_parser must return a dict, got {type(made).__name__}")
    if set(made) != set(fields.keys()):
        raise BadArgument(f"data_parser changed the columns from {sorted(fields.keys())} to {sorted(made)}")
    n_rows = fields.batch_size[0]
    odd = [name for name, column in made.items() if len(column) != n_rows]
    if odd:
        raise BadArgument(f"data_parser changed the number of rows of {sorted(odd)}; {n_rows} were given")
    return made


def _plain(column: Any) -> Any:
    if isinstance(column, torch.Tensor):
        return list(column.unbind()) if column.is_nested else column
    return column.tolist()


def as_read(table: TensorDict) -> TensorDict:
    """Return a read table with its columns as TransferQueue returns them."""
    offsets: dict[int, torch.Tensor] = {}
    columns = {name: _jagged(table.get(name), offsets) for name in table.keys()}  # noqa: SIM118
    return TensorDict(columns, batch_size=table.batch_size)


def _jagged(column: Any, offsets: dict[int, torch.Tensor]) -> Any:
    if not isinstance(column, torch.Tensor):
        return column
    if column.is_nested:
        return column if column.layout is torch.jagged else _other_dimension(column)
    if column.dim() < 2:  # a scalar per row
        return column
    rows, length = column.shape[:2]
    if length not in offsets:
        offsets[length] = torch.arange(rows + 1) * length
    return torch.nested.nested_tensor_from_jagged(
        column.flatten(0, 1), offsets[length], min_seqlen=length, max_seqlen=length
    )


def _other_dimension(column: torch.Tensor) -> torch.Tensor:
    """Return a strided nested tensor as a jagged one where only one dimension, be it not the first, is ragged."""
    rows: Sequence[torch.Tensor] = column.unbind()
    if sum(len(set(sizes)) > 1 for sizes in zip(*(row.shape for row in rows), strict=True)) != 1:
        return column
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
