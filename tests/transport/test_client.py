"""The client's three layers, each alone and all together, over the wire in memory; attempts are counted exactly."""

from __future__ import annotations

import asyncio
import gc
import logging
import time as real_time

import numpy as np
import pytest

from penstock.errors import (
    BadArgument,
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    StaleSlotError,
    TransportError,
)
from penstock.payload.buffers import _Lent
from penstock.retry import Deadline
from penstock.transport.client import AsyncPayloadClient
from penstock.transport.slot_protocol import Verdict
from penstock.transport.wanted import Fetched, Wanted
from tests.transport.hosts import FIRST_GENERATION, FakeHost, Time, World, a_block, run, wanted

NO_BUDGET = {"retry_tokens": 0.0}


async def one(client: AsyncPayloadClient, want: Wanted, deadline: Deadline) -> Fetched | DataPlaneError:
    (outcome,) = await client.fetch([want], deadline)
    return outcome


async def was_asked(host: FakeHost) -> None:
    """Wait until a request has come there."""
    for _ in range(30_000):
        if host.asked:
            return
        await asyncio.sleep(0.001)
    pytest.fail("no request has come")


def lent_buffers() -> int:
    return sum(type(one) is _Lent for one in gc.get_objects())


def fetched(outcome: Fetched | DataPlaneError, block_id: int = 1) -> Fetched:
    assert isinstance(outcome, Fetched), outcome
    assert (outcome.block_id, outcome.header.block_id) == (block_id, block_id)
    assert np.array_equal(outcome.data, a_block(block_id))
    return outcome


def test_a_batch_arrives_whole_and_in_order() -> None:
    """Every block, checked, from the host that has it; one given twice is read once."""

    async def test(world: World) -> None:
        a, b = await world.host(range(40)), await world.host(range(40, 60))
        want = [wanted(i, a if i < 40 else b) for i in [*range(60), 3]]
        async with world.client() as client:
            outcomes = await client.fetch(want, Deadline(30.0))
        for i, outcome in zip([*range(60), 3], outcomes, strict=True):
            assert fetched(outcome, i).host_id == (a if i < 40 else b).host_id
        assert len(a.asked) == 40
        counts = client.statistics()
        assert (counts.blocks, counts.bytes) == (60, sum(len(a_block(i)) for i in range(60)))
        assert (counts.reads.attempts, counts.reads.retries, counts.rounds.attempts) == (60, 0, 60)
        assert all(verdict is Verdict.CHECKED for port in a.ports for verdict in port.acks)

    run(test)


def test_reads_are_spread_over_a_hosts_ports() -> None:
    """Each read begins at the next port."""

    async def test(world: World) -> None:
        host = await world.host(range(40), listeners=4)
        async with world.client() as client:
            await client.fetch([wanted(i, host) for i in range(40)], Deadline(30.0))
        assert [len(port.requests) for port in host.ports] == [10] * 4

    run(test)


# -- layer 1: rotation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset", "error", "other_request", "garbage", "truncate"])
def test_rotation_a_failed_read_goes_to_the_next_port(fault: str) -> None:
    """Two attempts in one call, at two ports, without a wait; the failed port is in quarantine."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        first, second = host.ports
        first.script.append(fault)
        async with world.client(rounds=1, calls_per_slot=1) as client:
            fetched(await one(client, wanted(1, host), time.deadline()))
            assert host.asked == [(first.number, 1), (second.number, 1)]
            counts = client.statistics()
            assert (counts.rounds.attempts, counts.calls.attempts, counts.reads.attempts) == (1, 1, 2)
            assert [port.rsplit(":", 1)[-1] for port in counts.reads.quarantined] == [f"{first.number}#1"]
        assert sum(time.naps) == 0

    run(test, time)


def test_rotation_alone_makes_two_attempts_and_no_more() -> None:
    """With one call and one round, a block whose ports all fail costs two reads."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host(listeners=3)
        host.always("reset")
        async with world.client(rounds=1, calls_per_slot=1) as client:
            error = await one(client, wanted(1, host), time.deadline())
        assert isinstance(error, TransportError)
        assert error.attempts == len(host.asked) == 2

    run(test, time)


