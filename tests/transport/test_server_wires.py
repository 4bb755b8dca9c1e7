"""The payload server over every wire, and over one on which each call in turn goes wrong in every way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from penstock.endpoint.connection import Wire
from penstock.errors import CorruptPayload, TransportError
from penstock.payload import block
from penstock.payload.slots import Mode
from penstock.testing.memory_wire import Fault, Kind, MemoryNetwork, MemoryWire
from penstock.transport.server import ServerLimits
from penstock.transport.slot_protocol import Request
from penstock.transport.wires.ucx import UcxWire
from tests.transport.station import PURPOSE, TOKEN, Station, a_server, a_station, a_wire, reading_at

LARGE = 5 << 20  # more than any wire carries in one piece


def memory() -> Callable[[], Wire]:
    network = MemoryNetwork()
    return lambda: MemoryWire(network)


WIRES: dict[str, Callable[[], Callable[[], Wire]]] = {
    "tcp": lambda: a_wire,
    "memory": memory,
    "ucx": lambda: lambda: UcxWire(TOKEN, PURPOSE),
}


@pytest.mark.parametrize("wire", WIRES)
def test_every_wire_carries_blocks_and_the_words_about_them(tmp_path: Path, wire: str) -> None:
    """Small and large, whole and in part, retained and consumed; each listener makes its wire in its own thread."""
    make_wire = WIRES[wire]()

    async def read(station: Station, ports: tuple[int, ...]) -> None:
        for port in ports:
            async with reading_at(port, make_wire) as reader:
                for place in (small, large):
                    payload = await reader.fetch(Request(1, place.block_id, place.generation))
                    block.verify(payload, block.parse(payload, place.block_id))
                    part = Request(2, place.block_id, place.generation, offset=100, length=301)
                    assert await reader.fetch(part) == payload[100:401]
        async with reading_at(ports[0], make_wire) as reader:
            await reader.acknowledge(await reader.begin(small, Mode.CONSUME))
            await reader.begin(large, Mode.CONSUME)  # and leaves

    with a_station(tmp_path / "arena", 4 * LARGE) as station:
        small, large = station.put(1000), station.put(LARGE)
        with a_server(station, listeners=2, may_consume=True, make_wire=make_wire) as server:
            asyncio.run(read(station, server.statistics().ports))
        station.wait_until_read()
        assert station.do(station.arena.blocks) == [large.block_id]
        assert station.statistics().ready_slots == 1


HASTY = ServerLimits(receive_timeout_s=0.2, idle_timeout_s=0.2, send_timeout_s=0.2, drain_s=1.0)
CALLS = range(7)  # of a conversation: more than there are, so that some faults find nothing to strike


@pytest.mark.parametrize("side", ["server", "reader"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_whatever_call_goes_wrong_a_block_is_consumed_only_by_its_readers_word(
    tmp_path: Path, side: str, kind: Kind
) -> None:
    """Each call of a conversation fails, stalls, is cut short or flips a bit, at either end.

    Afterwards no read is left begun; the block is gone only if its reader had checked it and sent its word; and a next
    reader gets what is there.
    """
    struck = 0
    for call in CALLS:
        network = MemoryNetwork()
        faulty = MemoryWire(network, faults=[Fault(call, kind)])
        ends = {"server": faulty, "reader": MemoryWire(network)}
        if side == "reader":
            ends = {"server": MemoryWire(network), "reader": faulty}
        with a_station(tmp_path / f"arena-{call}") as station:
            said = _converse(station, ends["server"], ends["reader"])
            arena = station.wait_until_read()
            assert (arena.tokens, arena.reading_slots, arena.condemned_slots) == (0, 0, 0)
            assert said or arena.ready_slots == 1, f"consumed without its reader's word: {kind} at call {call}"
        struck += len(faulty.fired)
    assert 3 <= struck < len(CALLS), "the faults did not strike the whole conversation"


def _converse(station: Station, serving: Wire, reading: Wire) -> bool:
    """Read one block to consume it; return whether the reader came to give its word."""
    place = station.put()

    async def read(port: int) -> bool:
        said = False
        try:
            async with reading_at(port, lambda: reading, patience_s=0.3) as reader:
                request = await reader.begin(place, Mode.CONSUME)
                said = True
                await reader.acknowledge(request)
        except (TransportError, CorruptPayload):
            pass
        return said

    with a_server(station, may_consume=True, limits=HASTY, make_wire=lambda: serving) as server:
        (port,) = server.statistics().ports
        return asyncio.run(read(port))
