"""Every kind of run event has its sentence."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from penstock.controller import events as ev
from penstock.controller.sentences import sentence
from tests.controller.histories import history

KINDS: tuple[type[ev.RunEvent], ...] = get_args(ev.RunEvent)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_every_kind_of_event_is_said_in_one_line(kind: type[ev.RunEvent]) -> None:
    """A sentence, without a line break, that is not the record's repr; the histories of these tests hold every kind."""
    said = {sentence(event) for event in history(random.Random(1), 3000) if isinstance(event, kind)}
    assert said
    assert all(one and "\n" not in one and kind.__name__ + "(" not in one for one in said)


def test_what_is_particular_is_said() -> None:
    """Parts of groups, versions that changed on the way, rows that were gone, planes that came back empty."""
    group = ev.Committed(group_id="r.0.0", prompt=0, keys=["k"], version=1, end_version=2, size_bytes=8, partial=True)
    assert sentence(group) == "r.0.0 committed: 1 rows, 8 bytes, version 1 to 2, a part of the group"
    assert "1 of them were gone already" in sentence(ev.Popped(step=1, keys=["a", "b"], lost=["a"]))
    empty = ev.Recovered(seconds=1.0, plane_s=0.5, incarnation=2, empty=True, kept=0, again=3)
    assert "came back empty, 3 prompts go again" in sentence(empty)
    again = ev.Ordered(step=2, attempt=3, why="RuntimeError: no GPU")
    assert sentence(again) == "step 2 ordered, attempt 3 after: RuntimeError: no GPU"
    assert "said goodbye" in sentence(ev.Reaped(replica="w", role="trainer", silent_s=0.0))
    assert "loss not finite, reward 0.5" in sentence(
        ev.Trained(step=1, groups=[], rows=0, seconds=1.0, metrics={"reward": 0.5, "loss": None})
    )
    earlier = ev.Trained(step=3, groups=["r.0.0"], rows=2, seconds=0.0)
    assert sentence(earlier) == "step 3 was made in an earlier life: 2 rows of 1 groups"
    assert sentence(ev.Finished(reason="x", ok=False, step=3)) == "the run cannot go on at step 3: x"
