"""Processes: heard in order, killed for sure, and none left."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.demo.processes import SPARES, Ended, Processes, kind_of, slot_of
from penstock.demo.spec import RunFiles, RunSpec, TaskSpec

ECHO = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    print("heard", line, end="", flush=True)
"""
SPARE_SCRIPT = """
import json, sys
letter = json.loads(sys.stdin.readline() or '{"body":{"type":""}}')
if letter["body"]["type"] == "Become":
    print("ready,", letter["to"], flush=True)
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
        self.heard: queue.SimpleQueue[tuple[str, bytes | None]] = queue.SimpleQueue()  # None: the peer has left
        self.processes = Processes(
            files,
            lambda peer, line: self.heard.put((peer, line)),
            lambda peer: self.heard.put((peer, None)),
            lambda _root, _peer: [sys.executable, "-c", script],
        )

    def next(self) -> tuple[str, bytes | None]:
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


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_it_says(word: str, log: Path) -> None:
    until(lambda: word in log.read_text())


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
    """Lines go in and come out verbatim, in order and under the name of the life that said them."""
    stages.append(stage := Stage(tmp_path, ECHO))
    life = stage.processes.start("worker-0")
    assert stage.next() == (life.peer, b"ready\n")
    stage.processes.tell(life.peer, b"one\n")
    stage.processes.tell(life.peer, b"two\n")
    assert [stage.next(), stage.next()] == [(life.peer, b"heard one\n"), (life.peer, b"heard two\n")]
    assert life.ready_at is not None


def test_a_kill_is_seen_in_the_exit_status(tmp_path: Path, stages: list[Stage]) -> None:
    """The news that a life left follows all it said; its slot is free and its next life has another name."""
    stages.append(stage := Stage(tmp_path, ECHO))
    life = stage.processes.start("worker-0")
    assert stage.next() == (life.peer, b"ready\n")
    pid = stage.processes.kill("worker-0")
    assert reaped(stage.processes) == [Ended(life.peer, pid, -9)]
    assert stage.next() == (life.peer, None)
    again = stage.processes.start("worker-0")
    assert again.peer != life.peer
    stage.processes.tell(life.peer, b"hello\n")  # to the dead: not an error, and not the new life's business
    assert stage.next() == (again.peer, b"ready\n")


def test_a_life_is_heard_out_before_the_next_begins(tmp_path: Path) -> None:
    """Who has died is not reaped while something that it said is on its way: its successor could overtake it."""
    files = RunFiles(tmp_path)
    files.create(RunSpec(task=TaskSpec()))
    passing, pass_on = threading.Event(), threading.Event()

    def slow(_peer: str, _line: bytes) -> None:
        passing.set()
        assert pass_on.wait(30)

    processes = Processes(files, slow, lambda _peer: None, lambda *_: [sys.executable, "-c", "print('last words')"])
    try:
        life = processes.start("controller-0")
        assert passing.wait(30)
        assert isinstance(life.process, subprocess.Popen)
        assert life.process.wait(timeout=30) == 0
        assert processes.reap() == []
        pass_on.set()
        assert [ended.status for ended in reaped(processes)] == [0]
    finally:
        pass_on.set()
        processes.close()


def test_who_does_not_read_does_not_hold_up_the_end(tmp_path: Path, stages: list[Stage]) -> None:
    """Somebody is stuck in telling it something: it is killed instead of being asked."""
    stages.append(stage := Stage(tmp_path, STUBBORN))
    life = stage.processes.start("worker-0")
    teller = threading.Thread(target=stage.processes.tell, args=(life.peer, b"x" * (1 << 20)))
    teller.start()
    until(lambda: life.mouth.locked())
    assert [ended.status for ended in stage.processes.end(["worker-0"], grace_s=600)] == [-9]
    teller.join()


def test_a_spare_becomes_the_first_that_is_needed(tmp_path: Path, stages: list[Stage]) -> None:
    """It is told whom to be, speaks under that name, and its place is free; a plane never comes from it."""
    stages.append(stage := Stage(tmp_path, SPARE_SCRIPT))
    spare = stage.processes.start(SPARES[0])
    assert stage.processes.start("plane-0").process.pid != spare.process.pid
    stage.processes.end(["plane-0"], grace_s=30)
    life = stage.processes.start("worker-0")
    assert life.process.pid == spare.process.pid
    assert stage.processes.life(SPARES[0]) is None
    assert stage.next() == (life.peer, f"ready, {life.peer}\n".encode())
    assert (slot_of(life.peer), stage.processes.kill("worker-0")) == ("worker-0", spare.process.pid)
    assert [ended.peer for ended in reaped(stage.processes)] == [life.peer]
    assert stage.processes.start("worker-0").process.pid != spare.process.pid


def test_two_deaths_at_once_find_two_spares(tmp_path: Path, stages: list[Stage]) -> None:
    """The one that began first, and is likelier to be ready, goes first; the third has to begin."""
    stages.append(stage := Stage(tmp_path, SPARE_SCRIPT))
    pids = [stage.processes.start(spare).process.pid for spare in SPARES]
    started = [stage.processes.start(slot).process.pid for slot in ("trainer-0", "scorer-0", "worker-0")]
    assert started[:2] == pids
    assert started[2] not in pids


def test_a_torn_line_is_no_message(tmp_path: Path, stages: list[Stage]) -> None:
    """A writer that dies within a line has said nothing by it."""
    stages.append(stage := Stage(tmp_path, MUTE))
    life = stage.processes.start("worker-0")
    stage.processes.end(["worker-0"], grace_s=30)
    assert stage.next() == (life.peer, None)


def test_ending_asks_first_and_kills_what_does_not_listen(tmp_path: Path, stages: list[Stage]) -> None:
    """A role ends with its orders; one that ignores that is killed after its grace."""
    stages.append(polite := Stage(tmp_path / "a", ECHO))
    stages.append(deaf := Stage(tmp_path / "b", STUBBORN))
    polite.processes.start("worker-0")
    deaf.processes.start("worker-0")
    assert polite.next()[1] == b"ready\n"
    assert [ended.status for ended in polite.processes.end(["worker-0"], grace_s=30)] == [0]
    assert [ended.status for ended in deaf.processes.end(["worker-0"], grace_s=0.2)] == [-9]


@pytest.mark.parametrize("slot", ["plane-0", "controller-0"])
def test_plane_and_controller_are_asked_by_signal(slot: str, tmp_path: Path, stages: list[Stage]) -> None:
    """SIGTERM is the request (the controller must hear its roles to the last); in a hurry it is not waited for."""
    stages.append(stage := Stage(tmp_path / "a", "import sys, time; time.sleep(600)"))
    stages.append(deaf := Stage(tmp_path / "b", STUBBORN))
    stage.processes.start(slot)
    deaf.processes.start(slot)
    until_it_says("deaf", deaf.processes.log_path(slot))
    assert [ended.status for ended in stage.processes.end([slot], grace_s=30)] == [-15]
    assert [ended.status for ended in deaf.processes.end([slot], 600, hurry=lambda: True)] == [-9]


def test_what_a_role_prints_elsewhere_is_kept(tmp_path: Path, stages: list[Stage]) -> None:
    """Its stderr is in its log, life after life."""
    stages.append(stage := Stage(tmp_path, "import sys; print('last words', file=sys.stderr)"))
    for _ in range(2):
        stage.processes.start("worker-0")
        reaped(stage.processes)
    assert stage.processes.log_path("worker-0").read_text() == "last words\n" * 2
