"""Checks of a block while it arrives: in whatever pieces, the verdict is that on the whole."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from penstock.config import Integrity
from penstock.errors import CorruptPayload
from penstock.payload import block, codec
from penstock.payload.block import Bytes
from penstock.transport.checking import Checking
from penstock.transport.slot_protocol import Code, Request, Status, covered


def sealed() -> Bytes:
    """A block with dense, ragged and object columns."""
    ragged = [np.arange(n, dtype=np.int64) for n in (3, 0, 500, 7)]
    columns = {"dense": np.arange(4000.0).reshape(4, 1000), "empty": np.zeros((4, 0)), "ragged": ragged}
    batch = codec.encode(columns | {"text": ["a", "bb", None, "d"]}, 4, strict_tensors=False)
    out = np.zeros(batch.nbytes, np.uint8)
    batch.write_into(out, 5)
    return out


DATA = sealed()
REQUEST = Request(1, 5, 1)
STATUS = Status(1, Code.OK, len(DATA), xxhash.xxh3_64_intdigest(covered(REQUEST, DATA.data)))
ENDS = st.lists(st.integers(0, len(DATA)), max_size=12)


def checked(data: Bytes, ends: list[int], integrity: Integrity = "full") -> block.BlockHeader:
    """Let ``data`` arrive up to each of ``ends``, over the remains of an earlier block."""
    out = np.full(len(data), 0xEE, np.uint8)
    checking = Checking(REQUEST, STATUS, out, integrity)
    there = 0
    for end in sorted(ends):
        out[there:end] = data[there:end]
        there = end
        checking.advance(there)
    out[there:] = data[there:]
    return checking.finish()


@given(ENDS)
def test_a_sound_block_passes_in_whatever_pieces_it_comes(ends: list[int]) -> None:
    """And its header is the one that ``parse`` reads."""
    header, whole = checked(DATA, ends), block.parse(DATA, 5)
    assert (header.block_id, header.rows, header.nbytes) == (whole.block_id, whole.rows, whole.nbytes)
    assert list(header.columns) == list(whole.columns)
    assert {name: place.offset for name, place in header.columns.items()} == {
        name: place.offset for name, place in whole.columns.items()
    }


@given(ENDS, st.integers(0, len(DATA) - 1), st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_found(ends: list[int], at: int, bit: int) -> None:
    """Header, shapes, values, padding: every byte is covered."""
    damaged = DATA.copy()
    damaged[at] ^= 1 << bit
    with pytest.raises(CorruptPayload):
        checked(damaged, ends)


@given(ENDS)
def test_another_block_is_not_taken_for_this_one(ends: list[int]) -> None:
    """However sound it is in itself."""
    other = DATA.copy()
    batch = codec.encode({"x": np.arange(4)}, 4)
    small = np.zeros(batch.nbytes, np.uint8)
    batch.write_into(small, 6)
    other[: len(small)] = small
    with pytest.raises(CorruptPayload):
        checked(other, ends)


@pytest.mark.parametrize(
    ("integrity", "found"), [("full", True), ("paranoid", True), ("header", False), ("off", False)]
)
def test_what_is_verified_is_what_the_level_says(integrity: Integrity, found: bool) -> None:
    """Columns at ``full`` and ``paranoid``; the header alone below."""
    damaged = DATA.copy()
    damaged[-70] ^= 1
    if found:
        with pytest.raises(CorruptPayload, match="does not match its checksum"):
            checked(damaged, [len(DATA) // 2], integrity)
    else:
        assert checked(damaged, [len(DATA) // 2], integrity).block_id == 5


def test_the_servers_word_on_the_prelude_is_compared_at_every_level() -> None:
    """What has arrived must be what was sent."""
    status = Status(1, Code.OK, len(DATA), STATUS.checksum ^ 1)
    for integrity in ("full", "header", "off"):
        with pytest.raises(CorruptPayload, match="does not match the server's checksum"):
            Checking(REQUEST, status, DATA, integrity).finish()
