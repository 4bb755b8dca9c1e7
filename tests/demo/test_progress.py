"""Progress: the event stream as it grows, and what it adds up to."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from penstock.controller import events as e
from penstock.controller.event_file import EventFile
from penstock.demo.progress import EventTail, Progress
from penstock.errors import EventsCorrupt


def step(number: int, reward: float | None = None, at: float = 0.0) -> e.Trained:
    metrics = {} if reward is None else {"reward": reward}
    return e.Trained(at=at, step=number, groups=[], rows=8, seconds=0.1, metrics=metrics)


def committed(group: str) -> e.Committed:
    return e.Committed(group_id=group, prompt=0, keys=[], version=0, end_version=0, size_bytes=0)


def progress_of(*events: e.RunEvent) -> Progress:
    progress = Progress()
    for event in events:
        progress.note(event)
    return progress


def test_a_tail_gives_each_event_once_and_none_that_is_half_written(tmp_path: Path) -> None:
    """Before there is a file, nothing; a line whose end is not there yet comes when it is."""
    path = tmp_path / "events.jsonl"
    tail, line = EventTail(path), msgspec.json.encode(step(1)) + b"\n"
    assert tail.read() == []
    path.write_bytes(line + line[:9])
    assert tail.read() == [step(1)]
    assert tail.read() == []
    path.write_bytes(line + line)
    assert tail.read() == [step(1)]


def test_what_a_killed_controller_had_not_finished_costs_itself_only(tmp_path: Path) -> None:
    """Its successor cuts it off, though it has been looked at meanwhile; all of its own is read."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(msgspec.json.encode(step(1)) + b"\n" + msgspec.json.encode(step(2))[:9])
    tail = EventTail(path)
    assert tail.read() == [step(1)]
    with EventFile(path) as tell:
        tell(step(3))
    assert tail.read() == [step(3)]


def test_a_damaged_line_is_not_passed_over(tmp_path: Path) -> None:
    """Somebody else wrote into the file: nothing in it can be believed."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(msgspec.json.encode(step(1)) + b"\nnonsense\n")
    with pytest.raises(EventsCorrupt, match="line 2"):
        EventTail(path).read()


def test_a_step_counts_once() -> None:
    """Two lives of the controller may tell of the same one; one whose event was lost leaves a gap in the curve."""
    progress = progress_of(step(1, 0.1), step(1, 0.1), step(3, 0.3), e.Published(version=3, seconds=0.0))
    assert (progress.steps, progress.curve()) == (3, [0.1, 0.3])


@pytest.mark.parametrize("news", [e.Started(step=4, cursor=9, open_prompts=2), e.Published(version=4, seconds=0.0)])
def test_a_new_life_tells_the_step_that_the_one_before_could_not(news: e.RunEvent) -> None:
    """It stands where the trainer's record says."""
    assert progress_of(step(3, 0.3), news).steps == 4


def test_groups_and_prompts_are_counted_while_they_are_open() -> None:
    """From dispatch and commit to pop, eviction or drop; a group that is listed again is the same group."""
    out = [e.Dispatched(group_id=f"run.{n}.0", prompt=n, attempt=0, version=0) for n in range(4)]
    progress = progress_of(*out, *(committed(f"run.{n}.0") for n in (0, 1, 2, 2)))
    assert (len(progress.prompts), len(progress.groups)) == (4, 3)
    progress.note(e.Popped(step=1, keys=["run.0.0_g0", "run.0.0_g1"]))
    progress.note(e.Evicted(group_id="run.1.0", keys=["run.1.0_g0"], reason="stale"))
    progress.note(e.Dropped(prompt=3, reason="rejected"))
    assert (progress.prompts, progress.groups) == ({1, 2}, {"run.2.0"})
    assert progress.rows_trained == 2
    assert progress.notes == {"rows stale": 1, "prompts dropped": 1}


def back(at: float, plane_s: float) -> e.Recovered:
    return e.Recovered(at=at, seconds=2.0, plane_s=plane_s, incarnation=2, empty=False, kept=3, again=1)


def test_a_return_of_the_plane_is_timed_up_to_the_next_step() -> None:
    """From its first answer, which came before the controller was done recovering; a step before it does not count."""
    steps = [step(2, at=11.25), step(3, at=12.0)]
    assert progress_of(e.Paused(why="away"), step(1, at=9.0), back(10.5, 0.5), *steps).resumed_s == [1.25]


def test_the_first_look_of_a_new_controller_is_no_return_of_the_plane() -> None:
    """The plane was there all the time; and what the life before waited for is nobody's any more."""
    started = e.Started(step=1, cursor=8, open_prompts=4)
    assert progress_of(e.Paused(why="away"), started, back(10.5, 0.5), step(2, at=11.25)).resumed_s == []
