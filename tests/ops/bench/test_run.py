"""The benchmark as a whole, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.ops.bench.peers import PEERS
from penstock.ops.bench.run import BenchOptions
from penstock.ops.cli import app

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
    assert small["of_smallest"] == {"put": 1.0, "claim": 1.0, "pop": 1.0}
    assert large["live_rows"] == 10_000
    assert large["restart_s"] > 0


def test_options_choose_what_is_measured() -> None:
    """``--quick`` is small, ``--full`` adds a million rows, ``--repeats`` wins over both."""
    assert BenchOptions(quick=True).batches == ("ragged",)
    assert BenchOptions(full=True).sizes[-1] == 1_000_000
    assert BenchOptions(quick=True, repeats=7).laps == 7
    assert BenchOptions(only=("redis",)).wants("redis")
    assert not BenchOptions(only=("redis",)).wants("ledger")
