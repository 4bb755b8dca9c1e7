"""Many readers at once, most of them unreliable, while blocks come and go: nothing torn, nothing kept."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from penstock.errors import TransportError
from penstock.parts import BlockPlace
from penstock.payload import block
from penstock.payload.slots import Mode
from penstock.transport.slot_protocol import STATUS_BYTES, Code, Request, Status, Verdict
from tests.transport.station import Reader, Station, a_server, a_station, reading_at

READERS = 6
SIZES = (500, 5_000, 300_000)


class Crowd:
    """Readers that pick blocks at random and leave at random moments; ``seen`` counts how their reads ended."""

    def __init__(self, station: Station, ports: tuple[int, ...], seed: int) -> None:
        self.station = station
        self.ports = ports
        self.rng = random.Random(seed)
        self.seen: Counter[str] = Counter()

    async def read(self, place: BlockPlace, mode: Mode, manner: str) -> None:
        """One attempt on a connection of its own."""
        try:
            async with reading_at(self.rng.choice(self.ports)) as reader:
                await self._attempt(reader, Request(1, place.block_id, place.generation, mode), manner)
        except TransportError:
            self.seen["broken"] += 1

    async def _attempt(self, reader: Reader, request: Request, manner: str) -> None:
        await reader.say(request.encode())
        if manner == "leaves at once":
            reader.connection.abort()
            return
        status = Status.decode(await reader.hear(STATUS_BYTES))
        if status.code is not Code.OK:
            self.seen[status.code.name] += 1
            return
        if manner == "leaves before the payload":
            reader.connection.abort()
            return
        payload = await reader.take(request, status)
        block.verify(payload, block.parse(payload, request.block_id))
        self.seen["whole"] += 1
        if manner == "finds damage":
            await reader.acknowledge(request, Verdict.DAMAGED)
        elif manner == "acknowledges":
            await reader.acknowledge(request)
        else:
            reader.connection.abort()


MANNERS = ("acknowledges", "leaves at once", "leaves before the payload", "leaves after it", "finds damage")


@pytest.mark.parametrize("seed", [1, 2])
def test_blocks_that_come_and_go_are_read_whole_or_not_at_all(tmp_path: Path, seed: int) -> None:
    """Rows go and slots are used again in the middle of reads: what arrives is the block that was asked for."""

    async def reader(crowd: Crowd, places: list[BlockPlace]) -> None:
        for _ in range(40):
            await crowd.read(crowd.rng.choice(places), Mode.RETAIN, crowd.rng.choice(MANNERS))

    async def churn(crowd: Crowd, places: list[BlockPlace]) -> None:
        for _ in range(150):
            await asyncio.sleep(0)
            which = crowd.rng.randrange(len(places))
            crowd.station.release(places[which])
            places.append(crowd.station.put(crowd.rng.choice(SIZES)))

    async def all_of_it(crowd: Crowd) -> None:
        places = [station.put(crowd.rng.choice(SIZES)) for _ in range(4)]
        async with asyncio.TaskGroup() as group:
            group.create_task(churn(crowd, places))
            for _ in range(READERS):
                group.create_task(reader(crowd, places))

    with a_station(tmp_path / "arena", 64 << 20) as station:
        with a_server(station, listeners=2) as server:
            crowd = Crowd(station, server.statistics().ports, seed)
            asyncio.run(all_of_it(crowd))
        arena = station.wait_until_read()
        assert (arena.tokens, arena.reading_slots, arena.condemned_slots) == (0, 0, 0)
        assert crowd.seen["whole"] > 20
        assert crowd.seen["STALE"] > 20, "no slot was used again under a reader"
        assert server.statistics().counts.reading == 0


def test_a_block_is_consumed_once_however_often_its_reader_comes_back(tmp_path: Path) -> None:
    """Six readers fight over twenty blocks, superseding each other; in the end each block is free."""

    async def reader(crowd: Crowd, places: list[BlockPlace]) -> None:
        while station.statistics().used:
            await crowd.read(crowd.rng.choice(places), Mode.CONSUME, crowd.rng.choice(MANNERS))

    async def all_of_it(crowd: Crowd) -> None:
        places = [station.put(crowd.rng.choice(SIZES)) for _ in range(20)]
        async with asyncio.TaskGroup() as group:
            for _ in range(READERS):
                group.create_task(reader(crowd, places))

    with a_station(tmp_path / "arena", 64 << 20) as station:
        with a_server(station, listeners=2, may_consume=True) as server:
            crowd = Crowd(station, server.statistics().ports, 3)
            asyncio.run(all_of_it(crowd))
        arena = station.wait_until_read()
        assert (arena.used, arena.tokens) == (0, 0)
        assert server.statistics().counts.consumed >= 20
        assert crowd.seen["STALE"] > 0