def test_rotation_leaves_a_failed_port_alone_until_its_quarantine_ends() -> None:
    """30 s, on the injected clock; then it has its turn again, and a success lifts the quarantine."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host(range(100))
        first, second = host.ports
        first.script.append("reset")
        async with world.client() as client:
            for i in range(10):
                fetched(await one(client, wanted(i, host), time.deadline()), i)
            assert (first.requests, len(second.requests)) == ([0], 10)
            time.now += 29.9
            fetched(await one(client, wanted(10, host), time.deadline()), 10)
            assert len(first.requests) == 1
            time.now += 0.2
            for i in range(20, 24):
                fetched(await one(client, wanted(i, host), time.deadline()), i)
            assert len(first.requests) == 3
            assert client.statistics().reads.quarantined == ()

    run(test, time)


def test_rotation_when_all_ports_are_held_the_oldest_failure_goes_first() -> None:
    """Nobody starves, and the second attempt's port is held as well as the first's."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host([1, 2], listeners=3)
        for port in host.ports:
            port.script.append("reset")
        a, b, c = (port.number for port in host.ports)
        async with world.client(rounds=1, calls_per_slot=1) as client:
            await one(client, wanted(1, host), time.deadline())  # a and b fail
            time.now += 1
            assert [name.rsplit(":", 1)[-1] for name in client.statistics().reads.quarantined] == [f"{a}#1", f"{b}#1"]
            fetched(await one(client, wanted(2, host), time.deadline()), 2)  # c fails, then a, the oldest, serves
            assert [port for port, _ in host.asked] == [a, b, c, a]
            held = [name.rsplit(":", 1)[-1] for name in client.statistics().reads.quarantined]
            assert held == [f"{b}#1", f"{c}#1"]

    run(test, time)


def test_a_dead_listener_costs_a_connect() -> None:
    """A port that nobody listens at is a failure like any other."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host(range(8))
        dead = host.ports[0]
        assert dead.close is not None
        await dead.close()
        async with world.client() as client:
            outcomes = await client.fetch([wanted(i, host) for i in range(8)], time.deadline())
        for i, outcome in enumerate(outcomes):
            fetched(outcome, i)
        assert client.statistics().reads.outcomes["read", "refused"] >= 1

    run(test, time)


# -- layer 2: fresh calls ---------------------------------------------------------------------------------------------


def test_calls_a_slot_gets_a_second_call_over_fresh_connections() -> None:
    """When both attempts of the first have failed; after a jittered wait; and no connection is used from before."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host([1, 2])
        async with world.client(rounds=1) as client:
            for i in (1, 2):
                fetched(await one(client, wanted(i, host), time.deadline()), i)  # both ports have a connection
            for port in host.ports:
                port.script.append("reset")
            fetched(await one(client, wanted(1, host), time.deadline()))
            counts = client.statistics()
            assert (counts.calls.attempts, counts.calls.retries, counts.reads.attempts) == (4, 1, 5)
            assert counts.pool.opened == 3
        assert len([nap for nap in time.naps if nap > 0]) == 1

    run(test, time)


