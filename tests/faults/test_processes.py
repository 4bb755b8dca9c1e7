"""Real processes, kill -9 and SIGSTOP: no row is lost, trained twice or damaged, and nothing is left behind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from penstock.requests import PartitionAudit
from penstock.server.lock import holder_of
from penstock.testing.checker import Report, check, read_log
from penstock.testing.crew import Crew
from penstock.testing.faults import Sentence, kill, stop, terminate
from penstock.wire.paths import arena_files, socket_path
from tests.crews import PRELOAD
from tests.faults.actors import FIRED, GROUP, PARTITION, client_of, consume, produce

get_temp_dir()  # before the session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends

GROUPS = 8  # of each producer
PRODUCERS = ("alice", "bob")
CONSUMERS = ("carol", "dave")
LIMIT_S = 60.0
END_S = 15.0  # for a plane without clients to end

PLAYS: dict[str, list[Sentence]] = {
    "producer killed": [kill("alice", at="after_put", nth=2), kill("alice", at="before_put", nth=5, later_s=0.001)],
    "consumer killed": [
        kill("carol", at="after_claim"),
        kill("carol", at="before_pop", nth=1),
        kill("carol", at="after_pop", nth=1),
        kill("dave", at="before_pop", nth=2, later_s=0.0005),
    ],
    "plane killed": [
        kill("plane", at="alice:before_put", nth=2, later_s=0.001),
        kill("plane", at="carol:after_claim", nth=2),
        kill("plane", at="carol:before_pop", nth=3, later_s=0.0005),
    ],
    "plane killed while it recovers": [
        kill("plane", at="alice:after_put", nth=4),
        kill("plane", at="alice:after_put", nth=4, later_s=0.2),
        kill("plane", at="alice:after_put", nth=4, later_s=0.4),
    ],
    "plane ended": [
        terminate("plane", at="alice:after_put", nth=3),
        terminate("plane", at="carol:before_pop", nth=4, later_s=0.0005),
    ],
    "stopped consumer": [stop("carol", at="before_pop", for_s=0.3), stop("dave", at="before_pop", for_s=1.8)],
    "stopped producer": [stop("alice", at="before_put", nth=3, later_s=0.001, for_s=1.8)],
    "stopped plane": [
        stop("plane", at="alice:before_put", nth=2, for_s=0.1),
        stop("plane", at="carol:after_claim", nth=2, for_s=1.8),
    ],
    "producer and consumer": [kill("alice", at="after_put", nth=3), kill("carol", at="alice:after_put", nth=3)],
    "producer and plane": [kill("alice", at="before_put", nth=4), kill("plane", at="alice:before_put", nth=4)],
    "consumer and plane": [kill("plane", at="carol:before_pop", nth=2), kill("carol", at="before_pop", nth=2)],
    "all": [kill(victim, at="carol:after_claim", nth=2) for victim in ("plane", "alice", "bob", "dave", "carol")],
}


SHORT = {"producer killed", "consumer killed", "plane killed", "plane killed while it recovers", "stopped plane"}


@pytest.mark.parametrize(
    "play", [pytest.param(play, marks=[] if play in SHORT else [pytest.mark.slow]) for play in PLAYS]
)
def test_promises_hold(play: str, tmp_path: Path) -> None:
    """Whoever is killed or stopped: lost, duplicated and corrupted are 0, the books balance, nothing is left."""
    _assert_promises(PLAYS[play], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_promises_hold_at_random(seed: int, tmp_path: Path) -> None:
    """Faults drawn from a seed, at any point and shortly after it, one upon the other: the promises are the same."""
    _assert_promises(_drawn(random.Random(seed)), tmp_path)


def _drawn(made: random.Random) -> list[Sentence]:
    sentences = []
    for _ in range(made.randint(3, 8)):
        victim = made.choice([*PRODUCERS, *CONSUMERS, "plane", "plane"])
        role = made.choice([*PRODUCERS, *CONSUMERS])
        point = made.choice(
            ["before_put", "after_put"] if role in PRODUCERS else ["after_claim", "before_pop", "after_pop"]
        )
        at, nth, later_s = (
            f"{role}:{point}",
            made.randint(1, 6),
            made.choice([0.0, made.uniform(0.0, 0.01), made.random()]),
        )
        fault = made.choice(["kill", "kill", "stop", "terminate"])
        if fault == "stop":
            sentences.append(stop(victim, at=at, nth=nth, later_s=later_s, for_s=made.choice([0.1, 0.5, 2.5])))
        else:
            sentences.append((kill if fault == "kill" else terminate)(victim, at=at, nth=nth, later_s=later_s))
    return sentences


def _assert_promises(sentences: list[Sentence], tmp_path: Path) -> None:
    plane_pid = _run(tmp_path, sentences)
    report, books, residue = _judge(tmp_path)
    assert report.ok, report.verdict()
    assert report.unanswered == 0
    assert residue == 0
    assert report.acknowledged >= len(PRODUCERS) * GROUPS * GROUP
    assert (books.put, books.trained, books.lost) == (report.acknowledged, report.acknowledged, {})
    _assert_nothing_left(tmp_path / "plane", plane_pid)


def _run(folder: Path, sentences: list[Sentence]) -> list[int]:
    """Play it; every fault must have fired. Returns the planes' process ids."""
    (folder / "plane").mkdir()
    pids: list[int] = []

    def plane() -> int:
        pids.append(_holder(folder / "plane"))
        return pids[-1]

    with (
        client_of(folder),
        Crew(
            sentences,
            folder,
            limit_s=LIMIT_S,
            others={"plane": plane},
            preload=PRELOAD,
            fired_flag=folder / FIRED,
        ) as crew,
    ):
        for name in PRODUCERS:
            crew.start(name, produce, str(folder), name, GROUPS)
        for name in CONSUMERS:
            crew.start(name, consume, str(folder), name, list(PRODUCERS))
        crew.play()
        assert crew.unfired == []
        assert len(crew.fired) == len(sentences)
        plane()
    return pids


def _holder(plane: Path) -> int:
    """Who holds the directory's lock: from before the plane recovers, so that it can be hit in that too."""
    assert _in_time(lambda: (holder := holder_of(plane)) is not None and _is_alive(holder.pid))
    holder = holder_of(plane)
    assert holder is not None
    return holder.pid


def _judge(folder: Path) -> tuple[Report, PartitionAudit, int]:
    entries = [entry for path in folder.glob("log-*") for entry in read_log(path)]
    with client_of(folder) as client:
        books = client.audit()
    (partition,) = (p for p in books.partitions if p.partition == PARTITION)
    return check(entries), partition, books.residue


def _assert_nothing_left(plane: Path, pids: list[int]) -> None:
    assert _in_time(lambda: not any(_is_alive(pid) for pid in pids)), f"a plane of {pids} still runs"
    assert _in_time(lambda: not socket_path(plane).exists()), "the socket is still there"
    assert [str(path) for path, arena in arena_files(plane) if arena.in_shm] == []


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a plane whose starter was killed is reaped by init, when it likes


def _in_time(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + END_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
