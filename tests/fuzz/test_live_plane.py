"""A plane that listens on TCP serves its good clients, old and new, among any number of guests who talk nonsense."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from penstock.requests import Done, Ping
from penstock.server.doorway import PURPOSE
from penstock.wire.address import Address
from penstock.wire.auth import read_token
from tests.fuzz.strangers import Strangers, enter
from tests.fuzz.test_frames import sound_calls
from tests.server.harness import PlaneProcess, RawClient, eventually

SOON_S = 5.0  # a wide margin: an answer takes a millisecond
CROWD = 300  # more than the door lets wait
MIB = 1 << 20

visits = pytest.mark.parametrize(
    "visits", [1_000, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[PlaneProcess]:
    with PlaneProcess(tmp_path / "plane", "--listen", "127.0.0.1:0") as one:
        yield one


def address_of(plane: PlaneProcess) -> Address:
    return Address.parse(plane.word.partition(" ")[2])


def token_of(plane: PlaneProcess) -> bytes:
    return read_token(plane.data_dir / "token")


def good_client(plane: PlaneProcess, number: int) -> RawClient:
    return RawClient(plane.data_dir, number, sock=enter(address_of(plane), PURPOSE, token_of(plane))).open()


def pinged_within(client: RawClient) -> float:
    began = time.monotonic()
    assert isinstance(client.call(Ping()), Done)
    return time.monotonic() - began


@visits
def test_nonsense_costs_nobody_else_anything(plane: PlaneProcess, visits: int) -> None:
    """Every answer is soon, newcomers come in, and what the guests cost is given back."""
    strangers = Strangers(address_of(plane), PURPOSE, token_of(plane), sound_calls(20), seed=20)
    process = psutil.Process(plane.pid)
    with good_client(plane, 1) as client:
        client.register()
        before = process.num_fds(), process.memory_info().rss
        slowest = 0.0
        for number in range(visits):
            strangers.visit()
            if number % 10 == 0:
                slowest = max(slowest, pinged_within(client))
            if number % 100 == 0:
                with good_client(plane, 1000 + number) as newcomer:
                    pinged_within(newcomer)
        strangers.close()
        assert slowest < SOON_S
        assert len(strangers.visits) >= 11, strangers.visits
        counters = client.status().counters
        assert counters["strangers"] > visits // 10
        assert counters["connections_misbehaved"] > visits // 20, counters
        eventually("all guests have gone", lambda: process.num_fds() <= before[0] + 2)
        assert process.memory_info().rss < before[1] + 64 * MIB
        assert isinstance(client.call(Ping()), Done)
        assert client.audit().residue == 0
    assert plane.end() == 0
    assert "Traceback" not in plane.log()


def test_a_silent_crowd_at_the_door_keeps_nobody_out(plane: PlaneProcess) -> None:
    """Hundreds who connect and say nothing: who knows the token still comes in at once, and again and again."""
    crowd = [socket.create_connection(address_of(plane), SOON_S) for _ in range(CROWD)]
    try:
        for number in range(5):
            began = time.monotonic()
            with good_client(plane, number + 1) as client:
                assert pinged_within(client) < SOON_S
            assert time.monotonic() - began < SOON_S
    finally:
        for sock in crowd:
            sock.close()


def test_a_crowd_of_guests_that_do_nothing_is_limited(plane: PlaneProcess) -> None:
    """Guests with the token who open no session are ended, and none of them keeps a newcomer out for long."""
    crowd = [enter(address_of(plane), PURPOSE, token_of(plane)) for _ in range(50)]
    with good_client(plane, 1) as client:
        eventually("they are ended", lambda: client.status().counters.get("unopened", 0) >= 0)
        assert pinged_within(client) < SOON_S
    for sock in crowd:
        sock.close()
