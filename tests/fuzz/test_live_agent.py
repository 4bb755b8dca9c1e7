"""An agent serves its host and the others among guests who talk nonsense, at every port that it advertises."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from penstock.host.options import PAYLOAD
from penstock.host.peers import HANDSHAKE
from penstock.parts import HostPlace
from penstock.payload import block
from penstock.retry import Deadline
from penstock.transport.client import PayloadClient
from penstock.transport.wanted import Fetched, Wanted
from penstock.transport.wires.tcp import TcpWire
from penstock.wire.auth import read_token
from tests.fuzz.strangers import Strangers
from tests.fuzz.test_endpoint_messages import sound as sound_messages
from tests.fuzz.test_slot_protocol import sound as sound_records
from tests.host.harness import AgentProcess, HostClient, eventually, site

SOON_S = 20.0  # a wide margin
KEPT = 64 << 20

visits = pytest.mark.parametrize(
    "visits", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)


def guests(where: HostPlace, token: bytes) -> list[Strangers]:
    """At each payload listener, and where agents agree on endpoints."""
    records, messages = [record.encode() for record in sound_records(21)], sound_messages(22)
    return [
        *(Strangers((where.address, port), PAYLOAD, token, records, seed=port) for port in where.ports),
        Strangers((where.address, where.peer_port), HANDSHAKE, token, messages, seed=23),
    ]


def fetched(client: HostClient, token: bytes, keys: list[str]) -> bool:
    """Whether another host gets the block of ``keys`` whole."""
    (place,) = client.locate(keys).blocks
    host = client.hosts()[place.host].place
    with PayloadClient({"tcp": lambda: TcpWire(token, PAYLOAD)}) as payloads:
        wanted = Wanted(place.block_id, place.nbytes, [(host, place.generation)])
        (got,) = payloads.fetch([wanted], Deadline(SOON_S))
    if isinstance(got, Fetched):
        block.verify(got.data, got.header)
    return isinstance(got, Fetched)


@visits
def test_nonsense_costs_an_agent_nothing(tmp_path: Path, visits: int) -> None:
    """Puts, with a copy on the other host too, and reads from elsewhere go on; what guests cost is given back."""
    with site(tmp_path) as (plane, agent), AgentProcess(tmp_path / "beta", plane) as other:
        token = read_token(plane.token_file)
        with HostClient.of(plane, agent) as client:
            eventually("both are there", lambda: len(client.hosts()) == 2)
            _visit(client, token, psutil.Process(agent.pid), visits)
        for each in (agent, other):
            assert each.end() == 0
            assert "Traceback" not in each.log()


def _visit(client: HostClient, token: bytes, process: psutil.Process, visits: int) -> None:
    client.put(["first"], replicas=2)
    assert fetched(client, token, ["first"])
    before = process.num_fds(), process.memory_info().rss
    strangers = guests(client.hosts()[client.host_id].place, token)
    for number in range(visits):
        strangers[number % len(strangers)].visit()
        if number % 50 == 0:
            began = time.monotonic()
            client.put([f"k{number}"], replicas=2)
            assert fetched(client, token, [f"k{number}"])
            assert time.monotonic() - began < SOON_S
    for each in strangers:
        each.close()
        assert len(each.visits) >= 11, each.visits
    eventually("all guests have gone", lambda: process.num_fds() <= before[0] + 4)
    assert process.memory_info().rss < before[1] + KEPT
    assert client.plane.audit().residue == 0


def test_an_agent_is_not_anybodys(tmp_path: Path) -> None:
    """The plane's proofs are not the listeners', nor one listener's another's: purposes keep them apart."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as client:
        where = client.hosts()[client.host_id].place
        client.put(["a"])
        for purpose in ("plane", HANDSHAKE, "endpoint"):
            wrong = TcpWire(read_token(plane.token_file), purpose)
            (place,) = client.locate(["a"]).blocks
            with PayloadClient({"tcp": lambda wire=wrong: wire}) as payloads:  # type: ignore[misc]
                (got,) = payloads.fetch(
                    [Wanted(place.block_id, place.nbytes, [(where, place.generation)])], Deadline(SOON_S)
                )
            assert "another token" in str(got), got
