"""A plane on a real Ray of two nodes: actors of plane and agents are killed, and nobody who uses it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import ray
import torch

import penstock.launch.ray as launch
from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneTimeout, UnknownName
from penstock.launch.cluster import Actors, alive_nodes, own_node
from penstock.launch.keeper import Standing
from penstock.plane.client import PlaneClient
from penstock.retry import Deadline
from penstock.wire.paths import arena_files
from tests.ray_cluster import RayCluster

SECOND = "127.0.0.2"
HOSTS = launch.HostOrders(max_bytes=32 << 20, options={"warm_bytes": 1 << 20})
PLANE = PlaneConfig(max_bytes=64 << 20)
SMALL: dict[str, Any] = {"hosts": HOSTS, "plane": PLANE, "linger_s": 5.0, "timeout_s": 60.0}


@pytest.fixture(scope="module")
def nodes(ray_cluster: RayCluster) -> Iterator[list[str]]:
    """The addresses of two nodes, the head's first."""
    node = ray_cluster.add_node(node_ip_address=SECOND)
    yield [own_node(), SECOND]
    ray_cluster.remove_node(node)


@pytest.fixture(scope="module")
def plane(nodes: list[str], ray_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.RayPlane]:
    """A plane with an agent on each, and a partition."""
    folder = tmp_path_factory.mktemp("launched")
    with launch.start("run7", data_dir=folder, namespace=ray_namespace, **SMALL) as found:
        with found.connect() as client:
            client.register_partition("p", ["x"], num_samples=1000, consumer_tasks=["t"])
        yield found
    assert shared_memory_of(folder) == []


def shared_memory_of(folder: Path) -> list[Path]:
    """What plane and agents of ``folder`` hold of it."""
    parts = [folder / "plane", *(folder / "hosts").iterdir()]
    return [path for part in parts for path, place in arena_files(part) if place.in_shm]


