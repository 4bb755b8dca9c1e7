"""Processes: heard in order, killed for sure, and none left."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.demo.messages import Heard, Left, PromptRef, Ready, RolledOut, Rollout
from penstock.demo.processes import SPARE, Ended, Processes, kind_of, slot_of
from penstock.demo.spec import RunFiles, RunSpec, TaskSpec

ECHO = """
import sys
print('{"type":"Ready"}', flush=True)
for line in sys.stdin:
    print('{"type":"RolledOut","prompts":[[1,0]],"reward":0.5,"at":1.5}', flush=True)
"""
SPARE_SCRIPT = """
import json, sys
order = json.loads(sys.stdin.readline() or '{"type":""}')
if order["type"] == "Become":
    print('{"type":"Ready"}', flush=True)
    sys.stdin.read()
"""
MUTE = "import sys; sys.stdin.read(); sys.stdout.write('{\"type\":')"
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", file=sys.stderr, flush=True)
time.sleep(600)
"""


class Stage:
    """Processes of one script, and what was heard of them."""

    def __init__(self, root: Path, script: str) -> None:
        files = RunFiles(root)
        files.create(RunSpec(task=TaskSpec()))
        self.heard: queue.SimpleQueue[Heard | Left] = queue.SimpleQueue()
        self.processes = Processes(files, self.heard.put, lambda _root, _peer: [sys.executable, "-c", script])

    def next(self) -> Heard | Left:
        return self.heard.get(timeout=30)


@pytest.fixture
def stages() -> Iterator[list[Stage]]:
    made: list[Stage] = []
    threads = threading.active_count()
    yield made
    for stage in made:
        stage.processes.close()
        assert stage.processes.slots() == []
    assert threading.active_count() == threads


def until_it_says(word: str, log: Path) -> None:
    deadline = time.monotonic() + 30
    while word not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def reaped(processes: Processes) -> list[Ended]:
    deadline = time.monotonic() + 30
    while not (ended := processes.reap()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return ended


def test_names_tell_slot_and_kind() -> None:
    """A peer is one life of a slot, a slot one place of a kind."""
    assert (slot_of("worker-1.7"), kind_of("worker-1.7"), kind_of("plane-0")) == ("worker-1", "worker", "plane")


def test_a_role_is_told_and_heard(tmp_path: Path, stages: list[Stage]) -> None:
    """Orders go in, answers come out, in order and under the name of the life that gave them."""
    stages.append(stage := Stage(tmp_path, ECHO))
    life = stage.processes.start("worker-0")
    assert stage.next() == Heard(life.peer, Ready())
    stage.processes.tell(life.peer, Rollout(0, [PromptRef(1, 0)]))
    assert stage.next() == Heard(life.peer, RolledOut([PromptRef(1, 0)], 0.5, 1.5))
    assert life.ready_at is not None


def test_a_kill_is_seen_in_the_exit_status(tmp_path: Path, stages: list[Stage]) -> None:
    """The news that a life left follows all it said; its slot is free and its next life has another name."""
    stages.append(stage := Stage(tmp_path, ECHO))
    life = stage.processes.start("worker-0")
    assert isinstance(stage.next(), Heard)
    pid = stage.processes.kill("worker-0")
    assert reaped(stage.processes) == [Ended(life.peer, pid, -9)]
    assert stage.next() == Left(life.peer)
    again = stage.processes.start("worker-0")
    assert again.peer != life.peer
    stage.processes.tell(life.peer, Rollout(0, []))  # to the dead: not an error, and not the new life's business
    assert stage.next() == Heard(again.peer, Ready())


def test_a_spare_becomes_the_first_that_is_needed(tmp_path: Path, stages: list[Stage]) -> None:
    """It is told whom to be, speaks under that name, and its place is free; a plane never comes from it."""
    stages.append(stage := Stage(tmp_path, SPARE_SCRIPT))
    spare = stage.processes.start(SPARE)
    assert stage.processes.start("plane-0").process.pid != spare.process.pid
    stage.processes.end(["plane-0"], grace_s=30)
    life = stage.processes.start("worker-0")
    assert life.process.pid == spare.process.pid
    assert stage.processes.life(SPARE) is None
    assert stage.next() == Heard(life.peer, Ready())
    assert (slot_of(life.peer), stage.processes.kill("worker-0")) == ("worker-0", spare.process.pid)
    assert [ended.peer for ended in reaped(stage.processes)] == [life.peer]
    assert stage.processes.start("worker-0").process.pid != spare.process.pid


def test_a_torn_line_is_no_message(tmp_path: Path, stages: list[Stage]) -> None:
    """A writer that dies within a line has said nothing by it."""
    stages.append(stage := Stage(tmp_path, MUTE))
    life = stage.processes.start("worker-0")
    stage.processes.end(["worker-0"], grace_s=30)
    assert stage.next() == Left(life.peer)


def test_ending_asks_first_and_kills_what_does_not_listen(tmp_path: Path, stages: list[Stage]) -> None:
    """A role ends with its orders; one that ignores that is killed after its grace."""
    stages.append(polite := Stage(tmp_path / "a", ECHO))
    stages.append(deaf := Stage(tmp_path / "b", STUBBORN))
    polite.processes.start("worker-0")
    deaf.processes.start("worker-0")
    assert isinstance(polite.next(), Heard)
    assert [ended.status for ended in polite.processes.end(["worker-0"], grace_s=30)] == [0]
    assert [ended.status for ended in deaf.processes.end(["worker-0"], grace_s=0.2)] == [-9]


def test_a_plane_is_asked_by_signal(tmp_path: Path, stages: list[Stage]) -> None:
    """It takes no orders: SIGTERM is the request, and in a hurry it is not waited for."""
    stages.append(stage := Stage(tmp_path / "a", "import time; time.sleep(600)"))
    stages.append(deaf := Stage(tmp_path / "b", STUBBORN))
    stage.processes.start("plane-0")
    deaf.processes.start("plane-0")
    until_it_says("deaf", deaf.processes.log_path("plane-0"))
    assert [ended.status for ended in stage.processes.end(["plane-0"], grace_s=30)] == [-15]
    assert [ended.status for ended in deaf.processes.end(["plane-0"], 600, hurry=lambda: True)] == [-9]


def test_what_a_role_prints_elsewhere_is_kept(tmp_path: Path, stages: list[Stage]) -> None:
    """Its stderr is in its log, life after life."""
    stages.append(stage := Stage(tmp_path, "import sys; print('last words', file=sys.stderr)"))
    for _ in range(2):
        stage.processes.start("worker-0")
        reaped(stage.processes)
    assert stage.processes.log_path("worker-0").read_text() == "last words\n" * 2
