"""Blocks of a host as other machines read them: over its payload listeners, in the clear, encrypted, over UCX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock.errors import DataPlaneError, StaleSlotError
from penstock.parts import BlockPlace, HostPlace
from penstock.requests import Done, Pop, Tokens
from penstock.retry import Deadline
from penstock.transport.client import PayloadClient
from penstock.transport.config import TransportConfig
from penstock.transport.wanted import Fetched, Wanted
from penstock.transport.wires.tcp import TcpWire
from penstock.wire.auth import read_token
from penstock.wire.tls import client_context
from tests.host.harness import AgentProcess, HostClient, TcpPlane, eventually, site, used_bytes
from tests.host.test_recovery_live import register
from tests.plane.certificates import certificate


def fetch(plane: TcpPlane, host: HostPlace, place: BlockPlace, tls_ca: Path | None = None) -> Fetched | DataPlaneError:
    """Fetch one block as a client of another machine does."""
    tls = None if tls_ca is None else client_context(tls_ca)
    token = read_token(plane.token_file)
    with PayloadClient({"tcp": lambda: TcpWire(token, "payload", tls_client=tls)}, TransportConfig()) as client:
        (outcome,) = client.fetch([Wanted(place.block_id, place.nbytes, [(host, place.generation)])], Deadline(10.0))
        return outcome


def test_another_machine_reads_a_block_from_its_hosts_listeners(tmp_path: Path) -> None:
    """Every byte, checked; the agent counts it; a block that has gone is stale."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a", "b"], 9)
        located = c.locate(["a", "b"])
        (place,), (host,) = located.blocks, located.hosts
        found = fetch(plane, host, place)
        assert isinstance(found, Fetched), found
        assert np.all(found.data[-128:] == 9)
        eventually("it is counted", lambda: c.agent.status().counters["reads.acknowledged"] == 1)
        c.plane.expect(Done, Pop("p", ["a", "b"], Tokens([], [])))
        eventually("its slot is free", lambda: used_bytes(c.agent) == 0)
        assert isinstance(fetch(plane, host, place), StaleSlotError)


def test_a_restarted_agent_serves_what_it_found_to_other_machines(tmp_path: Path) -> None:
    """From the old file, and from the new one when it has moved."""
    with site(tmp_path) as (plane, agent), HostClient.of(plane, agent) as c:
        c.put(["a"], 9)
        agent.kill()
        with AgentProcess(agent.data_dir, plane) as second:
            for segments in (2, 1):
                located = c.locate(["a"])
                if segments == 1:
                    eventually("it has moved", lambda: len(second.segments()) == 1)
                    located = c.locate(["a"])
                found = fetch(plane, located.hosts[0], located.blocks[0])
                assert isinstance(found, Fetched | StaleSlotError), found
            assert isinstance(found, Fetched), found


@pytest.mark.slow
def test_a_host_with_tls_speaks_to_nobody_without(tmp_path: Path) -> None:
    """Plane, payload listeners and peers: encrypted, and judged by the authority that was given."""
    cert, key = certificate(tmp_path)
    serving = ("--tls-cert", str(cert), "--tls-key", str(key))
    with TcpPlane(tmp_path / "plane", flags=serving) as plane:
        register(plane)
        hosts = [*serving, "--tls-ca", str(cert)]
        with (
            AgentProcess(tmp_path / "alpha", plane, *hosts) as alpha,
            AgentProcess(tmp_path / "beta", plane, *hosts),
            HostClient.of(plane, alpha) as c,
        ):
            c.put(["a"], 9, replicas=2)
            located = c.locate(["a"])
            found = fetch(plane, located.hosts[0], located.blocks[0], cert)
            assert isinstance(found, Fetched), found
            clear = fetch(plane, located.hosts[0], located.blocks[0])
            assert isinstance(clear, DataPlaneError), clear


def test_half_of_tls_is_refused(tmp_path: Path) -> None:
    """A host is both ends of connections: it needs an authority and a certificate, or neither."""
    with TcpPlane(tmp_path / "plane") as plane:
        cert, _ = certificate(tmp_path)
        with AgentProcess(tmp_path / "alpha", plane, "--tls-ca", str(cert), wait=False) as agent:
            assert agent.process.wait(30) != 0
            assert "--tls-cert" in agent.stderr()


def test_ucx_listeners_are_advertised(tmp_path: Path) -> None:
    """Where ucxx is installed; what they serve is the wire's own suite's business."""
    pytest.importorskip("ucxx")
    with TcpPlane(tmp_path / "plane") as plane:
        register(plane)
        with (
            AgentProcess(tmp_path / "alpha", plane, "--ucx-listeners", "1") as agent,
            HostClient.of(plane, agent) as c,
        ):
            c.put(["a"], 9)
            (host,) = c.locate(["a"]).hosts
            assert (len(host.ports), len(host.ucx_ports)) == (2, 1)
