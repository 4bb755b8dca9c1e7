"""Faults on the demo's own processes: ordinary ones, that a director hears of by the launcher's hand."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.demo.processes import SPARES, Processes
from penstock.demo.reaching import connect
from penstock.demo.spec import RunFiles, RunSpec, TaskSpec
from penstock.testing.director import Director
from penstock.testing.faults import Sentence, kill, stop, terminate
from penstock.wire.paths import arena_files

SOON_S = 30.0
SPARE_SCRIPT = """
import sys
from penstock.points import reached
from penstock.testing.injection import take_part
take_part(int(sys.argv[1]))
sys.stdin.readline()
reached("worker.put")
sys.stdin.read()
"""


@pytest.fixture
def director() -> Iterator[Director]:
    with Director() as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    made = RunFiles(tmp_path)
    made.create(RunSpec(task=TaskSpec()))
    return made


@pytest.fixture
def processes(files: RunFiles, director: Director) -> Iterator[Processes]:
    made = Processes(files, lambda *_: None, lambda *_: None, director=director)
    yield made
    director.close()
    made.close()
    for path, _ in arena_files(files.plane):  # of a plane that could not end by itself
        path.unlink(missing_ok=True)


def until(director: Director, happened: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not happened():
        assert time.monotonic() < end, director.shortfalls()
        director.turn(0.05)


def until_fired(director: Director, sentence: Sentence) -> None:
    until(director, lambda: [f.sentence for f in director.fired] == [sentence])
    assert director.missed == []


@pytest.mark.parametrize("point", ["server.replayed", "server.listening"])
def test_the_plane_is_killed_at_its_points(
    processes: Processes, director: Director, files: RunFiles, point: str
) -> None:
    """The run's plane is the product's own, in a process that takes part; its next life serves."""
    director.arm(sentence := kill("plane", at=point))
    pid = processes.start("plane-0").process.pid
    until_fired(director, sentence)
    assert director.fired[0].pid == pid
    until(director, lambda: [(ended.pid, ended.status) for ended in processes.reap()] == [(pid, -9)])
    processes.start("plane-0")
    with connect(files, "test-0.1") as client:
        assert client.status().served


def test_a_plane_that_runs_is_armed_stopped_and_goes_on(
    processes: Processes, director: Director, files: RunFiles
) -> None:
    """A sentence that comes while it serves hits its next call; the stop ends by itself."""
    processes.start("plane-0")
    with connect(files, "test-0.1") as client:
        client.ping()
        director.arm(sentence := stop("plane", at="server.received", for_s=0.2))
        until_fired(director, sentence)  # its heartbeat
        until(director, lambda: not director.busy)
        client.ping()


def test_a_plane_is_killed_on_its_way_out(processes: Processes, director: Director, files: RunFiles) -> None:
    """SIGTERM begins a clean end, and the second fault strikes in it."""
    processes.start("plane-0")
    with connect(files, "test-0.1"):
        director.arm(terminate("plane", at="server.received"), kill("plane", at="server.parted"))
        until(director, lambda: len(director.fired) == 2)
    until(director, lambda: [ended.status for ended in processes.reap()] == [-9])


def test_a_spare_is_hit_as_what_it_became(files: RunFiles, director: Director) -> None:
    """The seat is the process's, whoever it is; until then no sentence about workers concerns it."""
    processes = Processes(
        files,
        lambda *_: None,
        lambda *_: None,
        lambda _root, _peer: [sys.executable, "-c", SPARE_SCRIPT],
        director,
    )
    director.arm(sentence := kill("worker", at="worker.put"), kill("spare", at="worker.committed"))
    spare = processes.start(SPARES[0])
    worker = processes.start("worker-1")
    until_fired(director, sentence)
    assert director.fired[0].pid == spare.process.pid == worker.process.pid
    processes.close()


def test_without_a_director_nobody_takes_part(files: RunFiles) -> None:
    """The processes of an ordinary run are given nothing."""
    processes = Processes(files, lambda *_: None, lambda *_: None, lambda *_: [sys.executable, "-c", "input()"])
    life = processes.start("worker-0")
    assert life.seat is None
    assert isinstance(life.process, subprocess.Popen)
    assert life.process.args == [sys.executable, "-c", "input()"]
    processes.close()
