"""How a link comes to a connection, on a virtual clock."""

from __future__ import annotations

import random
import selectors
import socket
from collections.abc import Iterator
from typing import ClassVar

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.plane import events as ev
from penstock.plane.approach import RESTART_S, Approach
from penstock.plane.dialing import Awaited, NotAdmitted, Starting


class World:
    """Clock, shell and dialer in one. ``answers_at``: when somebody answers; ``word``: what a started plane says."""

    address = "here"
    events = selectors.EVENT_READ
    answer: ClassVar[socket.socket]

    def __init__(self, *, answers_at: float = 1e9, word: str | None = None, wanted: bool = True) -> None:
        self.now = 0.0
        self.answers_at = answers_at
        self.word = word
        self.wanted = wanted
        self.closing = False
        self.told: list[ev.Event] = []
        self.dials: list[float] = []
        self.starts: list[float] = []
        self.closed = 0
        self.ends_at = 100.0

    def clock(self) -> float:
        return self.now

    def apply(self, event: ev.Event) -> None:
        self.told.append(event)

    def pause(self, timeout_s: float | None, *, wakeful: bool = False, watching: Awaited | None = None) -> None:
        self.now += 0.2 if timeout_s is None else timeout_s + 1e-6
        self.closing = self.now >= self.ends_at

    def dial(self) -> socket.socket:
        self.dials.append(self.now)
        if self.now < self.answers_at:
            raise DataPlaneUnavailable("nobody")
        return self.answer

    def start(self) -> Starting | None:
        if self.word is None:
            return None
        self.starts.append(self.now)
        return self

    def poll(self) -> str | None:
        return self.word

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self.closed += 1

    def tidy(self, *, parted: bool) -> None:
        pass

    def approach(self) -> Approach:
        return Approach(self, self, random.Random(7), clock=self.clock)


@pytest.fixture(autouse=True)
def _answer() -> Iterator[None]:
    World.answer, other = socket.socketpair()
    yield
    World.answer.close()
    other.close()


def test_a_plane_that_answers_is_dialled_once() -> None:
    """No wait, no start."""
    world = World(answers_at=0.0)
    assert world.approach().connect(proven=True) is not None
    assert (world.dials, world.starts, world.told) == ([0.0], [], [])


def test_waiting_grows_to_half_a_second_and_goes_on() -> None:
    """A plane that comes back after a minute is found within half a second of that, without thousands of tries."""
    world = World(answers_at=60.0)
    assert world.approach().connect(proven=True) is not None
    assert world.now < 60.6
    assert 100 < len(world.dials) < 600
    assert all(isinstance(event, ev.NotConnected) for event in world.told)


def test_a_connection_of_no_use_is_not_made_again_at_once() -> None:
    """A plane that cuts every connection is not stormed."""
    world = World(answers_at=0.0)
    approach = world.approach()
    for _ in range(50):
        approach.connect(proven=False)
    assert world.now > 5.0


def test_a_started_plane_is_dialled_when_it_is_ready() -> None:
    """The first dial after "ready" needs no delay."""
    world = World(answers_at=0.2, word="ready")
    assert world.approach().connect(proven=True) is not None
    assert (world.dials, world.starts, world.closed) == ([0.0, 0.2], [0.0], 1)


def test_a_plane_that_others_hold_is_waited_for() -> None:
    """ "taken" means that somebody has started one: it is not an error, and no start is made in the next second."""
    world = World(answers_at=0.9, word="taken")
    assert world.approach().connect(proven=True) is not None
    assert len(world.starts) == 1
    assert not any(isinstance(event, ev.Refused) for event in world.told)


def test_a_plane_that_does_not_start_is_tried_each_second_while_it_is_wanted() -> None:
    """Every failure reaches those who wait."""
    world = World(word="error: journal is corrupt")
    world.ends_at = 10.0
    approach = world.approach()
    assert approach.connect(proven=True) is None
    gaps = [b - a for a, b in zip(world.starts, world.starts[1:], strict=False)]
    assert min(gaps) >= RESTART_S
    assert 5 <= len(world.starts) <= 10
    assert sum(isinstance(event, ev.Refused) for event in world.told) == len(world.starts)
    assert "journal is corrupt" in approach.trouble


def test_a_plane_that_does_not_start_is_left_alone_while_nobody_wants_it() -> None:
    """An idle client does not start a process every second for ever."""
    world = World(word="error: journal is corrupt", wanted=False)
    world.ends_at = 300.0
    assert world.approach().connect(proven=True) is None
    assert len(world.starts) < 12


def test_closing_ends_the_approach() -> None:
    """A client that closes waits for nobody."""
    world = World()
    world.ends_at = 1.0
    assert world.approach().connect(proven=True) is None
    assert world.now < 2.0


class Far(World):
    """Its connections take time: each needs so many polls."""

    polls_needed = 3

    def __init__(self) -> None:
        super().__init__(answers_at=0.0)
        self.watched: list[Awaited] = []
        self.troubles: list[str] = []
        self.refusal: DataPlaneUnavailable | None = None
        self.path = self.approach()

    def pause(self, timeout_s: float | None, *, wakeful: bool = False, watching: Awaited | None = None) -> None:
        super().pause(timeout_s, wakeful=wakeful, watching=watching)
        if watching is not None:
            self.watched.append(watching)
            self.troubles.append(self.path.trouble)

    def dial(self) -> OnItsWay:  # type: ignore[override]
        self.dials.append(self.now)
        return OnItsWay(self, self.polls_needed)


class OnItsWay:
    events = selectors.EVENT_WRITE
    patience_s = 1.0

    def __init__(self, world: Far, polls: int) -> None:
        self.world, self.left = world, polls

    def fileno(self) -> int:
        return -1

    def poll(self) -> socket.socket | None:
        if self.world.refusal is not None:
            raise self.world.refusal
        self.left -= 1
        return None if self.left else self.world.answer

    def close(self) -> None:
        self.world.closed += 1

    def drop(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return "a long way"


def test_a_connection_that_takes_time_is_watched_until_it_stands() -> None:
    """The thread waits for it in the selector, says so to whoever asks, and lets go of it in the end."""
    world = Far()
    assert world.path.connect(proven=True) is world.answer
    assert (len(world.dials), len(world.watched), world.closed) == (1, 2, 1)
    assert world.troubles == ["there is no more yet than a long way"] * 2


def test_closing_ends_a_connection_on_its_way() -> None:
    """However many steps it would still need."""
    world = Far()
    world.polls_needed, world.ends_at = 1000, 2.5
    assert world.path.connect(proven=True) is None
    assert (len(world.watched), world.closed) == (3, 1)


def test_who_is_not_admitted_is_told_at_once() -> None:
    """Waiting does not help: whoever waits is refused; others may still come, and the plane is dialled on."""
    world = Far()
    world.refusal, world.ends_at = NotAdmitted("another token"), 1.0
    assert world.path.connect(proven=True) is None
    assert {type(event) for event in world.told} == {ev.Refused}
    assert len(world.dials) > 1
