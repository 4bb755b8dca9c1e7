"""``penstock host``: what it refuses before anything is begun, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.ops.cli import app
from penstock.wire.auth import new_token


def refused(*arguments: str) -> str:
    """Run it; return what it says, which must be a refusal for wrong usage."""
    done = CliRunner().invoke(app, ["host", *arguments])
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())  # lines are wrapped where the path is long


def test_plane_and_token_have_to_be_named() -> None:
    """Each by its own sentence."""
    assert "--plane" in refused()
    assert "--token-file" in refused("--plane", "penstock://127.0.0.1:1")


@pytest.mark.parametrize(
    "option", [["--listeners", "0"], ["--max-bytes", "-1"], ["--set", "no_such=1"], ["--set", "x"]]
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, option: list[str]) -> None:
    """Before the directory is made."""
    token = tmp_path / "token"
    new_token(token)
    target = tmp_path / "alpha"
    refused("--plane", "penstock://127.0.0.1:1", "--token-file", str(token), "--dir", str(target), *option)
    assert not target.exists()


def test_a_planes_directory_is_not_an_agents(tmp_path: Path) -> None:
    """Its files would be nobody's; the remedy is in the message."""
    token = tmp_path / "token"
    new_token(token)
    (tmp_path / "journal").mkdir()
    done = CliRunner().invoke(
        app, ["host", "--plane", "penstock://127.0.0.1:1", "--token-file", str(token), "--dir", str(tmp_path)]
    )
    assert done.exit_code != 0
    assert not (tmp_path / "host.json").exists()


def test_a_url_or_token_that_cannot_be_is_wrong_usage(tmp_path: Path) -> None:
    """As `--help` promises: exit code 2, with the sentence that says what is wrong; not "no plane answered"."""
    token = tmp_path / "token"
    new_token(token)
    assert "penstock://" in refused("--plane", "tcp://127.0.0.1:1", "--token-file", str(token))
    assert "cannot be read" in refused("--plane", "penstock://127.0.0.1:1", "--token-file", str(tmp_path / "none"))
    token.chmod(0o644)
    assert "chmod 600" in refused("--plane", "penstock://127.0.0.1:1", "--token-file", str(token))
