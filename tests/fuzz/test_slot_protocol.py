"""A record that decodes is the record that was encoded, bit for bit; the rest is ``TransportError``, "protocol"."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

import pytest

from penstock.errors import TransportError
from penstock.payload.slots import Mode
from penstock.transport.slot_protocol import Ack, Code, Request, Status, Verdict
from tests.fuzz.mutations import rounds, unsound

_Record: TypeAlias = Request | Status | Ack


def sound(seed: int) -> list[_Record]:
    rng = random.Random(seed)

    def number() -> int:
        return rng.choice([0, 1, 7, 2**31, 2**63 - 1])

    return [
        *(Request(number(), number(), number(), rng.choice(list(Mode)), number(), number()) for _ in range(20)),
        *(Status(number(), Code.OK, 1 + rng.randrange(2**40), number()) for _ in range(10)),
        *(Status(number(), code, text="why not é") for code in Code if code is not Code.OK),
        *(Ack(number(), verdict) for verdict in Verdict),
    ]


@rounds
@pytest.mark.parametrize("decode", [Request.decode, Status.decode, Ack.decode])
def test_what_decodes_was_encoded(rounds: int, decode: Callable[[bytes], _Record]) -> None:
    """Whatever is fed, each decoder gives a record that encodes to just these bytes, or says that it is none."""
    records = [record.encode() for record in sound(4)]
    refused = accepted = 0
    for data in unsound(5, records, rounds):
        try:
            record = decode(data)
        except TransportError as error:
            refused += error.code == "protocol"
        else:
            assert record.encode() == data, data.hex()
            accepted += 1
    assert refused == rounds - accepted
    assert refused > rounds // 2


def test_every_single_flipped_bit_is_noticed() -> None:
    """No bit of any record can be wrong and pass."""
    for record in sound(6):
        encoded = record.encode()
        for bit in range(8 * len(encoded)):
            harmed = bytearray(encoded)
            harmed[bit // 8] ^= 1 << (bit % 8)
            with pytest.raises(TransportError):
                type(record).decode(harmed)


@rounds
def test_requests_that_decode_are_judged(rounds: int) -> None:
    """``objection`` finds words for all that no server may answer: negative numbers, no parts, consumed parts."""
    rng = random.Random(7)
    numbers = [-(2**63), -1, 0, 1, 64, 2**63 - 1]
    objected = 0
    for _ in range(rounds):
        one, two, three, four = (rng.choice(numbers) for _ in range(4))
        request = Request.decode(Request(1, one, two, rng.choice(list(Mode)), three, four).encode())
        if why := request.objection():
            objected += 1
            assert why.isprintable()
        else:
            assert min(one, two, three, four) >= 0
            assert request.mode is Mode.RETAIN or request.whole
    assert 0 < objected < rounds
