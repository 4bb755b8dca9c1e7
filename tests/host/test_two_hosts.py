"""Two agents and a plane: rows on both hosts, copies in both directions at once, and the death of one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.requests import Done, Pop, Tokens
from penstock.testing.faults import kill
from tests.host.harness import AgentProcess, HostClient, TcpPlane, blocks_of, eventually, used_bytes
from tests.host.test_recovery_live import doomed, play, register


@contextmanager
def two(tmp_path: Path, **config: Any) -> Iterator[tuple[TcpPlane, AgentProcess, AgentProcess]]:
    """A plane and two agents."""
    with TcpPlane(tmp_path / "plane", **config) as plane:
        register(plane)
        with AgentProcess(tmp_path / "alpha", plane) as alpha, AgentProcess(tmp_path / "beta", plane) as beta:
            yield plane, alpha, beta


def test_a_put_with_two_replicas_lies_on_both_hosts(tmp_path: Path) -> None:
    """Both are told that it is needed, and both let go of it with its last row."""
    with two(tmp_path) as (plane, alpha, beta), HostClient.of(plane, alpha) as c, HostClient.of(plane, beta, 2) as d:
        c.put(["a"], 9, replicas=2)
        assert c.read(["a"]) == [9]
        assert d.read(["a"]) == [9]
        for client in (c, d):
            eventually("both know", lambda client=client: blocks_of(client.agent) == {"adopted": 1})
        c.plane.expect(Done, Pop("p", ["a"], Tokens([], [])))
        for client in (c, d):
            eventually("both are empty", lambda client=client: used_bytes(client.agent) == 0)


def test_two_hosts_copy_to_each_other_at_once(tmp_path: Path) -> None:
    """Neither has an endpoint with the other yet: both open at the same moment, and all puts come through."""
    with two(tmp_path) as (plane, alpha, beta):
        start, failures = threading.Barrier(4), []

        def put(agent: AgentProcess, number: int) -> None:
            try:
                with HostClient.of(plane, agent, number) as c:
                    start.wait(30)
                    for n in range(5):
                        c.put([f"{number}-{n}"], number, replicas=2)
            except BaseException as error:
                failures.append(error)
                raise

        threads = [
            threading.Thread(target=put, args=(agent, n)) for n, agent in enumerate([alpha, beta, alpha, beta], 10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        with HostClient.of(plane, alpha) as c, HostClient.of(plane, beta, 2) as d:
            for number in range(10, 14):
                keys = [f"{number}-{n}" for n in range(5)]
                assert c.read(keys) == d.read(keys) == [number] * 5


def test_rows_of_a_host_that_is_gone_are_read_from_the_second(tmp_path: Path) -> None:
    """What lay on both lives on, what lay on the dead one alone is lost by name."""
    with two(tmp_path, host_grace_s=0.5, dead_after_s=1.0, heartbeat_s=0.2) as (plane, alpha, beta):
        with HostClient.of(plane, alpha) as c:
            c.put(["both"], 9, replicas=2)
            c.put(["alone"], 5)
            alpha.kill()
        with HostClient.of(plane, beta, 2) as d:
            assert d.read(["both"]) == [9]
            eventually("what lay alone is lost", lambda: d.locate(["alone"]).issues)
            assert "alpha" in d.locate(["alone"]).issues[0].why
            assert d.read(["both"]) == [9]
            d.plane.expect(Done, Pop("p", ["both"], Tokens([], [])))
            eventually("nothing is left", lambda: used_bytes(d.agent) == 0)


def test_a_second_host_that_is_killed_in_a_pull_refuses_the_replica_and_leaves_nothing(tmp_path: Path) -> None:
    """The put is told why it lies on one host only; the copy of the dead life is nobody's in the next."""
    with TcpPlane(tmp_path / "plane") as plane:
        register(plane)
        with AgentProcess(tmp_path / "alpha", plane) as alpha, HostClient.of(plane, alpha) as c:
            with doomed(tmp_path / "beta", plane, kill("agent", at="host.pulled")) as (beta, director):
                beta.wait_until_ready_while(lambda: director.turn(0.05))
                granted = c.grant(["a"], replicas=2)
                content = c.write(c.reserve(granted), 1)
                call = c.agent.send(c.sealing(granted, content), deadline_s=10.0)
                play(director, beta)
                sealed = c.agent.receive(call)
            assert len(sealed.places) == 1, sealed  # type: ignore[union-attr]
            assert "beta" in sealed.why  # type: ignore[union-attr]
            assert isinstance(c.commit(granted.grant, content, sealed.places), Done)  # type: ignore[union-attr]
            assert c.read(["a"]) == [7]
            with AgentProcess(tmp_path / "beta", plane) as again, HostClient.of(plane, again, 2) as d:
                assert used_bytes(d.agent) == 0
                c.put(["b"], 3, replicas=2)
                assert d.read(["b"]) == [3]


@pytest.mark.parametrize("signal", ["kill", "terminate"])
def test_an_agent_that_restarts_goes_on_copying_with_its_peer(tmp_path: Path, signal: str) -> None:
    """The endpoint of the dead life is replaced, from whichever side."""
    with two(tmp_path) as (plane, alpha, beta), HostClient.of(plane, alpha) as c:
        c.put(["a"], 3, replicas=2)
        beta.kill() if signal == "kill" else beta.end()
        with AgentProcess(tmp_path / "beta", plane) as again, HostClient.of(plane, again, 2) as d:
            assert d.read(["a"]) == [3]
            c.put(["b"], 4, replicas=2)
            d.put(["c"], 5, replicas=2)
            assert c.read(["a", "b", "c"]) == d.read(["a", "b", "c"]) == [3, 4, 5]


def test_a_copy_whose_put_is_never_committed_is_freed_on_both_hosts(tmp_path: Path) -> None:
    """The writer lets go: the second host's copy does not wait for its deadline."""
    with two(tmp_path) as (plane, alpha, beta), HostClient.of(plane, alpha) as c, HostClient.of(plane, beta, 2) as d:
        granted = c.grant(["a"], replicas=2)
        c.seal(granted.grant, c.write(c.reserve(granted), 1), granted.replica)
        assert used_bytes(d.agent) > 0
        c.let_go(granted.grant)
        for client in (c, d):
            eventually("both are empty", lambda client=client: used_bytes(client.agent) == 0)
