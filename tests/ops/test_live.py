"""The command line against a plane that runs."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import DataPlaneUnavailable
from penstock.ops.cli import app
from penstock.ops.report import ExitCode
from penstock.plane.local import LocalDataPlaneClient
from penstock.wire.paths import arena_files, socket_path

START_S = 60.0
runner = CliRunner()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plane with four groups of two rows, of which one group is leased and one is trained."""
    folder = tmp_path_factory.mktemp("plane")
    with LocalDataPlaneClient(folder, plane=PlaneConfig(linger_s=0.1)) as client:
        client.register_partition("train", ["x"], 8, ["train"], grpo_group_size=2)
        for group in range(4):
            keys = [f"p{group}_g{i}" for i in range(2)]
            tags = [{"group_id": f"p{group}", "committed": True, "weight_version": group} for _ in keys]
            client.put_samples(keys, "train", {"x": torch.zeros(2, 3)}, tags)
        client.pop(client.claim_meta("train", "train", ["x"], 2).sample_ids, "train")
        client.claim_meta("train", "train", ["x"], 2)
        yield folder


def ask(plane: Path, *arguments: str) -> Result:
    return runner.invoke(app, [*arguments, "--data-dir", str(plane)])


def answer(plane: Path, *arguments: str) -> Any:
    result = ask(plane, *arguments, "--json")
    assert result.exit_code == ExitCode.OK, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def test_audit_balances(plane: Path) -> None:
    """The equation of each partition, by name, and a residue of 0."""
    found = answer(plane, "audit")
    assert (found["residue"], found["lost"]) == (0, 0)
    (train,) = found["partitions"]
    assert {name: train[name] for name in ("put", "in_flight", "leased", "trained")} == {
        "put": 8,
        "in_flight": 4,
        "leased": 2,
        "trained": 2,
    }
    assert train["equation"].startswith("put 8 = in flight 4 + leased 2 + trained 2")


def test_status_shows_partition_and_session(plane: Path) -> None:
    """Who is there, and what lies in the plane."""
    found = answer(plane, "status")
    assert found["pid"] != os.getpid()
    assert [p["partition"] for p in found["partitions"]] == ["train"]
    assert found["partitions"][0]["depth"] == 3
    assert os.getpid() in {s["pid"] for s in found["sessions"]}
    assert "train" in ask(plane, "status").stdout


def test_groups_are_listed_page_by_page(plane: Path) -> None:
    """Each page names the group after which the next one begins; the last one names none."""
    first = answer(plane, "ls", "--partition", "train", "--limit", "2")["partitions"][0]
    assert [g["group_id"] for g in first["groups"]] == ["p1", "p2"]
    rest = answer(plane, "ls", "--partition", "train", "--limit", "2", "--after", first["more"])["partitions"][0]
    assert [g["group_id"] for g in rest["groups"]] == ["p3"]
    assert rest["more"] is None


def test_groups_ready_for_a_task_leave_out_leased_ones(plane: Path) -> None:
    """The filter is the plane's own."""
    found = answer(plane, "ls", "--ready-for", "train")["partitions"][0]["groups"]
    assert [g["group_id"] for g in found] == ["p2", "p3"]


def test_why_explains_a_row(plane: Path) -> None:
    """A leased row's story, and a task's."""
    assert answer(plane, "why", "--partition", "train", "--key", "p1_g0")["subject"]
    assert answer(plane, "why", "--partition", "train", "--task", "train")["subject"]


def test_unknown_names_are_usage_errors(plane: Path) -> None:
    """A partition or row that does not exist is the caller's mistake: exit code 2, and it is named."""
    for arguments in (["ls", "--partition", "nope"], ["why", "--partition", "nope", "--task", "train"]):
        result = ask(plane, *arguments)
        assert result.exit_code == ExitCode.USAGE
        assert "nope" in result.stderr


def test_metrics_are_text(plane: Path) -> None:
    """What a scraper reads."""
    assert 'penstock_audit_rows{partition="train",reason="",state="trained"} 2.0' in ask(plane, "metrics").stdout


