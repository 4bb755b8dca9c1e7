"""Peers that are connected over UCX by the handshake of ``penstock.endpoint``, whoever opens, also after a restart."""

from __future__ import annotations

import asyncio

from penstock.endpoint.connection import Address
from penstock.endpoint.endpoints import Endpoint
from penstock.endpoint.peering import Peering
from penstock.transport.wires import TcpWire
from penstock.transport.wires.ucx_resources import UcxResources
from tests.transport.wires.rooms import HOST, TOKEN, run, soon

MIB = 1 << 20


def peering() -> Peering:
    return Peering({"ucx": UcxResources()}, TcpWire(TOKEN, "peering"))


async def exchange(one: Endpoint, other: Endpoint) -> None:
    """Carry 4 MiB each way at once."""
    data, buffers = bytes(range(256)) * (16 * 1024), [bytearray(4 * MIB), bytearray(4 * MIB)]
    await asyncio.gather(
        one.connection.send(data, deadline=soon()),
        other.connection.send(data, deadline=soon()),
        one.connection.recv_into(buffers[0], soon()),
        other.connection.recv_into(buffers[1], soon()),
    )
    assert buffers == [data, data]


def test_both_open_at_once_and_share_one_endpoint() -> None:
    """Two peers that open each other at the same moment get the two ends of one endpoint, over UCX, and it carries."""

    async def main() -> None:
        async with peering() as one, peering() as other:
            here, there = await one.start(HOST), await other.start(HOST)
            ours, theirs = await asyncio.gather(one.open(there, soon()), other.open(here, soon()))
            assert (ours.session, ours.peer_session) == (theirs.peer_session, theirs.session)
            assert ours.kind == "ucx"
            await exchange(ours, theirs)

    run(main())


def test_a_peer_s_next_life_has_fresh_resources() -> None:
    """After one side was closed and another life of it listens at the same address, opening again carries again."""

    async def main() -> None:
        async with peering() as one:
            here = await one.start(HOST)
            first = peering()
            there = await first.start(HOST)
            ours, theirs = await asyncio.gather(one.open(there, soon()), first.open(here, soon()))
            await exchange(ours, theirs)
            await first.close()
            async with peering() as second:
                await second.start(HOST, there.port)
                again, theirs = await opened_anew(one, second, there, here, ours)
                await exchange(again, theirs)

    run(main())


async def opened_anew(
    one: Peering, second: Peering, there: Address, here: Address, old: Endpoint
) -> tuple[Endpoint, Endpoint]:
    await old.wait_retired()
    again, theirs = await asyncio.gather(one.open(there, soon()), second.open(here, soon()))
    assert again.session != old.session
    return again, theirs


def test_ucx_connections_are_what_endpoints_are_made_of() -> None:
    """What an endpoint carries over is a connection of UCX, and says so."""

    async def main() -> None:
        resources = UcxResources()
        async with Peering({"ucx": resources}, TcpWire(TOKEN, "peering")) as one, peering() as other:
            there = await other.start(HOST)
            endpoint = await one.open(there, soon())
            assert "UCX connection" in repr(endpoint.connection)
            assert not endpoint.connection.broken

    run(main())
