"""The measured batches."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import BadArgument
from penstock.ops.bench.batch import ROWS, make_batch


def test_ragged_batch_is_the_one_that_is_described() -> None:
    """512 rows of 64 to 1024 tokens, four columns, the same every time."""
    batch, again = make_batch("ragged"), make_batch("ragged")
    lengths = [len(t) for t in batch.columns["input_ids"]]
    assert len(lengths) == ROWS
    assert min(lengths) >= 64
    assert max(lengths) <= 1024
    dtypes = {name: column[0].dtype for name, column in batch.columns.items()}
    assert dtypes == {
        "input_ids": torch.int64,
        "logprobs": torch.float32,
        "advantages": torch.float32,
        "mask": torch.bool,
    }
    assert batch.nbytes == 17 * sum(lengths)
    assert all(torch.equal(a, b) for a, b in zip(batch.columns["mask"], again.columns["mask"], strict=True))


def test_half_is_half_of_the_rows_in_disorder() -> None:
    """A random half, each row once."""
    batch = make_batch("ragged")
    assert len(set(batch.half.rows)) == ROWS // 2
    assert batch.half.rows != sorted(batch.half.rows)


def test_wrong_read_is_noticed() -> None:
    """One flipped value, or one row too few, and the turn fails."""
    batch = make_batch("ragged")
    rows = list(range(ROWS))
    batch.verify(rows, batch.columns)
    damaged = {name: list(column) for name, column in batch.columns.items()}
    damaged["mask"][7] = ~damaged["mask"][7]
    with pytest.raises(ValueError, match="mask"):
        batch.verify(rows, damaged)
    with pytest.raises(ValueError, match="input_ids"):
        batch.verify(rows, {name: column[:-1] for name, column in batch.columns.items()})


def test_unknown_batch_is_refused() -> None:
    """Only the batches there are."""
    with pytest.raises(BadArgument, match="ragged"):
        make_batch("square")
