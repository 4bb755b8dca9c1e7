"""The actors as plain objects, a real plane and a real agent behind them; Ray is what they are put into."""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.launch import actors
from penstock.launch.actors import HostActor, PlaneActor
from penstock.launch.orders import HostOrders, PlaneOrders

NODE = "127.0.0.1"


def eventually(what: str, done: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := done()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


class Neighbours:
    """What stands in for Ray: the plane's actor, while it is there."""

    def __init__(self, plane: PlaneActor | None) -> None:
        self.plane = plane
        self.is_away = False

    def plane_of(self, _orders: PlaneOrders) -> Any:
        if self.is_away:
            raise DataPlaneUnavailable("Ray cannot say")
        if self.plane is None:
            return None
        return SimpleNamespace(introduction=SimpleNamespace(remote=self.plane.introduction))


@pytest.fixture
def orders(tmp_path: Path) -> PlaneOrders:
    small = {"max_bytes": 16 << 20, "warm_bytes": 1 << 20}
    return PlaneOrders(
        name="a",
        namespace="n",
        node=NODE,
        data_dir=str(tmp_path),
        plane=small,
        hosts=HostOrders(max_bytes=16 << 20, options={"warm_bytes": 1 << 20}),
    )


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> Neighbours:
    found = Neighbours(None)
    monkeypatch.setattr(actors, "_plane_of", found.plane_of)
    monkeypatch.setattr(actors, "reply_of", lambda reply, _timeout_s: reply)
    monkeypatch.setattr(actors, "_LOOK_S", 0.05)
    return found


@pytest.fixture
def plane(orders: PlaneOrders, neighbours: Neighbours) -> Iterator[PlaneActor]:
    actor = neighbours.plane = PlaneActor(orders, "maker")
    yield actor
    assert actor._keeper.close()


def test_a_plane_keeps_its_port_from_life_to_life(orders: PlaneOrders, plane: PlaneActor) -> None:
    """Clients and agents know it by its URL; the next actor on this directory serves there too."""
    url = eventually("it serves", lambda: plane.standing().said.get("url"))
    assert plane.orders() == orders
    plane.end()
    eventually("it has ended", lambda: plane.standing().state == "ended")
    again = PlaneActor(orders, "maker")
    try:
        assert eventually("it serves again", lambda: again.standing().said.get("url")) == url
    finally:
        assert again._keeper.close()


def test_an_agent_is_introduced_by_the_planes_actor(orders: PlaneOrders, plane: PlaneActor) -> None:
    """The token is in a file that only its owner can read, and in no text about the introduction."""
    assert plane.introduction() is None or plane.standing().state == "ready"
    host = HostActor(orders, NODE)
    try:
        access = eventually("the agent serves", host.access)
        token = Path(access.token_file)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        introduction = plane.introduction()
        assert introduction is not None
        assert introduction.token == token.read_bytes().strip()
        assert introduction.token.decode() not in repr(introduction)
        assert (access.url, access.tls_ca) == (introduction.url, None)
        words = Path(f"/proc/{host.standing().pid}/cmdline").read_bytes()
        assert introduction.token not in words
    finally:
        host.end()
        assert host._keeper.close()


def test_an_agent_that_knows_its_plane_starts_without_its_actor(
    orders: PlaneOrders, plane: PlaneActor, neighbours: Neighbours
) -> None:
    """The actor of the plane, and Ray itself, may be away: what was known holds."""
    host = HostActor(orders, NODE)
    try:
        first = eventually("the agent serves", host.access)
        neighbours.is_away = True
        host._keeper.kill()
        eventually("its next life", lambda: host.standing().lives == 2 and host.standing().state == "ready")
        assert host.access() == first
    finally:
        assert host._keeper.close()


def test_an_agent_that_was_never_introduced_waits(orders: PlaneOrders, neighbours: Neighbours) -> None:
    """It says for what; nothing is started that knows no plane."""
    neighbours.is_away = True
    host = HostActor(orders, NODE)
    try:
        now = eventually("a first try", lambda: host.standing().why and host.standing())
        assert "has not said its URL yet" in now.why
        assert (now.lives, host.access()) == (0, None)
    finally:
        assert host._keeper.close()


def test_an_agent_whose_plane_has_gone_for_good_ends_and_leaves(
    orders: PlaneOrders, plane: PlaneActor, neighbours: Neighbours
) -> None:
    """After several looks in a row that found no actor; one that nobody could answer counts for nothing."""
    left = threading.Event()
    host = HostActor(orders, NODE, left.set)
    eventually("the agent serves", host.access)
    neighbours.is_away = True
    assert not left.wait(0.6)  # twelve looks
    assert host.standing().state == "ready"
    neighbours.is_away, neighbours.plane = False, None
    assert left.wait(30)
    assert (host.standing().state, host.standing().code) == ("ended", 0)
