"""How a link comes to a connection: dial, start a plane where that is allowed, wait with jitter, dial again.

Invariants: a plane is waited for without limit, with growing, jittered delays (callers have their own deadlines); one
is started at most once in ``RESTART_S``, after failures ever more rarely unless somebody asks for it; a connection that
proved of no use is not made again at once.
"""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Iterator
from typing import Protocol

from penstock.errors import DataPlaneUnavailable
from penstock.plane import events as ev
from penstock.plane.dialing import Awaited, Dialer, Dialling, NotAdmitted, Starting
from penstock.retry import Clock, Deadline, reconnect_delays

__all__ = ["Approach", "Shell"]

log = logging.getLogger(__name__)

RESTART_S = 1.0
_IDLE_RESTART_S = 60.0
_MAX_DOUBLINGS = 16
_UNTRIED = "no connection has been tried yet"
_RENEW_DELAYS_S = 3600.0  # delays grow to their ceiling and stay there; the iterator is made anew


class Shell(Protocol):
    """What the approach needs of the thread it runs in."""

    @property
    def closing(self) -> bool: ...

    @property
    def wanted(self) -> bool:
        """Whether a caller waits for the plane."""

    def apply(self, event: ev.Event) -> None:
        """Tell the courier."""

    def pause(self, timeout_s: float | None, *, wakeful: bool = False, watching: Awaited | None = None) -> None:
        """Deal with callers for so long, or until the client closes.

        Ends early when a call comes, if ``wakeful``, and when ``watching`` is ready.
        """


class Approach:
    """Attributes: starts: planes started."""

    def __init__(self, dialer: Dialer, shell: Shell, rng: random.Random, *, clock: Clock = time.monotonic) -> None:
        self._trouble = _UNTRIED
        self.starts = 0
        self._dialer = dialer
        self._shell = shell
        self._rng = rng
        self._clock = clock
        self._delays = self._new_delays()
        self._dialling: Dialling | None = None
        self._start_at = 0.0  # no plane is started before
        self._failed_starts = 0  # in a row

    @property
    def trouble(self) -> str:
        """Why there is no connection, in words."""
        dialling = self._dialling
        if dialling is None:
            return self._trouble
        before = "" if self._trouble == _UNTRIED else f"; before: {self._trouble}"
        return f"there is no more yet than {dialling!r}{before}"

    @trouble.setter
    def trouble(self, why: str) -> None:
        self._trouble = why

    def connect(self, *, proven: bool) -> socket.socket | None:
        """Dial until somebody answers; None when the client closes. ``proven``: the last connection was of use."""
        if proven:
            self._delays = self._new_delays()
        else:
            self._shell.pause(next(self._delays))
        while not self._shell.closing:
            try:
                return self._dial()
            except NotAdmitted as unwanted:
                self.trouble = str(unwanted)
                self._shell.apply(ev.Refused(self.trouble))
            except DataPlaneUnavailable as nobody:
                self.trouble = str(nobody)
                self._shell.apply(ev.NotConnected(self.trouble))
            if self._start_plane() != "ready":
                self._shell.pause(next(self._delays), wakeful=True)
        return None

    def drop(self) -> None:
        """This is a forked child: let go of a connection that is the parent's."""
        if self._dialling is not None:
            self._dialling.drop()

    def _dial(self) -> socket.socket | None:
        found = self._dialer.dial()
        if isinstance(found, socket.socket):
            return found
        self._dialling = found
        try:
            while not self._shell.closing:
                sock = found.poll()
                if sock is not None:
                    return sock
                self._shell.pause(found.patience_s, watching=found)
        finally:
            self._dialling = None
            found.close()
        return None

    def _new_delays(self) -> Iterator[float]:
        while True:
            yield from reconnect_delays(Deadline(_RENEW_DELAYS_S, self._clock), self._rng)

    def _start_plane(self) -> str:
        """Start a plane if that may be done now; return what it says of itself, "" if none was started."""
        if self._clock() < self._next_start():
            return ""
        try:
            starting = self._dialer.start()
            if starting is None:
                return ""
            self.starts += 1
            word = self._await(starting)
        except DataPlaneUnavailable as failed:
            word = f"error: {failed}"
        self._start_at = self._clock() + RESTART_S
        self._failed_starts = self._failed_starts + 1 if word.startswith("error") else 0
        if self._failed_starts:
            self._does_not_start(word.removeprefix("error: "))
        return word

    def _next_start(self) -> float:
        if self._shell.wanted or not self._failed_starts:
            return self._start_at
        return self._start_at + min(_IDLE_RESTART_S, RESTART_S * 2.0 ** min(self._failed_starts, _MAX_DOUBLINGS))

    def _await(self, starting: Starting) -> str:
        self.trouble = f"{starting!r} for {self._dialer.address} is not ready yet"
        try:
            word = None
            while word is None and not self._shell.closing:
                self._shell.pause(None, watching=starting)
                word = starting.poll()
        finally:
            starting.close()
        return word or ""

    def _does_not_start(self, why: str) -> None:
        self.trouble = f"the plane at {self._dialer.address} does not start: {why}"
        log.warning("%s", self.trouble)
        self._shell.apply(ev.Refused(self.trouble))
