"""The worker: what it writes down, and what it leaves in the plane, when it dies within a put."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.demo.messages import Rollout
from penstock.demo.rows import group_keys
from penstock.demo.spec import PARTITION, RunSpec, TaskSpec
from penstock.testing.checker import Put, read_log
from tests.demo.hall import Hall, Killed, attempts

SMALL = RunSpec(task=TaskSpec(length=3, digits=4), group_size=4, groups_per_step=2, prompts_per_order=2)
ORDER = Rollout(0, attempts(0, 1))
KEYS = [key for attempt in ORDER.prompts for key in group_keys(attempt.group_id, SMALL.group_size)]


def at(moment: str) -> Callable[[str], None]:
    def fate(call: str) -> None:
        if call == moment:
            raise Killed(call)

    return fate


@pytest.mark.parametrize(
    ("moment", "moments", "in_plane"),
    [
        ("put_samples", ["before"], False),  # it died before the put
        ("put_samples done", ["before"], True),  # before it could write down the answer
        ("no such call", ["before", "after"], True),  # not at all
    ],
)
def test_every_put_is_written_down_before_and_after(
    tmp_path: Path, moment: str, moments: list[str], in_plane: bool
) -> None:
    """The log never claims more than happened, and never less than was tried; nothing is committed half way."""
    hall = Hall(tmp_path, SMALL, {"worker": at(moment)})
    worker = next(peer for peer in hall.roles if peer.startswith("worker"))
    hall._alive(worker, lambda: hall.roles[worker].roll_out(ORDER))
    entries = [entry for entry in read_log(hall.files.journals / f"{worker}.jsonl") if isinstance(entry, Put)]
    assert [(entry.moment, entry.key) for entry in entries] == [(m, key) for m in moments for key in KEYS]
    assert {key for group in hall.plane.list_metadata(PARTITION) for key in group.keys} == (
        set(KEYS) if in_plane else set()
    )
    assert hall.plane.depth(PARTITION) == (2 if moment == "no such call" else 0)


def test_what_is_generated_depends_on_the_attempt(tmp_path: Path) -> None:
    """The same attempt gives the same rows; the next attempt at the same prompts gives others, of equal questions."""
    hall = Hall(tmp_path, SMALL)
    worker = hall.roles[next(peer for peer in hall.roles if peer.startswith("worker"))]
    worker.roll_out(ORDER)
    first = worker._generate(ORDER.prompts)
    again = worker._generate(ORDER.prompts)
    other = worker._generate(attempts(0, 1, number=1))
    assert first["answer"].tolist() == again["answer"].tolist() != other["answer"].tolist()
    assert first["prompt"].tolist() == other["prompt"].tolist()
