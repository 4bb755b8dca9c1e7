"""One local Ray for all tests that need it: the fixtures ``ray_cluster`` and ``ray_namespace``.

Invariants: Ray starts with the first test that asks for it, and those tests come last, so that nobody else shares the
machine with it; it ends before the session's leak check and leaves nothing in /tmp or /dev/shm; what a module names it
names in its own namespace, whose actors end with the module.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leaks import Watch, wait_for

__all__ = ["RayCluster", "ray_cluster", "ray_namespace"]

LOGICAL_CPUS = 8  # actors claim them; the machine may have two
OBJECT_STORE_BYTES = 150 * 1024 * 1024
NODE_S = 60.0  # for Ray to notice that a node has gone
TRANSFER_QUEUE = "transfer_queue"  # the namespace in which the real package always names its controller
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_prestart_worker_first_driver": "0",  # eight idle interpreters would be started otherwise
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_numbers = itertools.count(1)


class RayCluster:
    """A head node of several logical CPUs; further "nodes" of this machine can be added and removed.

    Args:
        folder: Ray's own; sockets lie in it, so the path must be short.
    """

    def __init__(self, folder: Path) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.folder = folder
        head = {
            "num_cpus": LOGICAL_CPUS,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "include_log_monitor": False,
            "no_monitor": True,  # nothing is scaled
            "temp_dir": str(folder),
        }
        self._cluster = Cluster()
        try:
            self._cluster.add_node(**head)
            self.address: str = self._cluster.address
            ray.init(address=self.address, namespace="penstock-tests", log_to_driver=False, logging_level="WARNING")
        except BaseException:
            self.close()
            raise

    def add_node(self, **options: Any) -> Any:
        """Start one more node, as ``ray.cluster_utils.Cluster.add_node`` does, and wait for it."""
        return self._cluster.add_node(**{"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES // 2, **options})

    def remove_node(self, node: Any, *, kill: bool = False) -> None:
        """End a node that ``add_node`` started, and wait until Ray knows: it would place others' actors there.

        ``kill``: with SIGKILL, which Ray notices half a minute later.
        """
        self._cluster.remove_node(node, allow_graceful=not kill)
        wait_for(lambda: not self._knows(node), NODE_S)

    def _knows(self, node: Any) -> bool:
        import ray

        return any(
            one["Alive"] and one["ObjectStoreSocketName"] == node.plasma_store_socket_name for one in ray.nodes()
        )

    def end_actors(self, namespace: str) -> None:
        """Kill the named actors of ``namespace``."""
        import ray

        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == namespace:
                with contextlib.suppress(ValueError):  # it ended meanwhile
                    ray.kill(ray.get_actor(actor["name"], namespace=namespace), no_restart=True)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="session")
def ray_cluster(no_leaks: Watch) -> Iterator[RayCluster]:  # after no_leaks begins, and so over before it looks
    """The session's Ray; this process is connected to it."""
    before = {name: os.environ.get(name) for name in [*_ENVIRONMENT, "RAY_TMPDIR"]}
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as folder:
        os.environ.update(_ENVIRONMENT, RAY_TMPDIR=folder)
        cluster = RayCluster(_made(Path(folder, "ray")))  # where Ray notes the address of its last cluster
        try:
            yield cluster
        finally:
            cluster.close()
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def ray_namespace(ray_cluster: RayCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this module's own; its named actors are killed when the module is over."""
    namespace = f"{re.sub(r'[^a-z0-9]+', '-', request.module.__name__.lower())}-{next(_numbers)}"
    yield namespace
    ray_cluster.end_actors(namespace)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on Ray come last: its processes never rest, and would disturb those that measure time."""
    items.sort(key=lambda item: "ray_cluster" in getattr(item, "fixturenames", ()))
