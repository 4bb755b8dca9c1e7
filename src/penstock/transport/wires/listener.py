"""Accepts TCP connections, admits those that authenticate, and runs a handler for each; a stranger costs nobody else.

Invariants: at most ``max_connections`` are served, and as many strangers are heard, each for a limited time: one more
and the stranger who has waited longest goes, for who knows the token is through in a moment. Running out of file
descriptors pauses accepting and ends nothing. Each connection's task is owned here; none outlives ``close``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from penstock.endpoint.connection import Address, Serve
from penstock.errors import TransportError
from penstock.transport.wires.stream import StreamConnection, tuned

__all__ = ["Admit", "ListenerStatistics", "TcpListener"]

log = logging.getLogger("penstock.transport")

Admit: TypeAlias = Callable[[socket.socket, Address], Awaitable[StreamConnection]]

_ACCEPTS_AT_ONCE = 64
_PAUSE_S = 0.1  # after the kernel had no descriptor or memory for a connection: one that ends gives some back
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    """What a listener has seen."""

    serving: int
    accepted: int
    refused: int  # there were max_connections already
    strangers: int  # did not authenticate, or not in time
    pauses: int  # the process had no file descriptor left


class TcpListener:
    """Serves ``sock``, which listens, until ``close``; on the loop that made it."""

    def __init__(self, sock: socket.socket, admit: Admit, serve: Serve, max_connections: int) -> None:
        self._sock = sock
        self._address = Address(*sock.getsockname()[:2])
        self._admit = admit
        self._serve = serve
        self._max_connections = max_connections
        self._loop = asyncio.get_running_loop()
        self._strangers: dict[asyncio.Task[None], socket.socket] = {}  # in the order of their coming
        self._leaving: dict[asyncio.Task[None], socket.socket] = {}  # strangers who are sent away, to end in a moment
        self._served: dict[asyncio.Task[None], StreamConnection] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        self._accepted = self._refused = self._unauthorised = self._pauses = 0
        self._loop.add_reader(sock, self._accept)

    @property
    def address(self) -> Address:
        return self._address

    def statistics(self) -> ListenerStatistics:
        """Return the counts so far."""
        return ListenerStatistics(len(self._served), self._accepted, self._refused, self._unauthorised, self._pauses)

    async def close(self) -> None:
        """Take no more, end the connections that are served, and wait for their handlers. Idempotent."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._sock)
            self._sock.close()
            if self._pause is not None:
                self._pause.cancel()
        tasks = [*self._strangers, *self._leaving, *self._served]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"serving {len(self._served)} of at most {self._max_connections}"
        return f"<TCP listener at {self._address}, {state}>"

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, where = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as failed:
                if failed.errno in _EXHAUSTED:
                    self._rest(failed)
                    return
                continue  # who came has gone again
            self._accepted += 1
            self._hear(sock, Address(*where[:2]))

    def _rest(self, failed: OSError) -> None:
        """Accept nothing for a moment: the listener stays readable, and asking again at once would burn a core."""
        self._pauses += 1
        if self._pauses.bit_count() == 1:  # the 1st, 2nd, 4th, 8th: repeated, but not flooding
            log.warning("%s: cannot accept: %s (%d times so far)", self._address, failed.strerror, self._pauses)
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._sock, self._accept)

    def _hear(self, sock: socket.socket, peer: Address) -> None:
        if len(self._served) >= self._max_connections:
            self._refused += 1
            sock.close()
            return
        if len(self._strangers) >= self._max_connections:
            task = next(iter(self._strangers))
            self._leaving[task] = self._strangers.pop(task)  # at once: many may come before it has its turn to end
            task.cancel()
        task = self._loop.create_task(self._attend(sock, peer))
        self._strangers[task] = sock
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        if sock := self._strangers.pop(task, None) or self._leaving.pop(task, None):
            self._unauthorised += 1
            sock.close()
        self._served.pop(task, None)

    async def _attend(self, sock: socket.socket, peer: Address) -> None:
        """One connection, from its first byte to its last."""
        task = asyncio.current_task()
        assert task is not None
        try:
            connection = await self._admit(tuned(sock), peer)
        except (TransportError, OSError) as stranger:
            log.debug("%s: %s was not let in: %s", self._address, peer, stranger)
            return
        del self._strangers[task]
        if len(self._served) >= self._max_connections:
            self._refused += 1
            connection.abort()
            return
        self._served[task] = connection
        await self._run(connection)

    async def _run(self, connection: StreamConnection) -> None:
        try:
            await self._serve(connection)
        except TransportError as gone:
            log.debug("%s: %s", self._address, gone)
        except Exception:  # top frame: a handler's bug ends its connection, and no other
            log.exception("%s: serving %s failed", self._address, connection.peer)
        except BaseException:
            connection.abort()
            raise
        await connection.close()