def test_calls_alone_make_two_calls_of_one_read() -> None:
    """With one attempt per call and one round."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        host.always("reset")
        async with world.client(rounds=1, attempts_per_call=1) as client:
            error = await one(client, wanted(1, host), time.deadline())
        assert isinstance(error, TransportError)
        assert error.attempts == len(host.asked) == 2

    run(test, time)


def test_calls_follow_a_failed_host_with_the_second_place() -> None:
    """The replica is read in the same round, and while the first host is in quarantine it is asked first."""
    time = Time()

    async def test(world: World) -> None:
        a, b = await world.host([1, 2]), await world.host([1, 2])
        a.always("reset")
        async with world.client() as client:
            assert fetched(await one(client, wanted(1, a, b), time.deadline())).host_id == b.host_id
            assert (len(a.asked), len(b.asked), client.statistics().rounds.attempts) == (2, 1, 1)
            assert fetched(await one(client, wanted(2, a, b), time.deadline()), 2).host_id == b.host_id
            assert len(a.asked) == 2
            a.always("serve")
            time.now += 31
            assert fetched(await one(client, wanted(1, a, b), time.deadline())).host_id == a.host_id

    run(test, time)


# -- layer 3: rounds --------------------------------------------------------------------------------------------------


def test_rounds_only_what_failed_goes_again(caplog: pytest.LogCaptureFixture) -> None:
    """The next round has the failed blocks alone, and each round is one line in the log."""
    time = Time()

    async def test(world: World) -> None:
        good, bad = await world.host(range(10)), await world.host(range(10, 12), listeners=1)
        bad.ports[0].script.extend(["reset"] * 4)
        want = [wanted(i, good if i < 10 else bad) for i in range(12)]
        async with world.client(attempts_per_call=1, calls_per_slot=1) as client:
            outcomes = await client.fetch(want, time.deadline())
        for i, outcome in enumerate(outcomes):
            fetched(outcome, i)
        counts = client.statistics()
        assert (counts.rounds.attempts, counts.rounds.retries) == (16, 4)
        assert (len(good.asked), len(bad.asked)) == (10, 6)

    with caplog.at_level(logging.INFO):
        run(test, time)
    rounds = [r.getMessage() for r in caplog.records if r.getMessage().startswith("fetch: round")]
    assert [line.split(";")[0] for line in rounds] == [
        "fetch: round 1: 2 of 12 keys failed (2 x reset): '10', '11'",
        "fetch: round 2: 2 of 2 keys failed (2 x reset): '10', '11'",
    ]


def test_rounds_alone_are_three() -> None:
    """With one attempt and one call each; what is left is reported, the rest of the batch is delivered."""
    time = Time()

    async def test(world: World) -> None:
        good, bad = await world.host([1]), await world.host([2])
        bad.always("reset")
        async with world.client(attempts_per_call=1, calls_per_slot=1) as client:
            first, second = await client.fetch([wanted(1, good), wanted(2, bad)], time.deadline())
        fetched(first)
        assert isinstance(second, TransportError)
        assert (second.code, second.attempts, len(bad.asked)) == ("reset", 3, 3)
        assert "block 2 of host h2 was not got by 3 reads; the last one: " in str(second)

    run(test, time)


# -- all together -----------------------------------------------------------------------------------------------------


def test_all_layers_together_make_twelve_attempts() -> None:
    """2 x 2 x 3, in turn over the ports, and never one more."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        host.always("reset")
        async with world.client(**NO_BUDGET) as client:
            error = await one(client, wanted(1, host), time.deadline())
            counts = client.statistics()
        assert isinstance(error, TransportError)
        assert error.attempts == len(host.asked) == 12
        assert (counts.rounds.attempts, counts.calls.attempts, counts.reads.attempts) == (3, 6, 12)
        assert [len(port.requests) for port in host.ports] == [6, 6]

    run(test, time)


def test_an_outage_is_not_multiplied() -> None:
    """With the default budgets, many blocks of a dead host cost far less than twelve attempts each."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host(range(50))
        host.always("reset")
        async with world.client() as client:
            outcomes = await client.fetch([wanted(i, host) for i in range(50)], time.deadline())
        assert all(isinstance(outcome, TransportError) for outcome in outcomes)
        assert 3 * 50 <= len(host.asked) < 5 * 50

    run(test, time)


def test_two_places_are_both_tried_in_every_round() -> None:
    """Six reads at each, when nothing answers anywhere."""
    time = Time()

    async def test(world: World) -> None:
        a, b = await world.host(), await world.host()
        a.always("reset")
        b.always("reset")
        async with world.client(**NO_BUDGET) as client:
            error = await one(client, wanted(1, a, b), time.deadline())
        assert isinstance(error, TransportError)
        assert (len(a.asked), len(b.asked)) == (6, 6)

    run(test, time)


# -- what is not retried ----------------------------------------------------------------------------------------------


def test_a_stale_slot_is_asked_once_in_a_batch() -> None:
    """No port, no call and no round asks it again; the others of the batch come."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host([1, 2])
        async with world.client() as client:
            first, second = await client.fetch(
                [wanted(1, host), wanted(2, host, generation=FIRST_GENERATION + 1)], time.deadline()
            )
        fetched(first)
        assert type(second) is StaleSlotError
        assert (second.attempts, [b for _, b in host.asked]) == (1, [1, 2])
        assert client.statistics().reads.quarantined == ()
        assert client.statistics().pool.dropped == 0  # the exchange was complete

    run(test, time)


