"""Grants that wait for room: order, overtaking, deadlines."""

from __future__ import annotations

from penstock.requests import BlockPlace
from penstock.server.allotment import _MAX_OVERTAKEN, Allotment, Request


class Room:
    """An arena of so many bytes, without places."""

    def __init__(self, nbytes: int) -> None:
        self.left = nbytes

    def place(self, block_id: int, nbytes: int, owner: int) -> BlockPlace | None:
        if nbytes > self.left:
            return None
        self.left -= nbytes
        return BlockPlace(block_id, 1, 0, nbytes, owner)


def _request(grant: int, nbytes: int, deadline: float = 100.0) -> Request:
    return Request(grant, nbytes, owner=1, session_id=1, call_id=grant, asked=0.0, deadline=deadline)


def _placed(allotment: Allotment, now: float = 1.0) -> list[int]:
    return [request.grant for request, _ in allotment.retry(now)]


def test_what_fits_is_placed_at_once() -> None:
    """A grant that fits does not wait."""
    room = Room(100)
    allotment = Allotment(room.place)
    assert allotment.ask(_request(1, 60)) is not None
    assert allotment.ask(_request(2, 60)) is None
    assert (len(allotment), allotment.next_deadline()) == (1, 100.0)


def test_room_goes_to_those_who_wait_in_order() -> None:
    """When room comes, the one that waits longest is served first."""
    room = Room(0)
    allotment = Allotment(room.place)
    for grant in (1, 2, 3):
        assert allotment.ask(_request(grant, 10)) is None
    room.left = 20
    assert _placed(allotment) == [1, 2]
    room.left = 10
    assert _placed(allotment) == [3]
    assert len(allotment) == 0


def test_a_small_grant_may_overtake_a_large_one_but_not_for_ever() -> None:
    """What fits goes past what does not; after so many times nobody goes past it any more."""
    room = Room(0)
    allotment = Allotment(room.place)
    allotment.ask(_request(1, 1000))
    for small in range(2, 2 + _MAX_OVERTAKEN):
        room.left = 10
        assert allotment.ask(_request(small, 10)) is not None
    room.left = 10
    assert allotment.ask(_request(900, 10)) is None
    assert _placed(allotment) == []
    room.left = 1010
    assert _placed(allotment) == [1, 900]


def test_a_grant_is_not_placed_at_its_deadline() -> None:
    """At its deadline it is given up, not placed; it is reported once."""
    room = Room(0)
    allotment = Allotment(room.place)
    allotment.ask(_request(1, 10, deadline=5.0))
    room.left = 10
    assert _placed(allotment, now=5.0) == []
    assert [r.grant for r in allotment.expired(5.0)] == [1]
    assert allotment.expired(9.0) == []
    assert allotment.next_deadline() is None


def test_a_cancelled_grant_waits_no_more() -> None:
    """Cancelling says whether it was waiting, and it is never placed."""
    room = Room(0)
    allotment = Allotment(room.place)
    allotment.ask(_request(1, 10))
    assert allotment.cancel(1)
    assert not allotment.cancel(1)
    room.left = 10
    assert _placed(allotment) == []


def test_room_that_comes_too_late_is_not_given() -> None:
    """Asking again places a grant before its deadline, and neither at it nor after."""
    room = Room(100)
    allotment = Allotment(room.place)
    assert allotment.ask(_request(1, 90)) is not None
    assert allotment.ask(_request(2, 60)) is None
    assert allotment.ask_again(2, 1.0) is None
    room.left = 100
    assert allotment.ask_again(2, 100.0) is None
    assert allotment.ask_again(9, 1.0) is None
    placed = allotment.ask_again(2, 1.0)
    assert placed is not None
    assert (placed[0].grant, len(allotment)) == (2, 0)
