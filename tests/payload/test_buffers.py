"""Gather memory is lent once at a time, comes back with its last user, and stays within its limit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from penstock.payload.buffers import Buffers

MIB = 1 << 20


def test_a_buffer_is_used_again_when_the_last_reference_is_gone() -> None:
    """Tensors, slices and arrays over it keep it out."""
    buffers = Buffers()
    first = buffers.take(MIB)
    address = first.ctypes.data
    tensor = torch.frombuffer(first, dtype=torch.int64)
    part = tensor[5:7].numpy()
    slices = first[100:200][10:]
    del first, tensor
    assert buffers.take(MIB).ctypes.data != address
    del part
    assert buffers.idle_bytes == MIB, "the other one came back"
    del slices
    assert buffers.idle_bytes == 2 * MIB
    again = [buffers.take(MIB) for _ in range(2)]
    assert address in {lent.ctypes.data for lent in again}


def test_two_users_never_share() -> None:
    """Whatever the order of taking and dropping."""
    buffers = Buffers()
    held: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    rng = np.random.default_rng(0)
    for step in range(200):
        if held and rng.integers(2):
            held.pop(int(rng.integers(len(held))))
        taken = buffers.take(int(rng.integers(256 * 1024, 400 * 1024)))
        taken[:] = step % 251
        held.append(taken)
        spans = sorted((a.ctypes.data, a.ctypes.data + len(a)) for a in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_idle_memory_stays_within_its_limit() -> None:
    """What is too much goes back to the system, oldest first; a small request is never served from a large buffer."""
    buffers = Buffers(limit=3 * MIB)
    taken = [buffers.take(MIB) for _ in range(10)]
    taken.clear()
    assert buffers.idle_bytes == 3 * MIB
    small = buffers.take(300 * 1024)
    assert buffers.idle_bytes == 3 * MIB
    assert len(small) == 300 * 1024
    assert len(buffers.take(MIB - 1000)) == MIB - 1000
    buffers.clear()
    assert buffers.idle_bytes == 0
