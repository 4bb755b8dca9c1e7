"""The Ray of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.ray_cluster import RayCluster


def test_actors_run_and_are_named_in_the_modules_namespace(ray_cluster: RayCluster, ray_namespace: str) -> None:
    """A named actor is found in the module's namespace, and is gone once its actors are ended."""
    import ray

    class Echo:
        def say(self, word: str) -> str:
            return word

    actor: Any = ray.remote(Echo).options(name="echo", namespace=ray_namespace, lifetime="detached").remote()
    assert ray.get(actor.say.remote("here"), timeout=60) == "here"
    ray_cluster.end_actors(ray_namespace)
    names = [found["name"] for found in ray.util.list_named_actors(all_namespaces=True)]
    assert "echo" not in names


def test_ray_keeps_to_its_folder(ray_cluster: RayCluster) -> None:
    """Sockets and logs lie in the cluster's own folder, which goes with it."""
    assert list(Path(ray_cluster.folder).glob("session_*/sockets/*"))
