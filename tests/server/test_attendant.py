"""The agent of a plane's own store: started by the plane, started again, and ended with it, however that ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from penstock.config import ClientConfig, PlaneConfig
from penstock.plane.local import LocalDataPlaneClient
from penstock.reports import HostStatus, SessionStatus
from tests.server.harness import PlaneProcess, RawClient, eventually

URL = "memory://of-the-agent"  # the agent's own: nobody else sees what lies there


def agents(client: RawClient) -> list[SessionStatus]:
    return [session for session in client.status().sessions if session.role == "store"]


def stores(client: RawClient) -> list[HostStatus]:
    return [host for host in client.status().hosts if host.place.store and host.state == "up"]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_plane_with_a_store_has_its_agent(tmp_path: Path) -> None:
    """It enlists by itself; one that is killed is followed by another; a clean end of the plane ends it."""
    with PlaneProcess(tmp_path / "plane", store=URL) as plane, RawClient(plane.data_dir).open() as client:
        eventually("it is enlisted", lambda: stores(client))
        assert stores(client)[0].place.store == URL
        (first,) = agents(client)
        os.kill(first.pid, signal.SIGKILL)
        eventually("another has come", lambda: [a.pid for a in agents(client)] not in ([first.pid], []))
        eventually("it is enlisted", lambda: stores(client))
        (second,) = agents(client)
        assert plane.end() == 0
        assert not lives(second.pid)


def test_the_agent_ends_when_its_plane_is_killed(tmp_path: Path) -> None:
    """Nobody is left who would end it."""
    with PlaneProcess(tmp_path / "plane", store=URL) as plane, RawClient(plane.data_dir).open() as client:
        eventually("it is enlisted", lambda: stores(client))
        (agent,) = agents(client)
        plane.kill()
        eventually("it has ended", lambda: not lives(agent.pid))


def test_a_private_plane_ends_after_its_last_client_though_its_agent_is_in_session(tmp_path: Path) -> None:
    """The agent is the plane's own: nobody else would ever end either."""
    config = PlaneConfig(linger_s=0.2, max_bytes=32 << 20, store=URL)
    with LocalDataPlaneClient(None, config=ClientConfig(timeout_s=40.0), plane=config) as client:
        eventually("it is enlisted", lambda: client.status().hosts)
        plane = client.status().pid
        (agent,) = [session.pid for session in client.status().sessions if session.role == "store"]
    eventually("both have ended", lambda: not lives(plane) and not lives(agent))
    assert not client.data_dir.exists()


def test_an_agent_that_cannot_serve_does_not_keep_the_plane_from_serving(tmp_path: Path) -> None:
    """A store that nobody knows how to open: the plane says so in its log, and goes on without."""
    with PlaneProcess(tmp_path / "plane", store="nonsense://x") as plane, RawClient(plane.data_dir).open() as client:
        log = plane.data_dir / "plane.log"
        eventually("it is said", lambda: "store's agent" in log.read_text())
        assert not stores(client)
        assert plane.end() == 0


def test_a_plane_whose_store_does_not_answer_ends_at_once(tmp_path: Path) -> None:
    """Its agent waits for the store, and for nothing when it is to end."""
    nobody = "mooncake://127.0.0.1:1?metadata=http://127.0.0.1:1/metadata"
    with PlaneProcess(tmp_path / "plane", store=nobody) as plane, RawClient(plane.data_dir).open():
        eventually("it is there", lambda: children(plane.pid))
        (agent,) = children(plane.pid)
        eventually("it tries to open", lambda: "python" in Path(f"/proc/{agent}/cmdline").read_text())
        time.sleep(1.0)  # it is in the library's hands now, or about to be
        began = time.monotonic()
        assert plane.end() == 0
        assert time.monotonic() - began < 8.0
        assert not lives(agent)