def test_a_stale_place_is_followed_by_the_other_and_not_asked_again() -> None:
    """Stale at one host, out of reach for a while at the other: the first is not asked again, round after round."""
    time = Time()

    async def test(world: World) -> None:
        a, b = await world.host(), await world.host(listeners=1)
        a.always("stale")
        b.ports[0].script.extend(["reset"] * 5)
        async with world.client(**NO_BUDGET) as client:
            outcome = fetched(await one(client, wanted(1, a, b), time.deadline()))
        assert (outcome.host_id, outcome.damaged) == (b.host_id, ())
        assert (len(a.asked), len(b.asked)) == (1, 6)

    run(test, time)


def test_a_ruled_out_place_is_not_asked_when_the_others_budget_is_spent() -> None:
    """Where the bucket of the only place left forbids a retry, the stale one is still left alone."""
    time = Time()

    async def test(world: World) -> None:
        a, b = await world.host([1]), await world.host(range(40))
        a.always("stale")
        b.always("reset")
        async with world.client(rounds=1) as client:
            await client.fetch([wanted(i, b) for i in range(2, 40)], time.deadline())
            assert min(client.statistics().calls.tokens.values()) <= 5  # b's
            error = await one(client, wanted(1, a, b), time.deadline())
        assert isinstance(error, DataPlaneError)
        assert len(a.asked) == 1

    run(test, time)


def test_a_bad_request_is_final() -> None:
    """What cannot be asked is not asked again, and that connection is not used again."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        host.always("bad_request")
        async with world.client() as client:
            error = await one(client, wanted(1, host), time.deadline())
            assert client.statistics().pool.idle == 0
        assert type(error) is DataPlaneReadError
        assert (len(host.asked), "it is BAD_REQUEST" in str(error)) == (1, True)

    run(test, time)


def test_a_slot_that_is_not_ready_is_waited_for() -> None:
    """It blames no port; each wait is between calls or rounds, and the block comes when it is ready."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        host.ports[0].script.append("not_ready")
        host.ports[1].script.append("not_ready")
        async with world.client() as client:
            fetched(await one(client, wanted(1, host), time.deadline()))
            assert client.statistics().reads.quarantined == ()
            assert client.statistics().pool.dropped == 0
        assert len(host.asked) == 3
        assert len([nap for nap in time.naps if nap > 0]) == 2

    run(test, time)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["flip", "flip_prelude", "other_block"])
