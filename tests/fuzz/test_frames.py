"""Whole and byte by byte give the same frames; nothing but ``WireError``; no more is kept than a frame may hold."""

from __future__ import annotations

import random

from penstock.requests import Done, Failed, Reply, ReplyBody
from penstock.wire import FrameReader, WireError, decode_call, decode_reply, encode_call, encode_reply
from tests.fuzz.mutations import mutated, rounds, unsound
from tests.server.test_hostile import Absurd

LIMIT = 4096


def sound_calls(seed: int, count: int = 200) -> list[bytes]:
    """Frames of calls of every kind, with numbers, names and floats at their extremes."""
    absurd = Absurd(seed)
    found: list[bytes] = []
    while len(found) < count:
        try:
            found.append(encode_call(absurd.call(len(found) + 1), LIMIT))
        except WireError:
            continue
    return found


def cut(data: bytes, sizes: list[int]) -> tuple[list[bytes], bool]:
    """Feed a reader in pieces; return its frames, and whether it ended in an error."""
    reader, frames, at = FrameReader(LIMIT), list[bytes](), 0
    try:
        for size in sizes:
            for frame in reader.feed(data[at : at + size]):
                frames.append(frame)
            at += size
            assert reader.pending <= LIMIT + 4
    except WireError:
        return frames, True
    return frames, False


@rounds
def test_frames_do_not_depend_on_how_they_arrive(rounds: int) -> None:
    """A stream in one piece, byte by byte, and cut anywhere: the same frames, the same end."""
    rng, calls = random.Random(8), sound_calls(8)
    ended = 0
    for _ in range(rounds // 10):
        data = b"".join(rng.choice(calls) if rng.random() < 0.8 else mutated(rng, calls) for _ in range(4))
        whole = cut(data, [len(data)])
        assert cut(data, [1] * len(data)) == whole, data.hex()
        middle = rng.randrange(len(data) + 1)
        assert cut(data, [middle, len(data) - middle]) == whole, data.hex()
        ended += whole[1]
    assert 0 < ended < rounds // 10


@rounds
def test_calls_decode_or_say_why(rounds: int) -> None:
    """A call that decodes encodes again to one that decodes to the same; all else is ``WireError``."""
    calls = [frame[4:] for frame in sound_calls(9)]
    refused = 0
    for data in unsound(10, calls, rounds):
        try:
            call = decode_call(data)
        except WireError:
            refused += 1
        else:
            again = encode_call(call)[4:]
            assert encode_call(decode_call(again))[4:] == again, data.hex()
    assert refused > rounds // 4


@rounds
def test_replies_decode_or_say_why(rounds: int) -> None:
    """What a plane says may be anything too, to a client that was led astray."""
    bodies: list[ReplyBody] = [Done(), Failed("DataPlaneTimeout", "late")]
    frames = [encode_reply(Reply(n, 1, body))[4:] for n, body in enumerate(bodies)]
    refused = 0
    for data in unsound(11, frames, rounds):
        try:
            decode_reply(data)
        except WireError:
            refused += 1
    assert refused > rounds // 4
