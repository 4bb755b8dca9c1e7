"""TransferQueue's own behaviour suites, as its wheel carries them, on our backends and, nightly, on its own beside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.testing.mooncake import MooncakeCluster
from tests.ray_cluster import RayCluster

TOOL = Path(__file__).parents[3] / "tools" / "transfer_queue_suites.py"
CASES = {"kv": 56, "lifecycle": 8, "manager": 10}  # of 0.1.11: fewer would mean that something was left out
GPU_ONLY = 2  # cases of "lifecycle" that skip themselves without one


def run(ray: RayCluster, backend: str, *more: str) -> dict[str, Any]:
    argv = [sys.executable, str(TOOL), "--backend", backend, "--ray-address", ray.address, "--json", *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["backend"] == backend
    return {suite["suite"]: suite for suite in told["suites"]}


def assert_clean(suites: dict[str, Any]) -> None:
    assert {name: suite["failures"] for name, suite in suites.items() if suite["failures"]} == {}
    assert {name: suite["passed"] for name, suite in suites.items()} == {name: CASES[name] for name in suites}
    assert sum(suite["skipped"] for suite in suites.values()) == (GPU_ONLY if "lifecycle" in suites else 0)


def test_the_suites_on_mooncake(ray_cluster: RayCluster) -> None:
    """Every behaviour suite of TransferQueue passes on ``PenstockMooncake``, which starts a master of its own."""
    assert_clean(run(ray_cluster, "PenstockMooncake"))


def test_the_life_cycle_on_a_plane(ray_cluster: RayCluster) -> None:
    """The suite of all value types and updates passes on ``PenstockPlane``, which starts a plane of its own."""
    assert_clean(run(ray_cluster, "PenstockPlane", "--suite", "lifecycle"))


@pytest.mark.slow
def test_all_suites_on_a_plane(ray_cluster: RayCluster) -> None:
    """Every behaviour suite of TransferQueue passes on ``PenstockPlane``."""
    assert_clean(run(ray_cluster, "PenstockPlane"))


@pytest.mark.slow
def test_the_suites_on_the_packages_own_backend(ray_cluster: RayCluster, mooncake: MooncakeCluster) -> None:
    """The same cases pass on TransferQueue's own ``MooncakeStore``: what we are held against."""
    metadata = mooncake.metadata_url.removeprefix("http://").removesuffix("/metadata")
    assert_clean(run(ray_cluster, "MooncakeStore", "--master", mooncake.master_address, "--metadata", metadata))


def test_the_tool_notices_a_backend_that_fails(ray_cluster: RayCluster) -> None:
    """A backend that cannot work makes the tool fail, and say which cases: passing means something."""
    argv = [sys.executable, str(TOOL), "--backend", "MooncakeStore", "--ray-address", ray_cluster.address]
    unreachable = ["--master", "nowhere.invalid", "--metadata", "nowhere.invalid:1", "--suite", "manager"]
    done = subprocess.run([*argv, *unreachable], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0  # this suite asks no backend
    refused = subprocess.run([*argv, "--suite", "kv"], capture_output=True, text=True, timeout=110, check=False)
    assert refused.returncode == 1
    assert "kills every mooncake_master" in refused.stderr
