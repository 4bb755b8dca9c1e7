"""The switchboard: passes letters between the controller and the roles, verbatim, and keeps the roster.

It knows addresses and nothing else. Invariants: a controller is told of every peer that is there, those that were
there before it first, and of a peer's end after the last thing that the peer said; what is addressed to the dead is
dropped, so a new controller asks for itself; what a peer says is passed on in its order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from penstock.demo.messages import LAUNCHER, Joined, Left, Letter, News, Note, Ready, letter
from penstock.demo.processes import kind_of

__all__ = ["Switchboard"]


class Switchboard:
    """Between processes; called by each peer's own thread.

    Args:
        tell: sends a line to a peer; one that has died is told nothing.
        note: told of what peers say to the launcher itself.
    """

    def __init__(self, tell: Callable[[str, bytes], None], note: Callable[[str, Note], None]) -> None:
        self._tell = tell
        self._note = note
        self._lock = threading.Lock()
        self._roster: list[str] = []  # those that are ready, in that order
        self._controller: str | None = None
        self._letters = msgspec.json.Decoder(Letter)
        self._notes: msgspec.json.Decoder[Note] = msgspec.json.Decoder(Note)

    def heard(self, peer: str, line: bytes) -> None:
        """``peer`` sent ``line``."""
        found = self._letters.decode(line)
        if found.to != LAUNCHER:
            self._tell(found.to, line)
            return
        note = self._notes.decode(found.body)
        if isinstance(note, Ready):
            self._enrol(peer)
        self._note(peer, note)

    def left(self, peer: str) -> None:
        """``peer`` has ended."""
        with self._lock:
            if peer == self._controller:
                self._controller = None
            elif peer in self._roster:
                self._roster.remove(peer)
                self._inform(Left(peer))

    def _enrol(self, peer: str) -> None:
        with self._lock:
            if kind_of(peer) == "controller":
                self._controller = peer
                for other in self._roster:
                    self._inform(Joined(other))
            else:
                self._roster.append(peer)
                self._inform(Joined(peer))

    def _inform(self, news: News) -> None:
        if self._controller is not None:
            self._tell(self._controller, letter(self._controller, LAUNCHER, news))