def test_damaged_bytes_are_read_once_more(fault: str) -> None:
    """A re-read, the host is told of the first, and nothing of it is handed out."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        host.ports[0].script.append(fault)
        async with world.client() as client:
            fetched(await one(client, wanted(1, host), time.deadline()))
            assert client.statistics().pool.dropped == 0
        assert len(host.asked) == 2
        assert [port.acks for port in host.ports] == [[Verdict.DAMAGED], [Verdict.CHECKED]]

    run(test, time)


@pytest.mark.parametrize("fault", ["flip", "other_block", "longer", "giant"])
def test_damage_is_read_again_then_at_the_replica_then_named(fault: str) -> None:
    """Two reads of each place; with a sound replica that is what is served; without one the error names both."""
    time = Time()

    async def test(world: World) -> None:
        a, b = await world.host([1, 2]), await world.host([1, 2])
        a.always(fault)
        async with world.client() as client:
            outcome = fetched(await one(client, wanted(1, a, b), time.deadline()))
            assert (outcome.host_id, outcome.damaged) == (b.host_id, (a.host_id,))
            assert (len(a.asked), len(b.asked)) == (2, 1)
        b.always(fault)
        async with world.client() as client:
            error = await one(client, wanted(2, a, b), time.deadline())
        assert type(error) is CorruptPayload
        assert (error.attempts, len(a.asked), len(b.asked)) == (4, 4, 3)
        assert "block 2 of host h1 and h2 cannot be read" in str(error)

    run(test, time)


def test_damage_outweighs_staleness() -> None:
    """Damaged here, stale there: it is damage that is reported, with both answers."""
    time = Time()

    async def test(world: World) -> None:
        a, b = await world.host(), await world.host()
        a.always("flip")
        b.always("stale")
        async with world.client() as client:
            error = await one(client, wanted(1, a, b), time.deadline())
        assert type(error) is CorruptPayload
        assert "does not match its checksum" in str(error)
        assert "STALE" in str(error)

    run(test, time)


def test_a_length_that_differs_is_refused_before_a_byte_is_received() -> None:
    """Also one for which there would be no memory: it is compared with what the ledger says, not believed."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        host.always("giant")
        async with world.client() as client:
            error = await one(client, wanted(1, host), time.deadline())
        assert type(error) is CorruptPayload
        assert f"offers {2**62}" in str(error)

    run(test, time)


def test_a_receive_of_fewer_bytes_than_said_is_an_error_not_a_payload() -> None:
    """One byte of a block that was announced whole: truncated, and read elsewhere."""

    async def test(world: World) -> None:
        host = await world.host()
        host.ports[0].script.append("one_byte")
        async with world.client() as client:
            fetched(await one(client, wanted(1, host), Deadline(30.0)))
        assert client.statistics().reads.outcomes["read", "truncated"] == 1

    run(test)


