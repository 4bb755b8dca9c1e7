"""Which segments there are, which failed lately, and where copies go."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest

from penstock.payload.stores.mooncake.segments import Segments, asking
from penstock.retry import Deadline
from penstock.testing.mooncake import MooncakeCluster
from tests.payload.stores.rigs import Clock

KEYS = [f"k{n}" for n in range(200)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def segments(clock: Clock, *names: str) -> Segments:
    return Segments(names, None, clock)


def test_copies_go_to_different_segments(clock: Clock) -> None:
    """And the keys to all of them, about evenly."""
    known = segments(clock, "a", "b", "c")
    places = [known.spread(key, 2, 0) for key in KEYS]
    assert all(first != second for first, second in places)
    assert all(40 < sum(first == name for first, _ in places) < 95 for name in "abc")


def test_a_segment_that_failed_is_avoided_for_a_while(clock: Clock) -> None:
    """By new values and by reads; afterwards it is one as any other."""
    known = segments(clock, "a", "b", "c")
    known.failed("b")
    assert not any("b" in known.spread(key, 2, 0) for key in KEYS)
    assert known.order(["b", "a"]) == ["a", "b"]
    clock.now += 31.0
    assert any("b" in known.spread(key, 2, 0) for key in KEYS)
    assert known.order(["b", "a"]) == ["b", "a"]


def test_a_success_ends_the_avoidance(clock: Clock) -> None:
    """At once."""
    known = segments(clock, "a", "b")
    known.failed("b")
    known.lived("b")
    assert known.order(["b", "a"]) == ["b", "a"]


def test_when_all_failed_all_are_used(clock: Clock) -> None:
    """The one whose failure is oldest first: nobody starves."""
    known = segments(clock, "a", "b")
    known.failed("b")
    clock.now += 1.0
    known.failed("a")
    assert known.order(["a", "b"]) == ["b", "a"]
    assert set(known.spread("k", 2, 0)) == {"a", "b"}


def test_two_copies_are_apart_even_if_one_goes_where_it_failed(clock: Clock) -> None:
    """Two copies in one segment die together."""
    known = segments(clock, "a", "b")
    known.failed("b")
    assert all(set(known.spread(key, 2, shift)) == {"a", "b"} for key in KEYS for shift in range(3))


def test_a_copy_keeps_away_from_the_other(clock: Clock) -> None:
    """Whichever attempt it is, and although the other's segment is the better one."""
    known = segments(clock, "a", "b")
    known.failed("b")
    assert {known.spread(key, 1, shift, {"a"})[0] for key in KEYS for shift in range(3)} == {"b"}
    assert known.spread("k", 1, 0, {"a", "b"})[0] in {"a", "b"}


def test_another_attempt_looks_elsewhere(clock: Clock) -> None:
    """A segment that is full is no use the second time."""
    known = segments(clock, "a", "b", "c")
    assert all(len({known.spread(key, 1, shift)[0] for shift in range(3)}) == 3 for key in KEYS)


def test_where_none_is_known_any_will_do(clock: Clock) -> None:
    """Which is how it is before the first value was seen."""
    known = segments(clock)
    assert known.spread("k", 2, 0) == ["", ""]
    known.learn("a")
    assert known.spread("k", 1, 0) == ["a"]


class Master:
    """Answers, and counts."""

    def __init__(self) -> None:
        self.names: Sequence[str] | None = ["b", "a"]
        self.asked = 0

    def __call__(self, timeout_s: float) -> Sequence[str] | None:
        assert 0 < timeout_s <= 2.0
        self.asked += 1
        return self.names


def test_the_master_is_asked_once_in_a_while(clock: Clock) -> None:
    """What it says replaces what was known; silence changes nothing; a failure asks anew."""
    master = Master()
    known = Segments((), master, clock)
    for _ in range(3):
        known.refresh(Deadline(10.0, clock))
    assert (known.names, master.asked) == (["a", "b"], 1)
    clock.now += 6.0
    master.names = None
    known.refresh(Deadline(10.0, clock))
    assert (known.names, master.asked) == (["a", "b"], 2)
    master.names = ["b"]
    known.failed("a")
    known.refresh(Deadline(10.0, clock))
    assert (known.names, master.asked) == (["b"], 3)
    known.learn("a")
    assert known.names == ["b"], "who can be asked knows better than what was seen"


def test_nobody_is_asked_past_the_deadline(clock: Clock) -> None:
    """There is no time to wait for an answer."""
    master = Master()
    Segments((), master, clock).refresh(Deadline(0.0, clock))
    assert master.asked == 0


def test_a_real_master_tells_its_segments(mooncake: MooncakeCluster) -> None:
    """At its metrics address."""
    host, port = mooncake.metrics_address
    assert sorted(asking(f"{host}:{port}")(5.0) or []) == sorted(owner.segment for owner in mooncake.owners)


def test_no_answer_is_none() -> None:
    """Nobody listens; somebody listens and says nothing; somebody says what is no HTTP."""
    assert asking("127.0.0.1:1")(1.0) is None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert asking(f"127.0.0.1:{silent.getsockname()[1]}")(0.1) is None
