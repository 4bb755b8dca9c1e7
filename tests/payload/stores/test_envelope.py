"""The header before every stored value: what was put comes out, whatever else lies there is told from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.payload.buffers import Buffers
from penstock.payload.stores.contract import Value
from penstock.payload.stores.envelope import HEADER_BYTES, Header, as_pieces, copy_out, pack_into, parse, seal

KEYS = st.text(min_size=1, max_size=40)


def packed(key: str, *pieces: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    memory = np.zeros(HEADER_BYTES + sum(map(len, pieces)), np.uint8)
    pack_into(memory, key, as_pieces(list(pieces)))
    return memory


@given(key=KEYS, pieces=st.lists(st.binary(max_size=300), max_size=4))
def test_what_was_packed_comes_out(key: str, pieces: list[bytes]) -> None:
    """The payload is the pieces, one after the other; the header is that of ``seal``."""
    memory = packed(key, *pieces)
    out = copy_out(memory, key)
    assert isinstance(out, memoryview)
    assert bytes(out) == b"".join(pieces)
    assert parse(memory, key) == seal(key, as_pieces(pieces))


def test_large_values_are_copied_and_hashed_in_parts() -> None:
    """A value of several parts, and one part more or less, is whole."""
    for nbytes in ((1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 5):
        value = np.arange(nbytes, dtype=np.uint32).view(np.uint8)[:nbytes].tobytes()
        out = copy_out(packed("k", value), "k")
        assert isinstance(out, memoryview)
        assert bytes(out) == value


@pytest.mark.parametrize("value", [b"", b"x", b"twelve bytes"])
def test_any_bit_that_is_turned_is_noticed(value: bytes) -> None:
    """Of header and payload, each."""
    memory = packed("key", value)
    for at in range(len(memory) * 8):
        memory[at // 8] ^= 1 << at % 8
        assert isinstance(copy_out(memory, "key"), str), f"bit {at}"
        memory[at // 8] ^= 1 << at % 8
    assert isinstance(copy_out(memory, "key"), memoryview)


def test_a_value_of_another_length_is_noticed() -> None:
    """Cut off anywhere, or with a byte more."""
    memory = packed("key", b"value")
    assert {copy_out(memory[:n], "key") for n in range(len(memory))} == {"length"}
    assert copy_out(np.append(memory, np.uint8(0)), "key") == "length"


def test_a_value_under_another_key_is_noticed() -> None:
    """As what a late write leaves behind in somebody else's place."""
    assert copy_out(packed("mine", b"v"), "yours") == "key"


@given(soup=st.binary(max_size=200))
def test_any_bytes_are_told_and_nothing_is_raised(soup: bytes) -> None:
    """What never was a value."""
    assert isinstance(copy_out(np.frombuffer(soup, np.uint8), "k"), str)


@given(soup=st.binary(max_size=28), payload=st.binary(max_size=40))
def test_any_header_is_told_and_nothing_is_raised(soup: bytes, payload: bytes) -> None:
    """The right magic, and nothing right after it."""
    assert isinstance(copy_out(np.frombuffer(b"PSTO" + soup + payload, np.uint8), "k"), str)


def test_what_comes_out_is_the_callers_own() -> None:
    """Memory that is written over later changes nothing."""
    memory = packed("k", b"a" * 10)
    out = copy_out(memory, "k", Buffers())
    memory[:] = 0
    assert isinstance(out, memoryview)
    assert bytes(out) == b"a" * 10


@pytest.mark.parametrize(
    "value",
    [
        b"abcdef",
        bytearray(b"abcdef"),
        memoryview(b"abcdef"),
        memoryview(b"a.b.c.d.e.f.")[::2],
        [b"abc", b"", memoryview(b"def")],
        np.frombuffer(b"abcdef", np.uint8).reshape(2, 3),
        np.frombuffer(b"adbecf", np.uint8).reshape(3, 2).T,
        (np.frombuffer(b"abcd", np.uint16), b"ef"),
    ],
)
def test_any_buffer_is_its_bytes(value: Value) -> None:
    """Of any kind, shape and order in memory, one or several."""
    assert b"".join(piece.tobytes() for piece in as_pieces(value)) == b"abcdef"


@pytest.mark.parametrize("value", [None, 5, "text", [b"a", "text"], [None]])
def test_what_is_no_buffer_is_refused(value: object) -> None:
    """None is no value, and no empty one."""
    with pytest.raises((TypeError, ValueError)):
        as_pieces(value)  # type: ignore[arg-type]


def test_a_header_has_its_length() -> None:
    """32 bytes, for ever: values in stores have it."""
    assert len(Header(0, 0, 0).encode()) == HEADER_BYTES == 32
