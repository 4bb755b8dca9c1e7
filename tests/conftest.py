"""What holds for every test: nothing is left behind, a skip in CI is a failure, and a hang shows its stacks."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.leaks import STAMP, Watch

pytest_plugins = ["tests.mooncake_fixture", "tests.ray_cluster"]

GRACE_S = float(os.environ.get("PENSTOCK_TEST_GRACE_S", "15"))
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
NO_SKIP = "CI=true: only tests marked `hardware` may skip, and this one skipped: "

settings.register_profile("penstock", deadline=None)  # a busy machine is not a bug; pytest-timeout finds the hangs
settings.load_profile("penstock")


@pytest.fixture(scope="session", autouse=True)
def no_leaks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Fail the session when a process, a segment, a socket or a private directory of its own outlives it."""
    tmp_path_factory.getbasetemp()  # made before TMPDIR changes: failed tests keep their files
    stamp, folder = uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="pt-"))
    before = {name: os.environ.get(name) for name in (STAMP, "TMPDIR")}
    os.environ[STAMP], os.environ["TMPDIR"], tempfile.tempdir = stamp, str(folder), str(folder)
    watch = Watch(stamp, folder, alone=IN_CI)
    yield watch
    leaks = watch.leaks(GRACE_S)
    watch.end_processes()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)
    if leaks:
        pytest.fail("left behind by this session:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture(autouse=True)
def _seen_after(request: pytest.FixtureRequest, no_leaks: Watch) -> Iterator[None]:
    """Remember after which test something was there, so that a leak has a name."""
    yield
    no_leaks.look(request.node.nodeid)


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{NO_SKIP}{reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_xfail = hasattr(report, "wasxfail")
    if IN_CI and report.skipped and not is_xfail and item.get_closest_marker("hardware") is None:
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:  # a whole module: importorskip, or skip(allow_module_level=True)
        _refuse_skip(report)
    return report