def test_looking_leaves_no_session(plane: Path) -> None:
    """A command says goodbye: the next status shows one operator, itself."""
    ask(plane, "audit")
    assert [s["role"] for s in answer(plane, "status")["sessions"]].count("operator") == 1


def test_stopped_plane_costs_the_timeout_only(plane: Path) -> None:
    """A plane that does not answer is exit code 69, within ``--timeout``."""
    pid = answer(plane, "status")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert ask(plane, "audit", "--timeout", "0.5").exit_code == ExitCode.UNAVAILABLE
        assert time.monotonic() - begun < 20.0
    finally:
        os.kill(pid, signal.SIGCONT)


# -- programs ---------------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def first_line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    assert select.select([program.stdout], [], [], START_S)[0], "it said nothing"
    return program.stdout.readline()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_where_it_listens_and_ends_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    """One JSON object once it serves; Ctrl-C or SIGTERM is its normal end, and leaves no socket and no memory."""
    with start("serve", "--data-dir", str(tmp_path), "--json") as program:
        said = json.loads(first_line(program))
        assert (said["pid"], said["socket"]) == (program.pid, str(socket_path(tmp_path)))
        assert answer(tmp_path, "status")["served"]
        program.send_signal(number)
        out, _ = program.communicate(timeout=START_S)
        assert (program.returncode, out) == (0, "")
    assert not socket_path(tmp_path).exists()
    assert ask(tmp_path, "status").exit_code == ExitCode.UNAVAILABLE


def test_second_serve_of_a_directory_is_refused(tmp_path: Path) -> None:
    """Exit code 69, and the one JSON object names the process that serves."""
    with start("serve", "--data-dir", str(tmp_path), "--json") as program:
        first_line(program)
        second = start("serve", "--data-dir", str(tmp_path), "--json")
        out, _ = second.communicate(timeout=START_S)
        assert second.returncode == ExitCode.UNAVAILABLE
        assert str(program.pid) in json.loads(out)["error"]["message"]
        program.terminate()
        program.communicate(timeout=START_S)


def test_interrupted_command_leaves_with_130() -> None:
    """Ctrl-C in the middle of a long command is an exit code, without a traceback."""
    program = subprocess.Popen(
        [sys.executable, "-m", "penstock", "sim", "--worlds", "1000000"], stderr=subprocess.PIPE, text=True
    )
    assert program.stderr is not None
    assert select.select([program.stderr], [], [], START_S)[0], "it said nothing"
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=START_S)
    assert program.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in said


def test_client_that_may_not_start_one_only_joins(tmp_path: Path) -> None:
    """Where no plane runs, ``start=False`` is unavailable and starts nothing; where one runs it joins."""
    with pytest.raises(DataPlaneUnavailable, match="penstock serve"):
        LocalDataPlaneClient(tmp_path, config=ClientConfig(timeout_s=0.3), start=False)
    assert list(tmp_path.iterdir()) == []
    with LocalDataPlaneClient(tmp_path, plane=PlaneConfig(linger_s=0.1)):
        LocalDataPlaneClient(tmp_path, start=False).close()


def test_doctor_finds_what_a_killed_plane_left(tmp_path: Path) -> None:
    """After kill -9 its segment is a warning that says how to recover the rows; only --discard-rows drops them."""
    with start("serve", "--data-dir", str(tmp_path), "--json") as program:
        first_line(program)
        (segment,) = [path for path, arena in arena_files(tmp_path) if arena.in_shm]
        program.kill()
        program.communicate(timeout=START_S)

    def leftovers(*options: str) -> str:
        found = json.loads(ask(tmp_path, "doctor", "--json", *options).stdout)["findings"]
        mine = [f for f in found if f["check"] == "leftover segments" and segment.name in f["found"]]
        return "; ".join(f"{f['severity']}: {f['found']}: {f['remedy']}" for f in mine)

    assert leftovers().startswith("warning")
    assert f"penstock serve --data-dir {tmp_path}" in leftovers("--fix")
    assert segment.exists()
    assert "removed" in leftovers("--fix", "--discard-rows")
    assert not segment.exists()
    assert leftovers() == ""
