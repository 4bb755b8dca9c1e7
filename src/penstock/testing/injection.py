"""The line between a process that faults may hit and its director: ``Seat`` is his end, ``take_part`` the process's.

The process gets its end, a descriptor, when it is started. It is told which points matter, and catches up on that
whenever it reaches any: without a thread, a timer or a file. At a point that matters it says so, and waits.

Invariants: a process whose director is gone goes on as if it took no part; a point that nobody watches costs two
system calls and holds nobody; one thread at a time is held, at a point that is watched; a forked child takes no part.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from penstock import points
from penstock.errors import BadArgument

__all__ = ["Seat", "take_part"]

_MAX_WORD = 65536  # bytes of one message; the names of all points are a twentieth of this


class Seat:
    """One process' place: the names it answers to, and a line to it.

    Start the process with the descriptor ``fd`` (``pass_fds``), on which it calls ``take_part``; then ``given_to``.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.pid: int | None = None
        self._line, self.child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        self._watched: frozenset[str] = frozenset()
        self._told: frozenset[str] = frozenset()
        self._held = 0  # what the process said last, if it waits for an answer
        self._owed = 0  # what it has not been answered yet

    @property
    def fd(self) -> int:
        """The process' end."""
        return self.child.fileno()

    def fileno(self) -> int:
        """Our end."""
        return self._line.fileno()

    def given_to(self, pid: int) -> None:
        """The process has been started and has its end."""
        self.pid = pid
        self.child.close()

    def hear(self) -> str | None:
        """Return the point that the process has reached, which holds it; None = it has hung up."""
        try:
            said = self._line.recv(_MAX_WORD).decode()
        except ConnectionError:
            return None
        number, _, point = said.partition(" ")
        self._held = int(number or 0)
        return point or None

    def watch(self, names: frozenset[str]) -> None:
        """Let the process tell of these points, and of no others."""
        self._watched = names
        self.send()

    def go(self) -> None:
        """Let the process go on, if it is held."""
        self._owed, self._held = self._held or self._owed, 0
        self.send()

    @property
    def behind(self) -> bool:
        """Whether there is something that the process has not been told."""
        return self._told != self._watched or self._owed > 0

    def send(self) -> None:
        """Say what is to be said; what does not fit is for later: a process reads only where it reaches a point."""
        if self.fileno() < 0:
            return
        with suppress(BlockingIOError, ConnectionError):  # that it has gone is for ``hear`` to find
            if self._told != self._watched:
                self._line.send("\n".join(["watch", *sorted(self._watched)]).encode())
                self._told = self._watched
            if self._owed:
                self._line.send(f"go\n{self._owed}".encode())
                self._owed = 0

    def close(self) -> None:
        self._line.close()
        self.child.close()

    def __repr__(self) -> str:
        return f"Seat({'/'.join(self.names)}, process {self.pid}, {'held' if self._held else 'running'})"


def take_part(stage: socket.socket | int) -> None:
    """Tell a director of the points that this process reaches, until the director hangs up.

    Args:
        stage: this process's end of its seat, or that end's descriptor.

    Raises:
        BadArgument: it takes part already, or that is no descriptor of a seat.
    """
    try:
        end = socket.socket(fileno=stage) if isinstance(stage, int) else stage
    except OSError as bad:
        raise BadArgument(f"descriptor {stage} is no end of a seat: {bad}") from bad
    end.set_inheritable(False)  # what this process starts takes no part
    part = _Part(end)
    try:
        part.restore = points.install(part)
    except BadArgument:
        if end is not stage:
            end.detach()  # the descriptor is the caller's
        raise


class _Part:
    """The hook: what this process knows of the play."""

    def __init__(self, stage: socket.socket) -> None:
        self._stage = stage
        self._pid = os.getpid()
        self._watched: frozenset[str] = frozenset()
        self._lock = threading.Lock()  # on the stage
        self._told = 0
        self._held = 0  # the thread that is, by its identity
        self.restore: Callable[[], None] = lambda: None

    def __call__(self, point: str) -> None:
        if os.getpid() != self._pid or threading.get_ident() == self._held:  # a signal handler of who is held
            return
        if self._lock.acquire(blocking=False):  # else a thread is held, and hears what there is to hear
            try:
                self._catch_up()
            finally:
                self._lock.release()
        if point in self._watched:
            with self._lock:
                self._tell(point)

    def _catch_up(self) -> None:
        try:
            while True:
                self._take(self._stage.recv(_MAX_WORD, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            self._hung_up()

    def _tell(self, point: str) -> None:
        """Say where we are, and wait to be let go."""
        self._told += 1
        self._held = threading.get_ident()
        try:
            self._stage.send(f"{self._told} {point}".encode())
            while self._take(self._stage.recv(_MAX_WORD)) != self._told:
                pass
        except OSError:
            self._hung_up()
        finally:
            self._held = 0

    def _take(self, message: bytes) -> int:
        """Read a message; return whom it lets go, 0 if nobody."""
        if not message:
            raise ConnectionResetError("the director has hung up")
        word, *names = message.decode().split("\n")
        if word == "go":
            return int(names[0])
        self._watched = frozenset(names)
        return 0

    def _hung_up(self) -> None:
        self._watched = frozenset()
        self.restore()

    def __repr__(self) -> str:
        return f"the director's, who watches {sorted(self._watched)}"
