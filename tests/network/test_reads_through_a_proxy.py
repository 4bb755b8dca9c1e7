"""Blocks are fetched through a proxy that harms the connections: what arrives is whole, whatever happens on the way."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from penstock.errors import CorruptPayload, DataPlaneTimeout, TransportError
from penstock.retry import Deadline
from penstock.testing import line_faults as lines
from penstock.testing.line_faults import LineFault, Toward
from penstock.testing.proxy import FaultProxy
from penstock.transport.client import PayloadClient
from penstock.transport.config import TransportConfig
from penstock.transport.slot_protocol import ACK_BYTES, REQUEST_BYTES, STATUS_BYTES
from penstock.transport.wanted import Fetched
from penstock.transport.wires.tcp import TcpWire
from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, RESPONSE_BYTES
from tests.network.depot import PURPOSE, TOKEN, Depot, Stock

LIMIT_S = 30.0
GREETED = {"client": CHALLENGE_BYTES + PROOF_BYTES, "server": RESPONSE_BYTES}  # bytes before the first record
QUICK = TransportConfig(
    max_reads=1,
    rounds=10,
    attempt_timeout_s=0.4,
    call_base_s=0.01,
    call_cap_s=0.02,
    round_base_s=0.02,
    round_cap_s=0.05,
    port_quarantine_s=1.0,
)
SMALL = Stock(blocks=2, nbytes=4000)


@pytest.fixture(scope="module")
def depot() -> Iterator[Depot]:
    with Depot(SMALL) as one:
        yield one
        assert one.close()["tokens"] == 0  # every read that was begun has been ended


def fetch(depot: Depot, ports: Sequence[int], config: TransportConfig = QUICK, limit_s: float = LIMIT_S) -> list[Any]:
    with PayloadClient({"tcp": lambda: TcpWire(TOKEN, PURPOSE)}, config) as client:
        return list(client.fetch(depot.wanted([depot.place(ports)]), Deadline(limit_s)))


def whole(depot: Depot, outcomes: Sequence[Any]) -> bool:
    return all(
        isinstance(one, Fetched) and depot.stock.is_whole(one.block_id, one.data) and one.block_id == wanted
        for wanted, one in enumerate(outcomes, start=1)
    )


def through(depot: Depot, *faults: LineFault) -> tuple[list[Any], FaultProxy]:
    """Fetch all blocks through a proxy with these faults."""
    with FaultProxy((depot.address, depot.ports[0]), *faults) as proxy:
        return fetch(depot, [proxy.address[1]]), proxy


def edges(toward: Toward) -> list[int]:
    """Positions at which something ends or begins in a conversation, those beside them, and some in between."""
    first = GREETED[toward]
    records = (
        [STATUS_BYTES, STATUS_BYTES + 64, 2000, 4000, 4300]
        if toward == "client"
        else [REQUEST_BYTES, ACK_BYTES + REQUEST_BYTES]
    )
    ends = [CHALLENGE_BYTES if toward == "client" else 8, first, *(first + n for n in records)]
    return sorted({k for end in ends for k in (end - 1, end, end + 1)} | {0, 1, 7})


SIDES: tuple[Toward, Toward] = ("client", "server")
CUTS: dict[str, Callable[..., LineFault]] = {
    "reset": lines.reset,
    "truncate": lines.truncate,
    "half_close": lines.half_close,
}
PLACES = [(toward, k) for toward in SIDES for k in edges(toward)]


@pytest.mark.parametrize("kind", CUTS)
def test_a_connection_that_is_cut_at_byte_k(depot: Depot, kind: str) -> None:
    """Cut at any byte, in either direction, within greeting, records and payload: the blocks arrive all the same."""
    for toward, k in PLACES:
        outcomes, proxy = through(depot, CUTS[kind](at=k, toward=toward, connection=0))
        assert whole(depot, outcomes), (toward, k, outcomes)
        assert len(proxy.fired) == 1, (toward, k)
        assert proxy.connections >= 2, (toward, k)


def test_every_other_connection_is_reset_somewhere(depot: Depot) -> None:
    """Resets again and again, each later than the one before."""
    faults = [lines.reset(at=200 * n, toward="client", connection=n) for n in range(5)]
    outcomes, proxy = through(depot, *faults)
    assert whole(depot, outcomes)
    assert len(proxy.fired) >= 3


def test_a_flipped_bit_is_never_served(depot: Depot) -> None:
    """One wrong bit anywhere in a conversation: it is noticed, and read once more."""
    for toward, k in PLACES:
        outcomes, proxy = through(depot, lines.flip(at=k, bit=k % 8, toward=toward, connection=0))
        assert len(proxy.fired) == 1, (toward, k)
        assert whole(depot, outcomes), (toward, k, outcomes)


def test_a_wire_that_always_flips_gives_an_error(depot: Depot) -> None:
    """If each connection damages the payload, the block is an error, not wrong bytes."""
    faults = [lines.flip(at=k, toward="client") for k in range(GREETED["client"] + STATUS_BYTES + 1000, 20_000, 2000)]
    outcomes, proxy = through(depot, *faults)
    assert len(proxy.fired) >= 2
    assert all(isinstance(one, CorruptPayload) for one in outcomes), outcomes


def test_a_stranger_is_believed_when_it_is_said_twice(depot: Depot) -> None:
    """A token that is really another is an error that says so, after a second try: the first may have been a bit."""
    with FaultProxy((depot.address, depot.ports[0])) as proxy:
        place = depot.place([proxy.address[1]])
        with PayloadClient({"tcp": lambda: TcpWire(b"another token altogether", PURPOSE)}, QUICK) as client:
            (outcome,) = client.fetch(depot.wanted([place], [1]), Deadline(LIMIT_S))
        assert isinstance(outcome, TransportError)
        assert outcome.code == "unauthorised"
        assert proxy.connections == 2


def test_bytes_that_come_twice(depot: Depot) -> None:
    """Repeated bytes are no protocol: that connection is given up, and the next one serves."""
    for toward, k in PLACES:
        if k >= 8:
            outcomes, proxy = through(depot, lines.duplicate(at=k, nbytes=8, toward=toward, connection=0))
            assert whole(depot, outcomes), (toward, k, outcomes)
            assert len(proxy.fired) == 1


def test_single_bytes(depot: Depot) -> None:
    """Both directions in slices of one byte: slow, and whole."""
    config = TransportConfig(attempt_timeout_s=LIMIT_S)
    faults = [lines.slices(toward="client"), lines.slices(toward="server")]
    with FaultProxy((depot.address, depot.ports[0]), *faults) as proxy:
        assert whole(depot, fetch(depot, [proxy.address[1]], config))
    assert len(proxy.fired) >= 2


STALLS: dict[str, Callable[..., LineFault]] = {"stall": lines.stall, "blackhole": lines.blackhole}


@pytest.mark.parametrize(("kind", "toward"), list(itertools.product(STALLS, SIDES)))
def test_a_connection_that_goes_silent(depot: Depot, kind: str, toward: Toward) -> None:
    """Silence in greeting, status or payload costs one attempt's time; the next connection serves."""
    for k in (0, GREETED[toward], GREETED[toward] + 50):
        outcomes, proxy = through(depot, STALLS[kind](at=k, toward=toward, connection=0))
        assert whole(depot, outcomes), (k, outcomes)
        assert len(proxy.fired) == 1


