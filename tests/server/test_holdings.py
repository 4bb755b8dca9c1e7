"""Which grants and pins a heartbeat gives up."""

from __future__ import annotations

from penstock.server.holdings import Holder, Holdings
from penstock.server.processes import Process
from penstock.server.storage import Hold


def _holder() -> Holder:
    return Holdings(1000).of(Process(1, 1, -1), 5)


def test_only_grants_answered_before_the_newest_received_are_given_up() -> None:
    """A grant whose answer may still be on its way is kept, whatever its number."""
    holder = _holder()
    for grant in (6, 5, 9):  # 5 waited for room: it was answered after 6
        holder.granted(grant)
    assert holder.unlisted_grants(high=6, listed=[6]) == []
    assert holder.unlisted_grants(high=5, listed=[5]) == [6]
    assert holder.unlisted_grants(high=0, listed=[5, 6]) == []
    assert holder.unlisted_grants(high=9, listed=[]) == [6, 5, 9]


def test_a_grant_that_was_committed_still_dates_the_older_ones() -> None:
    """The newest grant received may be finished already; what came before it is given up all the same."""
    holder = _holder()
    holder.granted(1)
    holder.granted(2)
    holder.done_with(2)
    assert holder.unlisted_grants(high=2, listed=[]) == [1]


def test_a_new_connection_settles_what_was_answered_before() -> None:
    """After resuming, an unlisted grant or pin of the old connection is given up, whatever the client received."""
    holder = _holder()
    holder.granted(1)
    holder.pinned(1001, Hold(7, 1))
    assert holder.unlisted_grants(0, []) == []
    assert holder.unlisted_pins(0, []) == []
    holder.settle()
    assert holder.unlisted_grants(0, []) == [1]
    assert holder.unlisted_grants(0, [1]) == []
    assert holder.unlisted_pins(0, []) == [1001]
    assert holder.unlisted_pins(0, [1001]) == []


def test_pins_are_taken_back_once() -> None:
    """A pin is given back once; numbers that are not held change nothing."""
    holder = _holder()
    holder.pinned(1001, Hold(7, 1))
    assert holder.unpinned([1001, 1001, 4]) == [Hold(7, 1)]
    assert holder.idle


def test_pin_numbers_grow_over_lives() -> None:
    """The next life's pins are above this one's: a late unpin of an earlier life meets nothing."""
    earlier, later = Holdings(10**18), Holdings(10**18 + 10**9)
    assert earlier.next_pin() < earlier.next_pin() < later.next_pin()


def test_a_recycled_pid_is_somebody_else() -> None:
    """Two processes of one pid do not share what they hold."""
    holdings = Holdings(1)
    first, second = Process(9, 100, -1), Process(9, 200, -1)
    assert holdings.of(first, 5) is not holdings.of(second, 5)
    assert holdings.of(first, 5) is holdings.of(first, 5)
    assert len(holdings.of_process(first)) == 1
    holdings.forget(holdings.of(first, 5))
    assert len(holdings) == 1
