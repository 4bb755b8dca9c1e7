"""The command line against a plane on another machine, as far as one machine can play two."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from penstock.ops.cli import app
from penstock.ops.report import ExitCode
from penstock.wire.auth import new_token
from tests.plane.sites import Site

runner = CliRunner()


class Desk:
    """An operator's, with a plane of one host and two rows elsewhere."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def ask(self, *arguments: str) -> Result:
        far = ["--plane", self.site.plane.url, "--token-file", str(self.site.plane.token_file)]
        return runner.invoke(app, [*arguments, *far])

    def answer(self, *arguments: str) -> Any:
        result = self.ask(*arguments, "--json")
        assert result.exit_code == ExitCode.OK, result.output
        return json.loads(result.stdout)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with Site(tmp_path_factory.mktemp("site"), hosts="a") as site:
        with site.client() as client:
            client.register_partition("train", ["x"], 8, ["train"])
            client.put_samples(["a", "b"], "train", {"x": torch.zeros(2, 3)})
        yield Desk(site)


def test_a_plane_elsewhere_is_looked_at_by_its_url(desk: Desk) -> None:
    """Each command that looks works by URL and token; none needs an agent here."""
    assert [host["place"]["name"] for host in desk.answer("status")["hosts"]] == ["a"]
    assert desk.answer("audit")["residue"] == 0
    assert len(desk.answer("ls")["partitions"][0]["groups"]) == 2
    assert desk.answer("why", "--partition", "train", "--key", "a")["subject"]
    assert "penstock_rows" in desk.ask("metrics").stdout


def test_the_doctor_knocks_at_every_host(desk: Desk) -> None:
    """The plane takes us, its host is up, and its ports answer; an agent here is only noted as missing."""
    found = {f["check"]: f for f in desk.answer("doctor")["findings"]}
    assert found["plane"]["severity"] == "ok"
    assert found["host a"]["severity"] == "ok"
    assert found["this host's agent"]["severity"] == "note"
    assert "penstock host" in found["this host's agent"]["found"]


def test_the_doctor_finds_a_host_that_does_not_answer(desk: Desk) -> None:
    """Known to the plane as up, and yet not to be read from here: that is what it is there to find."""
    desk.site.agents["a"].process.send_signal(signal.SIGSTOP)
    try:
        found = {f["check"]: f for f in desk.answer("doctor")["findings"]}
        assert found["host a"]["severity"] == "warning"
        assert "not to be read from here" in found["host a"]["found"]
    finally:
        desk.site.agents["a"].process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_another_token_is_said_to_be_another(desk: Desk, tmp_path: Path, command: str) -> None:
    """And what to do."""
    new_token(tmp_path / "token")
    result = runner.invoke(
        app, [command, "--plane", desk.site.plane.url, "--token-file", str(tmp_path / "token"), "--json"]
    )
    assert result.exit_code == (ExitCode.UNAVAILABLE if command == "status" else ExitCode.FINDING)
    assert "use the token file of that plane" in result.output


def test_without_a_token_nothing_is_dialled(desk: Desk) -> None:
    """The error says which option is missing."""
    result = runner.invoke(app, ["status", "--plane", desk.site.plane.url], env={"PENSTOCK_TOKEN_FILE": ""})
    assert result.exit_code == ExitCode.USAGE
    assert "--token-file" in result.output


def test_a_plane_that_is_not_there_is_not_waited_for(desk: Desk) -> None:
    """The answer comes at once, with how to start it."""
    far = ["--plane", "penstock://127.0.0.1:1", "--token-file", str(desk.site.plane.token_file), "--timeout", "60"]
    result = runner.invoke(app, ["status", *far])
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "penstock serve" in result.output
