"""What agents ask each other: nothing but well-formed questions are served; all else ends the conversation."""

from __future__ import annotations

import asyncio
import random

import msgspec
import xxhash

from penstock.endpoint.connection import Buffer
from penstock.errors import DataPlaneError, TransportError
from penstock.host.conversation import _HEADER, _MAGIC, Conversation, Copy, CopyMade, CopyRefused
from penstock.parts import BlockPlace, HostPlace
from penstock.retry import Deadline
from tests.fuzz.mutations import mutated, rounds

PLACE = BlockPlace(7, 1, 0, 4096, 3, 0, 99)
HOST = HostPlace(99, 1, "a", "10.0.0.1", [7001, 7002], [], 7003)


class Said:
    """A connection on which a peer has said ``data``, and then hung up."""

    peer = "a fuzzer"
    broken = False

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def send(self, *parts: Buffer, deadline: Deadline) -> None:
        del parts, deadline

    async def recv_into(self, buffer: Buffer, deadline: Deadline) -> None:
        del deadline
        await asyncio.sleep(0)  # others' turn: what was asked before is served
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if len(self._data) < len(view):
            raise TransportError("closed", code="closed")
        view[:], self._data = self._data[: len(view)], self._data[len(view) :]

    def abort(self) -> None:
        self.broken = True

    async def close(self) -> None:
        self.broken = True


def framed(body: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, len(body), xxhash.xxh3_64_intdigest(body)) + body


@rounds
def test_conversations(rounds: int) -> None:
    """Messages with anything in them, under a right checksum and under a wrong one."""
    rng = random.Random(24)
    bodies = [
        msgspec.msgpack.encode(message)
        for message in (
            Copy(1, PLACE, 5, HOST, 3.0),
            CopyMade(1, PLACE),
            CopyRefused(1, "no"),
            Copy(2, PLACE, 0, HOST, 0.0),
        )
    ]
    frames = [framed(body) for body in bodies]
    served: list[Copy] = []

    async def copy(asked: Copy) -> BlockPlace:
        served.append(asked)
        if rng.random() < 0.5:
            raise DataPlaneError("not here")
        return asked.block

    async def converse() -> None:
        for _ in range(rounds // 4):
            said = [
                rng.choice(frames) if rng.random() < 0.3 else framed(mutated(rng, bodies) or b"\0"),
                mutated(rng, frames),
            ]
            conversation = Conversation(Said(b"".join(said)), copy)
            async with asyncio.timeout(10):
                await conversation.run()
            assert conversation.over

    asyncio.run(converse())
    assert served
    assert all(isinstance(asked.number, int) and isinstance(asked.source.ports, list) for asked in served)
