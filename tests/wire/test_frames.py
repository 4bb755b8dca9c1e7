"""Framing: what comes in whole and byte by byte is the same, and nothing malformed is believed."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.requests import (
    ArenaPlace,
    BlockPlace,
    Call,
    Claim,
    Done,
    Goodbye,
    Granted,
    Ping,
    PutTags,
    Reply,
    Request,
    TagColumn,
)
from penstock.wire import FrameReader, WireError, decode_call, decode_reply, encode_call, encode_reply

LIMIT = 64


def _call(body: Request, *, seq: int = 0, deadline_s: float = 1.0) -> Call:
    return Call(id=1, seq=seq, done_below=0, deadline_s=deadline_s, abandoned=[], unpins=[], body=body)


def _read(chunks: Iterable[bytes], limit: int = LIMIT) -> tuple[list[bytes], bool, int]:
    """The frames, whether the stream broke, and what was left over."""
    reader = FrameReader(limit)
    frames: list[bytes] = []
    try:
        for chunk in chunks:
            frames.extend(reader.feed(chunk))  # extend keeps what came before an error
    except WireError:
        return frames, True, 0
    return frames, False, reader.pending


def _framed(payload: bytes) -> bytes:
    return struct.pack("<I", len(payload)) + payload


@given(st.lists(st.one_of(st.binary(max_size=LIMIT + 8).map(_framed), st.binary(max_size=12)), max_size=6))
def test_whole_and_byte_by_byte_agree(parts: list[bytes]) -> None:
    """Any input gives the same frames and the same verdict however it is cut up."""
    data = b"".join(parts)
    assert _read([data]) == _read(data[i : i + 1] for i in range(len(data)))


@given(st.lists(st.binary(min_size=1, max_size=LIMIT), max_size=8), st.integers(1, 9))
def test_frames_come_out_as_they_went_in(payloads: list[bytes], step: int) -> None:
    """Well-formed frames are returned in order, whatever the size of the pieces."""
    data = b"".join(map(_framed, payloads))
    assert _read(data[i : i + step] for i in range(0, len(data), step)) == (payloads, False, 0)


@pytest.mark.parametrize("length", [0, LIMIT + 1, 2**32 - 1])
def test_a_length_out_of_bounds_breaks_the_stream(length: int) -> None:
    """An empty frame, or one over the limit, is refused at its length; the frame before it is still delivered."""
    reader = FrameReader(LIMIT)
    frames = reader.feed(_framed(b"good") + struct.pack("<I", length))
    assert next(frames) == b"good"
    with pytest.raises(WireError, match=str(length)):
        next(frames)
    with pytest.raises(WireError):
        list(reader.feed(_framed(b"later")))


def test_an_iteration_that_was_left_goes_on_with_the_next_feed() -> None:
    """Frames that were not fetched are not lost and not repeated."""
    reader = FrameReader(LIMIT)
    for frame in reader.feed(_framed(b"a") + _framed(b"b")):
        assert frame == b"a"
        break
    assert list(reader.feed(_framed(b"c"))) == [b"b", b"c"]


def test_calls_and_replies_round_trip() -> None:
    """What is encoded decodes to an equal record."""
    tags = [TagColumn("weight_version", [3]), TagColumn("note", ["a", None, 1.5, True], [0, 2, 3, 5])]
    for call in (
        _call(Ping()),
        _call(PutTags("train", ["a", "b"], tags), seq=3),
        _call(Claim(partition="p", task="t", required=["x"], batch=4, lease_s=2.5), seq=1),
        _call(Goodbye()),
    ):
        (frame,) = FrameReader(1 << 20).feed(encode_call(call))
        assert decode_call(frame) == call
    place = BlockPlace(block_id=2**62, arena_id=1, offset=64, nbytes=128, generation=9)
    reply = Reply(id=4, incarnation=2**62, body=Granted(1, place, ArenaPlace(1, 4096, in_shm=True)))
    (frame,) = FrameReader(1 << 20).feed(encode_reply(reply))
    assert decode_reply(frame) == reply


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_record_or_a_wire_error(data: bytes) -> None:
    """Decoders raise WireError and nothing else."""
    for decode in (decode_call, decode_reply):
        with contextlib.suppress(WireError):
            decode(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_a_record_or_a_wire_error(position: int, value: int) -> None:
    """A damaged call decodes to some call or raises WireError, and nothing else."""
    frame = bytearray(encode_call(_call(PutTags("p", ["k1", "k2"], [TagColumn("t", [1, 2.0])]), seq=9))[4:])
    frame[position % len(frame)] = value
    with contextlib.suppress(WireError):
        decode_call(bytes(frame))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # four thousand million elements announced
        b"\x91" * 100_000,  # deep nesting
        msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Unheard"]]),
        msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Ping"], "more"]),
        msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Ping", "more"]]),
        msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Ping"]]) + b"\x00",
        msgspec.msgpack.encode([-1, 0, 0, 1.0, [], [], ["Ping"]]),
        msgspec.msgpack.encode([1, 0, -1, 1.0, [], [], ["Ping"]]),
        msgspec.msgpack.encode([1, 0, 0, math.nan, [], [], ["Ping"]]),
        msgspec.msgpack.encode([1, 0, 0, math.inf, [], [], ["Ping"]]),
        msgspec.msgpack.encode([1, 0, 0, -1.0, [], [], ["Ping"]]),
        msgspec.msgpack.encode([1, 1, 0, 1.0, [], [], ["Ping"]]),  # a query has no sequence
        msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Clear", "p", None]]),  # a mutation needs one
        msgspec.msgpack.encode([1, 0, 0, 1.0, [], [], ["Depth", 7]]),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"cos\nsystem\n(S'true'\ntR.")),
    ],
)
def test_what_is_not_a_call_is_refused(payload: bytes) -> None:
    """Unknown types, extra parts, impossible numbers, deep or huge structures: all are a WireError."""
    with pytest.raises(WireError):
        decode_call(payload)


def test_what_is_too_large_is_not_sent() -> None:
    """A sender finds out by itself that the peer would refuse its frame."""
    with pytest.raises(WireError, match="a frame holds 100"):
        encode_call(_call(PutTags("p", ["k" * 200], []), seq=1), max_frame_bytes=100)
    with pytest.raises(WireError, match="cannot be sent"):
        encode_reply(Reply(id=2**70, incarnation=0, body=Done()))


def test_a_reader_may_come_to_allow_more() -> None:
    """What is allowed holds from the next frame on, also for bytes that were fed before."""
    reader = FrameReader(4)
    frames = reader.feed(struct.pack("<I", 4) + b"abcd" + struct.pack("<I", 6) + b"abcdef")
    assert next(frames) == b"abcd"
    reader.allow(6)
    assert list(frames) == [b"abcdef"]