def test_a_late_answer_is_nobody_elses(depot: Depot) -> None:
    """An answer that comes when its read was given up is not taken for the next read's."""
    faults = [lines.stall(at=GREETED["client"] + n, for_s=0.6, toward="client", connection=n) for n in range(2)]
    outcomes, proxy = through(depot, *faults)
    assert whole(depot, outcomes)
    assert len(proxy.fired) == 2


@pytest.mark.parametrize("kind", STALLS)
def test_a_host_that_is_silent_for_good(depot: Depot, kind: str) -> None:
    """The call ends by its deadline and says which block did not come, and why."""
    with FaultProxy((depot.address, depot.ports[0]), STALLS[kind](at=0, toward="client")) as proxy:
        began = time.monotonic()
        outcomes = fetch(depot, [proxy.address[1]], limit_s=2.0)
        assert time.monotonic() - began < 2.0 + 5.0
        assert all(isinstance(one, TransportError | DataPlaneTimeout) for one in outcomes), outcomes
        assert proxy.fired


@pytest.mark.parametrize("how", ["freeze", "reset"])
def test_one_of_two_listeners_goes_in_mid_batch(how: str) -> None:
    """A listener that is stopped or gone in the middle costs a read's time: all blocks come, by the other."""
    stock = Stock(blocks=40, nbytes=500_000, listeners=2)
    config = TransportConfig(attempt_timeout_s=1.0)
    with Depot(stock) as depot:
        proxies = [FaultProxy((depot.address, port), lines.delay(by_s=0.002, toward="client")) for port in depot.ports]
        with proxies[0], proxies[1], PayloadClient({"tcp": lambda: TcpWire(TOKEN, PURPOSE)}, config) as client:
            place = depot.place([proxy.address[1] for proxy in proxies])
            assert whole(depot, client.fetch(depot.wanted([place], [1, 2]), Deadline(LIMIT_S)))
            hit = _in_mid_batch(proxies[0], how)
            began = time.monotonic()
            outcomes = client.fetch(depot.wanted([place]), Deadline(LIMIT_S))
            took = time.monotonic() - began
            hit.join()
            assert whole(depot, outcomes)
            assert took < 1.0 + 1.0 + 18.0  # one attempt's time and a second, on a machine that is busy
            if how == "freeze":
                proxies[0].thaw()


def _in_mid_batch(proxy: FaultProxy, how: str) -> threading.Thread:
    before = proxy.passed("client")

    def act() -> None:
        while proxy.passed("client") < before + 2_000_000:
            time.sleep(0.001)
        if how == "freeze":
            proxy.freeze()
        else:
            proxy.arm(lines.reset(at=0, toward="client"))
            proxy.reset_all()

    thread = threading.Thread(target=act)
    thread.start()
    return thread
