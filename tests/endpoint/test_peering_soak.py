"""Four peers that open, break and restart at random, from a seed: nobody hangs, and in the end all are connected."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from penstock.endpoint.connection import Address, Wire
from penstock.endpoint.endpoints import Endpoint
from penstock.endpoint.peering import Peering
from penstock.errors import TransportError
from penstock.retry import Deadline
from tests.endpoint.peers import Town, address, asked, echo, soon, tcp

PEERS = 4
RESTARTS = 12
OPENS = 60


async def serve(endpoint: Endpoint) -> None:
    """Who was opened answers; who has opened asks."""
    await (endpoint.wait_retired() if endpoint.opened else echo(endpoint))


class Village:
    """Peers that keep their addresses over their lives."""

    def __init__(self, town: Town, seed: int) -> None:
        self.town = town
        self.rng = random.Random(seed)
        self.peers: dict[int, Peering] = {}
        self.ports: dict[int, int] = {}
        self.opened = 0
        self.failures: list[str] = []

    async def live(self, n: int) -> None:
        self.peers[n] = await self.town.peer(serve, port=self.ports.get(n, 0))
        self.ports[n] = address(self.peers[n]).port

    async def restart(self) -> None:
        for _ in range(RESTARTS):
            await asyncio.sleep(self.rng.uniform(0, 0.2))
            n = self.rng.randrange(PEERS)
            await self.peers[n].close()
            await self.live(n)

    async def use(self, n: int) -> None:
        """Open one after the other, and break some; what fails, fails because somebody has just closed, not late."""
        for _ in range(OPENS):
            other = self.rng.choice([m for m in range(PEERS) if m != n])
            try:
                endpoint = await self.peers[n].open(Address("127.0.0.1", self.ports[other]), soon())
            except TransportError as failed:
                self.failures.append(failed.code)
                continue
            self.opened += 1
            if self.rng.random() < 0.2:
                endpoint.connection.abort()
            await asyncio.sleep(self.rng.uniform(0, 0.02))


@pytest.mark.slow
@pytest.mark.parametrize("make", [None, tcp], ids=["memory", "tcp"])
@pytest.mark.parametrize("seed", range(3))
def test_nobody_hangs_and_all_agree(make: Callable[[str], Wire] | None, seed: int) -> None:
    """Every opening ends, and after the last restart each pair has one connection, on which both ends agree."""

    async def run() -> None:
        async with Town(make) as town:
            village = Village(town, seed)
            for n in range(PEERS):
                await village.live(n)
            await asyncio.gather(village.restart(), *(village.use(n) for n in range(PEERS)))
            assert village.opened > OPENS
            assert "timeout" not in village.failures
            pairs = [(a, b) for a in range(PEERS) for b in range(PEERS) if a != b]
            ends = await asyncio.gather(
                *(village.peers[a].open(Address("127.0.0.1", village.ports[b]), Deadline(10)) for a, b in pairs)
            )
            bound = {(end.session, end.peer_session) for end in ends}
            assert bound == {(theirs, ours) for ours, theirs in bound}
            others = [Address("127.0.0.1", village.ports[n]) for n in range(1, PEERS)]
            extra = [await village.peers[0].open(other, soon(), channel="of its own") for other in others]
            assert [await asked(end.connection) for end in extra] == [b"hello"] * len(others)

    asyncio.run(run())
