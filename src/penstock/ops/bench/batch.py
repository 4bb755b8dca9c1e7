"""The batches that are measured: what a GRPO step moves (ragged), and one large dense column."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from penstock.errors import BadArgument

__all__ = ["BATCHES", "Batch", "Half", "make_batch"]

ROWS = 512
_SHORTEST, _LONGEST = 64, 1024  # tokens of a row
_DENSE_WIDTH = 32_768  # float32 per row: 512 rows are 64 MiB
_SEED = 20_26
BATCHES = ("ragged", "dense")


@dataclass(frozen=True)
class Half:
    """A random half of a batch's rows, in random order."""

    rows: list[int]
    nbytes: int


class Batch:
    """Columns of ``ROWS`` rows, each as one tensor a row; other forms are made once, outside any measurement.

    Args:
        name: one of ``BATCHES``.
        columns: name -> one tensor a row.
    """

    def __init__(self, name: str, columns: dict[str, list[torch.Tensor]]) -> None:
        self.name = name
        self.columns = columns
        self.nbytes = sum(t.nbytes for column in columns.values() for t in column)

    @property
    def fields(self) -> list[str]:
        return list(self.columns)

    def keys(self, turn: int) -> list[str]:
        """Return row keys no other turn has."""
        return [f"{self.name}-{turn}_g{i}" for i in range(ROWS)]

    @cached_property
    def stacked(self) -> dict[str, torch.Tensor]:
        """The columns as one tensor each: dense where rows agree in shape, else jagged."""
        return {name: _stacked(column) for name, column in self.columns.items()}

    @cached_property
    def flat(self) -> dict[str, torch.Tensor]:
        """The columns as values and offsets: what a store of plain tensors takes."""
        found: dict[str, torch.Tensor] = {}
        for name, column in self.columns.items():
            found[name] = torch.cat(column)
            found[f"{name}.offsets"] = torch.tensor([0, *(len(t) for t in column)]).cumsum(0)
        return found

    @cached_property
    def half(self) -> Half:
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(_SEED))[: ROWS // 2].tolist()
        return Half(order, sum(column[i].nbytes for column in self.columns.values() for i in order))

    def verify(self, rows: list[int], got: dict[str, list[torch.Tensor]]) -> None:
        """Compare what was read with what was put.

        Raises:
            ValueError: a column or a row differs.
        """
        for name, column in self.columns.items():
            read = got[name]
            if len(read) != len(rows) or not all(torch.equal(column[i], t) for i, t in zip(rows, read, strict=True)):
                raise ValueError(f"column {name!r} was not read as it was put")


def _stacked(column: list[torch.Tensor]) -> torch.Tensor:
    if len({t.shape for t in column}) == 1:
        return torch.stack(column)
    return torch.nested.nested_tensor(column, layout=torch.jagged)


def make_batch(name: str) -> Batch:
    """Build a batch; the same one every time."""
    random = torch.Generator().manual_seed(_SEED)
    if name == "dense":
        return Batch(name, {"hidden": list(torch.randn(ROWS, _DENSE_WIDTH, generator=random).unbind())})
    if name != "ragged":
        raise BadArgument(f"unknown batch {name!r}; known: {list(BATCHES)}")
    lengths = torch.randint(_SHORTEST, _LONGEST + 1, (ROWS,), generator=random).tolist()
    return Batch(
        name,
        {
            "input_ids": [torch.randint(0, 150_000, (n,), generator=random) for n in lengths],
            "logprobs": [torch.randn(n, generator=random) for n in lengths],
            "advantages": [torch.randn(n, generator=random) for n in lengths],
            "mask": [torch.rand(n, generator=random) > 0.1 for n in lengths],
        },
    )
