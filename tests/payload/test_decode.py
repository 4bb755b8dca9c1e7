"""Reading rows: from any blocks, in any order, repeated, equal or ragged; references that lie are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from penstock.errors import CorruptPayload
from penstock.payload import decode
from penstock.requests import Source
from tests.payload.room import Room
from tests.payload.values import DTYPES, plain, random_tensor, rows_of, same_bits, same_rows


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_selection_from_any_blocks_gives_the_rows_asked_for(room: Room, data: st.DataObject) -> None:
    """Dense and ragged blocks of one field mix; order and repetition are the caller's."""
    dtype = data.draw(st.sampled_from(DTYPES))
    rank = data.draw(st.integers(0, 2))
    tail = data.draw(st.integers(0, 3))
    places, rows = [], []
    for number in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, 5))
        shapes: list[tuple[int, ...]] = [(data.draw(st.integers(0, 9)), tail)[:rank] for _ in range(count)]
        block = [random_tensor(dtype, shape, 10 * number + i) for i, shape in enumerate(shapes)]
        equal = len(set(shapes)) == 1
        column: Any = torch.stack(block) if equal and data.draw(st.booleans()) else block
        text = data.draw(st.lists(plain, min_size=count, max_size=count))
        places.append(room.put({"x": column, "t": np.array([*text, None], dtype=object)[:-1]}, count))
        rows.append(list(zip(block, text, strict=True)))
    wanted = data.draw(st.lists(st.sampled_from([(b, i) for b in range(len(rows)) for i in range(len(rows[b]))])))
    sources = [Source(["x", "t"], [b for b, _ in wanted], [i for _, i in wanted])]
    found = room.read(places, sources, len(wanted))
    for place in places:
        room.arena.release(place.block_id)
    if not wanted:
        assert found == {}
        return
    assert same_rows(found["x"], [rows[b][i][0] for b, i in wanted])
    assert repr(found["t"]) == repr([rows[b][i][1] for b, i in wanted])
    if len({rows[b][i][0].shape for b, i in wanted}) == 1:
        assert not found["x"].is_nested
    assert room.arena.statistics().pins == 0 or len(wanted) == 1 or len(rows) == 1


