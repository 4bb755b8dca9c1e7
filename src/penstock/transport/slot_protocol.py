"""What a reader and a payload server say to each other: three records of fixed size, and the bytes between them.

    reader  -> Request (56 bytes)
    server  -> Status (136 bytes), and if it is OK: the payload, ``Status.length`` bytes in parts (see ``parts_of``)
    reader  -> Ack (24 bytes), after it has checked the payload; only if the status was OK

Each record is one part, begins with its own magic and the version, and ends with xxh3-64 of itself: a flipped bit is
malformed, never another block's id or another verdict. ``Status.checksum`` covers a part of a block whole. Of a whole
block it covers the prelude, which is enough to tell which block has arrived, and costs nothing: the prelude carries the
header's checksum, and the header each column's (``payload.block``), so that ``block.verify`` checks the rest.

Invariant: what does not decode raises ``TransportError`` ("protocol") and nothing else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import xxhash

from penstock.errors import BadArgument, CorruptPayload, TransportError
from penstock.payload.block import PRELUDE_BYTES
from penstock.payload.slots import Mode

__all__ = [
    "ACK_BYTES",
    "REQUEST_BYTES",
    "STATUS_BYTES",
    "Ack",
    "Code",
    "Request",
    "Status",
    "Verdict",
    "check_payload",
    "covered",
    "parts_of",
]

_E = TypeVar("_E", bound=IntEnum)

VERSION = 1
MAX_TEXT_BYTES = 96
PART_BYTES = 8 << 20  # of a payload: large enough for any wire to be at its best, small enough to check on the way

_READ = 1  # the only kind of request there is
_MODES = {1: Mode.RETAIN, 2: Mode.CONSUME}
_MODE_NUMBERS = {mode: number for number, mode in _MODES.items()}

_REQUEST = struct.Struct("<4sHBBQqqqq")  # magic, version, kind, mode, request id, block id, generation, offset, length
_STATUS = struct.Struct(f"<4sHBBQQQ{MAX_TEXT_BYTES}s")  # magic, version, code, text bytes, request id, length, checksum
_ACK = struct.Struct("<4sHHQ")  # magic, version, verdict, request id
_CHECKSUM = struct.Struct("<Q")
_REQUEST_MAGIC, _STATUS_MAGIC, _ACK_MAGIC = b"PSrq", b"PSst", b"PSak"

REQUEST_BYTES = _REQUEST.size + _CHECKSUM.size
STATUS_BYTES = _STATUS.size + _CHECKSUM.size
ACK_BYTES = _ACK.size + _CHECKSUM.size


class Code(IntEnum):
    """The server's answer to a request. Only after ``OK`` do a payload and an acknowledgement follow."""

    OK = 1
    STALE = 2  # the block has no place here any more, or another generation of it: not worth asking again
    NOT_READY = 3  # it is being written, or read in the other mode: asking later may succeed
    BAD_REQUEST = 4  # what was asked for cannot be
    ERROR = 5  # the server failed


class Verdict(IntEnum):
    """The reader's word on a payload. Only ``CHECKED`` consumes."""

    CHECKED = 1  # length and checksums are right
    DAMAGED = 2  # they are not
    UNWANTED = 3  # it was not looked at


