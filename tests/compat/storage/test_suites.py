"""TransferQueue's own behaviour suites, as its wheel carries them, on our backends and, nightly, on its own beside."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from penstock.testing.mooncake import MooncakeCluster
from tests.ray_cluster import RayCluster

TOOL = Path(__file__).parents[3] / "tools" / "transfer_queue_suites.py"
CASES = {"kv": 56, "lifecycle": 8, "manager": 10}  # of 0.1.11: fewer would mean that something was left out
LONGEST_S = 280  # a busy machine; half a minute on a quiet one
GPU_ONLY = 2  # cases of "lifecycle" that skip themselves without one


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transfer_queue_suites", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def run(ray: RayCluster, backend: str, *more: str) -> dict[str, Any]:
    argv = [sys.executable, str(TOOL), "--backend", backend, "--ray-address", ray.address, "--json", *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    assert done.stdout, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["backend"] == backend
    return {suite["suite"]: suite for suite in told["suites"]}


def assert_clean(suites: dict[str, Any]) -> None:
    assert {name: suite["failures"] for name, suite in suites.items() if suite["failures"]} == {}
    assert {name: suite["passed"] for name, suite in suites.items()} == {name: CASES[name] for name in suites}
    assert sum(suite["skipped"] for suite in suites.values()) == (GPU_ONLY if "lifecycle" in suites else 0)


@pytest.mark.timeout(300)
def test_the_suites_on_mooncake(ray_cluster: RayCluster) -> None:
    """Every behaviour suite of TransferQueue passes on ``PenstockMooncake``, which starts a master of its own."""
    assert_clean(run(ray_cluster, "PenstockMooncake"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_suites_on_a_plane(ray_cluster: RayCluster) -> None:
    """Every behaviour suite of TransferQueue passes on ``PenstockPlane``."""
    assert_clean(run(ray_cluster, "PenstockPlane"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_suites_on_the_packages_own_backend(ray_cluster: RayCluster, mooncake: MooncakeCluster) -> None:
    """The same cases pass on TransferQueue's own ``MooncakeStore``: what we are held against."""
    metadata = mooncake.metadata_url.removeprefix("http://").removesuffix("/metadata")
    assert_clean(run(ray_cluster, "MooncakeStore", "--master", mooncake.master_address, "--metadata", metadata))


REPORT = """<testsuites><testsuite>
<testcase classname="test_kv_interface_e2e.TestX" name="good" time="0.5"/>
<testcase classname="test_kv_interface_e2e.TestX" name="bad" time="0.5"><failure message="assert 1 == 2"/></testcase>
<testcase classname="test_kv_interface_e2e.TestX" name="worse" time="0.5"><error message="no fixture"/></testcase>
<testcase classname="test_kv_storage_manager" name="elsewhere" time="0.5"><skipped/></testcase>
</testsuite></testsuites>"""


def test_the_tool_counts_what_failed(tool: ModuleType) -> None:
    """Failures and errors are counted and told by name, each in its own suite; no pass at all is no success."""
    cases = list(ET.fromstring(REPORT).iter("testcase"))
    kv = tool._outcome("kv", [case for case in cases if tool._is_of(case, Path("x/test_kv_interface_e2e.py"))])
    manager = tool._outcome(
        "manager", [case for case in cases if tool._is_of(case, Path("x/test_kv_storage_manager.py"))]
    )
    assert (kv.passed, kv.failed, kv.skipped, kv.seconds, kv.is_clean) == (1, 2, 0, 1.5, False)
    assert "TestX.bad: assert 1 == 2" in kv.failures[0]
    assert (manager.passed, manager.skipped, manager.is_clean) == (0, 1, False)


def test_the_tool_runs_unchanged_files_alone(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite that differs from the wheel's record is refused; one that does not is copied as it is."""
    copied = tool.suites_folder(["manager"], tmp_path)["manager"]
    assert b"def test_put_data_with_custom_backend_meta" in copied.read_bytes()
    changed = tmp_path / "changed"
    changed.write_text("def test_nothing(): pass")
    monkeypatch.setattr(tool.PackagePath, "locate", lambda self: changed)
    with pytest.raises(SystemExit, match="not the file of the wheel"):
        tool.suites_folder(["manager"], tmp_path)


def test_the_packages_own_backend_is_never_left_to_itself(tool: ModuleType) -> None:
    """Its own ``auto_init`` kills every master of the machine: the tool refuses to run it without one that is named."""
    with pytest.raises(SystemExit, match="kills every mooncake_master"):
        tool.section_of("MooncakeStore", argparse.Namespace(master=None, metadata=None))
    section = tool.section_of("MooncakeStore", argparse.Namespace(master="h:1", metadata="h:2"))
    assert section["auto_init"] is False
