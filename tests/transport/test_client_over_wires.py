"""The client over TCP and UCX, against real servers: in this process, and in others that die, stop and come back."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import DataPlaneError, DataPlaneTimeout, StaleSlotError, TransportError
from penstock.parts import BlockPlace, HostPlace
from penstock.payload.slots import Mode
from penstock.retry import Deadline
from penstock.transport.client import PayloadClient
from penstock.transport.config import TransportConfig
from penstock.transport.wanted import Fetched, Wanted
from penstock.transport.wires.tcp import TcpWire
from tests.transport.hosts import FIRST_GENERATION, a_block
from tests.transport.payload_process import WIRES, Process, host_of, processes
from tests.transport.station import PURPOSE, a_server, a_station

SOON_S = 30.0
QUICK_S = 3.0  # an attempt's time where a peer says nothing


def a_client(wire: str = "tcp", **limits: float) -> PayloadClient:
    return PayloadClient({wire: WIRES[wire]}, TransportConfig(**limits))  # type: ignore[arg-type]


def all_of(host: HostPlace, blocks: int) -> list[Wanted]:
    return [Wanted(i, len(a_block(i)), [(host, FIRST_GENERATION)]) for i in range(blocks)]


def arrived(outcomes: list[Fetched | DataPlaneError]) -> None:
    """Every block, each with its own bytes."""
    for i, outcome in enumerate(outcomes):
        assert isinstance(outcome, Fetched), outcome
        assert np.array_equal(outcome.data, a_block(i))


def test_blocks_of_an_arena_arrive_and_every_read_ends(tmp_path: Path) -> None:
    """Through a real arena and its slots: small ones, large ones; no token is left, nothing was consumed."""
    with a_station(tmp_path / "arena", 1 << 26) as station, a_server(station, listeners=2) as server:
        host = HostPlace(1, 1, "h1", "127.0.0.1", list(server.statistics().ports))
        places = [station.put(nbytes) for nbytes in (100, 70_000, 6_000_000, 20_000_000)]
        with a_client() as client:
            outcomes = client.fetch([wanted_at(place, host) for place in places], Deadline(SOON_S))
            again = client.fetch([wanted_at(place, host) for place in places], Deadline(SOON_S))
        for outcome, place in zip([*outcomes, *again], [*places, *places], strict=True):
            assert isinstance(outcome, Fetched), outcome
            assert outcome.data.tobytes() == station.bytes_of(place)
        assert station.wait_until_read().tokens == 0
        counts = server.statistics().counts
        assert (counts.acknowledged, counts.consumed, counts.unacknowledged) == (8, 0, 0)


def wanted_at(place: BlockPlace, host: HostPlace) -> Wanted:
    return Wanted(place.block_id, place.nbytes, [(host, place.generation)])


def test_a_recycled_slot_is_stale_and_never_another_blocks_bytes(tmp_path: Path) -> None:
    """The place of a block that is gone holds another: the old reference reads nothing."""
    with a_station(tmp_path / "arena") as station, a_server(station) as server:
        host = HostPlace(1, 1, "h1", "127.0.0.1", list(server.statistics().ports))
        old = station.put(500_000)
        station.release(old)
        new = station.put(500_000)
        assert new.offset == old.offset
        swapped = Wanted(old.block_id, old.nbytes, [(host, new.generation)])
        with a_client() as client:
            outcomes = client.fetch([wanted_at(old, host), wanted_at(new, host)], Deadline(SOON_S))
            (third,) = client.fetch([swapped], Deadline(SOON_S))
        assert type(outcomes[0]) is StaleSlotError
        assert isinstance(outcomes[1], Fetched)
        assert type(third) is StaleSlotError


def test_a_slot_that_is_read_in_the_other_mode_is_waited_for(tmp_path: Path) -> None:
    """Not ready is not lost: when the other reader has let go, the block comes."""
    with a_station(tmp_path / "arena") as station, a_server(station) as server:
        host = HostPlace(1, 1, "h1", "127.0.0.1", list(server.statistics().ports))
        place = station.put()
        reading = station.do(lambda: station.storage.begin_read(place.block_id, place.generation, Mode.CONSUME))
        with a_client(not_ready_base_s=0.05) as client:
            (refused,) = client.fetch([wanted_at(place, host)], Deadline(0.2))
            assert isinstance(refused, DataPlaneTimeout | TransportError)
            assert server.statistics().counts.not_ready >= 1
            station.do(lambda: station.storage.end_read(reading, consumed=False))
            (outcome,) = client.fetch([wanted_at(place, host)], Deadline(SOON_S))
        assert isinstance(outcome, Fetched)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_three_listeners_killed_or_stopped_in_the_middle_of_a_batch(number: signal.Signals, wire: str) -> None:
    """Nothing is lost, and the batch takes one read timeout longer at most: not two, on a machine however busy."""
    blocks = 120
    plans = (0, 0), (number, 10), (0, 0)
    with processes(blocks, *plans, wire=wire) as servers, a_client(wire, attempt_timeout_s=QUICK_S) as client:
        host = host_of(*servers)
        arrived(client.fetch(all_of(host, 6), Deadline(SOON_S)))
        assert not any(server.fired for server in servers)
        began = time.monotonic()
        arrived(client.fetch(all_of(host, blocks), Deadline(SOON_S)))
        took = time.monotonic() - began
        assert [server.fired for server in servers] == [False, True, False]
        assert took < 2 * QUICK_S
        counts = client.statistics().reads
        assert counts.retries >= 1
        assert [name for name in counts.quarantined if f":{servers[1].port}#" in name]
        began = time.monotonic()
        arrived(client.fetch(all_of(host, blocks), Deadline(SOON_S)))
        assert time.monotonic() - began < QUICK_S  # the dead listener is left alone


@pytest.mark.parametrize("wire", WIRES)
def test_a_server_that_is_killed_and_restarted_is_gone_on_with(wire: str) -> None:
    """With its new life at the same port, at once: what was held against the dead one does not count."""
    with processes(8, (signal.SIGKILL, 4), wire=wire) as (first,), a_client(wire, round_base_s=0.01) as client:
        outcomes = client.fetch(all_of(host_of(first), 8), Deadline(SOON_S))
        assert first.fired
        assert any(isinstance(outcome, TransportError) for outcome in outcomes)
        second = Process(8, wire, port=first.port)
        try:
            before = client.statistics().reads.attempts
            arrived(client.fetch(all_of(host_of(second, life=2), 8), Deadline(SOON_S)))
            assert client.statistics().reads.attempts == before + 8
        finally:
            second.kill()


def test_a_killed_hosts_blocks_come_from_the_second_host() -> None:
    """In the middle of a batch, the only listener of the first host dies; the replica has the rest."""
    blocks = 60
    with processes(blocks, (signal.SIGKILL, 10), (0, 0)) as (first, second), a_client() as client:
        replica = HostPlace(2, 1, "h2", "127.0.0.1", [second.port])
        places = [(host_of(first), FIRST_GENERATION), (replica, FIRST_GENERATION)]
        outcomes = client.fetch([Wanted(i, len(a_block(i)), places) for i in range(blocks)], Deadline(SOON_S))
        arrived(outcomes)
        assert first.fired
        assert {outcome.host_id for outcome in outcomes if isinstance(outcome, Fetched)} == {1, 2}


def test_the_preferred_wire_is_followed_by_the_other() -> None:
    """Blocks come over UCX while that works; when its listener is dead, over TCP, of the same host."""
    with processes(8, (0, 0)) as (over_tcp,), processes(8, (signal.SIGKILL, 5), wire="ucx") as (over_ucx,):
        host = host_of(over_tcp, over_ucx)
        with PayloadClient(WIRES, TransportConfig(prefer="ucx")) as client:
            arrived(client.fetch(all_of(host, 4), Deadline(SOON_S)))
            assert {name for _, name in client.statistics().reads.outcomes} == {"ok"}
            assert not over_ucx.fired
            arrived(client.fetch(all_of(host, 8), Deadline(SOON_S)))
            assert over_ucx.fired


def test_a_host_that_offers_no_ucx_is_read_over_tcp() -> None:
    """Without an attempt in vain."""
    with processes(4, (0, 0)) as (server,), PayloadClient(WIRES, TransportConfig(prefer="ucx")) as client:
        arrived(client.fetch(all_of(host_of(server), 4), Deadline(SOON_S)))
        assert client.statistics().reads.attempts == 4


def test_large_blocks_arrive_over_ucx_in_parts(tmp_path: Path) -> None:
    """Through a real arena, and again over the same connections; every read ends."""
    with a_station(tmp_path / "arena", 1 << 26) as station:
        with a_server(station, listeners=2, make_wire=WIRES["ucx"]) as server:
            host = HostPlace(1, 1, "h1", "127.0.0.1", [], list(server.statistics().ports))
            places = [station.put(nbytes) for nbytes in (100, 20_000_000, 9_000_000)]
            with a_client("ucx") as client:
                for _ in range(3):
                    outcomes = client.fetch([wanted_at(place, host) for place in places], Deadline(SOON_S))
                    for outcome, place in zip(outcomes, places, strict=True):
                        assert isinstance(outcome, Fetched), outcome
                        assert outcome.data.tobytes() == station.bytes_of(place)
        station.wait_until_read()


def test_a_stranger_without_the_token_gets_nothing() -> None:
    """It is told so, twice, since once may be a flipped bit; and then it does not try again."""
    with processes(1, (0, 0)) as (server,):
        with PayloadClient({"tcp": lambda: TcpWire(b"another token" * 3, PURPOSE)}) as client:
            (outcome,) = client.fetch(all_of(host_of(server), 1), Deadline(SOON_S))
        assert isinstance(outcome, TransportError)
        assert (outcome.code, outcome.attempts) == ("unauthorised", 2)
