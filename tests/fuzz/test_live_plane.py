"""A plane that listens on TCP serves its good clients, old and new, among any number of guests who talk nonsense."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from penstock.requests import Done, Ping
from penstock.server.doorway import PURPOSE
from penstock.wire.address import Address
from penstock.wire.auth import read_token
from penstock.wire.tls import client_context
from tests.fuzz.strangers import Strangers, enter
from tests.fuzz.test_frames import sound_calls
from tests.server.harness import PlaneProcess, RawClient, eventually
from tests.server.test_doorway import certificate

SOON_S = 8.0  # a wide margin: an answer takes a millisecond
CROWD = 300  # more than the door lets wait
KEPT = 64 << 20
KEPT_ENCRYPTED = 256 << 20  # asyncio keeps 256 KiB for each such connection, until the collector has seen it

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


def good_client(plane: PlaneProcess, number: int, tls: ssl.SSLContext | None = None) -> RawClient:
    line = enter(address_of(plane), PURPOSE, token_of(plane), tls, sealed=tls is None)
    return RawClient(plane.data_dir, number, sock=line).open()


def pinged_within(client: RawClient) -> float:
    began = time.monotonic()
    assert isinstance(client.call(Ping()), Done)
    return time.monotonic() - began


@visits
@pytest.mark.parametrize("encrypted", [False, True])
def test_nonsense_costs_nobody_else_anything(tmp_path: Path, visits: int, encrypted: bool) -> None:
    """Every answer is soon, newcomers come in, and what the guests cost is given back."""
    flags, tls = ["--listen", "127.0.0.1:0"], None
    if encrypted:
        cert, key = certificate(tmp_path)
        flags += ["--tls-cert", str(cert), "--tls-key", str(key)]
        tls = client_context(cert)
    with PlaneProcess(tmp_path / "plane", *flags) as plane:
        _visit(plane, visits, tls)
        assert plane.end() == 0
        assert "Traceback" not in plane.log()


def _visit(plane: PlaneProcess, visits: int, tls: ssl.SSLContext | None) -> None:
    strangers = Strangers(address_of(plane), PURPOSE, token_of(plane), sound_calls(20), 20, tls, sealed=tls is None)
    process = psutil.Process(plane.pid)
    with good_client(plane, 1, tls) as client:
        client.register()
        before = process.num_fds(), process.memory_info().rss
        slowest = 0.0
        for number in range(visits):
            strangers.visit()
            if number % 10 == 0:
                slowest = max(slowest, pinged_within(client))
            if number % 100 == 0:
                with good_client(plane, 1000 + number, tls) as newcomer:
                    pinged_within(newcomer)
        strangers.close()
        assert slowest < SOON_S
        assert len(strangers.visits) >= 12, strangers.visits
        counters = client.status().counters
        assert counters["strangers"] > visits // 10
        assert counters["connections_misbehaved"] > visits // 20, counters
        eventually("all guests have gone", lambda: process.num_fds() <= before[0] + 2)
        assert process.memory_info().rss < before[1] + (KEPT_ENCRYPTED if tls else KEPT)
        assert isinstance(client.call(Ping()), Done)
        assert client.audit().residue == 0


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


def test_guests_who_do_nothing_are_ended(tmp_path: Path) -> None:
    """Guests with the token who open no session are ended after a while; who pings is not."""
    with PlaneProcess(tmp_path / "plane", "--listen", "127.0.0.1:0", heartbeat_s=0.2, dead_after_s=2.0) as plane:
        crowd = [enter(address_of(plane), PURPOSE, token_of(plane)) for _ in range(50)]
        with good_client(plane, 1) as client:
            eventually("they are ended", lambda: client.status().counters.get("connections_silent", 0) >= 50)
            assert pinged_within(client) < SOON_S
        for sock in crowd:
            sock.close()
