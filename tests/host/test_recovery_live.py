"""Agents and planes that die and come back, or do not: what rows need is there again, or is lost by name."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.requests import Done, Pop, Tokens
from penstock.testing.director import Director
from penstock.testing.faults import Sentence, kill
from penstock.wire.paths import socket_path
from tests.host.harness import AgentProcess, HostClient, TcpPlane, blocks_of, eventually, site, used_bytes
from tests.server.harness import DEADLINE_S, RawClient

PUTS = 50  # at most, until a fault has struck

TAKE_PART = "from penstock.testing.injection import take_part; take_part({fd})\n"


def nightly(*points: str) -> list[Any]:
    """Points that are struck in the nightly ring."""
    return [pytest.param(point, marks=pytest.mark.slow) for point in points]


@contextmanager
def doomed(data_dir: Path, plane: TcpPlane, sentence: Sentence) -> Iterator[tuple[AgentProcess, Director]]:
    """An agent that takes part in a play."""
    with Director() as director:
        director.arm(sentence)
        seat = director.enrol("agent")
        prelude = TAKE_PART.format(fd=seat.fd)
        with AgentProcess(data_dir, plane, prelude=prelude, fds=(seat.fd,), wait=False) as agent:
            seat.given_to(agent.pid)
            yield agent, director


def play(director: Director, agent: AgentProcess) -> None:
    """Direct until the agent is dead of its fault."""
    until = time.monotonic() + DEADLINE_S
    while agent.process.poll() is None and time.monotonic() < until:
        director.turn(0.1)
    director.turn(0.1)
    assert director.fired, director.shortfalls()
    assert agent.process.wait(DEADLINE_S) == -signal.SIGKILL


def test_a_killed_agent_comes_back_with_its_rows(tmp_path: Path) -> None:
    """kill -9, a new life in the same directory: blocks are found in the old file, moved, and can be freed."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a", "b"], 9)
        c.put(["c"], 5)
        agent.kill()
        with AgentProcess(agent.data_dir, plane) as second, HostClient.of(plane, second, 2) as d:
            assert second.host_id == agent.host_id
            assert d.read(["a", "b"]) == [9, 9]
            assert d.read(["c"]) == [5]
            eventually("the old file is gone", lambda: len(second.segments()) == 1)
            assert d.read(["a", "b"]) == [9, 9]
            d.plane.expect(Done, Pop("p", ["a", "b", "c"], Tokens([], [])))
            eventually("nothing is left", lambda: used_bytes(d.agent) == 0)


def test_a_clean_end_keeps_rows_in_files_and_no_shared_memory(tmp_path: Path) -> None:
    """SIGTERM: the next life finds everything, the one after it too."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a", "b"], 9)
        assert agent.end() == 0
        assert agent.segments() == []
        for life in (2, 3):
            with AgentProcess(agent.data_dir, plane) as again, HostClient.of(plane, again, life) as d:
                assert d.read(["a", "b"]) == [9, 9]
                d.put([f"more {life}"], life)
                assert again.end() == 0
                assert again.segments() == []
        with AgentProcess(agent.data_dir, plane) as last, HostClient.of(plane, last, 9) as d:
            assert d.read(["a", "more 2", "more 3"]) == [9, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_is_a_clean_end_too(tmp_path: Path, number: signal.Signals) -> None:
    """Nothing is left but what the next life needs: no process, no socket, no shared memory."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"], 9)
        agent.process.send_signal(number)
        assert agent.process.wait(DEADLINE_S) == 0
        assert agent.segments() == []
        assert not socket_path(agent.data_dir).exists()
        assert sorted(path.name.split("-")[0] for path in agent.data_dir.iterdir()) == [
            "arena",
            "blocks",
            "host.json",
            "plane.lock",
            "plane.log",
        ]


def test_an_agent_that_does_not_come_back_loses_its_rows_by_name(tmp_path: Path) -> None:
    """After the grace the rows are lost, and the reason names the host; new puts go on elsewhere."""
    fast = {"host_grace_s": 0.5, "dead_after_s": 1.0, "heartbeat_s": 0.2}
    with site(tmp_path, **fast) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"])
        agent.kill()
        eventually("it is lost", lambda: c.locate(["a"]).issues)
        assert "alpha" in c.locate(["a"]).issues[0].why


