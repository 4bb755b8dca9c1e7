"""The command line where no plane is needed: usage, exit codes, JSON, and that nothing is started by looking."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.ops.cli import app
from penstock.ops.report import ExitCode

LOOKING = (["status"], ["metrics"], ["ls"], ["audit"], ["why", "--partition", "p"])
TRYING = ("demo", "chaos", "sim", "explore", "bench")
COMMANDS = ("serve", "status", "metrics", "ls", "audit", "why", "trace", "doctor", *TRYING, "version")

runner = CliRunner()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    """``--help`` says what a command does and shows one line to type."""
    arguments = [command, "ledger", "--help"] if command == "explore" else [command, "--help"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == ExitCode.OK
    assert command == "version" or "Example: penstock" in result.output


@pytest.mark.parametrize("command", LOOKING)
def test_looking_never_starts_a_plane(command: list[str], tmp_path: Path) -> None:
    """Where no plane runs a command says how to start one, exits with 69, and leaves the directory as it was."""
    result = runner.invoke(app, [*command, "--data-dir", str(tmp_path)])
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "penstock serve --data-dir" in result.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", LOOKING)
def test_missing_directory_is_a_usage_error(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an option nor the environment names a plane: exit code 2, and both are named."""
    monkeypatch.delenv("PENSTOCK_DATA_DIR", raising=False)
    result = runner.invoke(app, [*command, "--json"])
    assert result.exit_code == ExitCode.USAGE
    message = json.loads(result.stdout)["error"]["message"]
    assert "--data-dir" in message
    assert "PENSTOCK_DATA_DIR" in message


def test_argument_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a plane; ``--data-dir`` names another."""
    monkeypatch.setenv("PENSTOCK_DATA_DIR", str(tmp_path / "environment"))
    said = runner.invoke(app, ["status", "--json"]).stdout
    assert "environment" in json.loads(said)["error"]["message"]
    said = runner.invoke(app, ["status", "--json", "--data-dir", str(tmp_path / "argument")]).stdout
    assert "argument" in json.loads(said)["error"]["message"]


def test_unknown_option_is_a_usage_error() -> None:
    """What the command line does not know is refused with code 2."""
    assert runner.invoke(app, ["status", "--nonsense"]).exit_code == ExitCode.USAGE
    assert runner.invoke(app, ["bench", "--only", "nonsense"]).exit_code == ExitCode.USAGE


def test_doctor_prints_one_json_object() -> None:
    """The findings, each with severity and remedy, and how many are problems."""
    result = runner.invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (ExitCode.FINDING if found["problems"] else ExitCode.OK)
    assert {"check", "severity", "found", "remedy"} == set(found["findings"][0])


def test_module_runs_as_a_program_without_torch() -> None:
    """``python -m penstock`` is the command, and looking costs no import of torch."""
    code = "import sys, penstock.ops.cli, penstock.ops.doctor, penstock.ops.connecting; print('torch' in sys.modules)"
    assert output_of("-c", code) == "False\n"
    assert json.loads(output_of("-m", "penstock", "version", "--json"))["penstock"]


def output_of(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
