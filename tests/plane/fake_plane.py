"""A plane of a few lines, for faults that a real one cannot be made to show: lost replies, cuts, garbage, deafness."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from penstock.errors import DataPlaneUnavailable
from penstock.plane.dialing import Starting
from penstock.requests import (
    Call,
    Done,
    Failed,
    Goodbye,
    Heartbeat,
    OpenSession,
    Reply,
    ReplyBody,
    ResumeSession,
    Welcome,
)
from penstock.wire import FrameReader, WireError, decode_call, encode_reply
from penstock.wire.auth import RESPONSE_BYTES, Greeter
from penstock.wire.seals import Seals
from tests.sealed import SealedLine


@dataclass(frozen=True)
class Raw:
    """Bytes to send instead of a reply."""

    data: bytes


class Silence:
    """No reply."""


class Cut:
    """Close the connection instead of replying."""


Move = ReplyBody | Raw | Silence | Cut
Handler = Callable[[Call], Move]


def done(_call: Call) -> Move:
    return Done()


@dataclass
class FakePlane:
    """Serves one Unix socket from a thread; ``handler`` decides what each call meets. Greetings are answered by itself.

    Attributes: calls: what came, greetings and heartbeats left out; greetings, beats: those; fired: faults shown.
    """

    path: Path
    handler: Handler = done
    remembers: bool = True
    refusal: Failed | None = None
    incarnation: int = 1
    heartbeat_s: float = 30.0
    calls: list[Call] = field(default_factory=list)
    greetings: list[Call] = field(default_factory=list)
    beats: list[Call] = field(default_factory=list)
    fired: int = 0

    def __post_init__(self) -> None:
        self._listener = self.listen()
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path.unlink(missing_ok=True)
        listener.bind(str(self.path))
        listener.listen(8)
        return listener

    def admit(self, client: socket.socket) -> socket.socket:
        """What a connection goes through before its first frame; an OSError ends it."""
        return client

    def cut_all(self) -> None:
        """Close every connection, now."""
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.path.unlink(missing_ok=True)
        self.cut_all()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            with self._lock:
                self._clients.append(client)
                self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        reader = FrameReader(1 << 30)
        try:
            client = self.admit(client)
        except (OSError, WireError):
            client.close()
            return
        with client:
            while True:
                try:
                    data = client.recv(65536)
                    if not data:
                        return
                    for frame in reader.feed(data):
                        if not self._answer(client, decode_call(frame)):
                            return
                except OSError:
                    return

    def _answer(self, client: socket.socket, call: Call) -> bool:
        move = self._decide(call)
        if isinstance(move, Silence | Cut | Raw):
            self.fired += 1
        if isinstance(move, Silence):
            return True
        if isinstance(move, Cut):
            return False
        client.sendall(move.data if isinstance(move, Raw) else encode_reply(Reply(call.id, self.incarnation, move)))
        return not isinstance(call.body, Goodbye)

    def _decide(self, call: Call) -> Move:
        if isinstance(call.body, OpenSession | ResumeSession):
            self.greetings.append(call)
            return self._greet(call.body)
        if isinstance(call.body, Heartbeat):
            self.beats.append(call)
            return Done()
        self.calls.append(call)
        return self.handler(call)

    def _greet(self, body: OpenSession | ResumeSession) -> Move:
        if self.refusal is not None:
            return self.refusal
        resumed = isinstance(body, ResumeSession)
        if resumed and not self.remembers:
            return Failed("DataPlaneUnavailable", "unknown session")
        return Welcome(1, len(self.greetings), "secret", resumed, self.heartbeat_s, 60.0, 1 << 20)


class TcpPlane(FakePlane):
    """A plane at ``url``, on TCP, behind a token and perhaps TLS. ``doors``: the connections that were let in."""

    def __init__(self, token: bytes, handler: Handler = done, tls: ssl.SSLContext | None = None) -> None:
        self.token, self.tls = token, tls
        self.doors = 0
        super().__init__(Path("/nowhere"), handler)

    @property
    def url(self) -> str:
        return f"penstock://127.0.0.1:{self._listener.getsockname()[1]}"

    def listen(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    def admit(self, client: socket.socket) -> socket.socket:
        if self.tls is not None:
            client = self.tls.wrap_socket(client, server_side=True)
        greeter = Greeter(self.token, "plane")
        client.sendall(greeter.challenge())
        proof = greeter.answer(exactly(client, RESPONSE_BYTES))
        self.doors += 1
        client.sendall(proof)
        return client if self.tls is not None else self._sealed(client, greeter.seals())

    def _sealed(self, client: socket.socket, seals: Seals) -> socket.socket:
        with self._lock:
            if client not in self._clients:
                raise ConnectionAbortedError("the plane was closed meanwhile")
            at = self._clients.index(client)
            self._clients[at] = SealedLine(client, seals)
            return self._clients[at]


def exactly(sock: socket.socket, size: int) -> bytes:
    """The next ``size`` bytes, or fewer if the connection ends before."""
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


class FakeDialer:
    """Dials a path; starts nothing, unless it is given what to say of a start."""

    def __init__(self, path: Path, starts: Callable[[], Starting] | None = None) -> None:
        self.address = str(path)
        self.parted: list[bool] = []  # what was said at the end
        self._starts = starts

    def dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(self.address)
        except OSError as failed:
            sock.close()
            raise DataPlaneUnavailable(f"no plane answers at {self.address}") from failed
        return sock

    def start(self) -> Starting | None:
        return None if self._starts is None else self._starts()

    def tidy(self, *, parted: bool) -> None:
        self.parted.append(parted)
