"""The client of several hosts on real ones: its end, forks, and what it makes of agents and planes that die."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock
from penstock import points
from penstock.errors import DataPlaneReadError, DataPlaneTimeout, DataPlaneUnavailable, RefusedType
from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.remote import RemoteDataPlaneClient
from penstock.retry import Deadline
from penstock.transport.config import TransportConfig
from tests.descriptors import open_descriptors

from .certificates import certificate
from .sites import Site

PATIENT: dict[str, Any] = {"host_grace_s": 30.0}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path, **PATIENT) as made:
        made.client().register_partition("p", ["x"], 100, ["score", "train"])
        yield made


def put(client: DataPlaneClient, *keys: str, width: int = 4) -> torch.Tensor:
    x = torch.arange(len(keys) * width).view(len(keys), width)
    client.put_samples(list(keys), "p", {"x": x})
    return x


def read(client: DataPlaneClient, *keys: str, timeout_s: float | None = None) -> torch.Tensor:
    x = client.get_samples(list(keys), "p", ["x"], timeout_s=timeout_s)["x"]
    assert isinstance(x, torch.Tensor)
    return x


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


# -- a client's own life ----------------------------------------------------------------------------------------------


def test_what_one_host_puts_the_other_reads(site: Site) -> None:
    """Here as a view, there through the transport, bit by bit the same."""
    here, there = site.client("a"), site.client("b")
    x = put(here, "k", "l", width=50_000)
    assert torch.equal(read(here, "k", "l"), x)
    assert torch.equal(read(there, "l", "k"), x.flip(0))
    assert here.transport_statistics().blocks == 0
    assert there.transport_statistics().blocks == 1


def test_closing_keeps_to_its_time_though_fetching_hangs(site: Site) -> None:
    """What does not end by then is left to end by itself."""
    client = RemoteDataPlaneClient(
        site.plane.url, site.token, host_dir=site.folder / "a", transport=TransportConfig(close_timeout_s=60.0)
    )
    blocked, release = threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        release.wait(60.0)

    fetching = client._payloads._thread
    hanging = threading.Thread(target=fetching.run, args=(block, Deadline(60.0)))
    hanging.start()
    assert blocked.wait(20.0)
    began = time.monotonic()
    client.close(timeout_s=0.2)
    assert time.monotonic() - began < 30.0
    release.set()
    hanging.join(20.0)
    wait_for(lambda: not fetching.running)


def test_metadata_needs_no_agent(site: Site, tmp_path: Path) -> None:
    """A controller on a machine without one: claims, lists, acks; no thread and no session for an agent."""
    put(site.client("a"), "k")
    with RemoteDataPlaneClient(site.plane.url, site.token, host_dir=tmp_path / "none") as controller:
        meta = controller.claim_meta("p", "score", ["x"], 1)
        controller.ack(meta)
        controller.ping()
        assert controller.list_metadata("p")[0].keys == ["k"]
        assert controller._host._link is None
        assert "not in use" in repr(controller)


def test_a_client_leaves_nothing_behind(site: Site) -> None:
    """No thread, no descriptor, whatever it used; closed twice is closed once."""
    put(site.client("a"), "k")
    gc.collect()
    threads, files = threading.active_count(), open_descriptors()
    for _ in range(3):
        client = site.client("b")
        put(client, "m")
        read(client, "k", "m")
        client.close()
        client.close()
    wait_for(lambda: threading.active_count() <= threads)
    assert open_descriptors() <= files


def test_a_client_that_is_dropped_is_collected(site: Site) -> None:
    """Its sessions end, and its threads."""
    threads = threading.active_count()
    client = RemoteDataPlaneClient(site.plane.url, site.token, host_dir=site.folder / "b")
    put(client, "k")
    x, dead = read(client, "k"), weakref.ref(client)
    del client
    gc.collect()
    assert dead() is None
    wait_for(lambda: threading.active_count() <= threads)
    assert x.tolist() == [[0, 1, 2, 3]]


def test_views_outlive_client_and_agent(site: Site) -> None:
    """What was read stays what it was: of this host's memory and of fetched blocks alike."""
    x = put(site.client("a"), "k", "l", width=50_000)
    client, far = site.client("a"), site.client("b")
    mine, theirs = read(client, "k", "l"), read(far, "k", "l")
    assert client._host.arenas.live_views == 1
    client.close()
    assert client._host.arenas.live_views == 0
    site.agents["a"].kill()
    far.close()
    assert torch.equal(mine, x)
    assert torch.equal(theirs, x)


