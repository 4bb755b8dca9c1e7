"""A batch being written: nobody can take the half-written place for a block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from penstock.payload import block
from penstock.payload.columns import Batch, Column


def test_a_place_holds_no_block_while_it_is_written() -> None:
    """The earlier block there is gone before its first byte changes; the new one appears with the last step."""
    seen: list[int | None] = []
    out = np.zeros(0, np.uint8)

    def copy(target: block.Bytes) -> Iterator[int]:
        seen.append(block.block_id_at(out))
        target[:] = 7
        yield len(target)

    batch = Batch(3, [Column("x", "dense", "uint8", 0, (), None, 3, copy)])
    out = np.zeros(batch.nbytes, np.uint8)
    batch.write_into(out, 1)
    batch.write_into(out, 2)
    assert seen == [None, None]
    assert block.block_id_at(out) == 2
    block.verify(out, block.parse(out, 2))


def test_no_byte_of_what_lay_there_before_shows_through() -> None:
    """Padding and header are written too: equal batches are equal bytes, wherever they are put."""

    def copy(target: block.Bytes) -> Iterator[int]:
        target[:] = 7
        yield len(target)

    batch = Batch(3, [Column("x", "dense", "uint8", 0, (), None, 3, copy)])
    places = [np.full(batch.nbytes, fill, np.uint8) for fill in (0, 0xFF)]
    for out in places:
        batch.write_into(out, 5)
    assert bytes(places[0]) == bytes(places[1])
    assert repr(batch) == f"<Batch rows=3 fields=['x'] nbytes={batch.nbytes}>"


def test_a_column_copied_in_parts_has_the_checksum_of_the_whole() -> None:
    """However a column comes in, part by part or at once, the block is the same and verifies."""
    data = np.arange(100, dtype=np.uint8)

    def in_parts(target: block.Bytes) -> Iterator[int]:
        for end in (7, 64, 100):
            target[:end] = data[:end]
            yield end

    def at_once(target: block.Bytes) -> Iterator[int]:
        target[:] = data
        yield len(target)

    blocks = []
    for copy in (in_parts, at_once):
        batch = Batch(100, [Column("x", "dense", "uint8", 0, (), None, 100, copy)])
        out = np.zeros(batch.nbytes, np.uint8)
        content = batch.write_into(out, 3)
        block.verify(out, block.parse(out, 3))
        blocks.append((content, bytes(out)))
    assert blocks[0] == blocks[1]
