"""One connection: frames in order, whole or recalled, and never a wait."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from penstock.plane.channel import Channel
from penstock.wire import WireError


@dataclass
class Ends:
    channel: Channel
    plane: socket.socket
    selector: selectors.DefaultSelector


@pytest.fixture
def ends() -> Iterator[Ends]:
    mine, plane = socket.socketpair()
    mine.setblocking(False)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with plane, selectors.DefaultSelector() as selector:
        yield Ends(Channel(mine, selector, "here"), plane, selector)
        mine.close()


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def test_what_the_kernel_does_not_take_goes_later_in_order(ends: Ends) -> None:
    """The channel asks to be told when it may go on; what arrives is what was posted, byte for byte."""
    posted = [bytes([n]) * 50_000 for n in range(4)]
    for errand, data in enumerate(posted):
        ends.channel.post(data, errand)
    was_busy = ends.channel.busy
    came = b""
    while len(came) < sum(map(len, posted)):
        came += ends.plane.recv(1 << 20)
        ends.channel.flush()
    assert came == b"".join(posted)
    assert (was_busy, ends.channel.busy) == (True, False)
    assert [key.events for key in ends.selector.get_map().values()] == [selectors.EVENT_READ]


def test_only_what_has_not_begun_to_leave_is_recalled(ends: Ends) -> None:
    """A call of which a byte is out stays; close names the errands that never left."""
    for errand in (1, 2, 3):
        ends.channel.post(b"x" * 1_000_000, errand)
    assert [ends.channel.recall(errand) for errand in (1, 2, 2, 9)] == [False, True, False, False]
    assert ends.channel.close() == frozenset({3})


def test_frames_come_whole_and_garbage_is_named(ends: Ends) -> None:
    """Half a frame is kept for later; what is no frame is a WireError after the frames before it."""
    ends.plane.sendall(frame(b"one") + frame(b"two")[:5])
    assert list(ends.channel.receive()) == [b"one"]
    assert list(ends.channel.receive()) == []
    ends.plane.sendall(frame(b"two")[5:] + bytes(4))
    frames = ends.channel.receive()
    assert next(frames) == b"two"
    with pytest.raises(WireError):
        next(frames)
    assert ends.channel.cut is None


def test_the_first_reason_to_drop_it_stays(ends: Ends) -> None:
    """A closed peer is noted, not raised; what follows from it is not the reason."""
    ends.plane.close()
    assert list(ends.channel.receive()) == []
    ends.channel.post(b"x", 1)
    ends.channel.disconnect("something else")
    assert ends.channel.cut == "the plane at here closed the connection"
