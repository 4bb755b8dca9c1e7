"""Seals: what was sealed is opened, in order and once; anything else breaks them for good."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire import WireError
from penstock.wire.auth import Dialler, Greeter
from penstock.wire.seals import RECORD_BYTES, Seals

TOKEN = b"sixteen bytes at least"


def ends() -> tuple[Seals, Seals]:
    """Both ends' seals, after an exchange."""
    greeter, dialler = Greeter(TOKEN, "plane"), Dialler(TOKEN, "plane")
    dialler.check(greeter.answer(dialler.respond(greeter.challenge())))
    return greeter.seals(), dialler.seals()


@given(said=st.lists(st.binary(max_size=200), max_size=6), cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_what_was_sealed_is_opened(said: list[bytes], cuts: list[int]) -> None:
    """Both ways, however the bytes arrive."""
    for sender, receiver in (ends(), ends()[::-1]):
        data = b"".join(sender.seal(word) for word in said)
        edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
        pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
        assert b"".join(receiver.open(piece) for piece in pieces) == b"".join(said)


def test_long_data_travels_in_records() -> None:
    """No more than one record is kept until its seal is there."""
    sender, receiver = ends()
    data = random.Random(1).randbytes(3 * RECORD_BYTES + 5)
    sealed = sender.seal(data)
    assert receiver.open(sealed[: RECORD_BYTES + 100]) == data[:RECORD_BYTES]
    assert receiver.open(sealed[RECORD_BYTES + 100 :]) == data[RECORD_BYTES:]


def test_every_flipped_bit_is_noticed() -> None:
    """Length, data or seal: one wrong bit, and nothing of that record is given out."""
    plain = b"some words"
    for bit in range(8 * len(ends()[0].seal(plain))):
        sender, receiver = ends()
        harmed = bytearray(sender.seal(plain))
        harmed[bit // 8] ^= 1 << (bit % 8)
        try:
            opened = receiver.open(bytes(harmed) + sender.seal(plain) * 2)
        except WireError:
            continue
        assert opened == b""  # a longer record, of which more is to come


def test_repeats_gaps_and_other_connections_are_noticed() -> None:
    """A record is good once, in its place, on its connection and in its direction."""
    sender, receiver = ends()
    first, second = sender.seal(b"first"), sender.seal(b"second")
    assert receiver.open(first) == b"first"
    with pytest.raises(WireError):
        receiver.open(first)
    with pytest.raises(WireError, match="before"):
        receiver.open(second)
    with pytest.raises(WireError):
        ends()[1].open(second)
    with pytest.raises(WireError):
        ends()[1].open(first)
    sender, receiver = ends()
    with pytest.raises(WireError):
        sender.open(sender.seal(b"reflected"))


def test_a_length_beyond_a_record_is_refused_at_once() -> None:
    """A stranger's length makes nobody wait or keep anything."""
    with pytest.raises(WireError, match="no sealed record"):
        ends()[0].open(b"\xff\xff\xff\xff")
    with pytest.raises(WireError, match="no sealed record"):
        ends()[0].open(bytes(4))