@pytest.mark.parametrize("row_bytes", [1, 7, 8, 100, 3000])
@pytest.mark.parametrize("pattern", ["shuffled", "reversed", "run", "interleaved", "repeated"])
def test_large_selections_take_every_path(room: Room, row_bytes: int, pattern: str) -> None:
    """Slices, gathers and scattered targets agree with torch's own indexing, dense and ragged."""
    rows = 300
    dense = random_tensor("uint8", (rows, row_bytes), 1)
    lengths = np.random.default_rng(0).integers(0, row_bytes + 1, rows).tolist()
    ragged = [dense[i, :n] for i, n in enumerate(lengths)]
    places = [room.put({"d": dense, "r": ragged}, rows), room.put({"d": dense + 1, "r": [r + 1 for r in ragged]}, rows)]
    order = {
        "shuffled": np.random.default_rng(1).permutation(rows),
        "reversed": np.arange(rows)[::-1],
        "run": np.arange(20, 250),
        "interleaved": np.repeat(np.arange(rows // 2), 2),
        "repeated": np.zeros(400, np.int64),
    }[pattern].tolist()
    blocks = [i % 2 for i in range(len(order))] if pattern == "interleaved" else [0] * len(order)
    found = room.read(places, [Source(["d", "r"], blocks, order)], len(order))
    both = [dense, dense + 1]
    assert torch.equal(found["d"], torch.stack([both[b][i] for b, i in zip(blocks, order, strict=True)]))
    expected = [ragged[i] + (1 if b else 0) for b, i in zip(blocks, order, strict=True)]
    assert same_rows(found["r"], expected)


def test_a_whole_block_in_order_is_a_view_and_anything_else_a_copy(room: Room) -> None:
    """Zero-copy exactly when the request is the block."""
    rows = 512
    place = room.put({"x": torch.arange(rows * 256).view(rows, 256), "y": torch.arange(rows)}, rows)
    everything = list(range(rows))
    view = room.read([place], [Source(["x", "y"], [0] * rows, everything)], rows)
    assert room.map.live_views == 1
    assert view["x"].untyped_storage().nbytes() == rows * 256 * 8, "a column's storage is that column"
    del view
    for index in (everything[::-1], everything[:-1], [*everything[:-1], 0]):
        copied = room.read([place], [Source(["x"], [0] * len(index), index)], len(index))
        assert room.map.live_views == 0
        assert copied["x"][:, 0].tolist() == [256 * i for i in index]


def test_fields_of_several_puts_are_read_together(room: Room) -> None:
    """Each source is decided by itself: one field a view, another a gather."""
    first = room.put({"x": torch.arange(3)}, 3)
    later = room.put({"y": torch.arange(10.0)}, 10)
    found = room.read([first, later], [Source(["x"], [0] * 3, [0, 1, 2]), Source(["y"], [1] * 3, [9, 0, 9])], 3)
    assert found["x"].tolist() == [0, 1, 2]
    assert found["y"].tolist() == [9.0, 0.0, 9.0]


def test_jagged_columns_of_the_same_lengths_can_be_combined(room: Room) -> None:
    """torch tells ragged dimensions apart by their offsets: those of one read are shared."""
    rows = [torch.ones(n) for n in (3, 1, 2)]
    place = room.put({"a": rows, "b": [2 * row for row in rows]}, 3)
    for index in ([0, 1, 2], [2, 0, 1]):
        found = room.read([place], [Source(["a", "b"], [0] * 3, index)], 3)
        assert (found["a"] * found["b"]).values().tolist() == [2.0] * 6


def test_rows_ragged_in_several_dimensions_are_nested_or_a_list(room: Room) -> None:
    """Strided nested tensors where torch has them for the dtype, else the rows themselves."""
    for dtype, nested in (("float32", True), ("uint16", False)):
        rows = [random_tensor(dtype, shape) for shape in ((2, 3), (1, 4))]
        found = room.whole(room.put({"x": rows}, 2))["x"]
        assert isinstance(found, torch.Tensor) == nested
        assert same_rows(found, rows)


@pytest.mark.parametrize(
    ("block", "index"),
    [([0, 1], [0, 0]), ([-1, 0], [0, 0]), ([0, 0], [0, 3]), ([0, 0], [-1, 0]), ([0], [0]), ([0, 0], [0])],
)
def test_references_that_do_not_exist_are_corrupt(room: Room, block: list[int], index: list[int]) -> None:
    """A reply that lies is an error before a byte is copied."""
    place = room.put({"x": torch.arange(3)}, 3)
    with pytest.raises(CorruptPayload):
        room.read([place], [Source(["x"], block, index)], 2)
    assert room.arena.statistics().pins == 0


def test_a_field_that_is_not_in_its_block_or_changes_type_is_corrupt(room: Room) -> None:
    """Never an empty column, never a cast."""
    places = [room.put({"x": torch.arange(3)}, 3), room.put({"x": torch.arange(3.0)}, 3)]
    for fields, block in ((["y"], [0, 0]), (["x"], [0, 1])):
        with pytest.raises(CorruptPayload, match=fields[0]):
            room.read(places, [Source(fields, block, [0, 1])], 2)
    with pytest.raises(CorruptPayload, match="'y'"):
        room.read(places[:1], [Source(["y"], [0] * 3, [0, 1, 2])], 3)


def test_a_tensordict_of_what_was_read(room: Room) -> None:
    """Dense, jagged and plain columns side by side; plain values stay what they were."""
    text = ["a", None, {"k": [1, "b"]}]
    place = room.put({"x": torch.arange(3), "r": [torch.ones(n) for n in (1, 2, 3)], "t": text, "l": [[1], [], [2]]}, 3)
    found = decode.to_tensordict(room.whole(place), 3)
    assert isinstance(found, TensorDict)
    assert found.batch_size == torch.Size([3])
    assert list(found["t"]) == text
    assert found.get("t").tolist() == text
    assert same_rows(found["r"], [torch.ones(n) for n in (1, 2, 3)])
    again = room.whole(room.put(found, 3))
    assert again["t"] == text
    assert again["l"] == [[1], [], [2]]
    assert same_bits(again["x"], torch.arange(3))


def test_a_tensordict_of_no_rows() -> None:
    """``[]`` gives batch size 0."""
    assert decode.to_tensordict({}, 0).batch_size == torch.Size([0])
    assert decode.to_tensordict({"t": [], "x": torch.zeros(0, 2)}, 0).batch_size == torch.Size([0])


def test_rows_of_lists_unbind() -> None:
    """The helper of these tests agrees on nested and plain rows."""
    assert [len(r) for r in rows_of([torch.zeros(1), torch.zeros(2)])] == [1, 2]
