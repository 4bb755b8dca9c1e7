"""One connection: frames in order, whole or recalled, and never a wait."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.plane import channel
from penstock.plane.channel import Channel
from penstock.wire import WireError
from penstock.wire.tls import client_context, server_context

from .certificates import certificate


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


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[Ends]:
    cert, key = certificate(tmp_path)
    mine, theirs = socket.socketpair()
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ThreadPoolExecutor(1) as pool:
        shaking = pool.submit(server_context(cert, key).wrap_socket, theirs, server_side=True)
        sock = client_context(cert).wrap_socket(mine, server_hostname="127.0.0.1")
        plane = shaking.result(10)
    sock.setblocking(False)
    with plane, selectors.DefaultSelector() as selector:
        yield Ends(Channel(sock, selector, "here"), plane, selector)
        sock.close()


def test_what_tls_has_begun_to_encrypt_is_not_recalled(encrypted: Ends) -> None:
    """Its bytes are on their way though the kernel took none of them: another call in their place would be garbled."""
    posted = [bytes([n]) * 40_000 for n in range(20)]
    for errand, data in enumerate(posted):
        encrypted.channel.post(data, errand)
    first = next(n for n in range(20) if n in {p.errand for p in encrypted.channel._outbox})
    recalled = [n for n in range(20) if encrypted.channel.recall(n)]
    assert first not in recalled
    assert recalled == list(range(first + 1, 20))
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(_exactly, encrypted.plane, 40_000 * (first + 1))
        while encrypted.channel.busy:
            encrypted.selector.select(0.1)
            encrypted.channel.flush()
        assert coming.result(10) == b"".join(posted[: first + 1])


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(1 << 20)
    return data


def test_what_tls_has_decrypted_is_not_left_lying(encrypted: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """More in one record than is taken at once, of which the selector speaks once; and frames of several records."""
    monkeypatch.setattr(channel, "_READ_BYTES", 1000)
    bodies = [bytes([n % 255]) * size for n, size in enumerate([1, 2, 60_000, 3, 200_000])]
    sender = threading.Thread(target=encrypted.plane.sendall, args=(b"".join(map(frame, bodies)),))
    sender.start()
    came: list[bytes] = []
    while len(came) < len(bodies):
        assert encrypted.selector.select(10.0), "nothing more wakes us"
        came += encrypted.channel.receive()
    sender.join(5)
    assert came == bodies


def test_the_end_of_tls_is_the_end(encrypted: Ends) -> None:
    """With a goodbye or without."""
    encrypted.plane.close()
    assert list(encrypted.channel.receive()) == []
    assert encrypted.channel.cut is not None
