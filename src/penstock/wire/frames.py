"""Frames: a little-endian u32 length, then that many bytes of msgpack, holding one ``Call`` or one ``Reply``.

Invariants: ``FrameReader`` never buffers more than one frame of ``max_frame_bytes`` beyond what one ``feed`` brought; a
frame is handed out whole or not at all; the frames before a malformed one are handed out first; after a ``WireError``
the stream is over, as its boundaries are lost.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Generator

import msgspec

from penstock.errors import DataPlaneError
from penstock.requests import MUTATIONS, Call, Reply

__all__ = ["FrameReader", "WireError", "decode_call", "decode_reply", "encode_call", "encode_reply"]

_LENGTH = struct.Struct("<I")
_MAX_U32 = 2**32 - 1

_encoder = msgspec.msgpack.Encoder()
_calls = msgspec.msgpack.Decoder(Call)
_replies = msgspec.msgpack.Decoder(Reply)


class WireError(DataPlaneError):
    """The peer sent what the protocol does not know. It costs the connection, and only that."""


class FrameReader:
    """Cuts a stream of bytes into frames.

    Args:
        max_frame_bytes: a frame that announces more is refused before its bytes are taken in.
    """

    __slots__ = ("_broken", "_buffer", "_max_frame_bytes")

    def __init__(self, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._broken = False

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete yet. 0 at the end of a stream that was not cut off."""
        return len(self._buffer)

    def allow(self, max_frame_bytes: int) -> None:
        """Let the frames from here on be so large: whoever sends them has said who it is."""
        self._max_frame_bytes = max_frame_bytes

    def feed(self, data: bytes | bytearray | memoryview) -> Generator[bytes, None, None]:
        """Take in ``data`` at once; iterate over the frames that are complete, without their lengths.

        Raises:
            WireError: from the iteration, on an empty frame or one over the limit, and from every later call.
        """
        self._buffer += data
        return self._complete()

    def _complete(self) -> Generator[bytes, None, None]:
        start = 0
        try:
            while (end := self._end_of(start)) is not None:
                frame = bytes(memoryview(self._buffer)[start + _LENGTH.size : end])
                start = end
                yield frame
        finally:
            del self._buffer[:start]

    def _end_of(self, start: int) -> int | None:
        """Where the frame at ``start`` ends, or None while it is not all there."""
        if self._broken:
            raise WireError("a frame before this one was malformed")
        if len(self._buffer) < start + _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, start)
        if not 0 < length <= self._max_frame_bytes:
            self._broken = True
            raise WireError(f"a frame of {length} bytes; 1 to {self._max_frame_bytes} are allowed")
        end = start + _LENGTH.size + int(length)
        return end if end <= len(self._buffer) else None


def encode_call(call: Call, max_frame_bytes: int = _MAX_U32) -> bytes:
    """Return the frame of ``call``.

    Raises:
        WireError: it would be larger than ``max_frame_bytes``, or a number in it does not fit 64 bits.
    """
    return _frame(call, max_frame_bytes)


def encode_reply(reply: Reply, max_frame_bytes: int = _MAX_U32) -> bytes:
    """Return the frame of ``reply``. Raises as ``encode_call`` does."""
    return _frame(reply, max_frame_bytes)


def decode_call(frame: bytes) -> Call:
    """Return the call in ``frame``.

    Raises:
        WireError: it is not exactly one well-formed call. Only mutations are numbered, and all of them are.
    """
    try:
        call = _calls.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as bad:
        raise WireError(f"not a call: {bad}") from bad
    _check(call)
    return call


def decode_reply(frame: bytes) -> Reply:
    """Return the reply in ``frame``; raises ``WireError`` if it is not exactly one well-formed reply."""
    try:
        return _replies.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as bad:
        raise WireError(f"not a reply: {bad}") from bad


def _check(call: Call) -> None:
    """What the types do not say: no negative numbers, a finite deadline, a sequence for mutations and only for them."""
    if call.id < 0 or call.seq < 0 or call.done_below < 0:
        raise WireError(f"negative id, seq or done_below: {call.id}, {call.seq}, {call.done_below}")
    if not (math.isfinite(call.deadline_s) and call.deadline_s >= 0):
        raise WireError(f"a deadline of {call.deadline_s!r} s")
    if isinstance(call.body, MUTATIONS) != (call.seq > 0):
        raise WireError(f"{type(call.body).__name__} with sequence {call.seq}")


def _frame(record: Call | Reply, max_frame_bytes: int) -> bytes:
    buffer = bytearray(_LENGTH.size)
    try:
        _encoder.encode_into(record, buffer, _LENGTH.size)
    except (OverflowError, UnicodeEncodeError) as bad:
        raise WireError(f"{type(record.body).__name__} cannot be sent: {bad}") from bad
    length = len(buffer) - _LENGTH.size
    if length > max_frame_bytes:
        raise WireError(f"{type(record.body).__name__} of {length} bytes; a frame holds {max_frame_bytes}")
    _LENGTH.pack_into(buffer, 0, length)
    return bytes(buffer)
