"""What peers say to each other: only what was said comes through, within its limits; all else is ``WireError``."""

from __future__ import annotations

import random

import xxhash

from penstock.endpoint.messages import (
    HEADER,
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
def test_lines_that_are_harmed(rounds: int) -> None:
    """Header and body, cut as a line cuts them: nothing but what was said comes through, whatever happened to it."""
    messages = sound(15)
    bodies = {message[HEADER.size :] for message in messages}
    refused = 0
    for data in unsound(16, messages, rounds):
        header, body = (data + bytes(HEADER.size))[: HEADER.size], data[HEADER.size :]
        try:
            body = body[: length_of(header)]
            decode(body)
        except WireError:
            refused += 1
        else:
            assert body in bodies, data.hex()
    assert refused > rounds // 10


@rounds
def test_numbers_out_of_range_are_refused(rounds: int) -> None:
    """A peer that means it, checksum and all: no session, port or name outside its limits comes through."""
    rng = random.Random(17)
    words = [message[HEADER.size : -8] for message in sound(18)]
    accepted = 0
    for _ in range(rounds):
        said_wrongly = mutated(rng, words)
        try:
            said = decode(said_wrongly + xxhash.xxh3_64_digest(said_wrongly))
        except WireError:
            continue
        accepted += 1
        if isinstance(said, Hello):
            assert said.where is None or 1 <= said.where[1] <= 65535
        else:
            assert min(said.src) >= 0
            assert len(said.channel) <= 128
    assert accepted
