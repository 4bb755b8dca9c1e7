"""What peers say as bytes: everything sound comes back as it was, everything else is a ``WireError``."""

from __future__ import annotations

import msgspec
import pytest
import xxhash

from penstock.endpoint.connection import Address
from penstock.endpoint.events import Kind, Message, Session
from penstock.endpoint.messages import (
    HEADER,
    MAX_KINDS,
    MAX_MESSAGE_BYTES,
    VERSION,
    Hello,
    Params,
    Said,
    decode,
    encode,
    length_of,
    message_of,
    said_of,
)
from penstock.endpoint.resources import MAX_PARAMS_BYTES
from penstock.wire import WireError
from tests.fuzz.mutations import rounds, unsound

HIGH = 2**64 - 1
PARAMS: Params = {"ucx": b"\0" * 200, "tcp": b"x"}


def messages() -> list[Message]:
    src, dst = Session(HIGH, 1), Session(7, HIGH)
    return [Message(kind, src, None if kind is Kind.REQ else dst) for kind in Kind]


def sound() -> list[Hello | Said]:
    hellos = [Hello(VERSION, "~f00"), Hello(VERSION, "10.0.0.1:7", ("10.0.0.1", 7))]
    return [*hellos, *(said_of(m, channel, PARAMS) for m in messages() for channel in ("", "replicas"))]


def test_messages_come_back_as_they_were() -> None:
    """With the params of those that may bind, and without for the others; numbers use all 64 bits."""
    for message in messages():
        said = said_of(message, "channel", PARAMS)
        header, body = encode(said)
        assert length_of(header) == len(body)
        again = decode(body)
        assert again == said
        params = PARAMS if message.kind in (Kind.REQ, Kind.REP, Kind.PING) else {}
        assert message_of(again) == (message, params)
        assert list(message_of(again)[1]) == list(params)  # the order is that of preference


def test_hello_says_where_its_listener_is() -> None:
    """Or that there is none."""
    told = [decode(encode(hello)[1]) for hello in sound()[:2]]
    assert isinstance(told[0], Hello)
    assert isinstance(told[1], Hello)
    assert told[0].address is None
    assert told[1].address == Address("10.0.0.1", 7)


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_BYTES + 1, 2**32 - 1])
def test_a_length_is_judged_before_its_bytes_are_awaited(length: int) -> None:
    """Nothing that is empty or too long is taken in."""
    with pytest.raises(WireError, match="bytes"):
        length_of(HEADER.pack(length))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(["Nonsense", 1]),
        msgspec.msgpack.encode(["Rst", "", [1, 2], [3]]),
        msgspec.msgpack.encode(["Rst", "", [1, -2], [3, 4]]),
        msgspec.msgpack.encode(["Rst", "c" * 129, [1, 2], [3, 4]]),
        msgspec.msgpack.encode(["Rst", "", [1, 2], [3, 4], "more"]),
        msgspec.msgpack.encode(["Req", "", [1, 2], {"tcp": b"x" * (MAX_PARAMS_BYTES + 1)}]),
        msgspec.msgpack.encode(["Req", "", [1, 2], {str(n): b"" for n in range(MAX_KINDS + 1)}]),
        msgspec.msgpack.encode(["Hello", VERSION, "x", ["x", 65536]]),
        encode(Hello(VERSION, "x"))[1][:-8] + b"\0",
    ],
)
def test_what_is_not_exactly_one_record_within_the_limits_is_refused(body: bytes) -> None:
    """Whatever it is."""
    with pytest.raises(WireError, match="not a message between peers"):
        decode(summed(body))


def summed(words: bytes) -> bytes:
    """With the right checksum."""
    return words + xxhash.xxh3_64_digest(words)


def test_every_flipped_bit_is_noticed() -> None:
    """What was damaged on its way is no other message."""
    for record in sound():
        body = encode(record)[1]
        for bit in range(0, 8 * len(body), max(1, len(body) // 50)):
            harmed = bytearray(body)
            harmed[bit // 8] ^= 1 << (bit % 8)
            with pytest.raises(WireError, match="damaged"):
                decode(harmed)


def test_the_largest_message_fits() -> None:
    """Every kind of wire with all the params that it may have."""
    params: Params = {"k" * 31 + str(n): b"x" * MAX_PARAMS_BYTES for n in range(MAX_KINDS)}
    header, body = encode(said_of(Message(Kind.PING, Session(HIGH, HIGH), Session(HIGH, HIGH)), "c" * 128, params))
    assert length_of(header) == len(body)
    assert decode(body)


@rounds
def test_fuzz_the_decoder(rounds: int) -> None:
    """Whatever is fed is refused by ``WireError``, or is a record that encodes to one that decodes to the same."""
    bodies = [encode(record)[1][:-8] for record in sound()]
    refused = 0
    for data in unsound(18, bodies, rounds):
        try:
            record = decode(summed(data))
        except WireError:
            refused += 1
        else:
            assert decode(encode(record)[1]) == record, data.hex()
    assert refused > rounds // 2
