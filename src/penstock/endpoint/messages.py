"""What peers say to each other, as bytes: a length of 4 bytes, one record of a closed set in msgpack, and its xxh3-64.

    both -> both   Hello, first and once: version, and who speaks
    then           Req, Rep, Ack, Rst, Ping, in any order, about any of the channels between the two

Invariants: a message is decoded whole or not at all; what is not exactly one well-formed record within the limits, as
it was sent, is a ``WireError``, which costs the connection: the machines are proof against loss, not against damage. A
``Hello`` comes first, and never again. Nobody needs to answer anything.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeAlias

import msgspec
import xxhash

from penstock.endpoint.connection import Address
from penstock.endpoint.events import Kind, Message, Session
from penstock.endpoint.resources import MAX_PARAMS_BYTES
from penstock.wire import WireError

__all__ = [
    "HEADER",
    "MAX_CHANNEL_BYTES",
    "MAX_MESSAGE_BYTES",
    "VERSION",
    "Hello",
    "Params",
    "Said",
    "decode",
    "encode",
    "length_of",
    "message_of",
    "said_of",
]

VERSION = 1
HEADER = struct.Struct("<I")
_CHECKSUM_BYTES = 8
MAX_KINDS = 8  # of wires that one peer offers
MAX_CHANNEL_BYTES = 128
MAX_MESSAGE_BYTES = MAX_KINDS * (MAX_PARAMS_BYTES + 64) + 1024

_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_CHANNEL_BYTES)]
Params: TypeAlias = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=32)], Annotated[bytes, msgspec.Meta(max_length=MAX_PARAMS_BYTES)]],
    msgspec.Meta(max_length=MAX_KINDS),
]  # kind of wire -> what the peer must know of this session's resources of that kind; what is preferred comes first


class _Record(msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True):
    pass


class Hello(_Record, frozen=True):
    """Who speaks: where its listener is, and that again as its name; or a name of its process, if it has none."""

    version: _Number
    name: _Name
    where: tuple[_Name, Annotated[int, msgspec.Meta(ge=1, le=65535)]] | None = None

    @property
    def address(self) -> Address | None:
        return Address(*self.where) if self.where else None


class _About(_Record, frozen=True):
    channel: _Name
    src: tuple[_Number, _Number]


class Req(_About, frozen=True):
    """See ``Kind.REQ``."""

    params: Params


class Rep(_About, frozen=True):
    """See ``Kind.REP``."""

    dst: tuple[_Number, _Number]
    params: Params


class Ack(_About, frozen=True):
    """See ``Kind.ACK``."""

    dst: tuple[_Number, _Number]


class Rst(_About, frozen=True):
    """See ``Kind.RST``."""

    dst: tuple[_Number, _Number]


class Ping(_About, frozen=True):
    """See ``Kind.PING``."""

    dst: tuple[_Number, _Number]
    params: Params


Said: TypeAlias = Req | Rep | Ack | Rst | Ping
_KINDS: dict[type[Said], Kind] = {Req: Kind.REQ, Rep: Kind.REP, Ack: Kind.ACK, Rst: Kind.RST, Ping: Kind.PING}

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Hello | Said] = msgspec.msgpack.Decoder(Hello | Said)


def encode(record: Hello | Said) -> tuple[bytes, bytes]:
    """Return the two parts of a message."""
    words = _encoder.encode(record)
    body = words + _checksum(words)
    assert len(body) <= MAX_MESSAGE_BYTES, f"{type(record).__name__} of {len(body)} bytes"
    return HEADER.pack(len(body)), body


def _checksum(words: bytes | bytearray) -> bytes:
    return xxhash.xxh3_64_digest(words)


def length_of(header: bytes | bytearray) -> int:
    """Return how long the second part is.

    Raises:
        WireError: it is empty or too long.
    """
    (length,) = HEADER.unpack(header)
    if not 0 < length <= MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {length} bytes; 1 to {MAX_MESSAGE_BYTES} are allowed")
    return int(length)


def decode(body: bytes | bytearray) -> Hello | Said:
    """Return the record in ``body``.

    Raises:
        WireError: it is not exactly one well-formed record, or not as it was sent.
    """
    words, checksum = body[:-_CHECKSUM_BYTES], body[-_CHECKSUM_BYTES:]
    if _checksum(words) != checksum:
        raise WireError("a message between peers was damaged on its way")
    try:
        return _decoder.decode(words)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as bad:
        raise WireError(f"not a message between peers: {bad}") from bad


def said_of(message: Message, channel: str, params: Params) -> Said:
    """Return what goes out for a message of the machine; ``params`` go with those that may bind."""
    kind, src, dst = message
    if dst is None:
        return Req(channel, src, params)
    match kind:
        case Kind.REP:
            return Rep(channel, src, dst, params)
        case Kind.PING:
            return Ping(channel, src, dst, params)
        case Kind.ACK:
            return Ack(channel, src, dst)
        case _:
            return Rst(channel, src, dst)


def message_of(said: Said) -> tuple[Message, Params]:
    """Return what the machine is told of it, and the params that came with it, if any."""
    params = said.params if isinstance(said, Req | Rep | Ping) else {}
    dst = None if isinstance(said, Req) else Session(*said.dst)
    return Message(_KINDS[type(said)], Session(*said.src), dst), params
