"""The run's log: changes at INFO, groups at DEBUG, trouble counted and not repeated."""

from __future__ import annotations

import logging
import random

import pytest

from penstock.controller import events as ev
from penstock.controller.run_log import RunLog
from tests.controller.histories import history
from tests.controller.test_trace import committed, dispatched, trained

STALLED = ev.Stalled(seconds=120.0, owed=["step 1: the trainer"])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def levels(caplog: pytest.LogCaptureFixture, *events: ev.RunEvent) -> list[int]:
    log = RunLog(clock=Clock())
    with caplog.at_level(logging.DEBUG):
        for event in events:
            log(event)
    return [record.levelno for record in caplog.records]


def test_changes_are_info_and_groups_are_debug(caplog: pytest.LogCaptureFixture) -> None:
    """What changes the run's state is told to everybody, a group's way only to who asks."""
    recovered = ev.Recovered(seconds=1.0, plane_s=0.5, incarnation=2, empty=False, kept=1, again=0)
    changes: list[ev.RunEvent] = [
        ev.Started(step=0, cursor=0, open_prompts=0),
        ev.Paused(why="gone"),
        recovered,
        ev.Joined(replica="w", role="rollout"),
        ev.Reaped(replica="w", role="rollout", silent_s=11.0),
        trained(1, 0),
        ev.Finished(reason="max_steps", ok=True, step=1),
    ]
    assert levels(caplog, *changes) == [logging.INFO] * len(changes)
    caplog.clear()
    stale = ev.Again(prompt=0, attempt=1, why="stale")
    assert levels(caplog, dispatched(0), committed(0), stale, ev.Ordered(step=1, attempt=1)) == [logging.DEBUG] * 4


def test_every_event_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is unsaid at DEBUG, but for warnings that repeat one another, and those are counted."""
    events = history(random.Random(11), 500)
    log = RunLog(clock=Clock())
    with caplog.at_level(logging.DEBUG):
        for event in events:
            log(event)
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(caplog.records) - len(warned) + sum(log.counters.values()) == len(events)


def test_repeated_trouble_is_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """One line of a kind in ten seconds; the next says how many it stands for; kinds do not hide one another."""
    clock = Clock()
    log = RunLog(clock=clock)
    for _ in range(3):
        log(STALLED)
    log(ev.Dropped(prompt=0, reason="rejected"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    clock.now = 11.0
    log(STALLED)
    assert caplog.records[-1].message.endswith("(2 more stalled since the last such line)")
    assert log.counters == {"stalled": 4, "dropped": 1}


def test_failures_are_warnings_and_the_end_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    """Prompts that fail and steps that are ordered again are trouble; a run that cannot go on is an error."""
    end = ev.Finished(reason="the plane is away", ok=False, step=3)
    again = ev.Again(prompt=0, attempt=1, why="ConnectionError")
    assert levels(caplog, again, ev.Ordered(step=1, attempt=2), ev.Missed(events=1, why="full"), end) == [
        *[logging.WARNING] * 3,
        logging.ERROR,
    ]
    assert caplog.records[-1].message.endswith("(warnings: again 1, missed 1, ordered again 1)")


def test_no_sentence_is_made_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """At INFO a group's way costs nothing."""
    log = logging.getLogger("penstock.test.quiet")
    log.setLevel(logging.INFO)

    def fail(_: ev.RunEvent) -> str:
        raise AssertionError

    monkeypatch.setattr("penstock.controller.run_log.sentence", fail)
    RunLog(log)(dispatched(0))
