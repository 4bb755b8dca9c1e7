"""``penstock chaos --list``: the whole table, for people and for programs."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from penstock.ops.cli import app
from penstock.ops.report import ExitCode
from penstock.points import POINTS

runner = CliRunner()


def test_list_shows_every_point() -> None:
    """Each point stands there with what it says."""
    shown = runner.invoke(app, ["chaos", "--list"], env={"COLUMNS": "300"})
    assert shown.exit_code == ExitCode.OK
    assert [p.name for p in POINTS if p.name not in shown.stdout or p.says not in shown.stdout] == []


def test_json_holds_every_field() -> None:
    """Name, role, room and sentence of each point, in the table's order."""
    found = json.loads(runner.invoke(app, ["chaos", "--list", "--json"]).stdout)["points"]
    assert [p["name"] for p in found] == [p.name for p in POINTS]
    assert found[0] == {"name": "client.putting", "role": "client", "room": "plane", "says": POINTS[0].says}


def test_asking_for_nothing_is_wrong_usage() -> None:
    """Without a word of what to do the command says what there is."""
    said = runner.invoke(app, ["chaos"])
    assert said.exit_code == ExitCode.USAGE
    assert "--list" in said.stderr
