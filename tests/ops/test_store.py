"""``penstock store`` and ``penstock serve --store``, as users start them, and what operators see of a store."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.ops.cli import app
from penstock.ops.report import ExitCode
from tests.host.harness import TcpPlane
from tests.server.harness import DEADLINE_S, PlaneProcess, RawClient, eventually

runner = CliRunner()
URL = "memory://pool"  # the agent's own: fit for looking at its life


@contextmanager
def started(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """A command in the foreground, and what it says of itself once it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.stdout.close()
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def test_a_stores_agent_is_run_for_a_plane_on_this_machine(tmp_path: Path) -> None:
    """It says which host of the plane the store is; SIGTERM ends it, exit code 0; operators see both."""
    with PlaneProcess(tmp_path / "plane") as plane, RawClient(plane.data_dir).open() as client:
        with started("store", "--data-dir", str(plane.data_dir), "--store", URL, "--name", "pool") as (agent, said):
            (host,) = client.status().hosts
            assert (said["host_id"], said["name"], said["store"]) == (host.place.host_id, "pool", URL)
            assert host.state == "up"
            shown = runner.invoke(app, ["status", "--data-dir", str(plane.data_dir)]).stdout
            assert URL in shown
            agent.terminate()
            assert agent.wait(DEADLINE_S) == 0
        eventually("it is missed", lambda: client.status().hosts[0].state == "silent")


def test_a_stores_agent_is_run_for_a_plane_elsewhere(tmp_path: Path) -> None:
    """By URL and token; the doctor knocks at the store."""
    with TcpPlane(tmp_path / "plane") as plane:
        far = ["--plane", plane.url, "--token-file", str(plane.token_file)]
        with started("store", *far, "--store", URL) as (agent, said):
            assert said["plane"] == plane.url
            found = json.loads(runner.invoke(app, ["doctor", *far, "--json"]).stdout)["findings"]
            (store,) = [finding for finding in found if finding["check"] == f"store {URL}"]
            assert store["severity"] == "ok"
            agent.send_signal(signal.SIGINT)
            assert agent.wait(DEADLINE_S) == 0


def test_serve_runs_the_agent_of_its_store(tmp_path: Path) -> None:
    """One command; both end with it."""
    folder = tmp_path / "plane"
    with started("serve", "--data-dir", str(folder), "--store", URL, "--set", "max_bytes=32e6") as (plane, _):
        with RawClient(folder).open() as client:
            eventually("the store is enlisted", lambda: [h.state for h in client.status().hosts] == ["up"])
        plane.terminate()
        assert plane.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["store", "--data-dir", "x"], "which store"),
        (["store", "--store", "s3", "--data-dir", "x"], "unknown store 's3'"),
        (["store", "--store", URL], "of which plane"),
        (["store", "--store", URL, "--plane", "penstock://h:1"], "--token-file"),
        (["serve", "--data-dir", "x", "--store", "s3://x"], "unknown store 's3://x'"),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong usage, exit code 2, and nothing is begun."""
    for name in ("PENSTOCK_DATA_DIR", "PENSTOCK_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    result = runner.invoke(app, arguments)
    assert result.exit_code == ExitCode.USAGE, result.output
    assert says in result.output


@pytest.mark.slow
def test_a_store_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    """A setting that nobody knows: the agent never serves, and says why."""
    url = "mooncake://127.0.0.1:1?nonsense=1"
    with PlaneProcess(tmp_path / "plane") as plane:
        command = ["store", "--data-dir", str(plane.data_dir), "--store", url, "--json"]
        told = subprocess.run(
            [sys.executable, "-m", "penstock", *command], capture_output=True, check=False, timeout=60
        )
        assert told.returncode == ExitCode.UNAVAILABLE
        assert b"known settings" in told.stdout