@pytest.mark.parametrize("nbytes", [-1, 0, 2**50])
def test_a_block_of_impossible_size_is_not_asked_for(nbytes: int) -> None:
    """One row's nonsense costs that row."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        want = [Wanted(5, nbytes, [(host.place, 1)]), wanted(1, host)]
        async with world.client() as client:
            bad, good = await client.fetch(want, time.deadline())
        fetched(good)
        assert type(bad) is DataPlaneReadError
        assert len(host.asked) == 1

    run(test, time)


def test_a_block_that_lies_nowhere_and_a_host_without_ports_are_errors() -> None:
    """Neither waits for anything."""
    time = Time()

    async def test(world: World) -> None:
        silent = FakeHost(9)
        async with world.client() as client:
            nowhere, no_port = await client.fetch([Wanted(5, 64, []), wanted(6, silent)], time.deadline())
        assert isinstance(nowhere, TransportError)
        assert "it is said to lie nowhere" in str(nowhere)
        assert isinstance(no_port, TransportError)
        assert (no_port.code, "offers no wire that is here" in str(no_port)) == ("refused", True)
        assert time.naps == []

    run(test, time)


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["attempts_per_call", "calls_per_slot", "rounds"])
@pytest.mark.parametrize("fault", ["reset", "stall"])
def test_the_callers_deadline_wins_in_each_layer(layer: str, fault: str) -> None:
    """However many attempts are left in it, and whether a peer fails fast or says nothing."""

    async def test(world: World) -> None:
        host = await world.host()
        host.always(fault)
        limits = dict.fromkeys(["attempts_per_call", "calls_per_slot", "rounds"], 1) | {layer: 10**7}
        quick = {"attempt_timeout_s": 0.02, "call_base_s": 0.01, "call_cap_s": 0.01} | NO_BUDGET
        async with world.client(round_base_s=0.01, round_cap_s=0.01, **quick, **limits) as client:
            began = real_time.monotonic()
            error = await one(client, wanted(1, host), Deadline(0.4))
            took = real_time.monotonic() - began
        assert isinstance(error, DataPlaneTimeout)
        assert 0.35 < took < 5.0
        assert error.attempts > 1
        assert "has not arrived within 0.4 s" in str(error)

    run(test)


def test_the_callers_deadline_wins_over_one_long_attempt() -> None:
    """All the limits of the layers are far away."""

    async def test(world: World) -> None:
        host = await world.host()
        host.always("stall")
        async with world.client() as client:
            began = real_time.monotonic()
            error = await one(client, wanted(1, host), Deadline(0.2))
            took = real_time.monotonic() - began
        assert isinstance(error, DataPlaneTimeout)
        assert (error.attempts, 0.15 < took < 4.0) == (1, True)

    run(test)


def test_one_attempt_has_one_deadline_for_all_that_it_waits_for() -> None:
    """Status and payload each come late, and within the limit; together they do not: it is one limit."""

    async def test(world: World) -> None:
        host = await world.host()
        host.always("slow")
        async with world.client(attempt_timeout_s=0.5, rounds=1, calls_per_slot=1, attempts_per_call=1) as client:
            error = await one(client, wanted(1, host), Deadline(60.0))
        assert isinstance(error, TransportError)
        assert (error.code, error.attempts) == ("timeout", 1)

    run(test)


@pytest.mark.parametrize("doing", ["steady", "falling_silent"])
def test_a_large_block_has_the_time_that_its_size_takes_and_silence_has_not(doing: str) -> None:
    """Three parts, each within the limit, all of them beyond it: they arrive. Silence in the middle: given up soon."""

    async def test(world: World) -> None:
        host = await world.host([])
        data = a_block(1, rows=3, row_bytes=7 * 2**20)
        host.blocks[1, FIRST_GENERATION] = data
        host.always(doing)
        want = Wanted(1, len(data), [(host.place, FIRST_GENERATION)])
        limits = {"attempt_timeout_s": 0.7, "slowest_bytes_per_s": 2.0**20, "rounds": 1, "calls_per_slot": 1}
        async with world.client(attempts_per_call=1, **limits) as client:
            outcome = await one(client, want, Deadline(60.0))
        if doing == "steady":
            assert isinstance(outcome, Fetched)
            assert np.array_equal(outcome.data, data)
        else:
            assert isinstance(outcome, TransportError)
            assert outcome.code == "timeout"
            assert outcome.elapsed_s < 10  # and not the 21 s that its size would have

    run(test)


def test_an_expired_deadline_reads_nothing() -> None:
    """And says so for each block."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host([1, 2])
        deadline = time.deadline(1.0)
        time.now += 1.0
        async with world.client() as client:
            outcomes = await client.fetch([wanted(1, host), wanted(2, host)], deadline)
        assert all(isinstance(outcome, DataPlaneTimeout) for outcome in outcomes)
        assert host.asked == []

    run(test, time)


def test_at_the_deadline_what_has_come_is_delivered() -> None:
    """One host says nothing: its block alone is late."""

    async def test(world: World) -> None:
        good, bad = await world.host([1]), await world.host([2])
        bad.always("stall")
        async with world.client() as client:
            first, second = await client.fetch([wanted(1, good), wanted(2, bad)], Deadline(0.3))
        fetched(first)
        assert isinstance(second, DataPlaneTimeout)
        assert second.missing

    run(test)


# -- bounds, memory, ends ---------------------------------------------------------------------------------------------