def test_a_client_is_not_pickled(site: Site) -> None:
    """The error says how to make another; no token is in it."""
    with pytest.raises(RefusedType, match="penstock://") as caught:
        pickle.dumps(site.clients[0])
    assert site.token.decode() not in str(caught.value)
    assert site.token.decode() not in repr(site.clients[0])


def test_a_forked_child_is_refused_and_its_parent_goes_on(site: Site) -> None:
    """A child that uses the client, or ends, does not end its parent's sessions; views stay good in both."""
    client, far = site.client("a"), site.client("b")
    x = put(client, "k", "l", width=50_000)
    mine, _ = read(client, "k", "l"), read(far, "k", "l")
    child = os.fork()
    if child == 0:
        good = mine.numpy().tobytes() == x.numpy().tobytes()  # torch's own threads are the parent's
        for call in (lambda: read(client, "k"), lambda: put(client, "m"), lambda: read(far, "k"), client.ping):
            try:
                call()
            except DataPlaneUnavailable:
                continue
            good = False
        client.close()
        far.close()
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    put(client, "m")
    assert torch.equal(read(far, "k", "l"), x)
    assert (client.statistics().sessions, far.statistics().sessions) == (1, 1)


def test_ping_asks_plane_and_agent(site: Site) -> None:
    """A stopped agent is as bad as a stopped plane for whoever puts through it."""
    client = site.client("a")
    put(client, "k")
    client.ping(5.0)
    os.kill(site.agents["a"].pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises((DataPlaneTimeout, DataPlaneUnavailable)):
        client.ping(0.5)
    assert time.monotonic() - began < 5.0
    os.kill(site.agents["a"].pid, signal.SIGCONT)
    client.ping(20.0)


def test_a_client_of_the_planes_directory_is_told_where_rows_lie(site: Site) -> None:
    """It has no way to other hosts' memory; the error names the door that has."""
    put(site.client("a"), "k")
    with LocalDataPlaneClient(site.plane.data_dir, start=False) as client:
        assert client.list_metadata("p")[0].keys == ["k"]
        with pytest.raises(DataPlaneReadError, match=r"'k'.*lie on host a.*penstock://"):
            read(client, "k")


# -- what dies --------------------------------------------------------------------------------------------------------


def test_rows_of_an_agent_that_restarts_are_waited_for(site: Site) -> None:
    """Readers of its own host and of others notice no more than the time it takes."""
    x = put(site.client("a"), "k", "l")
    mine, theirs = site.client("a"), site.client("b")
    read(mine, "k"), read(theirs, "k")
    site.agents["a"].kill()
    ends: list[bool] = []
    threads = [
        threading.Thread(target=lambda c=c: ends.append(torch.equal(read(c, "k", "l"), x))) for c in (mine, theirs)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert ends == []
    site.start("a")
    for thread in threads:
        thread.join(40)
    assert ends == [True, True]


@pytest.mark.parametrize("point", ["client.granted", "client.copied"])
def test_an_agent_killed_in_the_middle_of_a_put_costs_one_more_copy(site: Site, point: str) -> None:
    """The put succeeds once the agent is back, and its rows are what was put."""
    client = site.client("a")
    put(client, "before")
    struck: list[str] = []

    def strike(at: str) -> None:
        if at == point and not struck:
            struck.append(at)
            site.restart("a")

    restore = points.install(strike)
    try:
        x = put(client, "k", "l")
    finally:
        restore()
    assert struck == [point]
    assert torch.equal(read(site.client("b"), "k", "l"), x)
    assert site.client("b").audit("p").residue == 0


@pytest.mark.parametrize("point", ["client.granted", "client.copied"])
def test_a_plane_killed_in_the_middle_of_a_put_costs_one_more_copy(site: Site, point: str) -> None:
    """The same of the plane; nothing that was acknowledged is lost."""
    client = site.client("a")
    before = put(client, "before")
    struck: list[str] = []

    def strike(at: str) -> None:
        if at == point and not struck:
            struck.append(at)
            site.restart_plane(**PATIENT)

    restore = points.install(strike)
    try:
        x = put(client, "k", "l")
    finally:
        restore()
    assert struck == [point]
    assert torch.equal(read(site.client("b"), "k", "l"), x)
    assert torch.equal(read(site.client("b"), "before"), before)
    assert site.client("b").audit("p").residue == 0


def test_rows_of_a_host_that_is_gone_are_lost_by_name(tmp_path: Path) -> None:
    """After its time of grace the plane says so at once, and whoever waits is told; the rest can still be read."""
    hasty: dict[str, Any] = {"host_grace_s": 1.0, "dead_after_s": 1.0, "heartbeat_s": 0.2}
    with Site(tmp_path, **hasty) as site:
        site.client().register_partition("p", ["x"], 100, ["score", "train"])
        here, there = site.client("a"), site.client("b")
        put(here, "k")
        y = put(there, "l")
        site.agents["a"].kill()
        began = time.monotonic()
        with pytest.raises(DataPlaneReadError, match="host a") as caught:
            read(there, "k", "l")
        assert time.monotonic() - began < 20.0
        assert caught.value.keys == ["k"]
        table, meta = there.get_samples(["k", "l"], "p", ["x"], on_failed="drop")
        assert (meta.sample_ids, torch.equal(table["x"], y)) == (["l"], True)


def test_a_claim_of_a_killed_client_is_back_at_once(site: Site) -> None:
    """Over TCP the plane knows no processes; the agent of its host tells it which have ended."""
    put(site.client("a"), "k")
    child = os.fork()
    if child == 0:
        client = site.client("b")
        client.claim_meta("p", "score", ["x"], 1)
        until = time.monotonic() + 10.0
        while time.monotonic() < until and not (client._host._link and client._host._link.statistics().sessions):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    began = time.monotonic()
    meta = site.client("a").claim_meta("p", "score", ["x"], 1, timeout_s=30.0)
    assert meta.sample_ids == ["k"]
    assert time.monotonic() - began < 5.0, "only the silence of its session gave it back"


async def _cancelled_reads(client: RemoteDataPlaneClient) -> float:
    """Cancel reads that wait for a host that does not answer; return how long it took until their threads were free."""
    async with AsyncDataPlaneClient(client, max_calls=2) as plane:
        reads = [asyncio.create_task(plane.get_samples(["k"], "p", ["x"])) for _ in range(2)]
        await asyncio.sleep(0.5)
        began = time.monotonic()
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        await plane.depth("p", timeout_s=30.0)  # a thread for it is free
        return time.monotonic() - began


def test_a_cancelled_read_waits_for_no_host(site: Site) -> None:
    """Whoever cancels it has its thread back at once, though the host it was fetching from is stopped."""
    put(site.client("a"), "k")
    client = site.client("b")
    os.kill(site.agents["a"].pid, signal.SIGSTOP)
    try:
        assert asyncio.run(_cancelled_reads(client)) < 3.0
    finally:
        os.kill(site.agents["a"].pid, signal.SIGCONT)


# -- replicas ---------------------------------------------------------------------------------------------------------


def test_rows_on_two_hosts_outlive_either(site: Site) -> None:
    """What replicas=2 acknowledged is read, at once, though the host that wrote it is killed."""
    careful = site.client("a", replicas=2)
    x = put(careful, "k", "l", width=1000)
    site.agents["a"].kill()
    for reader in (site.client("b"), careful):
        began = time.monotonic()
        assert torch.equal(read(reader, "k", "l"), x)
        assert time.monotonic() - began < 10.0, "it was waited for"


def test_both_hosts_replicate_to_each_other_at_once(site: Site) -> None:
    """Simultaneous opening is how it begins; every row of both is on both."""
    clients = [site.client(host, replicas=2) for host in "ab"]
    threads = [
        threading.Thread(target=lambda c=c, n=n: [put(c, f"{n}{i}", width=500) for i in range(20)])
        for n, c in enumerate(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    keys = [f"{n}{i}" for n in range(2) for i in range(20)]
    assert [host.blocks for host in clients[0].status().hosts] == [40, 40]
    for client in clients:
        assert read(client, *keys).shape == (40, 500)
        assert client.transport_statistics().blocks == 0  # each has them all in its own host's memory


def test_a_put_on_two_hosts_with_one_down_is_refused_or_not(site: Site) -> None:
    """Refused at the deadline, and nothing of it is visible; with under_replicated it lies on one."""
    careful, lax = site.client("a", replicas=2), site.client("a", replicas=2, under_replicated=True)
    site.agents["b"].kill()
    with pytest.raises(DataPlaneUnavailable, match=r"second host|1 of 2 hosts|silent"):
        careful.put_samples(["k"], "p", {"x": torch.ones(1, 4)}, timeout_s=2.0)
    assert careful.list_metadata("p") == []
    put(lax, "l")
    assert read(lax, "l").tolist() == [[0, 1, 2, 3]]
    site.start("b")
    put(careful, "m")
    assert careful.audit("p").residue == 0


def test_blocks_come_over_ucx_if_that_is_preferred(tmp_path: Path) -> None:
    """Of a host that offers it; the bits are the same."""
    pytest.importorskip("ucxx")
    with Site(tmp_path, flags=("--ucx-listeners", "1")) as site:
        here = site.client("a")
        here.register_partition("p", ["x"], 100, ["train"])
        x = put(here, "k", "l", width=50_000)
        there = site.client("b", prefer="ucx")
        assert torch.equal(read(there, "l", "k"), x.flip(0))
        assert there.transport_statistics().blocks == 1
        assert {port.wire for port in there._payloads._client._pool._idle} == {"ucx"}


def test_everything_may_be_encrypted(tmp_path: Path) -> None:
    """Plane, agents and clients over TLS: puts on one host and on two, fetches; who is in the clear stays out."""
    cert, key = certificate(tmp_path)
    shown = ("--tls-cert", str(cert), "--tls-key", str(key))
    with Site(tmp_path, flags=(*shown, "--tls-ca", str(cert)), plane_flags=shown) as site:
        url, files = site.plane.url, {"token_file": site.plane.token_file, "timeout_s": 30.0}
        with (
            penstock.connect(url, **files, tls_ca=cert, host_dir=tmp_path / "a") as here,
            penstock.connect(url, **files, tls_ca=cert, host_dir=tmp_path / "none") as nowhere,
            penstock.connect(url, **files, tls_ca=cert, host_dir=tmp_path / "b", replicas=2) as careful,
        ):
            here.register_partition("p", ["x"], 100, ["train"])
            x, y = put(here, "k", "l", width=50_000), put(careful, "m")
            assert torch.equal(read(nowhere, "l", "k"), x.flip(0))
            assert torch.equal(read(nowhere, "m"), y)
        with pytest.raises(DataPlaneUnavailable, match="pass tls_ca"):
            penstock.connect(url, token_file=site.plane.token_file, timeout_s=1.0)
