"""The block format: what is written is read, and what is damaged or lies is ``CorruptPayload`` and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import CorruptPayload
from penstock.payload import block, codec
from penstock.payload.block import ALIGN, PRELUDE_BYTES

FIELDS = {
    "ids": [np.arange(n) for n in (3, 0, 5)],
    "dense": np.arange(12, dtype=np.float32).reshape(3, 4),
    "text": ["a", None, {"k": [b"v"]}],
}


def sample() -> bytes:
    batch = codec.encode(FIELDS, 3, strict_tensors=False)
    out = bytearray(batch.nbytes)
    batch.write_into(out, 42)
    return bytes(out)


SAMPLE = sample()


def reseal(data: bytearray) -> bytearray:
    """Give a forged header a checksum that holds."""
    header, shapes = struct.unpack_from("<I", data, 12)[0], struct.unpack_from("<Q", data, 32)[0]
    body = block.padded(PRELUDE_BYTES + block.padded(header) + shapes)
    hasher = xxhash.xxh3_64(bytes(data[:40]) + bytes(data[48:64]) + bytes(data[PRELUDE_BYTES:body]))
    data[40:48] = hasher.intdigest().to_bytes(8, "little")
    return data


def forged(**changes: object) -> bytearray:
    """Return the sample with the fields of its first column replaced and the header sealed again."""
    data = bytearray(SAMPLE)
    length = struct.unpack_from("<I", data, 12)[0]
    rows, columns = msgspec.msgpack.decode(data[PRELUDE_BYTES : PRELUDE_BYTES + length])
    names = ["name", "kind", "dtype", "rank", "row_shape", "nbytes", "checksum"]
    rows = changes.pop("rows", rows)
    columns[0] = [changes.get(name, value) for name, value in zip(names, columns[0], strict=True)]
    header = msgspec.msgpack.encode([rows, columns])
    assert block.padded(len(header)) == block.padded(length), "the forgery must fit"
    data[PRELUDE_BYTES : PRELUDE_BYTES + block.padded(length)] = header.ljust(block.padded(length), b"\0")
    struct.pack_into("<I", data, 12, len(header))
    return reseal(data)


def test_a_block_says_what_was_written() -> None:
    """Rows, names, dtypes, shapes and aligned places come back from the header alone."""
    header = block.parse(SAMPLE, 42)
    assert (header.block_id, header.rows, header.nbytes) == (42, 3, len(SAMPLE))
    ids, dense, text = header.columns.values()
    assert (ids.header.dtype, ids.header.kind, ids.header.rank) == ("int64", "ragged", 1)
    assert ids.shapes is not None
    assert ids.shapes.tolist() == [[3], [0], [5]]
    assert (dense.header.row_shape, dense.shapes) == ((4,), None)
    assert text.header.kind == "object"
    assert all(place.offset % ALIGN == 0 for place in header.columns.values())
    block.verify(SAMPLE, header)


def test_another_blocks_bytes_are_refused() -> None:
    """The block id ties header, slot and reference together."""
    with pytest.raises(CorruptPayload, match="block 42 lies where block 43 should"):
        block.parse(SAMPLE, 43)


def test_every_flipped_bit_is_found() -> None:
    """No bit of a block, padding included, can change unnoticed at level ``full``."""
    for at in range(len(SAMPLE)):
        for bit in range(8):
            data = bytearray(SAMPLE)
            data[at] ^= 1 << bit
            with pytest.raises(CorruptPayload):
                block.verify(data, block.parse(data, 42))


@given(st.integers(0, len(SAMPLE) - 1), st.binary(max_size=3))
def test_every_truncation_and_extension_is_found(keep: int, extra: bytes) -> None:
    """A block that is shorter or longer than it says is corrupt, whatever follows it."""
    for data in (SAMPLE[:keep], SAMPLE[:keep] + extra, SAMPLE + extra + b"x"):
        if data != SAMPLE:
            with pytest.raises(CorruptPayload):
                block.verify(data, block.parse(data, 42))


@settings(max_examples=300)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_lying_header_with_a_good_checksum_never_reads_outside(at: int, flip: int) -> None:
    """Whatever a header says, parse answers with places inside the buffer or with ``CorruptPayload``."""
    data = bytearray(SAMPLE)
    data[at] ^= flip
    sealed = reseal(data)
    try:
        header = block.parse(sealed)
    except CorruptPayload:
        return
    for place in header.columns.values():
        assert PRELUDE_BYTES <= place.offset <= place.end <= len(data)
        assert place.shapes is None or int(place.shapes.min(initial=0)) >= 0


@given(st.binary(max_size=300), st.booleans())
def test_noise_is_corrupt(noise: bytes, checked: bool) -> None:
    """Bytes that nobody wrote, with and without the right magic, are no block."""
    for data in (noise, SAMPLE[:16] + noise):
        with pytest.raises(CorruptPayload):
            block.parse(data, checked=checked)


@pytest.mark.parametrize(
    "lie",
    [
        {"rows": 2},
        {"rows": 4},
        {"rows": 2**31 + 1},
        {"rows": -1},
        {"dtype": "int32"},
        {"dtype": "int65"},
        {"dtype": "object"},
        {"kind": "dense"},
        {"kind": "rag"},
        {"rank": 2},
        {"rank": 0},
        {"rank": -1},
        {"nbytes": 63},
        {"nbytes": 72},
        {"nbytes": -64},
        {"name": "dense"},
        {"checksum": b"short"},
        {"row_shape": [8]},
        {"row_shape": [2**62, 2**62]},
    ],
)
def test_a_header_that_contradicts_itself_is_corrupt(lie: dict[str, object]) -> None:
    """Each field of a column is checked against the others and the buffer."""
    with pytest.raises(CorruptPayload):
        block.parse(forged(**lie), 42)


@pytest.mark.parametrize(
    "shapes",
    [
        [2**62, 2**62, 8],
        [2**63 - 1, 2**63 - 1, 10],
        [-3, 3, 8],
        [2**63 - 1, 1, 8],
        [4, 0, 5],
    ],
)
def test_row_shapes_that_wrap_or_disagree_are_corrupt(shapes: list[int]) -> None:
    """Sums that overflow 64 bits do not come out right by accident."""
    data = bytearray(SAMPLE)
    length = struct.unpack_from("<I", data, 12)[0]
    at = PRELUDE_BYTES + block.padded(length)
    data[at : at + 24] = np.array(shapes, np.int64).tobytes()
    with pytest.raises(CorruptPayload, match="does not make 64 bytes"):
        block.parse(reseal(data), 42)


def test_a_recycled_place_is_told_from_a_damaged_one() -> None:
    """Erased or another block whole: moved on. A flipped byte: damage."""
    data = np.frombuffer(bytearray(SAMPLE), np.uint8).copy()
    assert not block.has_moved_on(data, 42)
    assert block.has_moved_on(data, 41)
    data[24] ^= 1  # a bit of the id
    assert not block.has_moved_on(data, 42)
    block.erase(data)
    assert block.has_moved_on(data, 42)


def test_content_does_not_depend_on_order_or_id_and_does_on_everything_else() -> None:
    """Equal columns are equal puts; another byte, shape, name or dtype is another."""

    def content(fields: Mapping[str, object], block_id: int = 1) -> int:
        batch = codec.encode(fields, 2)
        return batch.write_into(bytearray(batch.nbytes), block_id)

    a, b = np.arange(4).reshape(2, 2), np.arange(2, dtype=np.float32)
    same = content({"a": a, "b": b})
    assert content({"b": b, "a": a}, 99) == same
    others = [
        {"a": a + 1, "b": b},
        {"a": a.reshape(2, 1, 2), "b": b},
        {"A": a, "b": b},
        {"a": a.view(np.float64), "b": b},
    ]
    assert len({same, *(content(fields) for fields in others)}) == 5
    ragged = [{"r": [np.arange(3), np.arange(1)]}, {"r": [np.arange(3)[:1], np.arange(3)]}]
    assert content(ragged[0]) != content(ragged[1])
