"""Processes of a run are killed at each of the controller's points, at the plane's, and in pairs: nothing is lost,
nothing is trained twice, and the run ends by itself."""

from __future__ import annotations

import random
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.points import POINTS
from penstock.testing.crew import Crew
from penstock.testing.faults import Sentence, kill
from tests.controller.lives import Files, Outcome, serve_plane, steer, work
from tests.controller.toys import GROUP
from tests.crews import PRELOAD

get_temp_dir()  # before the session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends

LIMIT_S = 45.0
STEPS = 4
OPTIONS: dict[str, Any] = {"max_steps": STEPS, "groups_per_step": 2}


def play(
    folder: Path, sentences: list[Sentence], *, remote: bool = False, segment_bytes: int = 1 << 20, **options: Any
) -> Outcome:
    """Run to the end with these faults, each of which must fire; judge the run."""
    files = Files(folder)
    with Crew(sentences, folder, limit_s=LIMIT_S, preload=PRELOAD) as crew:
        crew.start("plane", serve_plane, str(folder), segment_bytes)
        if remote:
            crew.start("trainer", work, str(folder), "trainer")
            crew.start("worker", work, str(folder), "worker")
        crew.start("controller", steer, str(folder), remote, {**OPTIONS, **options})
        crew.play()
        assert crew.unfired == []
        assert len(crew.fired) == len(sentences)
    outcome = msgspec.json.decode(files.outcome.read_bytes(), type=Outcome)
    judge(files, outcome)
    if not remote and not outcome.result.open:  # else a worker of its own may put when the run is over
        assert outcome.rows == 0, "rows are left that nobody will train"
    return outcome


def judge(files: Files, outcome: Outcome) -> None:
    """Steps are contiguous, each prompt and each row is trained once, books balance, the record agrees."""
    steps = files.load().steps
    keys = [key for step in steps for key in step]
    prompts = [int(key.split(".")[1]) for key in keys[::GROUP]]
    assert len(steps) == outcome.result.step == STEPS
    assert len(set(keys)) == len(keys)
    assert len(set(prompts)) == len(prompts), "a prompt was trained twice"
    assert outcome.result.trained == len(prompts)
    assert outcome.result.rows == len(keys) == outcome.trained
    assert outcome.residue == 0
    assert outcome.lost == {}
    result = outcome.result
    assert result.dispatched == result.trained + sum(result.dropped.values()) + result.open


CONTROLLER = [point.name for point in POINTS if point.role == "controller"]


ONCE = {"controller.recovering", "controller.evicted"}  # in a life
KILLS = [(point, nth) for point in CONTROLLER for nth in ((1,) if point in ONCE else (1, 3))]


@pytest.mark.parametrize(("point", "nth"), KILLS)
def test_a_controller_that_is_killed_anywhere_is_succeeded(point: str, nth: int, tmp_path: Path) -> None:
    """kill -9 at a point of its protocol: the next life goes on where it stood."""
    outcome = play(tmp_path, [kill("controller", at=point, nth=nth)])
    assert outcome.result.dropped == {}


def test_lives_that_are_killed_one_after_the_other_make_one_run(tmp_path: Path) -> None:
    """Every life is killed at another point, a hard end at each: the run is as if there had been one."""
    points = [point for point in CONTROLLER if point not in ONCE]
    play(tmp_path, [kill("controller", at=point, nth=2) for point in points])


# -- the plane --------------------------------------------------------------------------------------------------------

STARTING = ["server.replayed", "server.recovered", "server.listening"]
SERVING = ["server.received", "server.decided", "server.journaled", "server.replied", "journal.written"]
PUTTING = ["journal.rotated", "server.granted", "server.filled", "server.freed"]
TIDYING = ["journal.rebased", "server.checkpointing", "server.restated", "server.checkpointed"]
PLANE: dict[str, list[Sentence]] = {
    **{point: [kill("plane", at="server.received", nth=20), kill("plane", at=point, nth=2)] for point in STARTING},
    **{point: [kill("plane", at=point, nth=4), kill("plane", at=point, nth=20)] for point in SERVING},
    **{point: [kill("plane", at=point, nth=2), kill("plane", at=point, nth=5)] for point in PUTTING},
}


@pytest.mark.parametrize("point", PLANE)
def test_a_plane_that_is_killed_anywhere_comes_back_with_the_run(point: str, tmp_path: Path) -> None:
    """kill -9 of the plane's process at a point of its own, early and in the middle of the run."""
    play(tmp_path, PLANE[point], segment_bytes=1024 if point == "journal.rotated" else 1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("point", TIDYING)
def test_a_plane_that_is_killed_while_it_tidies_comes_back_with_the_run(point: str, tmp_path: Path) -> None:
    """Checkpoints are made every now and then: the run takes its time, so that one falls into it."""
    play(tmp_path, [kill("plane", at=point)], segment_bytes=1024, pause_s=0.5)


# -- pairs ------------------------------------------------------------------------------------------------------------


def both(one: Sentence, other: Sentence) -> list[Sentence]:
    return [one, other]


PAIRS: dict[str, list[Sentence]] = {
    "controller, trainer": both(
        kill("controller", at="trainer:before_save", nth=2), kill("trainer", at="before_save", nth=2)
    ),
    "trainer, then controller": both(
        kill("trainer", at="after_save", nth=2), kill("controller", at="controller.ordered", nth=3)
    ),
    "plane, controller": both(
        kill("plane", at="controller:controller.popped", nth=2), kill("controller", at="controller.popped", nth=2)
    ),
    "controller, then plane": both(
        kill("controller", at="controller.recorded", nth=2),
        kill("plane", at="controller:controller.recovering", nth=2),
    ),
    "plane, trainer": both(kill("plane", at="trainer:after_save", nth=2), kill("trainer", at="after_save", nth=2)),
    "plane, worker": both(kill("plane", at="worker:between", nth=4), kill("worker", at="between", nth=4)),
    "worker, then controller": both(
        kill("worker", at="client.copied", nth=3), kill("controller", at="worker:client.tagging", nth=3)
    ),
    "all four": [
        kill(who, at="controller:controller.claimed", nth=3) for who in ("plane", "trainer", "worker", "controller")
    ],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_processes_that_are_killed_together_make_one_run(pair: str, tmp_path: Path) -> None:
    """Two of them, at one moment or in each other's recovery: controller, trainer and worker are processes here."""
    play(tmp_path, PAIRS[pair], remote=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_run_survives_faults_drawn_at_random(seed: int, tmp_path: Path) -> None:
    """Several victims, any point, one upon the other; the seed replays it."""
    made = random.Random(seed)
    drawn = dict.fromkeys(_drawn(made) for _ in range(made.randint(3, 6)))  # each is armed once
    play(tmp_path, list(drawn), remote=True)


def _drawn(made: random.Random) -> Sentence:
    victim = made.choice(["plane", "controller", "controller", "trainer", "worker"])
    points = [point for point in CONTROLLER if point not in ONCE]
    at = made.choice([*(f"controller:{point}" for point in points), "trainer:after_save", "worker:between"])
    return kill(victim, at=at, nth=made.randint(1, 2), later_s=made.choice([0.0, made.uniform(0.0, 0.05)]))
