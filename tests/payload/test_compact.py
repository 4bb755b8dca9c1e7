"""A compacted block has the rows that live, under its old id, and nothing of the dead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import BadArgument, CorruptPayload
from penstock.payload import block
from penstock.payload.compact import compacted
from tests.payload.room import Room
from tests.payload.values import same_bits, same_rows

ROWS = 6
FIELDS: dict[str, Any] = {
    "dense": torch.arange(ROWS * 3).view(ROWS, 3),
    "empty": torch.zeros(ROWS, 0),
    "ragged": [torch.arange(float(n)) for n in (3, 0, 700, 1, 0, 2)],
    "matrix": [torch.ones(n, 2, dtype=torch.bfloat16) for n in range(ROWS)],
    "text": ["a", None, "", {"k": b"v"}, [1], "é"],
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sets(st.integers(0, ROWS - 1)))
def test_the_rows_that_live_are_kept_in_order(room: Room, keep: set[int]) -> None:
    """Any subset, none and all included; the new block verifies under the old id."""
    place = room.put(FIELDS, ROWS)
    rows = sorted(keep)
    batch = compacted(room.arena.read(place.block_id), place.block_id, rows)
    out = np.zeros(batch.nbytes, np.uint8)
    batch.write_into(out, place.block_id)
    block.verify(out, block.parse(out, place.block_id))
    room.arena.release(place.block_id)
    moved = room.arena.grant(place.block_id, batch.nbytes, 0)
    assert moved is not None
    room.arena.writer(moved)[:] = out
    room.arena.fill(place.block_id)
    found = room.whole(moved)
    room.arena.release(place.block_id)
    assert same_bits(found["dense"], FIELDS["dense"][rows])
    assert found["empty"].shape == (len(rows), 0)
    assert found["text"] == [FIELDS["text"][i] for i in rows]
    for name in ("ragged", "matrix"):
        assert same_rows(found[name], [FIELDS[name][i] for i in rows])


def test_a_damaged_block_is_not_compacted(room: Room) -> None:
    """Damage is never sealed under a new checksum."""
    place = room.put(FIELDS, ROWS)
    room.map.writer(place)[-64] ^= 1
    with pytest.raises(CorruptPayload):
        compacted(room.arena.read(place.block_id), place.block_id, [0])


@pytest.mark.parametrize("keep", [[6], [-1], [1, 0], [1, 1]])
def test_rows_to_keep_exist_and_ascend(room: Room, keep: list[int]) -> None:
    """A wrong list is our caller's mistake."""
    place = room.put(FIELDS, ROWS)
    with pytest.raises(BadArgument):
        compacted(room.arena.read(place.block_id), place.block_id, keep)
