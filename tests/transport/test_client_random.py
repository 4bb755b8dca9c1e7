"""Whatever the ports of two hosts do, in whatever order: what the client promises of a batch holds."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import CorruptPayload, DataPlaneError, DataPlaneReadError, StaleSlotError, TransportError
from penstock.transport.client import AsyncPayloadClient
from penstock.transport.wanted import Fetched, Wanted
from tests.transport.hosts import FakeHost, Time, World, a_block, run, wanted

BLOCKS = range(1, 7)
DOINGS = [
    "serve",
    "reset",
    "error",
    "truncate",
    "flip",
    "flip_prelude",
    "other_block",
    "longer",
    "other_request",
    "garbage",
    "stale",
    "not_ready",
    "bad_request",
]
SCRIPTS = st.lists(st.sampled_from(DOINGS), max_size=25)
ENDS = st.sampled_from([*DOINGS, "serve", "serve", "serve"])
PORTS = st.lists(st.tuples(SCRIPTS, ENDS), min_size=1, max_size=3)


@settings(max_examples=80)
@given(PORTS, PORTS, st.sets(st.sampled_from(BLOCKS)), st.integers(1, 8))
def test_every_block_has_one_outcome_and_the_limits_hold(
    first: list[tuple[list[str], str]], second: list[tuple[list[str], str]], doubled: set[int], max_reads: int
) -> None:
    """Right bytes or an error; twelve reads at most; what is ruled out stays so; and all is well when they are."""
    time = Time()

    async def test(world: World) -> None:
        hosts = []
        for plan in (first, second):
            host = await world.host(BLOCKS, listeners=len(plan))
            hosts.append(host)
            for port, (script, always) in zip(host.ports, plan, strict=True):
                port.script.extend(script)
                port.always = always
        a, b = hosts
        want = [wanted(i, *((a, b) if i in doubled else (a,))) for i in BLOCKS]
        async with world.client(max_reads=max_reads) as client:
            outcomes = await client.fetch(want, time.deadline())
            asked = Counter(block_id for host in hosts for _, block_id in host.asked)
            for i, outcome in zip(BLOCKS, outcomes, strict=True):
                assert_fit(i, outcome, asked[i], hosts if i in doubled else [a])
            assert set(asked) <= set(BLOCKS)
            assert not {block_id for _, block_id in b.asked} - doubled
            counts = client.statistics()
            assert counts.reads.attempts == sum(asked.values())
            assert (counts.reading, counts.bytes_reading, counts.pool.lent) == (0, 0, 0)
            await all_is_well(client, hosts, time, want)

    run(test, time)


def assert_fit(block_id: int, outcome: Fetched | DataPlaneError, reads: int, hosts: list[FakeHost]) -> None:
    assert 1 <= reads <= 12
    for host in hosts:
        done = [doing for asked, doing in host.did if asked == block_id]
        assert not {"stale", "bad_request"} & set(done[:-1]), "a place that was ruled out was asked again"
    if isinstance(outcome, Fetched):
        assert outcome.block_id == block_id
        assert np.array_equal(outcome.data, a_block(block_id))
        assert outcome.host_id in {host.host_id for host in hosts}
        return
    assert outcome.attempts == reads
    assert type(outcome) in {StaleSlotError, CorruptPayload, TransportError, DataPlaneReadError}


async def all_is_well(client: AsyncPayloadClient, hosts: list[FakeHost], time: Time, want: list[Wanted]) -> None:
    """When every port serves again, every block comes: no connection was kept that has something left on it."""
    for host in hosts:
        host.always("serve")
        for port in host.ports:
            port.script.clear()
    time.now += 31
    outcomes = await client.fetch(want, time.deadline())
    for i, outcome in zip(BLOCKS, outcomes, strict=True):
        assert isinstance(outcome, Fetched), outcome
        assert np.array_equal(outcome.data, a_block(i))