@dataclass(frozen=True, slots=True)
class Request:
    """Read a block, or in retain mode a part of it: ``length`` bytes from ``offset``. ``length`` 0: all of it."""

    request_id: int
    block_id: int
    generation: int
    mode: Mode = Mode.RETAIN
    offset: int = 0
    length: int = 0

    @property
    def whole(self) -> bool:
        """Whether all of the block is asked for."""
        return self.length == 0

    def objection(self) -> str:
        """Return why no server can answer this, whatever it holds; empty when one may."""
        if self.block_id < 0 or self.generation < 0:
            return f"there is no block {self.block_id} of generation {self.generation}"
        if self.offset < 0 or self.length < 0 or (self.whole and self.offset):
            return f"{self.length} bytes from {self.offset} are no part of a block"
        if self.mode is Mode.CONSUME and not self.whole:
            return "a part of a block cannot be consumed"
        return ""

    def encode(self) -> bytes:
        """Return the record.

        Raises:
            BadArgument: a number does not fit 64 bits.
        """
        kind_and_mode = (_READ, _MODE_NUMBERS[self.mode])
        numbers = (self.request_id, self.block_id, self.generation, self.offset, self.length)
        return _sealed(_REQUEST, _REQUEST_MAGIC, VERSION, *kind_and_mode, *numbers)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Request:
        """Read the record; whether it makes sense is for ``objection`` to say.

        Raises:
            TransportError: it is none.
        """
        kind, mode, request_id, block_id, generation, offset, length = _opened(_REQUEST, _REQUEST_MAGIC, data)
        if kind != _READ or mode not in _MODES:
            raise _malformed(f"a request of kind {kind} and mode {mode}")
        return cls(request_id, block_id, generation, _MODES[mode], offset, length)


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to a request; ``request_id`` 0 if it could not be read. ``text`` says why it is not OK."""

    request_id: int
    code: Code
    length: int = 0
    checksum: int = 0
    text: str = ""

    def encode(self) -> bytes:
        """Return the record; ``text`` is cut to what it holds.

        Raises:
            BadArgument: a number does not fit 64 bits.
        """
        text = "".join(c if c.isprintable() else "?" for c in self.text).encode("utf-8", "replace")
        text = text[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()
        numbers = (self.request_id, self.length, self.checksum)
        return _sealed(_STATUS, _STATUS_MAGIC, VERSION, self.code, len(text), *numbers, text)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Status:
        """Read the record.

        Raises:
            TransportError: it is none.
        """
        number, text_bytes, request_id, length, checksum, padded = _opened(_STATUS, _STATUS_MAGIC, data)
        code = _one_of(Code, number)
        if (code is Code.OK) != (length > 0) or text_bytes > MAX_TEXT_BYTES or any(padded[text_bytes:]):
            raise _malformed(f"a status {code.name} of {length} bytes with a text of {text_bytes}")
        return cls(request_id, code, length, checksum, _text(padded[:text_bytes]))


@dataclass(frozen=True, slots=True)
class Ack:
    """What the reader found in the payload of its request."""

    request_id: int
    verdict: Verdict

    def encode(self) -> bytes:
        """Return the record."""
        return _sealed(_ACK, _ACK_MAGIC, VERSION, self.verdict, self.request_id)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Ack:
        """Read the record.

        Raises:
            TransportError: it is none.
        """
        number, request_id = _opened(_ACK, _ACK_MAGIC, data)
        return cls(request_id, _one_of(Verdict, number))


def covered(request: Request, payload: memoryview) -> memoryview:
    """Return the bytes of a payload that ``Status.checksum`` is of: of a whole block the prelude, else all."""
    return payload[:PRELUDE_BYTES] if request.whole else payload


def parts_of(payload: memoryview) -> list[memoryview]:
    """Return the parts in which a payload is sent and received: so one is checked while the next is on its way."""
    return [payload[at : at + PART_BYTES] for at in range(0, len(payload), PART_BYTES)]


def check_payload(request: Request, status: Status, payload: memoryview) -> None:
    """Compare what has arrived with what the server said of it; of a whole block, ``block`` must check the rest.

    Raises:
        CorruptPayload: they differ.
    """
    if len(payload) != status.length or (not request.whole and request.length != status.length):
        raise CorruptPayload(f"block {request.block_id}: {len(payload)} bytes arrived of {status.length}")
    if xxhash.xxh3_64_intdigest(covered(request, payload)) != status.checksum:
        raise CorruptPayload(f"block {request.block_id}: what arrived does not match the server's checksum")


def _sealed(layout: struct.Struct, *fields: object) -> bytes:
    try:
        record = layout.pack(*fields)
    except struct.error as error:
        raise BadArgument(f"a record's numbers must fit their fields: {error}") from error
    return record + _CHECKSUM.pack(xxhash.xxh3_64_intdigest(record))


def _opened(layout: struct.Struct, magic: bytes, data: bytes | bytearray | memoryview) -> tuple[Any, ...]:
    """Return the fields after magic and version."""
    if len(data) != layout.size + _CHECKSUM.size:
        raise _malformed(f"{len(data)} bytes where a record has {layout.size + _CHECKSUM.size}")
    found, version, *fields = layout.unpack_from(data)
    if found != magic:
        raise _malformed(f"{found!r} where {magic!r} should be")
    if version != VERSION:
        raise _malformed(f"version {version}; here it is {VERSION}")
    if xxhash.xxh3_64_intdigest(memoryview(data)[: layout.size]) != _CHECKSUM.unpack_from(data, layout.size)[0]:
        raise _malformed("a record that does not match its checksum")
    return tuple(fields)


def _malformed(what: str) -> TransportError:
    return TransportError(f"malformed: {what}", code="protocol")


def _one_of(names: type[_E], number: int) -> _E:
    try:
        return names(number)
    except ValueError:
        raise _malformed(f"{names.__name__.lower()} {number}") from None


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise _malformed("a text that is no UTF-8") from None
    if not text.isprintable():
        raise _malformed("a text with control characters")
    return text