def test_a_buffer_that_was_brought_is_received_into() -> None:
    """The block lies in the caller's memory, also when an attempt failed before; a wrong length is refused."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host()
        host.ports[0].script.append("flip")
        nbytes = len(a_block(1))
        mine = np.zeros(nbytes, np.uint8)
        async with world.client() as client:
            place = [(host.place, FIRST_GENERATION)]
            outcome = fetched(await one(client, Wanted(1, nbytes, place, mine), time.deadline()))
            assert outcome.data is mine
            with pytest.raises(BadArgument, match="the buffer for it"):
                await client.fetch([Wanted(1, nbytes, place, mine[:-1])], time.deadline())

    run(test, time)


@pytest.mark.parametrize("fault", ["serve", "flip"])
@pytest.mark.parametrize("in_thread", [0, 2**40])
def test_a_large_block_travels_in_parts(fault: str, in_thread: int) -> None:
    """Over a wire of messages, where parts must correspond; checked beside the loop or on it, damage is found."""

    async def test(world: World) -> None:
        host = await world.host([])
        data = a_block(1, rows=3, row_bytes=7 * 2**20)
        host.blocks[1, FIRST_GENERATION] = data
        host.ports[0].script.append(fault)
        want = Wanted(1, len(data), [(host.place, FIRST_GENERATION)])
        async with world.client(check_in_thread_bytes=in_thread) as client:
            outcome = await one(client, want, Deadline(30.0))
        assert isinstance(outcome, Fetched)
        assert np.array_equal(outcome.data, data)
        assert len(host.asked) == (2 if fault == "flip" else 1)

    run(test)


@pytest.mark.parametrize("fault", ["flip", "truncate", "stall"])
@pytest.mark.parametrize("in_thread", [0, 2**40])
def test_the_memory_of_failed_reads_comes_back_at_once(fault: str, in_thread: int) -> None:
    """No error keeps it: it does not wait for the garbage collector, which knows nothing of its size."""

    async def test(world: World) -> None:
        host = await world.host([])
        data = a_block(1, rows=3, row_bytes=2**20)
        host.blocks[1, FIRST_GENERATION] = data
        host.always(fault)
        want = Wanted(1, len(data), [(host.place, FIRST_GENERATION)])
        limits = {"attempt_timeout_s": 0.1, "rounds": 1, "calls_per_slot": 1}
        async with world.client(check_in_thread_bytes=in_thread, **limits) as client:
            outcome = await one(client, want, Deadline(30.0))
            assert isinstance(outcome, DataPlaneError)
            assert outcome.attempts == 2
            for _ in range(1000):  # the thread beside may not have let go yet
                if lent_buffers() <= before:
                    break
                await asyncio.sleep(0.001)
            assert lent_buffers() <= before
            if fault != "stall":  # where nothing is offered no memory is taken
                assert client._layers._slabs._buffers.idle_bytes >= len(data)

    gc.collect()
    before = lent_buffers()
    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


def test_what_is_under_way_at_once_is_bounded() -> None:
    """So many reads and so many bytes; a block larger than that goes alone."""

    async def test(world: World) -> None:
        host = await world.host(range(12))
        host.always("stall")
        size = len(a_block(0))
        for limits, most in (
            ({"max_reads": 3}, 3),
            ({"max_bytes_in_flight": 2 * size}, 2),
            ({"max_bytes_in_flight": 1}, 1),
        ):
            async with world.client(**limits) as client:
                work = asyncio.ensure_future(client.fetch([wanted(i, host) for i in range(12)], Deadline(30.0)))
                for _ in range(400):
                    await asyncio.sleep(0)
                counts = client.statistics()
                assert (counts.reading, counts.bytes_reading) == (most, most * size)
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                assert (client.statistics().reading, client.statistics().bytes_reading) == (0, 0)

    run(test)


def test_blocks_that_wait_for_a_host_go_to_the_second_when_it_turns_out_to_be_silent() -> None:
    """Many more than are read at once: only those that were at the silent host lose time there."""

    async def test(world: World) -> None:
        silent, replica = await world.host(range(100)), await world.host(range(100))
        silent.always("stall")
        want = [wanted(i, silent, replica) for i in range(100)]
        async with world.client(attempt_timeout_s=0.5, not_ready_base_s=0.01) as client:
            began = real_time.monotonic()
            outcomes = await client.fetch(want, Deadline(30.0))
            took = real_time.monotonic() - began
        for i, outcome in enumerate(outcomes):
            assert fetched(outcome, i).host_id == replica.host_id
        assert len(silent.asked) <= 2 * 8
        assert took < 5  # and not the 12 s of thirteen such crowds

    run(test)


def test_blocks_that_wait_for_a_port_go_to_another_when_it_turns_out_to_be_silent() -> None:
    """The same for a host's listeners."""

    async def test(world: World) -> None:
        host = await world.host(range(100))
        host.ports[0].always = "stall"
        async with world.client(attempt_timeout_s=0.5) as client:
            outcomes = await client.fetch([wanted(i, host) for i in range(100)], Deadline(30.0))
        for i, outcome in enumerate(outcomes):
            fetched(outcome, i)
        assert len(host.ports[0].requests) <= 8

    run(test)