def test_a_stopped_agent_that_goes_on_in_time_has_lost_nothing(tmp_path: Path) -> None:
    """Its session has ended, its rows waited: it enlists again and is up."""
    with site(tmp_path, dead_after_s=0.6, heartbeat_s=0.2) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"], 9)
        agent.process.send_signal(signal.SIGSTOP)
        with RawClient(plane.data_dir, 5).open() as watcher:
            eventually("it is silent", lambda: watcher.status().hosts[0].state == "silent")
            agent.process.send_signal(signal.SIGCONT)
            eventually("it is up", lambda: watcher.status().hosts[0].state == "up")
        with HostClient.of(plane, agent, 2) as d:
            assert d.read(["a"]) == [9]


def test_an_agent_that_comes_back_too_late_frees_what_was_lost_without_it(tmp_path: Path) -> None:
    """Its rows are gone: the agent is told so when it enlists, and serves new ones."""
    fast = {"host_grace_s": 0.3, "dead_after_s": 0.6, "heartbeat_s": 0.2}
    with site(tmp_path, **fast) as (plane, agent), RawClient(plane.data_dir, 5).open() as watcher:
        with HostClient.of(plane, agent) as c:
            c.put(["a"], 9)
        agent.process.send_signal(signal.SIGSTOP)
        eventually("it is gone", lambda: watcher.status().hosts[0].state == "gone")
        agent.process.send_signal(signal.SIGCONT)
        eventually("it is up", lambda: watcher.status().hosts[0].state == "up")
        with HostClient.of(plane, agent, 2) as d:
            eventually("nothing is left", lambda: used_bytes(d.agent) == 0)
            d.put(["b"], 3)
            assert d.read(["b"]) == [3]


def test_the_elder_of_two_agents_of_one_host_ends(tmp_path: Path) -> None:
    """Somebody has copied the directory: what the elder took would be looked for at the younger."""
    with site(tmp_path) as (plane, agent):
        copy = tmp_path / "copy"
        copy.mkdir(mode=0o700)
        shutil.copy(agent.data_dir / "host.json", copy)
        with AgentProcess(copy, plane) as younger:
            assert younger.host_id == agent.host_id
            assert agent.process.wait(DEADLINE_S) == 69
            assert "refuses this host" in agent.log()
            assert younger.process.poll() is None


def test_a_block_that_is_missing_after_a_restart_is_lost_by_name(tmp_path: Path) -> None:
    """Somebody has removed the file, as a reboot does: the others are not concerned."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"])
        agent.kill()
        for name in agent.segments():
            Path("/dev/shm", name).unlink()
        with AgentProcess(agent.data_dir, plane) as second, HostClient.of(plane, second, 2) as d:
            eventually("it is lost", lambda: d.locate(["a"]).issues)
            assert "missing" in d.locate(["a"]).issues[0].why
            d.put(["b"])
            assert d.read(["b"]) == [7]


def test_a_killed_plane_comes_back_and_its_agents_enlist_again(tmp_path: Path) -> None:
    """Rows are read, put and freed as before; what was freed while it was away is freed."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"], 3)
        c.put(["b"], 4)
        plane.kill()
        with plane.again() as second, HostClient.of(second, agent, 2) as d:
            eventually("it is enlisted", lambda: d.hosts()[agent.host_id].state == "up")
            assert d.read(["a"]) == [3]
            d.put(["c"], 5)
            d.plane.expect(Done, Pop("p", ["a", "b", "c"], Tokens([], [])))
            eventually("nothing is left", lambda: used_bytes(d.agent) == 0)


def test_a_plane_that_lost_its_memory_frees_what_it_does_not_know(tmp_path: Path) -> None:
    """A plane of durability "memory" that restarts knows no rows: the agent's slots are free."""
    with site(tmp_path, durability="memory") as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"], 3)
        eventually("it is adopted", lambda: blocks_of(c.agent) == {"adopted": 1})
        plane.kill()
        with plane.again(durability="memory"):
            eventually("nothing is left", lambda: used_bytes(c.agent) == 0)


