"""The benchmark as a whole, small."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.ops.bench.peers import PEERS
from penstock.ops.bench.run import BenchOptions
from penstock.ops.cli import app
from penstock.ops.report import ExitCode
from tests.leaks import descendants

runner = CliRunner()


def test_quick_run_measures_penstock_beside_memcpy(tmp_path: Path) -> None:
    """One JSON object, also in the file: figures of both, ratios, goals, machine and versions."""
    output = tmp_path / "bench.json"
    result = runner.invoke(
        app, ["bench", "--quick", "--repeats", "1", "--only", "penstock", "--json", "-o", str(output)]
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads(output.read_text())
    assert found["left_out"] == {}
    operations = {f["operation"] for f in found["figures"] if f["peer"] == "penstock"}
    assert operations == {"put", "put list", "get", "get header", "get half", "claim", "ack", "pop"}
    assert {"memcpy", "penstock"} == {f["peer"] for f in found["figures"]}
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["penstock"]


def test_missing_peer_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer whose packages are not installed is left out, with the reason."""
    monkeypatch.setitem(PEERS, "ray", ("no-such-distribution",))
    result = runner.invoke(app, ["bench", "--quick", "--repeats", "1", "--only", "ray", "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["left_out"] == {"ray": "not installed: no-such-distribution"}
    assert {"memcpy"} == {f["peer"] for f in found["figures"]}


@pytest.mark.slow
def test_ledger_part_measures_sizes_memory_and_restart() -> None:
    """Per size: medians, ratios to the smallest, bytes a row and the time to come back."""
    result = runner.invoke(app, ["bench", "--quick", "--repeats", "1", "--only", "ledger", "--json"])
    assert result.exit_code == 0, result.stderr
    small, large = json.loads(result.stdout)["ledger"]
    assert small["of_smallest"] == small["cpu_of_smallest"] == {"put": 1.0, "claim": 1.0, "pop": 1.0}
    assert all(value > 0 for value in large["plane_cpu_ms"].values())
    assert large["live_rows"] == 10_000
    assert large["restart_s"] > 0


def test_interrupted_benchmark_leaves_no_process() -> None:
    """Ctrl-C in the middle: exit code 130, no traceback, and all workers are gone."""
    command = [sys.executable, "-m", "penstock", "bench", "--only", "redis", "--only", "safetensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        said = [program.stderr.readline()]
        while said[-1] and "turn 1" not in said[-1]:
            said.append(program.stderr.readline())
        workers = list(descendants(program.pid))
        program.send_signal(signal.SIGINT)
        _, rest = program.communicate(timeout=60)
    assert workers
    assert program.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in "".join([*said, rest])
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


def test_options_choose_what_is_measured() -> None:
    """``--quick`` is small, ``--full`` adds a million rows, ``--repeats`` wins over both."""
    assert BenchOptions(quick=True).batches == ("ragged",)
    assert BenchOptions(full=True).sizes[-1] == 1_000_000
    assert BenchOptions(quick=True, repeats=7).laps == 7
    assert BenchOptions(only=("redis",)).wants("redis")
    assert not BenchOptions(only=("redis",)).wants("ledger")
