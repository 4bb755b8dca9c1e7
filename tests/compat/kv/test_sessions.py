"""A process's session: where its plane is, who else reaches it, and its end."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock.compat.transfer_queue as tq
from penstock.compat.transfer_queue import places, sessions
from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable
from penstock.ops.connecting import await_end
from penstock.plane.local import LocalDataPlaneClient
from penstock.retry import Deadline
from penstock.testing.mooncake import MooncakeCluster
from tests.ray_cluster import RayCluster

LOCAL: dict[str, Any] = {"plane": "local"}


@pytest.fixture(autouse=True)
def closed_after() -> Iterator[None]:
    """One session a process: each test begins and ends without."""
    tq.close()
    yield
    tq.close()


def put(key: str, *values: int) -> None:
    tq.kv_put(key, "p", {"x": torch.tensor(values)})


def values(key: str) -> list[int]:
    read: list[int] = tq.kv_batch_get(key, "p")["x"].unbind()[0].tolist()
    return read


def test_another_process_reaches_the_plane_by_what_init_returned() -> None:
    """It reads what was put here and puts what is read here; the plane is gone with its last session."""
    conf = tq.init({"penstock": LOCAL})
    put("parent", 1, 2)
    command = [sys.executable, "-m", "tests.compat.kv.joiner", json.dumps(conf)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert values("child") == [2, 3]
    assert tq.kv_list("p")["p"]["child"] == {"of": "child"}
    tq.close()
    folder = Path(conf["penstock"]["data_dir"])
    assert await_end(folder)
    assert not folder.exists()
    with pytest.raises(DataPlaneUnavailable, match="no plane is left"):
        tq.init(conf)
    assert not folder.exists()


def test_who_joins_puts_where_who_started_puts() -> None:
    """The store is an option of plane and client alike; what is the plane's alone is left out."""
    options = {"store": "mooncake://h:1?metadata=m", "timeout_s": 3.0, "max_bytes": 1}
    assert places._clients(options) == {"store": "mooncake://h:1?metadata=m", "timeout_s": 3.0}


