"""Guests who do not keep to any protocol: with and without the token, at any listener of ours."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import struct
from collections import Counter, deque
from collections.abc import Callable, Sequence

from penstock.wire.auth import CHALLENGE_BYTES, PROOF_BYTES, Dialler
from tests.fuzz.mutations import mutated
from tests.sealed import SealedLine

PATIENCE_S = 10.0
_HELD = 40  # connections that are kept open and say nothing, at most
_TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(200)
_HTTP = b"GET / HTTP/1.1\r\nHost: plane\r\n\r\n"


class Strangers:
    """Args: address; purpose, token, tls, sealed: as the listener has it; sound: what it knows; seed: of all of it.

    Attributes:
        visits: by kind.
    """

    def __init__(
        self,
        address: tuple[str, int],
        purpose: str,
        token: bytes,
        sound: Sequence[bytes],
        seed: int,
        tls: ssl.SSLContext | None = None,
        *,
        sealed: bool = False,
    ) -> None:
        self.visits: Counter[str] = Counter()
        self._address, self._purpose, self._token, self._sound = address, purpose, token, sound
        self._rng = random.Random(seed)
        self._held: deque[socket.socket] = deque()
        self._overheard = b""
        self._tls = tls
        self._sealed = sealed

    def visit(self) -> None:
        """Come once, do something wrong, and go, or stay and be silent."""
        way = self._rng.choice([
            *(self._nothing, self._reset, self._noise, self._foreign, self._half, self._wrong, self._replayed),
            *(self._beneath, self._garbage, self._mutated, self._mutated, self._flood, self._silent_guest),
        ])  # fmt: skip
        self.visits[way.__name__.strip("_")] += 1
        with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
            sock = socket.create_connection(self._address, PATIENCE_S)
            if self._tls is not None and self._rng.random() < 0.2:
                sock.settimeout(0.01)  # in the clear: it will hear nothing
            elif self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
            try:
                way(sock)
            finally:
                self._leave(sock)

    def close(self) -> None:
        """Those who stayed go."""
        while self._held:
            self._held.popleft().close()

    def _leave(self, sock: socket.socket) -> None:
        how = self._rng.random()
        if how < 0.2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how < 0.5:
            self._held.append(sock)
            if len(self._held) > _HELD:
                self._held.popleft().close()
            return
        sock.close()

    # -- without the token --------------------------------------------------------------------------------------------

    def _nothing(self, sock: socket.socket) -> None:
        pass

    def _reset(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _noise(self, sock: socket.socket) -> None:
        sock.sendall(self._rng.randbytes(self._rng.choice([1, 39, 72, 1000, 100_000])))

    def _foreign(self, sock: socket.socket) -> None:
        sock.sendall(self._rng.choice([_TLS_HELLO, _HTTP]))

    def _half(self, sock: socket.socket) -> None:
        sock.sendall(self._response(sock)[: self._rng.randrange(72)])

    def _wrong(self, sock: socket.socket) -> None:
        sock.sendall(mutated(self._rng, [self._response(sock)]))

    def _replayed(self, sock: socket.socket) -> None:
        mine = self._response(sock)
        sock.sendall(self._overheard or mine[:40] + bytes(32))
        self._overheard = mine

    def _beneath(self, sock: socket.socket) -> None:
        """Noise on the bare line, which breaks the encryption of those who have one."""
        os.write(sock.fileno(), self._rng.randbytes(100))

    # -- with the token -----------------------------------------------------------------------------------------------

    def _garbage(self, sock: socket.socket) -> None:
        say = self._enter(sock)
        say(self._rng.randbytes(self._rng.choice([1, 4, 56, 500, 50_000])))

    def _mutated(self, sock: socket.socket) -> None:
        say = self._enter(sock)
        for _ in range(self._rng.choice([1, 1, 5])):
            say(mutated(self._rng, self._sound))

    def _flood(self, sock: socket.socket) -> None:
        """Sound messages, in no order that makes sense, and no answer is read."""
        say = self._enter(sock)
        say(b"".join(self._rng.choice(self._sound) for _ in range(50)))

    def _silent_guest(self, sock: socket.socket) -> None:
        self._enter(sock)

    def _response(self, sock: socket.socket) -> bytes:
        return Dialler(self._token, self._purpose).respond(_exactly(sock, CHALLENGE_BYTES))

    def _enter(self, sock: socket.socket) -> Callable[[bytes], None]:
        """Return what says something, under seals if those are wanted here, and mostly not under broken ones."""
        dialler = Dialler(self._token, self._purpose)
        sock.sendall(dialler.respond(_exactly(sock, CHALLENGE_BYTES)))
        dialler.check(_exactly(sock, PROOF_BYTES))
        if not self._sealed or self._rng.random() < 0.2:
            return sock.sendall
        seals = dialler.seals()

        def say(data: bytes) -> None:
            sealed = seals.seal(data)
            sock.sendall(sealed if self._rng.random() < 0.8 else mutated(self._rng, [sealed]))

        return say


def enter(
    address: tuple[str, int], purpose: str, token: bytes, tls: ssl.SSLContext | None = None, *, sealed: bool = False
) -> socket.socket:
    """Come in as one who knows the token and keeps to the protocol."""
    sock = socket.create_connection(address, PATIENCE_S)
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname=address[0])
    dialler = Dialler(token, purpose)
    sock.sendall(dialler.respond(_exactly(sock, CHALLENGE_BYTES)))
    dialler.check(_exactly(sock, PROOF_BYTES))
    return SealedLine(sock, dialler.seals()) if sealed else sock


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionResetError("sent away")
        data += more
    return data
