"""Memory to receive into: no two blocks share a byte, and the last batch's memory is the next one's."""

from __future__ import annotations

import gc
import itertools

from hypothesis import given
from hypothesis import strategies as st

from penstock.payload.block import ALIGN
from penstock.payload.buffers import Buffers
from penstock.transport.slabs import SLAB_BYTES, Slabs


@given(st.lists(st.integers(1, SLAB_BYTES // 2), min_size=1, max_size=12))
def test_blocks_do_not_overlap_and_are_aligned(sizes: list[int]) -> None:
    """Whatever their sizes, each has its own bytes, as many as were asked for."""
    slabs = Slabs(Buffers(0))
    taken = [slabs.take(nbytes) for nbytes in sizes]
    places = sorted((block.ctypes.data, block.ctypes.data + len(block)) for block in taken)
    assert [len(block) for block in taken] == sizes
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))


def test_blocks_of_a_slab_begin_at_multiples_of_the_alignment() -> None:
    """So that their columns are aligned as in the arena that they come from."""
    slabs = Slabs(Buffers(0))
    taken = [slabs.take(nbytes) for nbytes in (1, 63, 64, 65, 1000)]
    offsets = [block.ctypes.data - taken[0].ctypes.data for block in taken]
    assert offsets == [0, ALIGN, 2 * ALIGN, 3 * ALIGN, 5 * ALIGN]


def test_a_slab_comes_back_when_its_last_block_is_gone() -> None:
    """And not before: a block that is kept keeps its slab, and no other."""
    buffers = Buffers(1 << 30)
    slabs = Slabs(buffers)
    size = SLAB_BYTES // 8
    batch = [slabs.take(size) for _ in range(16)]  # two slabs
    kept = batch[0]
    kept[:] = 7
    last = batch[-1].ctypes.data
    del batch
    gc.collect()
    slabs.take(size)  # the second slab is full: another begins
    again = [slabs.take(size) for _ in range(16)]
    assert last in {block.ctypes.data for block in again}
    assert (kept == 7).all()
    assert all(block.ctypes.data != kept.ctypes.data for block in again)


def test_clearing_lets_go_of_everything() -> None:
    """What is idle goes back to the system; blocks that are in use stay as they are."""
    buffers = Buffers(1 << 30)
    slabs = Slabs(buffers)
    block = slabs.take(1000)
    block[:] = 5
    slabs.take(SLAB_BYTES)
    slabs.clear()
    assert buffers.idle_bytes == 0
    assert (block == 5).all()
    assert len(slabs.take(10)) == 10
