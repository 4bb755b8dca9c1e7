"""Blocks are fetched between two hosts whose connection is cut, flaps or comes back, or whose server dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import DataPlaneTimeout, StaleSlotError, TransportError
from penstock.parts import HostPlace
from penstock.retry import Deadline
from penstock.testing.network import Network, unavailable
from penstock.transport.client import PayloadClient
from penstock.transport.config import TransportConfig
from penstock.transport.wanted import Fetched, Wanted
from penstock.transport.wires.tcp import TcpWire
from tests.leaks import wait_for
from tests.network.depot import PURPOSE, TOKEN, Depot, Stock

WHY_NOT = unavailable(threads=True)
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

CUT_S = 3.0
LIMIT_S = 60.0
MARGIN_S = 10.0  # on a machine that does other things too
STOCK = Stock(blocks=24, nbytes=2_000_000, listeners=2)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network(tmp_path_factory.mktemp("network")) as made:
        yield made


@pytest.fixture(autouse=True)
def _healed(network: Network) -> Iterator[None]:
    yield
    network.heal()


@pytest.fixture(scope="module")
def depot(network: Network) -> Iterator[Depot]:
    """On host b."""
    with Depot(STOCK, network.host("b")) as one:
        yield one


@contextmanager
def a_client(network: Network, config: TransportConfig | None = None) -> Iterator[PayloadClient]:
    """On host a."""
    wires = {"tcp": lambda: TcpWire(TOKEN, PURPOSE)}
    with network.host("a").entered(), PayloadClient(wires, config) as client:
        yield client


class Fetch:
    """A fetch under way, in a thread on host a: what it gives, how long it took."""

    def __init__(self, client: PayloadClient, wanted: Sequence[Wanted], limit_s: float = LIMIT_S) -> None:
        self.outcomes: list[Any] = []
        self.took_s = 0.0
        self._thread = threading.Thread(target=self._run, args=(client, wanted, limit_s))
        self._thread.start()

    def _run(self, client: PayloadClient, wanted: Sequence[Wanted], limit_s: float) -> None:
        began = time.monotonic()
        self.outcomes = list(client.fetch(wanted, Deadline(limit_s)))
        self.took_s = time.monotonic() - began

    def result(self) -> list[Any]:
        self._thread.join(LIMIT_S + MARGIN_S)
        assert not self._thread.is_alive(), "the fetch does not end"
        return self.outcomes


def whole(stock: Stock, outcomes: Sequence[Any], count: int | None = None) -> bool:
    fetched = [one for one in outcomes if isinstance(one, Fetched)]
    return len(fetched) == (count or stock.blocks) and all(stock.is_whole(one.block_id, one.data) for one in fetched)


def in_the_middle(client: PayloadClient, nbytes: int) -> None:
    """Wait until so many more bytes have arrived."""
    goal = client.statistics().bytes + nbytes
    wait_for(lambda: client.statistics().bytes >= goal)


CUTS: dict[str, Callable[[Network], None]] = {
    "full": lambda net: net.partition("a", "b"),
    "what the server sends": lambda net: net.partition("b", "a", one_way=True),
    "what the client sends": lambda net: net.partition("a", "b", one_way=True),
    "the server's cable": lambda net: net.unplug("b"),
}


SOME_CUTS = [name if at < 2 else pytest.param(name, marks=pytest.mark.slow) for at, name in enumerate(CUTS)]


@pytest.mark.parametrize("cut", SOME_CUTS)
def test_a_cut_of_three_seconds_in_mid_batch(network: Network, depot: Depot, cut: str) -> None:
    """The batch waits, and is complete and whole when the line is back."""
    with a_client(network) as client:
        swallowed = network.swallowed
        fetch = Fetch(client, depot.wanted())
        in_the_middle(client, 4_000_000)
        CUTS[cut](network)
        before = client.statistics().blocks
        time.sleep(CUT_S)
        assert client.statistics().blocks <= before + 8  # those that had arrived, and were being looked at
        network.heal()
        network.plug("b")
        assert whole(STOCK, fetch.result())
        assert fetch.took_s >= CUT_S
        assert network.swallowed > swallowed or cut == "the server's cable"


def test_a_line_that_flaps(network: Network, depot: Depot) -> None:
    """Cut and mended again and again while two batches are fetched: all is whole."""
    with a_client(network) as client:
        swallowed = network.swallowed
        with network.flapping("a", "b", down_s=0.3, up_s=0.3) as flaps:
            outcomes = [outcome for _ in range(2) for outcome in client.fetch(depot.wanted(), Deadline(LIMIT_S))]
            wait_for(lambda: flaps.count >= 2)
        assert whole(STOCK, outcomes, 2 * STOCK.blocks)
        assert network.swallowed > swallowed


@pytest.mark.parametrize("cut", SOME_CUTS)
def test_a_cut_for_good_ends_by_the_deadline(network: Network, depot: Depot, cut: str) -> None:
    """A host that cannot be reached costs its rows, by name, at the deadline and not after it."""
    with a_client(network, TransportConfig(attempt_timeout_s=0.5)) as client:
        CUTS[cut](network)
        began = time.monotonic()
        outcomes = client.fetch(depot.wanted(blocks=[1, 2, 3]), Deadline(2.0))
        took = time.monotonic() - began
        network.plug("b")
        assert took < 2.0 + MARGIN_S
        assert all(isinstance(one, DataPlaneTimeout | TransportError) and "depot 1" in str(one) for one in outcomes)


def test_a_partition_leaves_the_other_replica(network: Network, depot: Depot) -> None:
    """A block that lies on two hosts is read from the one that can be reached."""
    with Depot(STOCK, network.host("c"), host_id=2) as second, a_client(network, HASTY) as client:
        network.partition("a", "b")
        outcomes = client.fetch(both(depot, second), Deadline(LIMIT_S))
        assert whole(STOCK, outcomes)
        assert {one.host_id for one in outcomes if isinstance(one, Fetched)} == {2}


HASTY = TransportConfig(attempt_timeout_s=0.5)
QUICK = TransportConfig(attempt_timeout_s=2.0, rounds=20)  # a busy machine takes seconds to start a server again


def both(first: Depot, second: Depot) -> list[Wanted]:
    """All blocks, with both hosts as their places."""
    places = zip(first.wanted(), second.wanted(), strict=True)
    return [Wanted(a.block_id, a.nbytes, [*a.places, *b.places]) for a, b in places]


def test_a_server_that_is_killed_and_started_again(network: Network) -> None:
    """The client goes on with the new incarnation: in mid-batch, at the same ports."""
    with Depot(STOCK, network.host("b")) as depot, a_client(network, QUICK) as client:
        fetch = Fetch(client, depot.wanted())
        in_the_middle(client, 4_000_000)
        depot.kill()
        depot.start()
        outcomes = fetch.result()
        assert whole(STOCK, outcomes)
        assert whole(STOCK, client.fetch(depot.wanted(), Deadline(LIMIT_S)))


def test_a_server_that_is_killed_for_good(network: Network) -> None:
    """What had not come is an error that names the host; what had come is whole; and it ends in time."""
    with Depot(STOCK, network.host("b")) as depot, a_client(network, QUICK) as client:
        fetch = Fetch(client, depot.wanted(), limit_s=4.0)
        in_the_middle(client, 4_000_000)
        depot.kill()
        outcomes = fetch.result()
        assert fetch.took_s < 4.0 + MARGIN_S
        gone = [one for one in outcomes if isinstance(one, TransportError | DataPlaneTimeout)]
        assert gone
        assert all("depot 1" in str(one) for one in gone)
        assert whole(STOCK, outcomes, STOCK.blocks - len(gone))


def test_a_server_that_is_stopped_for_a_while(network: Network) -> None:
    """SIGSTOP is invisible to a network; attempts time out, and the batch is whole when the server goes on."""
    with Depot(STOCK, network.host("b")) as depot, a_client(network, QUICK) as client:
        fetch = Fetch(client, depot.wanted())
        in_the_middle(client, 4_000_000)
        depot.pause()
        time.sleep(QUICK.attempt_timeout_s + 0.5)
        depot.go_on()
        assert whole(STOCK, fetch.result())
        assert fetch.took_s >= QUICK.attempt_timeout_s


def test_one_of_two_processes_is_killed_in_mid_batch(network: Network) -> None:
    """Two processes serve the same blocks at two ports of a host; one dies in the middle: nothing is lost."""
    stock = Stock(STOCK.blocks, STOCK.nbytes, listeners=1)
    with Depot(stock, network.host("b")) as one, Depot(stock, network.host("b")) as other:
        assert one.generations == other.generations
        with a_client(network) as client:
            place: HostPlace = one.place([one.ports[0], other.ports[0]])
            fetch = Fetch(client, one.wanted([place]))
            in_the_middle(client, 4_000_000)
            other.kill()
            assert whole(stock, fetch.result())
            assert fetch.took_s < 5.0 + 1.0 + MARGIN_S  # one read timeout and a second


def test_a_block_that_is_gone_says_so(network: Network, depot: Depot) -> None:
    """Another generation and a block that never was are stale, at once; the rest of the batch arrives."""
    recycled, never = depot.wanted(blocks=[1])[0], depot.wanted(blocks=[2])[0]
    (place, generation), *_ = recycled.places
    wanted = [
        Wanted(recycled.block_id, recycled.nbytes, [(place, generation + 1)]),
        Wanted(10_000, never.nbytes, never.places),
        *depot.wanted(blocks=[3, 4]),
    ]
    with a_client(network) as client:
        outcomes = client.fetch(wanted, Deadline(LIMIT_S))
    assert [type(one) for one in outcomes[:2]] == [StaleSlotError, StaleSlotError]
    assert "block 10000" in str(outcomes[1])
    assert whole(STOCK, outcomes[2:], 2)


def test_a_hosts_folder_is_its_own(network: Network, tmp_path: Path) -> None:
    """Hosts share the file system; each has its folder."""
    assert network.host("a").folder != network.host("b").folder
    assert not network.host("a").folder.is_relative_to(tmp_path)
