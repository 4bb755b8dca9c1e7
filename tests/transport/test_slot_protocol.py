"""The records between reader and payload server: they come back as they went, and nothing else comes through."""

from __future__ import annotations

import contextlib
from typing import TypeAlias

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BadArgument, CorruptPayload, TransportError
from penstock.payload import block, codec
from penstock.payload.slots import Mode
from penstock.transport.slot_protocol import (
    ACK_BYTES,
    MAX_TEXT_BYTES,
    REQUEST_BYTES,
    STATUS_BYTES,
    Ack,
    Code,
    Request,
    Status,
    Verdict,
    check_payload,
    covered,
)

Kind: TypeAlias = type[Request] | type[Status] | type[Ack]

KINDS: list[Kind] = [Request, Status, Ack]
SAMPLES: list[Request | Status | Ack] = [
    Request(7, 12, 3),
    Request(2**64 - 1, 2**63 - 1, 2**63 - 1, Mode.CONSUME),
    Request(1, 2, 3, Mode.RETAIN, 4096, 1),
    Status(7, Code.OK, 1, 2**64 - 1),
    Status(0, Code.BAD_REQUEST, text="malformed: ä€"),
    Ack(7, Verdict.CHECKED),
    Ack(7, Verdict.DAMAGED),
]
NUMBERS = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("record", SAMPLES, ids=repr)
def test_a_record_comes_back_as_it_went(record: Request | Status | Ack) -> None:
    """Encoding has a fixed size for each kind, and decoding is its inverse."""
    sizes = {Request: REQUEST_BYTES, Status: STATUS_BYTES, Ack: ACK_BYTES}
    encoded = record.encode()
    assert len(encoded) == sizes[type(record)]
    assert type(record).decode(bytearray(encoded)) == record


@pytest.mark.parametrize("record", SAMPLES, ids=repr)
def test_a_flipped_bit_anywhere_is_malformed(record: Request | Status | Ack) -> None:
    """No damage to a record turns it into another one."""
    encoded = record.encode()
    for bit in range(len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TransportError, match="malformed") as raised:
            type(record).decode(damaged)
        assert raised.value.code == "protocol"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=200), size=st.booleans())
def test_garbage_is_malformed_and_nothing_else(kind: Kind, data: bytes, size: bool) -> None:
    """Documented error: TransportError with code "protocol"."""
    exact = {Request: REQUEST_BYTES, Status: STATUS_BYTES, Ack: ACK_BYTES}[kind]
    with pytest.raises(TransportError, match="malformed"):
        kind.decode(data.ljust(exact, b"\0")[:exact] if size else data)


@pytest.mark.parametrize("kind", KINDS)
@given(body=st.binary(min_size=128, max_size=128))
def test_garbage_under_a_right_checksum_decodes_or_is_malformed(kind: Kind, body: bytes) -> None:
    """A peer that knows the format can send any field: what decodes encodes to these very bytes."""
    sample = next(s for s in SAMPLES if isinstance(s, kind)).encode()
    record = sample[:6] + body[: len(sample) - 14]
    record += xxhash.xxh3_64_intdigest(record).to_bytes(8, "little")
    with contextlib.suppress(TransportError):
        found = kind.decode(record)
        assert found.encode() == record


def test_another_version_is_named() -> None:
    """Whoever speaks another version is told which one is spoken here."""
    record = bytearray(Request(1, 2, 3).encode())
    record[4] = 9
    with pytest.raises(TransportError, match="version 9; here it is 1"):
        Request.decode(record)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (Request(1, -1, 3), "no block -1"),
        (Request(1, 2, -3), "generation -3"),
        (Request(1, 2, 3, offset=-1, length=5), "no part"),
        (Request(1, 2, 3, offset=5, length=-1), "no part"),
        (Request(1, 2, 3, offset=5), "no part"),
        (Request(1, 2, 3, Mode.CONSUME, 0, 5), "cannot be consumed"),
    ],
)
def test_nonsense_is_objected_to(request_: Request, why: str) -> None:
    """Negative numbers and consuming a part cross the wire, so that the answer can say what is wrong."""
    assert why in Request.decode(request_.encode()).objection()


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_what_is_not_objected_to_is_a_block_or_a_part(block_id: int, generation: int, offset: int, length: int) -> None:
    """Nothing negative passes."""
    asked = Request(1, block_id, generation, Mode.RETAIN, offset, length)
    if not asked.objection():
        assert min(block_id, generation, offset, length) >= 0


def test_a_number_that_does_not_fit_is_the_callers_mistake() -> None:
    """Not a struct.error, and not a number cut to 64 bits."""
    with pytest.raises(BadArgument):
        Request(1, 2**63, 3).encode()


@given(st.text())
def test_any_text_can_be_said(text: str) -> None:
    """It is cut between characters, and what cannot be printed is replaced."""
    said = Status.decode(Status(1, Code.ERROR, text=text).encode()).text
    assert len(said.encode()) <= MAX_TEXT_BYTES
    assert said.isprintable()
    if text.isascii() and text.isprintable():
        assert said == text[:MAX_TEXT_BYTES]


def made_block(block_id: int) -> memoryview:
    batch = codec.encode({"x": list(range(100))}, 100, strict_tensors=False)
    out = bytearray(batch.nbytes)
    batch.write_into(out, block_id)
    return memoryview(out)


def arrive(asked: Request, status: Status, payload: memoryview) -> None:
    check_payload(asked, status, payload)
    if asked.whole:
        block.verify(payload, block.parse(payload, asked.block_id))


def test_a_part_is_checked_whole_and_a_whole_by_its_prelude() -> None:
    """A flipped byte of a part is found here; of a whole block in the prelude here, in the rest by ``block``."""
    data = made_block(5)
    for asked in (Request(1, 5, 1), Request(1, 5, 1, offset=64, length=200)):
        payload = data if asked.whole else data[64:264]
        status = Status(1, Code.OK, len(payload), xxhash.xxh3_64_intdigest(covered(asked, payload)))
        check_payload(asked, status, payload)
        for at in range(0, len(payload), 7):
            damaged = bytearray(payload)
            damaged[at] ^= 1
            with pytest.raises(CorruptPayload):
                arrive(asked, status, memoryview(damaged))


def test_another_block_is_told_by_its_prelude() -> None:
    """Equal rows in a block of another id: the checksum of the prelude differs."""
    asked, mine, other = Request(1, 5, 1), made_block(5), made_block(6)
    status = Status(1, Code.OK, len(mine), xxhash.xxh3_64_intdigest(covered(asked, mine)))
    with pytest.raises(CorruptPayload, match="does not match"):
        check_payload(asked, status, other)


def test_a_length_that_was_not_asked_for_is_corrupt() -> None:
    """A server that sends less than it says, or another part than was asked for, is not believed."""
    with pytest.raises(CorruptPayload, match="2 bytes arrived of 3"):
        check_payload(Request(1, 5, 1), Status(1, Code.OK, 3), memoryview(b"ab"))
    with pytest.raises(CorruptPayload):
        check_payload(Request(1, 5, 1, offset=0, length=3), Status(1, Code.OK, 2), memoryview(b"ab"))
