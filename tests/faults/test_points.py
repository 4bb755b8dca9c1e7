"""kill -9 at the points of the code itself, the plane's process included: each fires, and the promises hold."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing.util import get_temp_dir
from pathlib import Path

import msgspec
import pytest

from penstock.points import POINTS
from penstock.server.lifecycle import Options, serve
from penstock.testing.checker import check, read_log
from penstock.testing.crew import Crew
from penstock.testing.faults import Sentence, kill, stop, terminate
from penstock.wire.paths import arena_files, served_path
from tests.crews import PRELOAD
from tests.faults.actors import FIRED, GROUP, PARTITION, PLANE, client_of, consume, produce

get_temp_dir()  # before the session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends

GROUPS = 6  # of each producer
PRODUCERS, CONSUMERS = ("alice", "bob"), ("carol", "dave")
LIMIT_S = 90.0
LOOK_S = 0.05
SMALL = msgspec.structs.replace(PLANE, segment_bytes=2_000)  # so that there are checkpoints


def plane_kills(*points: str, nth: int = 1) -> list[Sentence]:
    return [kill("plane", at=f"server.{point}", nth=nth) for point in points]


# What is reached on the way to the end; the producers go on until all of it has fired.
PLAYS: dict[str, list[Sentence]] = {
    "the plane in its work": [
        *plane_kills("received", "decided", nth=30),
        *plane_kills("journaled", "granted", "filled", "freed", "replied", nth=5),
        kill("plane", at="journal.written", nth=50),
    ],
    "the plane in a checkpoint": [
        *plane_kills("checkpointing", "restated", "checkpointed"),
        kill("plane", at="journal.rotated", nth=2),
        kill("plane", at="journal.rebased"),
    ],
    "the plane in its start": [
        *plane_kills("filled", nth=4),  # so that there is something to recover
        *plane_kills("replayed", "recovered", "listening", nth=2),
        *plane_kills("moved"),
    ],
    "a producer in a put": [
        kill("alice", at=f"client.{point}", nth=2) for point in ("putting", "granted", "copied", "put")
    ],
    "a consumer in a read": [kill("carol", at=f"client.{point}") for point in ("claimed", "reading", "pinned", "read")],
    "a consumer in a pop": [
        kill("carol", at="client.popping"),
        kill("dave", at="client.popped"),
        stop("carol", at="client.popped", nth=2, for_s=1.8),
    ],
    "two at once": [
        kill("plane", at="alice:client.copied", nth=2),
        kill("alice", at="plane:server.filled", nth=4),
        kill("plane", at="carol:client.popping", nth=2),
        kill("carol", at="plane:server.freed", nth=2),
    ],
}
# What is reached when all is done, or whenever.
ENDS: dict[str, list[Sentence]] = {
    "a clean end in between": [terminate("plane", at="server.filled", nth=5), *plane_kills("stopping")],
    "each moment of a clean end, life after life": plane_kills("stopping", "parted", "rescued", "ended"),
}
NOT_HERE = {"client.tagging", "client.tagged", "client.acking", "client.acked"}  # nobody here tags or acks


def test_every_point_of_plane_and_client_is_struck() -> None:
    """A new point of these roles needs a play that strikes there."""
    struck = {sentence.point for play in [*PLAYS.values(), *ENDS.values()] for sentence in play}
    roles = {"server", "journal", "client"}
    assert struck | NOT_HERE == {point.name for point in POINTS if point.role in roles}


@pytest.mark.parametrize("play", PLAYS)
def test_promises_hold(play: str, tmp_path: Path) -> None:
    """Wherever plane, producer or consumer is killed: lost, duplicated and corrupted are 0, the books balance."""
    _assert_promises(PLAYS[play], tmp_path)


@pytest.mark.parametrize("play", ENDS)
def test_promises_hold_at_the_end(play: str, tmp_path: Path) -> None:
    """A plane that is killed while it ends comes back with everything, and ends again."""
    (tmp_path / FIRED).touch()
    _assert_promises(ENDS[play], tmp_path)


# -- the crew ---------------------------------------------------------------------------------------------------------


def be_plane(_life: int, folder: str) -> None:
    """Serve as ``penstock serve`` does, until everybody else is done."""
    root = Path(folder)
    told, ready = os.pipe()

    def end_when_done() -> None:
        os.read(told, 100)
        while not all((root / f"over-{name}").exists() for name in (*PRODUCERS, *CONSUMERS)):
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_when_done, daemon=True).start()
    code = serve(Options(data_dir=root / "plane", ready_fd=ready, config=SMALL))
    if code:
        raise SystemExit(code)


def be_producer(life: int, folder: str, name: str) -> None:
    produce(life, folder, name, GROUPS)
    (Path(folder) / f"over-{name}").touch()


def be_consumer(life: int, folder: str, name: str) -> None:
    consume(life, folder, name, list(PRODUCERS))
    (Path(folder) / f"over-{name}").touch()


def _assert_promises(sentences: list[Sentence], folder: Path) -> None:
    _run(folder, sentences)
    served_path(folder / "plane").unlink()  # from here on a client may start the plane
    with client_of(folder) as client:
        books = client.audit()
    report = check([entry for path in folder.glob("log-*") for entry in read_log(path)])
    (partition,) = (p for p in books.partitions if p.partition == PARTITION)
    assert report.ok, report.verdict()
    assert (books.residue, report.unanswered) == (0, 0)
    assert report.acknowledged >= len(PRODUCERS) * GROUPS * GROUP
    assert (partition.put, partition.trained, partition.lost) == (report.acknowledged, report.acknowledged, {})


def _run(folder: Path, sentences: list[Sentence]) -> None:
    """Play it; every fault must have fired, and the plane must have left nothing in shared memory."""
    (folder / "plane").mkdir()
    served_path(folder / "plane").touch()  # no client starts a plane, which would not be heard
    with Crew(sentences, folder, limit_s=LIMIT_S, preload=PRELOAD, fired_flag=folder / FIRED) as crew:
        crew.start("plane", be_plane, str(folder))
        for name in PRODUCERS:
            crew.start(name, be_producer, str(folder), name)
        for name in CONSUMERS:
            crew.start(name, be_consumer, str(folder), name)
        crew.play()
        assert crew.shortfalls() == []
        assert len(crew.fired) == len(sentences)
    assert [str(path) for path, arena in arena_files(folder / "plane") if arena.in_shm] == []
