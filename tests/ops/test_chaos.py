"""``penstock chaos``: the table of points, and a soak's options, answer and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.demo.prompt_books import PromptBooks
from penstock.demo.soak import launcher
from penstock.demo.soak.options import PairFigures, SoakOptions, SoakResult
from penstock.demo.soak.verdict import Times
from penstock.ops.cli import app
from penstock.ops.report import ExitCode, plain
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


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "worker/server.received"], "is no role, no point and no role/point"),
        (["--pairs", "--only", "worker"], "--only"),
        (["--faults", "0"], "equal to 1"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(arguments: list[str], says: str) -> None:
    """It is said before anything is started."""
    said = runner.invoke(app, ["chaos", *arguments])
    assert said.exit_code == ExitCode.USAGE
    assert says in said.stderr


def result(**changed: Any) -> SoakResult:
    """A soak that found nothing, but for what is changed."""
    times = Times(count=2, p50=1.25, p95=2.5, max=2.5)
    fields: dict[str, Any] = {
        "ok": True,
        "findings": [],
        "interrupted": False,
        "seed": 7,
        "replay": "penstock chaos --seed 7 --faults 3",
        "folder": None,
        "seconds": 12.0,
        "strikes": 2,
        "fired": 3,
        "faults": {"kill": {"worker": 2}, "stop": {"plane": 1}, "terminate": {}},
        "by_place": {"worker/client.put": 3},
        "never_fired": ["strike 9: kill worker at worker:worker.put #3: its point was reached twice"],
        "places": 62,
        "places_struck": 1,
        "steps": 40,
        "first_reward": 0.1,
        "reward": 0.5,
        "put": 640,
        "acknowledged": 640,
        "trained": 640,
        "evicted": {"stale": 8},
        "recovered": 0,
        **{name: [] for name in ("lost", "duplicated", "corrupted", "phantom", "stale", "stuck", "left")},
        "residue": 0,
        "prompts": PromptBooks(dispatched=9, trained=8, open=1),
        "recovery_s": {"worker": times},
        "after_stop_s": {},
        "resume_s": times,
        "resume_alone_s": None,
        "strike_s": {"all": times},
        "pairs": {"plane+worker": PairFigures(strikes=1, fired=2, slowest_s=3.0)},
        "died": {},
    }
    return SoakResult(**fields | changed)


@pytest.fixture
def soaked(monkeypatch: pytest.MonkeyPatch) -> Callable[[SoakResult], list[SoakOptions]]:
    """Let the command find that result; return what it was asked for."""

    def find(found: SoakResult) -> list[SoakOptions]:
        asked: list[SoakOptions] = []

        def run(options: SoakOptions, say: Callable[[str], None]) -> SoakResult:
            asked.append(options)
            say("3 faults so far")
            return found

        monkeypatch.setattr(launcher, "run", run)
        return asked

    return find


def test_options_become_what_is_asked_for(soaked: Callable[[SoakResult], list[SoakOptions]], tmp_path: Path) -> None:
    """Each of them; without a word it is a minute of everything."""
    asked = soaked(result())
    words = ["--seed", "7", "--faults", "3", "--seconds", "9", "--only", "worker", "--only", "client.put"]
    assert runner.invoke(app, ["chaos", *words, "--out", str(tmp_path)]).exit_code == ExitCode.OK
    assert runner.invoke(app, ["chaos", "--pairs"]).exit_code == ExitCode.OK
    assert runner.invoke(app, ["chaos"]).exit_code == ExitCode.OK
    full = SoakOptions(seed=7, faults=3, seconds=9.0, only=("worker", "client.put"), out=tmp_path)
    assert asked == [full, SoakOptions(pairs=True), SoakOptions()]
    assert [options.limit_s for options in asked] == [9.0, None, 60.0]
    assert full.replay == "penstock chaos --seed 7 --faults 3 --seconds 9 --only worker --only client.put"
    assert asked[1].replay == "penstock chaos --seed 0 --pairs"


def test_people_are_shown_tables_and_programs_the_whole_result(
    soaked: Callable[[SoakResult], list[SoakOptions]],
) -> None:
    """Progress is on stderr, so that stdout is the answer alone."""
    soaked(found := result())
    shown = runner.invoke(app, ["chaos"], env={"COLUMNS": "200"})
    for word in (
        "3 faults in 2 strikes",
        "1.25, 2.50, 2.50 s",
        "8 stale",
        "strike at all",
        "plane+worker",
        "strike 9",
        "PASS",
    ):
        assert word in shown.stdout
    assert "3 faults so far" in shown.stderr
    told = runner.invoke(app, ["chaos", "--json"])
    assert json.loads(told.stdout) == plain(found)
    assert told.stdout.count("\n") == 1


def test_a_finding_is_exit_code_1_with_the_way_to_replay(
    soaked: Callable[[SoakResult], list[SoakOptions]],
) -> None:
    """Seed, command and logs are named, for people and beside the JSON."""
    soaked(result(ok=False, findings=["1 prompts trained twice: '3'"], folder="/tmp/logs"))
    for words in (["chaos"], ["chaos", "--json"]):
        shown = runner.invoke(app, words, env={"COLUMNS": "200"})
        assert shown.exit_code == ExitCode.FINDING
        assert "replay: penstock chaos --seed 7 --faults 3; logs: /tmp/logs" in shown.stderr
    assert "FAIL: 1 prompts trained twice" in runner.invoke(app, ["chaos"], env={"COLUMNS": "200"}).stdout


def test_an_interrupted_soak_is_told_and_is_not_a_success(
    soaked: Callable[[SoakResult], list[SoakOptions]],
) -> None:
    """What was found by then is printed all the same."""
    soaked(result(interrupted=True))
    shown = runner.invoke(app, ["chaos"], env={"COLUMNS": "200"})
    assert shown.exit_code == ExitCode.INTERRUPTED
    assert "interrupted" in shown.stdout
