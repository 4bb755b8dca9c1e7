"""Faults on real processes."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from penstock.errors import BadArgument, DataPlaneError, DataPlaneTimeout
from penstock.testing import director as director_module
from penstock.testing.crew import Crew
from penstock.testing.faults import kill, reached, stop, terminate

get_temp_dir()  # before a test session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends


def counter(life: int, folder: str, steps: int) -> None:
    """Append its life to a file at every step, starting where the last life stopped."""
    path = Path(folder) / "steps"
    while len(path.read_text().split()) < steps:
        reached("before_step")
        with path.open("a") as file:
            file.write(f"{life} ")
        reached("after_step")


def failing(life: int) -> None:
    """End badly by itself."""
    raise SystemExit(3)


def stuck(life: int) -> None:
    """Never end."""
    time.sleep(1000)


def lives(folder: Path, crew: Crew, steps: int = 6) -> list[str]:
    (folder / "steps").touch()
    with crew:
        crew.start("worker", counter, str(folder), steps)
        crew.play()
    return (folder / "steps").read_text().split()


def test_killed_process_is_started_again_and_the_fault_is_seen(tmp_path: Path) -> None:
    """A kill fires at its point, the process is gone, and its next life goes on with the next number."""
    crew = Crew([kill("worker", at="after_step", nth=2)], tmp_path, limit_s=30)
    assert lives(tmp_path, crew) == ["1", "1", "2", "2", "2", "2"]
    assert [f.sentence.kind for f in crew.fired] == ["kill"]
    assert crew.unfired == []


def test_two_faults_of_one_point_count_across_lives(tmp_path: Path) -> None:
    """The nth time is counted over all lives of a role."""
    sentences = [kill("worker", at="after_step", nth=1), terminate("worker", at="before_step", nth=4)]
    crew = Crew(sentences, tmp_path, limit_s=30)
    assert lives(tmp_path, crew) == ["1", "2", "2", "3", "3", "3"]
    assert len(crew.fired) == 2


def test_stopped_process_is_seen_to_stop_and_goes_on(tmp_path: Path) -> None:
    """A stop is verified, lasts as long as it says, and the same life ends the play."""
    crew = Crew([stop("worker", at="after_step", nth=3, for_s=0.3)], tmp_path, limit_s=30)
    begun = time.monotonic()
    assert lives(tmp_path, crew) == ["1"] * 6
    assert time.monotonic() - begun >= 0.3
    assert [f.sentence.kind for f in crew.fired] == ["stop"]


def test_fault_whose_moment_never_came_is_told(tmp_path: Path) -> None:
    """A sentence that did not fire is listed, so that a test can insist."""
    crew = Crew([kill("worker", at="after_step", nth=99)], tmp_path, limit_s=30)
    lives(tmp_path, crew)
    assert crew.fired == []
    assert [str(s) for s in crew.unfired] == ["kill worker at worker:after_step #99"]


def test_process_that_fails_by_itself_is_an_error(tmp_path: Path) -> None:
    """An exit nobody ordered ends the play, naming role and code."""
    with Crew([], tmp_path, limit_s=30) as crew:
        crew.start("worker", failing)
        with pytest.raises(DataPlaneError, match=r"worker \(life 1\) failed with exit code 3"):
            crew.play()


def test_time_limit_shows_where_processes_stand_and_leaves_none(tmp_path: Path) -> None:
    """When time is up the error holds every process' stack, and afterwards no process is left."""
    with Crew([], tmp_path, limit_s=2.0) as crew:
        crew.start("worker", stuck)
        pid = next(iter(crew._members.values())).process.pid
        with pytest.raises(DataPlaneTimeout, match="in stuck"):
            crew.play()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_sentence_that_makes_no_sense_is_refused() -> None:
    """A point is needed, and counting starts at one."""
    for at, nth in (("", 1), ("worker:", 1), ("after_step", 0)):
        with pytest.raises(BadArgument):
            kill("worker", at=at, nth=nth)


def deaf(life: int) -> None:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reached("ready")
    time.sleep(1000)


def test_signal_without_effect_is_not_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ignores SIGTERM was not terminated: the play fails, and nothing counts as fired."""
    monkeypatch.setattr(director_module, "_EFFECT_S", 0.2)
    with Crew([terminate("worker", at="ready")], tmp_path, limit_s=30) as crew:
        crew.start("worker", deaf)
        with pytest.raises(DataPlaneError, match="shows no effect"):
            crew.play()
        assert crew.fired == []


def test_flag_tells_that_every_fault_has_fired(tmp_path: Path) -> None:
    """Processes that go on until every fault has fired see it by a file."""
    flag = tmp_path / "fired"
    crew = Crew([kill("worker", at="after_step", nth=3)], tmp_path, limit_s=30, fired_flag=flag)
    lives(tmp_path, crew)
    assert flag.exists()
