"""Puts are cut into blocks by rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penstock.errors import RefusedType
from penstock.payload import block, decode
from penstock.payload.columns import Batch
from penstock.plane.blocks import FetchedBlock
from penstock.plane.transfer_queue.chunks import CHUNK_BYTES, content_of, cut, described, lengths_of


def read(batch: Batch) -> dict[str, torch.Tensor]:
    data = np.empty(batch.nbytes, np.uint8)
    batch.write_into(data, 1)
    return decode.read_block(FetchedBlock(block.parse(data, 1), data))


def test_a_small_put_is_one_block() -> None:
    """A put of little data is one block, whatever its rows; a put of no rows too."""
    assert [batch.rows for batch in cut({"x": torch.arange(1000)}, 1000, strict_tensors=True)] == [1000]
    assert [batch.rows for batch in cut({"x": torch.zeros(0)}, 0, strict_tensors=True)] == [0]


def test_blocks_hold_the_rows_in_order() -> None:
    """The blocks of a large put, read one after the other, are the put: dense and ragged columns."""
    rows = [torch.arange(n % 7 * 5000) for n in range(64)]
    dense = torch.arange(64 * 3000).reshape(64, 3000)
    batches = cut({"ids": rows, "x": dense}, 64, strict_tensors=True)
    assert len(batches) > 5
    assert sum(batch.rows for batch in batches) == 64
    assert torch.equal(torch.cat([read(batch)["x"] for batch in batches]), dense)
    back = [row for batch in batches for row in read(batch)["ids"].unbind()]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(back, rows, strict=True))
    ids, x = described(batches)
    assert (ids.lengths, x.lengths) == ([len(row) for row in rows], None)
    assert ids.sizes == [row.nbytes for row in rows]
    assert lengths_of([x, ids]) == ids.lengths


def test_a_block_is_small_or_a_single_row() -> None:
    """No block holds more than CHUNK_BYTES of rows, unless one row is larger."""
    batches = cut({"x": [torch.zeros(10), torch.zeros(CHUNK_BYTES), torch.zeros(10)]}, 3, strict_tensors=True)
    assert [batch.rows for batch in batches] == [1, 1, 1]


def test_equal_puts_have_equal_content() -> None:
    """A repeated put is known by its content; another value or order is another content."""

    def content(column: torch.Tensor) -> int:
        batches = cut({"x": column}, len(column), strict_tensors=True)
        return content_of([batch.write_into(np.empty(batch.nbytes, np.uint8), 5) for batch in batches])

    column = torch.arange(200_000)
    assert content(column) == content(column.clone())
    assert content(column) != content(column.flip(0))


def test_what_cannot_be_laid_out_is_refused() -> None:
    """A column that the codec refuses is a RefusedType, as on every adapter."""
    with pytest.raises(RefusedType, match="non-tensor"):
        cut({"x": ["text"]}, 1, strict_tensors=True)
