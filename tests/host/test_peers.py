"""Agents among each other: one endpoint for both directions, opened by both at once, and again after it is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.endpoint.connection import Address
from penstock.errors import TransportError
from penstock.retry import Deadline
from tests.host.inside import InsideHost, hosts
from tests.host.test_replication import run


def address_of(host: InsideHost) -> Address:
    return Address(host.place.address, host.place.peer_port)


def test_both_open_at_the_same_moment_and_share_one_endpoint(tmp_path: Path) -> None:
    """Simultaneous opening in real use: each asks the other for copies, none of them knows the other yet."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            sealed = await asyncio.gather(a.put(100, b), b.put(200, a))
            assert [len(s.places) for s in sealed] == [2, 2]
            assert (a.peers.served, b.peers.served) == (1, 1)
            assert (a.peers.opened, b.peers.opened) == (1, 1)  # each of its own accord

    run(play())


def test_five_hosts_open_to_each_other_at_once(tmp_path: Path) -> None:
    """Every pair in both directions, all at the same moment: one endpoint for each pair, and all copies come."""

    async def play() -> None:
        async with hosts(tmp_path, 5) as all_of_them:
            pairs = [(a, b) for a in all_of_them for b in all_of_them if a is not b]
            sealed = await asyncio.gather(*(a.put(1000 + n, b) for n, (a, b) in enumerate(pairs)))
            assert all(len(s.places) == 2 for s in sealed), [s.why for s in sealed if s.why]
            assert [host.peers.served for host in all_of_them] == [4] * 5

    run(play())


def test_a_lost_endpoint_is_replaced_when_it_is_needed(tmp_path: Path) -> None:
    """The next copy opens another, from either side."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            await a.put(100, b)
            for host, other, block in ((a, b, 101), (b, a, 201)):
                talk = await host.peers.talk(address_of(other), Deadline(5.0))
                talk._connection.abort()
                sealed = await host.put(block, other)
                assert len(sealed.places) == 2, sealed.why
            assert a.peers.served == 3

    run(play())


def test_nobody_listens_is_told_at_once(tmp_path: Path) -> None:
    """A peer that is not there does not cost the whole deadline."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            await b.peers.close()
            deadline = Deadline(15.0)
            with pytest.raises(TransportError):
                await a.peers.talk(address_of(b), deadline)
            assert deadline.elapsed() < 10.0

    run(play())
