"""Where the processes of a run stand, and the cable between them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.demo.site import Cutter, Site, host_of
from penstock.testing import network


def test_one_machine_needs_nothing(tmp_path: Path) -> None:
    """Without hosts a role's command is its own, and there is no cable."""
    site = Site(1, tmp_path)
    assert (site.hosts, site.has_cable, site.swallowed()) == ((), False, 0)
    assert site.command(tmp_path, "worker-0.1")[0] == sys.executable
    site.cut()
    site.close()


@pytest.mark.parametrize(
    ("peer", "host"),
    [("plane-0.1", 0), ("controller-0.2", 0), ("worker-1.7", 0), ("trainer-0.1", 1), ("scorer-0.1", 1),
     ("host-0.1", 0), ("host-1.4", 1), ("spare-0.1", 1)],
)  # fmt: skip
def test_every_role_has_its_host(peer: str, host: int) -> None:
    """Those that make rows stand on the first, those that read them on the second; an agent where it is named for."""
    assert host_of(peer) == host


def test_without_namespaces_two_agents_share_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where namespaces are not allowed the run has two hosts on loopback, and says why."""
    from penstock.errors import DataPlaneUnavailable

    def denied(_folder: Path) -> None:
        raise DataPlaneUnavailable("not here")

    monkeypatch.setattr("penstock.demo.site.Network", denied)
    site = Site(2, tmp_path)
    assert (site.hosts, site.why, site.has_cable) == (("127.0.0.1", "127.0.0.1"), "not here", False)
    assert site.port > 0


@pytest.fixture
def two_hosts(tmp_path: Path) -> Site:
    why = network.unavailable()
    if why:
        pytest.skip(why)
    return Site(2, tmp_path)


def test_a_cut_is_felt_and_mended(two_hosts: Site) -> None:
    """The cutter cuts when it is time, mends within three seconds, and tells a cut that something went into."""
    try:
        time.sleep(1.0)  # a card that has just been switched on says so: that packet is not ours
        cutter = Cutter(two_hosts, seed=1, period_s=1.0, now=0.0)
        assert [cutter.due(0.5), cutter.is_cut] == [None, False]
        assert [cutter.due(2.0), cutter.is_cut] == [None, True]
        ping(two_hosts)
        assert cutter.due(5.1) is not None
        felt = two_hosts.swallowed()
        ping(two_hosts)
        assert two_hosts.swallowed() == felt
        two_hosts.cut()
        two_hosts.mend()
        assert Cutter(two_hosts, seed=1, period_s=1.0, now=0.0).mend() is None
    finally:
        two_hosts.close()


def ping(site: Site) -> None:
    """Send a packet from the first host to the second."""
    code = (
        f"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ({site.hosts[1]!r}, 9))"
    )
    argv = site._seats[0].command([sys.executable, "-c", code])
    subprocess.run(argv, check=True)
