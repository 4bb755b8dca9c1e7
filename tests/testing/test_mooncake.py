"""A real Mooncake of our own: it is ready when it is made, can be broken, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import BadArgument, DataPlaneUnavailable, MissingExtra
from penstock.payload.stores.mooncake.library import installed
from penstock.testing import mooncake as module
from penstock.testing.mooncake import MIB, MooncakeCluster, unavailable
from tests.leaks import wait_for
from tests.mooncake_fixture import StartMooncake


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def pids_of(cluster: MooncakeCluster) -> list[int]:
    return [process.pid for process in cluster._started]


def test_it_is_ready_when_it_is_made_and_gone_when_it_is_closed(mooncakes: StartMooncake) -> None:
    """All segments are known, its account can be read; nothing of it runs after ``close``, which may come twice."""
    assert unavailable() is None
    cluster = mooncakes(owners=2, segment_bytes=32 * MIB)
    assert sorted(cluster.segments()) == sorted(owner.segment for owner in cluster.owners)
    assert cluster.metric("master_total_capacity_bytes") == 64 * MIB
    assert "up, 2 of 2 owners alive" in repr(cluster)
    with pytest.raises(BadArgument, match="no_such"):
        cluster.metric("no_such")
    pids = pids_of(cluster)
    cluster.close()
    cluster.close()
    assert [pid for pid in pids if is_running(pid)] == []
    assert "closed" in repr(cluster)
    with pytest.raises(DataPlaneUnavailable):
        cluster.segments()


def test_what_happens_to_it_happens(mooncakes: StartMooncake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A master is killed and comes back at its address with the living owners; an owner is killed, paused, added."""
    cluster = mooncakes(owners=2)
    url = cluster.url
    cluster.kill_master()
    assert "master down" in repr(cluster)
    cluster.kill_owner(0)
    cluster.restart_master()
    assert (cluster.url, cluster.segments()) == (url, [cluster.owners[1].segment])
    number = cluster.start_owner()
    assert cluster.owners[number].segment in cluster.segments()
    assert [owner.alive for owner in cluster.owners] == [False, True, True]
    cluster.pause_owner(1)
    cluster.pause_master()
    monkeypatch.setattr(module, "_ASK_S", 0.2)
    with pytest.raises(DataPlaneUnavailable, match="nobody answers"):
        cluster.segments()
    cluster.resume_master()
    monkeypatch.undo()
    cluster.resume_owner(1)
    wait_for(lambda: len(cluster.segments()) == 2)


def test_an_owners_bytes_can_be_sent_another_way(mooncakes: StartMooncake) -> None:
    """Clients that are opened after ``reroute`` look for them at the new address, and fail where nobody listens."""
    cluster = mooncakes(owners=1)
    real = cluster.data_address(0)
    cluster.reroute(0, (real[0], 1))
    assert cluster.data_address(0) == (real[0], 1)
    client = installed().client()
    assert client.setup("127.0.0.1", cluster.metadata_url, 0, 16 * MIB, "tcp", "", cluster.master_address) == 0
    value: Any = client
    assert value.upsert("k", b"v") == -800
    client.close()


def test_what_it_started_ends_with_who_started_it(tmp_path: Path) -> None:
    """A process that has a cluster is killed: within seconds nothing of the cluster runs."""
    script = (
        "import sys; from pathlib import Path; from penstock.testing.mooncake import MooncakeCluster\n"
        "cluster = MooncakeCluster(Path(sys.argv[1]), owners=1)\n"
        "print(*[p.pid for p in cluster._started], cluster._guard.pid, flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        pids = [int(pid) for pid in user.stdout.readline().split()]
        assert all(map(is_running, pids))
        user.send_signal(signal.SIGKILL)
    assert len(pids) == 3
    wait_for(lambda: not any(map(is_running, pids)))


def test_a_port_that_was_taken_meanwhile_is_another_try(
    mooncakes: StartMooncake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master that ends because somebody has its port is started again at others, and is not taken for that one."""
    first = mooncakes(owners=0)
    free = module._free_ports
    offers = [first._ports]
    monkeypatch.setattr(module, "_free_ports", lambda host: offers.pop() if offers else free(host))
    second = mooncakes(owners=1)
    assert offers == []
    assert second.master_address != first.master_address
    assert (len(first.segments()), len(second.segments())) == (0, 1)


def test_what_cannot_start_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown flag: an error with the end of the master's log; a missing package or library: its name."""
    with pytest.raises(DataPlaneUnavailable, match=r"(?s)the master: the process ended.*no_such_flag"):
        MooncakeCluster(tmp_path, master_flags=["--no_such_flag=1"])
    with pytest.raises(BadArgument, match="16 MiB"):
        MooncakeCluster(tmp_path, segment_bytes=1)
    lacking = tmp_path / "mooncake_master"
    message = "error while loading shared libraries: libibverbs.so.1: cannot open shared object file"
    lacking.write_text(f"#!/bin/sh\necho '{message}' >&2\nexit 127\n")
    lacking.chmod(0o755)
    monkeypatch.setattr(module, "_binaries", lambda: tmp_path)
    assert "libibverbs.so.1" in (unavailable() or "")
    with pytest.raises(MissingExtra, match=r"libibverbs\.so\.1.*apt-get install libibverbs1"):
        MooncakeCluster(tmp_path)
    lacking.chmod(0o644)
    assert "may not be executed" in (unavailable() or "")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'penstock[mooncake]'" in (unavailable() or "")
    assert "no_such_flag" in (tmp_path / "master.log").read_text()
