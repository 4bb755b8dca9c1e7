"""What peers say to each other: a message that decodes encodes to one that decodes to the same; else ``WireError``."""

from __future__ import annotations

import random

from penstock.endpoint.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    Hello,
    Ping,
    Rep,
    Req,
    Rst,
    Said,
    decode,
    encode,
    length_of,
)
from penstock.wire import WireError
from tests.fuzz.mutations import mutated, rounds, unsound


def sound(seed: int) -> list[bytes]:
    rng = random.Random(seed)

    def session() -> tuple[int, int]:
        return rng.choice([0, 1, 2**32, 2**63, 2**64 - 1]), rng.randrange(5)

    params = {"tcp": rng.randbytes(40), "ucx": rng.randbytes(700)}
    records: list[Hello | Said] = [
        Hello(1, "agent", ("10.0.0.1", 7000)),
        Hello(1, "process 5"),
        Req("copies", session(), params),
        Rep("copies", session(), session(), params),
        Ack("copies", session(), session()),
        Rst("copies", session(), session()),
        Ping("copies", session(), session(), params),
    ]
    return [b"".join(encode(record)) for record in records]


@rounds
def test_what_decodes_is_a_message(rounds: int) -> None:
    """Header and body, cut as a link cuts them."""
    messages = sound(15)
    size = len(messages[0]) - length_of(messages[0][:4]) if len(messages[0]) > 4 else 4
    refused = 0
    for data in unsound(16, messages, rounds):
        header, body = (data + bytes(size))[:size], data[size:]
        try:
            assert 0 < length_of(header) <= MAX_MESSAGE_BYTES
            again = b"".join(encode(decode(body)))[size:]
        except WireError:
            refused += 1
            continue
        assert b"".join(encode(decode(again)))[size:] == again, data.hex()
    assert refused > rounds // 10


@rounds
def test_numbers_out_of_range_are_refused(rounds: int) -> None:
    """No session, port or name outside its limits comes through."""
    rng = random.Random(17)
    messages = sound(18)
    for _ in range(rounds):
        try:
            said = decode(mutated(rng, messages)[4:])
        except WireError:
            continue
        if isinstance(said, Hello):
            assert said.where is None or 1 <= said.where[1] <= 65535
        else:
            assert min(said.src) >= 0
            assert len(said.channel) <= 128
