"""The line between a process and its director: who watches what, who is held, and what the end of either means."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from penstock import points
from penstock.errors import BadArgument
from penstock.points import reached
from penstock.testing.injection import Seat, take_part

SOON_S = 10.0


@pytest.fixture
def seat() -> Iterator[Seat]:
    """A seat of which this process has the other end, too."""
    taken = Seat(("actor",))
    yield taken
    taken.close()
    reached("the end")  # which notices that there is nobody any more
    assert points._hook is None


def join(seat: Seat) -> None:
    take_part(os.dup(seat.fd))
    seat.given_to(os.getpid())


def beginning(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def walk(*places: str) -> Callable[[], None]:
    def act() -> None:
        for place in places:
            reached(place)

    return act


def heard(seat: Seat) -> str | None:
    end = time.monotonic() + SOON_S
    while time.monotonic() < end:
        try:
            return seat.hear()
        except BlockingIOError:
            time.sleep(0.001)
    raise AssertionError("nothing was said")


def nothing_heard(seat: Seat) -> bool:
    try:
        seat.hear()
    except BlockingIOError:
        return True
    return False


def test_who_is_at_a_watched_point_waits_until_let_go(seat: Seat) -> None:
    """It says where it is, once; others that nobody watches hold nobody."""
    join(seat)
    seat.watch(frozenset({"here"}))
    reached("there")
    assert nothing_heard(seat)
    held = beginning(walk("here"))
    assert heard(seat) == "here"
    held.join(0.05)
    assert held.is_alive()
    seat.go()
    held.join(SOON_S)
    assert not held.is_alive()


def test_what_is_watched_changes_while_the_process_runs(seat: Seat) -> None:
    """The news is read where any point is reached; what is no longer watched holds nobody."""
    join(seat)
    for name in ("one", "two"):
        seat.watch(frozenset({name}))
        held = beginning(walk("one", "two"))
        assert heard(seat) == name
        seat.go()
        held.join(SOON_S)
    seat.watch(frozenset())
    reached("two")
    assert nothing_heard(seat)


def test_one_thread_that_is_held_holds_no_other(seat: Seat) -> None:
    """Others pass where nobody watches; at a watched point they wait for their turn."""
    join(seat)
    seat.watch(frozenset({"here"}))
    first = beginning(walk("here"))
    assert heard(seat) == "here"
    reached("there")
    second = beginning(walk("here"))
    seat.go()
    assert heard(seat) == "here"
    seat.go()
    for thread in (first, second):
        thread.join(SOON_S)
        assert not thread.is_alive()


def test_end_of_the_director_lets_everybody_go(seat: Seat) -> None:
    """Whoever is held when the line is cut goes on, and the hook is gone."""
    join(seat)
    seat.watch(frozenset({"here"}))
    held = beginning(walk("here"))
    assert heard(seat) == "here"
    seat.close()
    held.join(SOON_S)
    assert not held.is_alive()
    assert points._hook is None


def test_taking_part_twice_is_refused(seat: Seat) -> None:
    """A process has one director; the descriptor that was refused stays its caller's."""
    join(seat)
    other = Seat(("actor",))
    with pytest.raises(BadArgument, match="installed already"):
        take_part(other.fd)
    assert other.fd > 0
    os.fstat(other.fd)
    other.close()


def test_a_descriptor_of_something_else_is_refused() -> None:
    """A number that is no socket's takes no part."""
    reader, writer = os.pipe()
    for fd in (reader, 10**6):
        with pytest.raises(BadArgument, match="no end of a seat"):
            take_part(fd)
    os.close(reader)
    os.close(writer)
    assert points._hook is None


def test_much_news_for_a_process_that_reaches_nothing_is_not_lost(seat: Seat) -> None:
    """The line holds little: what did not fit is sent later, and the newest counts."""
    join(seat)
    for number in range(1000):
        seat.watch(frozenset({f"point {number}"}))
    behind = seat.behind
    reached("elsewhere")
    seat.send()
    assert (behind, seat.behind) == (True, False)
    held = beginning(walk("point 3", "point 999"))
    assert heard(seat) == "point 999"
    seat.go()
    held.join(SOON_S)


def test_a_forked_child_takes_no_part(seat: Seat) -> None:
    """It is another process: it is not held, and says nothing in its parent's name."""
    join(seat)
    seat.watch(frozenset({"here"}))
    reached("elsewhere")
    child = os.fork()
    if not child:
        walk("here")()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert nothing_heard(seat)


def test_a_signal_handler_of_who_is_held_is_not_held(seat: Seat) -> None:
    """What it reaches is not heard: it would wait for an answer that the one below it is owed."""
    join(seat)
    seat.watch(frozenset({"here"}))
    reached("elsewhere")
    before = signal.signal(signal.SIGUSR1, lambda *_: reached("here"))
    main = threading.get_ident()

    def answer() -> None:
        assert heard(seat) == "here"
        signal.pthread_kill(main, signal.SIGUSR1)
        time.sleep(0.05)  # for the handler to have run; were it held, nothing would go on
        seat.go()

    director = beginning(answer)
    reached("here")
    director.join(SOON_S)
    signal.signal(signal.SIGUSR1, before)
    assert nothing_heard(seat)