@pytest.mark.slow
def test_values_lie_in_a_store_where_the_section_says_so(mooncake: MooncakeCluster) -> None:
    """Those of who started the plane and those of who joins it."""
    conf = tq.init({"penstock": {"plane": "local", "store": mooncake.url}})
    put("parent", 1)
    done = subprocess.run(
        [sys.executable, "-m", "tests.compat.kv.joiner", json.dumps(conf)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert values("child") == [2]
    (store,) = sessions.current(Deadline(30.0)).opened.client.status().hosts
    assert (store.place.store, store.blocks) == (mooncake.url, 2)


def _in_a_fork(told: Any) -> None:
    told.put(values("parent"))
    put("fork", 7)
    tq.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_goes_on_with_its_parents_plane() -> None:
    """On a session of its own, whose end leaves the parent's alone."""
    tq.init({"penstock": LOCAL})
    put("parent", 3)
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    child = context.Process(target=_in_a_fork, args=(told,))
    child.start()
    assert told.get() == [3]
    child.join(30)
    assert child.exitcode == 0
    assert values("fork") == [7]


def test_a_named_directory_keeps_its_rows(tmp_path: Path) -> None:
    """Also over the end of its plane; and other clients of the plane see them."""
    conf = {"penstock": {"plane": "local", "data_dir": str(tmp_path / "plane")}}
    assert tq.init(conf) == conf
    put("a", 5)
    tq.close()
    with LocalDataPlaneClient(tmp_path / "plane") as plane:
        (row,) = plane.list_rows("p")
        assert (row.key, row.fields, row.tags) == ("a", ["x"], {})
        audit = plane.audit("p").partitions[0]
        assert (audit.put, audit.in_flight, audit.residue) == (1, 1, 0)
    tq.init(conf)
    assert values("a") == [5]


def test_init_again_keeps_the_session(tmp_path: Path) -> None:
    """Of another plane it is refused, and says how to get there."""
    first = tq.init({"penstock": LOCAL})
    put("a", 1)
    assert tq.init() == first
    assert tq.init(first) == first
    assert values("a") == [1]
    with pytest.raises(BadArgument, match=r"close\(\) first"):
        tq.init({"penstock": {"plane": "local", "data_dir": str(tmp_path)}})


def test_init_again_with_the_same_configuration_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it names the directory in other words."""
    monkeypatch.chdir(tmp_path)
    conf = tq.init({"penstock": {"plane": "local", "data_dir": "plane"}})
    for name in ("plane", "./plane", tmp_path / "plane", conf["penstock"]["data_dir"]):
        assert tq.init({"penstock": {"plane": "local", "data_dir": name}}) == conf
    with pytest.raises(BadArgument, match=r"close\(\) first"):
        tq.init({"penstock": {"plane": "local", "data_dir": "other"}})


def test_without_a_session_there_is_a_typed_error() -> None:
    """Before init and after close, for functions and twins; a second close is nothing."""
    tq.init({"penstock": LOCAL})
    tq.close()
    tq.close()
    assert sessions.here() is None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("penstock.compat.transfer_queue.places.is_on_ray", lambda: False)
        with pytest.raises(DataPlaneUnavailable, match=r"call init\(\) first"):
            tq.kv_list()


@pytest.mark.parametrize("timeout_s", [0.2, None])
def test_opening_a_session_takes_of_the_calls_time(monkeypatch: pytest.MonkeyPatch, timeout_s: float | None) -> None:
    """A first call, and its twin, give the plane no longer to be found than they have themselves."""
    given: list[float] = []

    def join(limit: float) -> places.Opened:
        given.append(limit)
        raise DataPlaneTimeout("no agent yet")

    monkeypatch.setattr(sessions, "join", join)
    with pytest.raises(DataPlaneTimeout, match="no agent yet"):
        tq.kv_list(timeout_s=timeout_s)
    with pytest.raises(DataPlaneTimeout, match="no agent yet"):
        asyncio.run(tq.async_kv_list(timeout_s=timeout_s))
    assert len(given) == 2
    assert all(0 < limit <= (timeout_s or 30.0) for limit in given)


def test_a_call_does_not_wait_for_ever_for_another_threads_session() -> None:
    """While one opens a session, others wait for it as long as their calls may take."""
    opening, go = threading.Event(), threading.Event()

    def hold() -> None:
        with sessions._lock:
            opening.set()
            go.wait(20.0)

    other = threading.Thread(target=hold)
    other.start()
    try:
        assert opening.wait(20.0)
        with pytest.raises(DataPlaneTimeout, match="another thread"):
            tq.kv_list(timeout_s=0.05)
    finally:
        go.set()
        other.join()


def test_foreign_sections_are_named_and_unknown_ones_refused(caplog: pytest.LogCaptureFixture) -> None:
    """So are options that nobody knows."""
    with caplog.at_level(logging.WARNING):
        conf = tq.init({"backend": {"storage_backend": "SimpleStorage"}, "controller": {}, "penstock": LOCAL})
    assert "backend, controller" in caplog.text
    assert conf["backend"] == {"storage_backend": "SimpleStorage"}
    tq.close()
    odd: list[Any] = [
        {"backends": {}},
        {"penstock": "local"},
        {"penstock": {"plane": "redis://"}},
        {"penstock": {"plane": "local", "speed": 1}},
        {"penstock": {"plane": "local", "start": False}},
        [1],
    ]
    for conf in odd:
        with pytest.raises(BadArgument):
            tq.init(conf)
        assert sessions.here() is None


def test_an_omegaconf_is_a_configuration() -> None:
    """As TransferQueue's users have them."""
    omegaconf = pytest.importorskip("omegaconf")
    conf = tq.init(omegaconf.OmegaConf.create({"controller": {"polling_mode": True}, "penstock": LOCAL}))
    assert conf["controller"] == {"polling_mode": True}
    put("a", 1)


def test_workers_of_a_ray_cluster_need_no_init(ray_cluster: RayCluster) -> None:
    """The plane goes by its name: one process starts it, tasks find it, and nothing of it is left behind."""
    import ray

    @ray.remote(num_cpus=0)
    def work() -> list[int]:
        import torch as torch_there

        import penstock.compat.transfer_queue as there

        read: list[int] = there.kv_batch_get("driver", "p")["x"].unbind()[0].tolist()
        there.kv_put("worker", "p", {"x": torch_there.tensor([8])})
        there.close()
        return read

    conf = tq.init()
    assert conf["penstock"]["plane"] == "ray"
    put("driver", 4)
    assert ray.get(work.remote(), timeout=60) == [4]
    assert values("worker") == [8]
