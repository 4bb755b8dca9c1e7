"""One connection of a link: frames out as the kernel takes them, frames in as they come; never blocks.

Invariants: what becomes of a connection is decided by its link: a channel only notes in ``cut`` why it has to be
dropped, the first reason; a call of which no byte has left can be recalled, one of which a byte has left cannot; nor
can one that TLS has begun to encrypt, whose bytes are in its hands, or that was sealed, as seals are counted.
"""

from __future__ import annotations

import selectors
import socket
import ssl
from collections import deque
from collections.abc import Iterator

from penstock.wire import FrameReader
from penstock.wire.seals import Seals

__all__ = ["Channel", "SealedSocket"]

_READ_BYTES = 1 << 20
_MAX_REPLY_BYTES = 1 << 30  # a client trusts its plane more than the plane its clients: listings may be long


class SealedSocket(socket.socket):
    """A socket in the clear whose ends have shown each other the token: what a channel carries on it is sealed."""

    seals: Seals | None = None


class _Parcel:
    """A call on its way into the kernel."""

    __slots__ = ("begun", "errand", "rest")

    def __init__(self, frame: bytes, errand: int) -> None:
        self.rest = memoryview(frame)
        self.errand = errand
        self.begun = False  # bytes of it have left, or will


class Channel:
    """A connected, non-blocking socket in a selector; one of TLS will do.

    Attributes:
        cut: why this connection has to be dropped; None while it is of use.
        receives_on: the selector's events upon which there may be something to ``receive``.
    """

    def __init__(self, sock: socket.socket, selector: selectors.BaseSelector, address: str) -> None:
        self.cut: str | None = None
        self.receives_on = selectors.EVENT_READ
        self._sends_on = selectors.EVENT_WRITE
        self._sock = sock
        self._selector = selector
        self._address = address
        self._outbox: deque[_Parcel] = deque()
        self._reader = FrameReader(_MAX_REPLY_BYTES)
        self._seals = sock.seals if isinstance(sock, SealedSocket) else None
        selector.register(sock, selectors.EVENT_READ)

    @property
    def busy(self) -> bool:
        """Whether the plane has yet to take what was posted."""
        return bool(self._outbox)

    def disconnect(self, why: str) -> None:
        """Say why the connection has to be dropped, unless that was said."""
        self.cut = self.cut or why

    def post(self, frame: bytes, errand: int) -> None:
        """Send a call, now or when the kernel takes it."""
        self._outbox.append(_Parcel(frame, errand))
        self.flush()

    def recall(self, errand: int) -> bool:
        """Take the errand's call back; False if a byte of it has left, or there is none."""
        for parcel in self._outbox:
            if parcel.errand == errand and not parcel.begun:
                self._outbox.remove(parcel)
                return True
        return False

    def flush(self) -> None:
        """Send what the kernel takes; ask to be told when it takes more."""
        self._sends_on = selectors.EVENT_WRITE
        try:
            while self._outbox:
                parcel = self._outbox[0]
                if self._seals is not None and not parcel.begun:
                    parcel.rest, parcel.begun = memoryview(self._seals.seal(parcel.rest)), True
                sent = self._sock.send(parcel.rest)
                parcel.begun = True
                parcel.rest = parcel.rest[sent:]
                if not parcel.rest:
                    self._outbox.popleft()
        except BlockingIOError:
            pass
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as wants:
            self._outbox[0].begun = True  # TLS may have encrypted its beginning and wants the same bytes again
            if isinstance(wants, ssl.SSLWantReadError):
                self._sends_on = selectors.EVENT_READ
        except OSError as failed:
            self.disconnect(f"the connection to {self._address} failed: {failed.strerror or failed}")
        self._watch()

    def _watch(self) -> None:
        wanted = selectors.EVENT_READ | self.receives_on | (self._sends_on if self._outbox else 0)
        if self._selector.get_key(self._sock).events != wanted:
            self._selector.modify(self._sock, wanted)

    def receive(self) -> Iterator[bytes]:
        """Yield the frames that are complete.

        Raises:
            WireError: from the iteration: what came is no frame.
        """
        if self._sends_on == selectors.EVENT_READ:
            self.flush()
        while True:
            data = self._received()
            if data is None:
                return
            yield from self._reader.feed(data if self._seals is None else self._seals.open(data))
            if not (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending()):
                return  # what TLS has decrypted already would wake no selector

    def _received(self) -> bytes | None:
        self.receives_on = selectors.EVENT_READ
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self.receives_on = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._watch()
            return None
        except OSError as failed:
            self.disconnect(f"the connection to {self._address} failed: {failed.strerror or failed}")
            return None
        if not data:
            self.disconnect(f"the plane at {self._address} closed the connection")
            return None
        return data

    def close(self) -> frozenset[int]:
        """Hang up; return the errands of which no byte has left."""
        self._selector.unregister(self._sock)
        self._sock.close()
        return frozenset(parcel.errand for parcel in self._outbox if not parcel.begun)

    def drop(self) -> None:
        """This is a forked child: let go of the socket, and leave the selector, which is the parent's, alone."""
        self._sock.close()

    def __repr__(self) -> str:
        return f"Channel({self._address}, {len(self._outbox)} calls to send, {self.cut or 'in use'})"
