"""``penstock trace``: one sample's story, the export for Perfetto, and what it says when it cannot."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from penstock.config import PlaneConfig
from penstock.controller import events as ev
from penstock.controller.event_file import EVENTS_NAME, EventFile
from penstock.ops.cli import app
from penstock.ops.report import ExitCode
from penstock.plane.local import LocalDataPlaneClient
from tests.controller.histories import history
from tests.controller.perfetto import problems
from tests.controller.test_trace import STARTED, claimed, committed, dispatched, told, trained

runner = CliRunner()
POPPED = ev.Popped(step=1, keys=["run.0.0_g0"])
RUN = told(
    STARTED,
    dispatched(7, 1),
    ev.Again(prompt=7, attempt=2, why="stale"),
    dispatched(0, 1),
    ev.Again(prompt=0, attempt=2, why="[bold]ConnectionError[/]"),
    dispatched(0),
    committed(0),
    dispatched(7),
    committed(7),
    claimed(1, 0),
    ev.Ordered(step=1, attempt=1),
    trained(1, 0),
    POPPED,
)


@pytest.fixture(autouse=True)
def _no_plane_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_DATA_DIR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with its events."""
    with EventFile(tmp_path / EVENTS_NAME) as events:
        for event in RUN:
            events(event)
    return tmp_path


def ask(*arguments: str | Path) -> Result:
    return runner.invoke(app, ["trace", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("key", ["run.0.0_g0", "run.0.0", "0"])
def test_the_story_of_a_sample_as_json(run: Path, key: str) -> None:
    """A row, its group and its prompt: each event, and where it is; the file or its folder may be named."""
    found = json.loads(ask(key, "--events", run / EVENTS_NAME, "--json").stdout)
    assert found == json.loads(ask(key, "--events", run, "--json").stdout)
    assert found["lineage"]["now"] == "was trained in step 1 and removed"
    assert [line["event"] for line in found["lineage"]["lines"]][-2:] == ["Trained", "Popped"]
    assert (found["events"], found["plane"], found["perfetto"]) == (len(RUN), None, None)


def test_the_story_of_a_sample_for_people(run: Path) -> None:
    """A table: when, how long after, what; what a user's message holds is text, not markup."""
    said = ask("run.0.0_g0", "--events", run)
    assert said.exit_code == ExitCode.OK
    assert "row run.0.0_g0 of prompt 0, 1 other attempts" in said.stdout
    assert "now, after 7.000 s: was trained in step 1 and removed" in said.stdout
    assert "· prompt 0 goes again, as attempt 2: [bold]ConnectionError[/]" in said.stdout
    assert "3.000 s" in said.stdout


def test_an_unknown_key_is_wrong_usage_and_offers_near_ones(run: Path) -> None:
    """The exit code is 2; the names that are near are in the message."""
    said = ask("run.0.O_g0", "--events", run, "--json")
    assert said.exit_code == ExitCode.USAGE
    error = json.loads(said.stdout)["error"]
    assert error["type"] == "UnknownName"
    assert "'run.0.0_g0'" in error["message"]


def test_nothing_asked_for_and_no_events_are_wrong_usage(run: Path, tmp_path: Path) -> None:
    """Neither a key nor an export; a file that is not there; an export that cannot be written."""
    for wrong in (
        ask("--events", run),
        ask("0", "--events", tmp_path / "none"),
        ask("0"),
        ask("--events", run, "--perfetto", run),
    ):
        assert wrong.exit_code == ExitCode.USAGE
        assert wrong.stdout == ""


def test_damaged_events_are_a_finding(run: Path) -> None:
    """Exit code 1, and the line is named."""
    path = run / EVENTS_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[3:]]))
    said = ask("0", "--events", path, "--json")
    assert said.exit_code == ExitCode.FINDING
    assert "line 3" in json.loads(said.stdout)["error"]["message"]


@pytest.mark.parametrize("name", ["run.json", "run.json.gz"])
def test_a_run_is_exported_for_perfetto(tmp_path: Path, name: str) -> None:
    """The whole run, with or without a story, as a valid trace; packed where the name says so."""
    with EventFile(tmp_path / EVENTS_NAME) as events:
        for event in history(random.Random(4), 300):
            events(event)
    said = ask("--events", tmp_path, "--perfetto", tmp_path / name, "--json")
    assert said.exit_code == ExitCode.OK
    assert json.loads(said.stdout)["perfetto"] == str(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    trace = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
    assert problems(trace) == []
    assert len(trace["traceEvents"]) > 100


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plane in which prompt 7's group waits, in the second of two partitions."""
    folder = tmp_path_factory.mktemp("plane")
    with LocalDataPlaneClient(folder, plane=PlaneConfig(linger_s=0.1)) as client:
        for partition in ("other", "train"):
            client.register_partition(partition, ["x"], 8, ["train"], grpo_group_size=1)
        tags = [{"group_id": "run.7.0", "committed": True, "weight_version": 0}]
        client.put_samples(["run.7.0_g0"], "train", {"x": torch.zeros(1, 3)}, tags)
        yield folder


@pytest.mark.parametrize("key", ["run.7.0_g0", "run.7.0", "7"])
def test_the_planes_own_view_follows(run: Path, plane: Path, key: str) -> None:
    """Where a plane is named and knows the sample: what it waits for and its last events there."""
    found = json.loads(ask(key, "--events", run, "--data-dir", plane, "--json").stdout)
    assert found["lineage"]["now"] == "is in the plane and waits to be trained"
    assert found["plane"]["partition"] == "train"
    assert "run.7.0" in found["plane"]["report"]["subject"]
    assert found["plane"]["report"]["waits"]
    shown = ask(key, "--events", run, "--data-dir", plane)
    assert "waits for" in shown.stdout


def test_what_the_plane_does_not_say_fails_nothing(run: Path, plane: Path, tmp_path: Path) -> None:
    """A row that is gone, a partition that is not there, no plane at all: said, and the story stands."""
    gone = ask("run.0.0_g0", "--events", run, "--data-dir", plane, "--json")
    other = ask("run.7.0_g0", "--events", run, "--data-dir", plane, "--partition", "other", "--json")
    away = ask("run.0.0_g0", "--events", run, "--data-dir", tmp_path / "nowhere", "--json")
    for said, words in ((gone, "does not know"), (other, "partition 'other'"), (away, "no plane runs")):
        assert said.exit_code == ExitCode.OK
        found = json.loads(said.stdout)
        assert found["lineage"]["lines"]
        assert found["plane"]["report"] is None
        assert words in found["plane"]["none"]
    assert "does not know" in ask("run.0.0_g0", "--events", run, "--data-dir", plane).stdout
