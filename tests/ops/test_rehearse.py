"""``penstock sim``: worlds of both kinds, as a table and as JSON."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from penstock.ops.cli import app
from penstock.ops.report import ExitCode

runner = CliRunner()


@pytest.mark.parametrize("kind", ["plane", "run"])
def test_worlds_of_both_kinds_are_summed_up(kind: str) -> None:
    """Violations are a number; what the worlds did is told; the same seeds do the same."""
    told = [runner.invoke(app, ["sim", "--kind", kind, "--worlds", "3", "--seed", "7", "--json"]) for _ in range(2)]
    first, again = (json.loads(result.stdout) for result in told)
    assert told[0].exit_code == ExitCode.OK
    assert (first["kind"], first["worlds"], first["seed"], first["violations"]) == (kind, 3, 7, 0)
    assert (first["run"].get("lives", 0) >= 3) == (kind == "run")
    assert first["operations"] == again["operations"] > 0


def test_clients_of_a_plane_are_the_default() -> None:
    """As before there was a choice."""
    assert json.loads(runner.invoke(app, ["sim", "--worlds", "1", "--json"]).stdout)["kind"] == "plane"


def test_a_kind_that_is_not_there_is_a_usage_error() -> None:
    """Exit code 2."""
    assert runner.invoke(app, ["sim", "--kind", "nonsense"]).exit_code == ExitCode.USAGE


def test_the_table_says_what_runs_did() -> None:
    """Steps, prompts and lives of the controller, for people."""
    said = runner.invoke(app, ["sim", "--kind", "run", "--worlds", "2"]).output
    for word in ("every promise was kept", "steps", "prompts trained", "lives", "faults fired"):
        assert word in said


def test_an_exploration_that_had_no_time_is_a_finding() -> None:
    """``explore slot`` with no budget has found none of the planted bugs, and says so."""
    told = runner.invoke(app, ["explore", "slot", "--budget-s", "0", "--json"])
    found = json.loads(told.stdout)
    assert told.exit_code == ExitCode.FINDING
    assert (found["complete"], found["violations"], found["planted_found"]) == (False, 0, 0)
    assert found["planted_total"] >= 8