def on(node: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Have a task do it on ``node``, as a user's would."""
    task = ray.remote(work).options(num_cpus=0, resources={f"node:{node}": 0.001})
    return ray.get(task.remote(*arguments), timeout=60)


def put_there(plane: launch.RayPlane, keys: list[str]) -> str:
    with plane.connect() as client:
        client.put_samples(keys, "p", {"x": torch.full((len(keys), 4), 7)})
    return own_node()


def until(what: str, done: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := done()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


class Traffic:
    """A client that puts and reads, one row after the other, in a thread; what fails is kept."""

    def __init__(self, plane: launch.RayPlane, prefix: str) -> None:
        self.done = 0
        self.failures: list[BaseException] = []
        self._plane, self._prefix, self._stop = plane, prefix, threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def _run(self) -> None:
        try:
            with self._plane.connect(timeout_s=30.0) as client:
                while not self._stop.is_set():
                    key = f"{self._prefix}{self.done}"
                    client.put_samples([key], "p", {"x": torch.full((1, 4), self.done)})
                    assert client.get_samples([key], "p", ["x"])["x"].tolist() == [[self.done] * 4]
                    client.evict([key], "p", "seen")
                    self.done += 1
        except BaseException as failed:
            self.failures.append(failed)
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        until("the first row", lambda: self.done or self.failures)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


def test_tasks_on_each_node_reach_it_by_its_name(plane: launch.RayPlane, nodes: list[str]) -> None:
    """A handle is plain data; rows lie on the node of who put them, and are read on the other."""
    assert [on(node, put_there, plane, [f"from {node}"]) for node in nodes] == nodes
    with launch.connect("run7", namespace=plane.namespace) as client:
        keys = [f"from {node}" for node in nodes]
        assert client.get_samples(keys, "p", ["x"])["x"].tolist() == [[7] * 4] * 2
        assert isinstance(client, PlaneClient)
        assert {host.place.name: host.blocks for host in client.status().hosts} == dict.fromkeys(nodes, 1)


@pytest.mark.parametrize(
    ("blow", "role"),
    [
        ("ray.kill", "plane"),
        ("ray.kill", "head"),
        ("ray.kill", SECOND),
        ("kill -9", "plane"),
        pytest.param("kill -9", "head", marks=pytest.mark.slow),
        pytest.param("kill -9", SECOND, marks=pytest.mark.slow),
    ],
)
def test_whichever_is_killed_nobody_who_uses_it_fails(
    plane: launch.RayPlane, nodes: list[str], role: str, blow: str
) -> None:
    """Its actor, by Ray, or its process, by the kernel: it serves again at the same URL, and puts and reads go on."""
    role, url = nodes[0] if role == "head" else role, plane.url()
    before = plane.standing()[role]
    assert before.state == "ready"
    with Traffic(plane, f"{role} {blow} ") as traffic:
        if blow == "ray.kill":
            plane.kill(role)
        else:
            on(nodes[-1] if role == SECOND else nodes[0], kill_process, before.pid)
        after = until("its next life", lambda: next_life(plane, role, before))
        at = traffic.done
        until("rows after it", lambda: traffic.done > at + 3 or traffic.failures)
    assert traffic.failures == []
    assert (after.keeper != before.keeper) == (blow == "ray.kill")
    assert plane.url() == url


def kill_process(pid: int) -> None:
    import os
    import signal

    os.kill(pid, signal.SIGKILL)


def next_life(plane: launch.RayPlane, role: str, before: Standing) -> Standing | None:
    now = plane.standing()[role]
    return now if now.state == "ready" and now.pid != before.pid else None


def test_rows_that_lay_there_are_there_after_all_are_killed_at_once(plane: launch.RayPlane, nodes: list[str]) -> None:
    """Plane and both agents: what was put before is read after."""
    keys = [f"kept {n}" for n in range(4)]
    on(nodes[1], put_there, plane, keys)
    before = plane.standing()
    with plane.connect(timeout_s=60.0) as client:
        for role in before:
            plane.kill(role)
        for role, standing in before.items():
            until(role, partial(next_life, plane, role, standing))
        assert client.get_samples(keys, "p", ["x"])["x"].tolist() == [[7] * 4] * 4
        assert isinstance(client, PlaneClient)
        audit = client.audit()
    assert (audit.residue, sum(sum(partition.lost.values()) for partition in audit.partitions)) == (0, 0)


def test_a_close_right_after_a_kill_is_a_close(nodes: list[str], ray_namespace: str, tmp_path: Path) -> None:
    """Actors between two lives are told to end when they are back; what an agent did not get to, its next life does."""
    plane = launch.start("brief", data_dir=tmp_path, namespace=ray_namespace, **SMALL)
    for role in plane.standing():
        plane.kill(role)
    plane.close(timeout_s=40.0)
    with pytest.raises(UnknownName):
        launch.attach("brief", namespace=ray_namespace, timeout_s=1.0)
    if shared_memory_of(tmp_path):  # an agent was told to end before its plane had said what rows need
        launch.start("brief", data_dir=tmp_path, namespace=ray_namespace, **SMALL).close()
    assert shared_memory_of(tmp_path) == []


def test_a_second_start_finds_the_first(plane: launch.RayPlane) -> None:
    """With the same arguments it is the same plane; with others, or by a name that nobody has, it is refused."""
    folder = Path(Actors("run7", plane.namespace).orders(Deadline(10.0)).data_dir)
    again = launch.start("run7", data_dir=folder, namespace=plane.namespace, **SMALL)
    assert again.url() == launch.attach("run7", namespace=plane.namespace).url() == plane.url()
    with pytest.raises(BadArgument, match="other arguments"):
        launch.start("run7", data_dir=folder / "elsewhere", namespace=plane.namespace, **SMALL)
    for ask in (launch.attach, launch.access):
        with pytest.raises(UnknownName, match="run8"):
            ask("run8", namespace=plane.namespace)
    with pytest.raises(UnknownName, match=r"10\.9\.9\.9"):
        plane.kill("10.9.9.9")
    with pytest.raises(BadArgument, match=r"10\.9\.9\.9"):
        launch.start("run9", data_dir=folder, namespace=plane.namespace, node="10.9.9.9", **SMALL)
    assert plane.standing()["plane"].state == "ready"


def test_of_several_starts_at_once_one_has_made_the_plane(nodes: list[str], ray_namespace: str, tmp_path: Path) -> None:
    """And so one owns it: the others end nothing that is not theirs. Who finds it later has not made it either."""

    def begin(_: int) -> launch.RayPlane:
        return launch.start("crowd", data_dir=tmp_path, namespace=ray_namespace, **SMALL)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(begin, range(3)))
    assert sorted(plane.made for plane in found) == [False, False, True]
    assert not begin(0).made
    found[0].close()
    assert shared_memory_of(tmp_path) == []


@contextmanager
def third_node(cluster: RayCluster, address: str) -> Iterator[None]:
    node = cluster.add_node(node_ip_address=address)
    try:
        yield
    finally:
        cluster.remove_node(node, kill=True)
        until("the node is gone", lambda: address not in alive_nodes())


@pytest.mark.slow
def test_a_node_that_comes_later_gets_its_agent_when_it_is_asked_for(
    plane: launch.RayPlane, ray_cluster: RayCluster
) -> None:
    """The first task there that connects starts it. The node goes, and comes back with the rows that lay there."""
    with third_node(ray_cluster, "127.0.0.3"):
        assert on("127.0.0.3", put_there, plane, ["late"]) == "127.0.0.3"
        before = plane.standing()["127.0.0.3"]
        assert before.state == "ready"
    with third_node(ray_cluster, "127.0.0.3"), plane.connect(timeout_s=60.0) as client:
        until("its agent is back", lambda: next_life(plane, "127.0.0.3", before))
        assert client.get_samples(["late"], "p", ["x"])["x"].tolist() == [[7] * 4]


@pytest.mark.slow
def test_one_that_is_closed_goes_on_in_its_directory(nodes: list[str], ray_namespace: str, tmp_path: Path) -> None:
    """A detached plane is found by its name and ended in order, twice; the next one has its rows, at its URL."""
    first = launch.start("later", data_dir=tmp_path, namespace=ray_namespace, detached=True, **SMALL)
    url = first.url()
    with first.connect() as client:
        client.register_partition("p", ["x"], num_samples=10, consumer_tasks=["t"])
    on(nodes[1], put_there, first, ["a"])
    found = launch.attach("later", namespace=ray_namespace)
    found.close()
    found.close()
    assert shared_memory_of(tmp_path) == []
    with launch.start("later", data_dir=tmp_path, namespace=ray_namespace, **SMALL) as second:
        assert second.url() == url
        with second.connect() as client:
            assert client.get_samples(["a"], "p", ["x"])["x"].tolist() == [[7] * 4]
    with suppress(UnknownName):
        launch.attach("later", namespace=ray_namespace)
        pytest.fail("it is still there")


def test_one_that_can_never_serve_is_refused_at_once_and_leaves_no_actor(
    nodes: list[str], ray_namespace: str, tmp_path: Path
) -> None:
    """A damaged journal is told with its reason, long before the time is over."""
    journal = tmp_path / "plane" / "journal"
    journal.mkdir(parents=True)
    (journal / "segment-0000000001.journal").write_bytes(b"nonsense" * 100)
    (journal / "segment-0000000002.journal").write_bytes(b"nonsense" * 100)
    began = time.monotonic()
    with pytest.raises(BadArgument, match="journal"):
        launch.start("broken", data_dir=tmp_path, namespace=ray_namespace, **SMALL)
    assert time.monotonic() - began < 40
    with pytest.raises(UnknownName):
        launch.attach("broken", namespace=ray_namespace, timeout_s=1.0)


def test_one_that_does_not_come_in_time_says_what_it_waits_for(
    nodes: list[str], ray_namespace: str, tmp_path: Path
) -> None:
    """Here its directory is served by somebody else, by hand."""
    import fcntl

    (tmp_path / "plane").mkdir()
    with (tmp_path / "plane" / "plane.lock").open("wb") as lock:
        lock.write(b'{"pid":1,"auto":false}')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataPlaneTimeout, match="is served by process 1 already"):
            launch.start("late", data_dir=tmp_path, namespace=ray_namespace, **(SMALL | {"timeout_s": 4.0}))