def test_a_plane_on_a_wrong_directory_frees_nothing(tmp_path: Path) -> None:
    """Its agents leave, and say why; with the right one at that address again all rows are there."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"], 3)
        plane.kill()
        wrong = tmp_path / "wrong"
        wrong.mkdir()
        shutil.copy(plane.token_file, wrong / "token")
        with TcpPlane(wrong, plane.port):
            assert agent.process.wait(DEADLINE_S) == 69
            with AgentProcess(agent.data_dir, plane, wait=False) as second:
                assert second.process.wait(DEADLINE_S) != 0
                said = second.stderr()
                assert "blocks of another plane lie on host alpha" in said
                assert f"may lie in {agent.data_dir}" in said
        with plane.again() as right, AgentProcess(agent.data_dir, right) as third, HostClient.of(right, third, 2) as d:
            assert d.read(["a"]) == [3]


def test_a_put_that_a_restart_of_the_plane_met_leaves_nothing(tmp_path: Path) -> None:
    """Sealed, not committed, the plane's next life knows no such grant: when the client lets go, the slot is free."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        granted = c.grant(["a"])
        c.seal(granted.grant, c.write(c.reserve(granted), 1))
        plane.kill()
        with plane.again() as second, HostClient.of(second, agent, 2) as d:
            eventually("it is enlisted", lambda: d.hosts()[agent.host_id].state == "up")
            assert blocks_of(d.agent) == {"sealed": 1}
            c.let_go(granted.grant)
            eventually("its slot is free", lambda: used_bytes(d.agent) == 0)


@pytest.mark.parametrize(
    "point", ["host.sealed", "server.granted", *nightly("host.ordered", "server.received", "server.replied")]
)
def test_an_agent_killed_in_its_work_comes_back_with_what_was_committed(tmp_path: Path, point: str) -> None:
    """At each moment: committed rows are read again, a put under way can be made anew, nothing is left over."""
    with TcpPlane(tmp_path / "plane") as plane:
        register(plane)
        with AgentProcess(tmp_path / "alpha", plane) as first, HostClient.of(plane, first) as c:
            c.put(["a"], 9)
            first.kill()
        with doomed(tmp_path / "alpha", plane, kill("agent", at=point, nth=3)) as (agent, director):
            writer = threading.Thread(target=put_until_it_dies, args=(plane, agent))
            writer.start()
            play(director, agent)
            writer.join()
        back_with(tmp_path, plane, "a")


@pytest.mark.parametrize("point", ["host.recovered", *nightly("host.enlisted", "host.listening", "server.moved")])
def test_an_agent_killed_in_its_start_starts_again(tmp_path: Path, point: str) -> None:
    """Recovery may be cut at any moment and begun anew."""
    with TcpPlane(tmp_path / "plane") as plane:
        register(plane)
        with AgentProcess(tmp_path / "alpha", plane) as first, HostClient.of(plane, first) as c:
            c.put(["a"], 9)
            first.kill()
        for _ in range(2):
            with doomed(tmp_path / "alpha", plane, kill("agent", at=point)) as (agent, director):
                play(director, agent)
        back_with(tmp_path, plane, "a")


@pytest.mark.parametrize("point", ["host.leaving", "host.ended"])
def test_an_agent_killed_in_its_clean_end_has_lost_nothing(tmp_path: Path, point: str) -> None:
    """Before its blocks are written to files, and after: the next life has them."""
    with TcpPlane(tmp_path / "plane") as plane:
        register(plane)
        with AgentProcess(tmp_path / "alpha", plane) as first, HostClient.of(plane, first) as c:
            c.put(["a"], 9)
            first.kill()
        with doomed(tmp_path / "alpha", plane, kill("agent", at=point)) as (agent, director):
            agent.wait_until_ready()
            agent.process.terminate()
            play(director, agent)
        back_with(tmp_path, plane, "a")


def back_with(tmp_path: Path, plane: TcpPlane, key: str) -> None:
    """A new agent serves the row, takes new ones, and when all are popped nothing of any life is left."""
    with AgentProcess(tmp_path / "alpha", plane) as agent, HostClient.of(plane, agent, 3) as c:
        assert c.read([key]) == [9]
        c.put(["z"], 4)
        assert c.read(["z"]) == [4]
        for popped in [key, "z", *(f"k{n}" for n in range(PUTS))]:
            c.plane.call(Pop("p", [popped], Tokens([], [])))
        eventually("nothing is left", lambda: used_bytes(c.agent) == 0)
        eventually("of earlier lives neither", lambda: len(agent.segments()) == 1)


def register(plane: TcpPlane) -> None:
    with RawClient(plane.data_dir, 999).open() as operator:
        operator.register()


def put_until_it_dies(plane: TcpPlane, agent: AgentProcess) -> None:
    """Put rows, each by a client of its own, until the agent is dead."""
    for n in range(PUTS):
        while agent.process.poll() is None:
            with contextlib.suppress(OSError, AssertionError), HostClient.of(plane, agent, 100 + n) as c:
                c.put([f"k{n}"])
                break
            time.sleep(0.02)
