"""A client's socket in the clear to a plane, for tests that speak frames themselves: it seals and opens."""

from __future__ import annotations

import socket

from penstock.wire.seals import Seals


class SealedLine(socket.socket):
    """Takes the connection over from ``sock``, after the greeting."""

    def __init__(self, sock: socket.socket, seals: Seals) -> None:
        timeout = sock.gettimeout()
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self.settimeout(timeout)
        self.seals = seals
        self._opened = b""

    def sendall(self, data: bytes, flags: int = 0) -> None:  # type: ignore[override]
        super().sendall(self.seals.seal(data), flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        while not self._opened:
            data = super().recv(1 << 20, flags)
            if not data:
                return b""
            self._opened = self.seals.open(data)
        got, self._opened = self._opened[:size], self._opened[size:]
        return got