def test_a_silent_host_keeps_nobody_from_the_others() -> None:
    """Its blocks are the first of the batch; those of the other host are there long before the first timeout."""

    async def test(world: World) -> None:
        silent, good = await world.host(range(60)), await world.host(range(60, 120))
        silent.always("stall")
        want = [wanted(i, silent if i < 60 else good) for i in range(120)]
        async with world.client() as client:
            work = asyncio.ensure_future(client.fetch(want, Deadline(1.5)))
            began = real_time.monotonic()
            while client.statistics().blocks < 60:
                assert real_time.monotonic() - began < 1.4, client.statistics()
                await asyncio.sleep(0.01)
            outcomes = await work
        for i, outcome in enumerate(outcomes):
            assert isinstance(outcome, DataPlaneTimeout) if i < 60 else fetched(outcome, i)

    run(test)


def test_closing_ends_what_is_under_way() -> None:
    """Who waits is told at once; later calls are refused; twice is once."""

    async def test(world: World) -> None:
        host = await world.host()
        host.always("stall")
        client = world.client()
        work = asyncio.ensure_future(client.fetch([wanted(1, host)], Deadline(60.0)))
        await was_asked(host)
        await client.close()
        with pytest.raises(DataPlaneUnavailable, match="closed during"):
            await work
        with pytest.raises(DataPlaneUnavailable, match="is closed"):
            await client.fetch([wanted(1, host)], Deadline(60.0))
        await client.close()
        assert client.statistics().pool.idle == client.statistics().pool.lent == 0
        assert client._layers._slabs._buffers.idle_bytes == 0

    run(test)


def test_a_fetch_that_is_cancelled_leaves_nothing_under_way() -> None:
    """Its connections are broken off, and none of them is used again."""

    async def test(world: World) -> None:
        host = await world.host()
        host.ports[0].script.append("stall")
        async with world.client() as client:
            work = asyncio.ensure_future(client.fetch([wanted(1, host)], Deadline(60.0)))
            await was_asked(host)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            counts = client.statistics()
            assert (counts.reading, counts.pool.lent, counts.pool.idle, counts.pool.dropped) == (0, 0, 0, 1)
            fetched(await one(client, wanted(1, host), Deadline(30.0)))

    run(test)


def test_a_restarted_host_is_another_life() -> None:
    """Its old life's connections and quarantine do not count against the new one, at the same address."""
    time = Time()

    async def test(world: World) -> None:
        host = await world.host([1, 2, 3, 4], listeners=1)
        async with world.client() as client:
            fetched(await one(client, wanted(1, host), time.deadline()))
            host.ports[0].script.append("reset")
            fetched(await one(client, wanted(2, host), time.deadline()), 2)
            host.life += 1
            fetched(await one(client, wanted(3, host), time.deadline()), 3)
            counts = client.statistics()
            assert (counts.pool.opened, counts.pool.idle) == (3, 1)
            assert sum(time.naps) == 0

    run(test, time)


def test_a_restarted_host_is_preferred_again() -> None:
    """What held its dead life does not send reads to the second place."""
    time = Time()

    async def test(world: World) -> None:
        a, b = await world.host([1, 2]), await world.host([1, 2])
        a.always("reset")
        async with world.client() as client:
            assert fetched(await one(client, wanted(1, a, b), time.deadline())).host_id == b.host_id
            a.always("serve")
            a.life += 1
            assert fetched(await one(client, wanted(2, a, b), time.deadline()), 2).host_id == a.host_id

    run(test, time)
