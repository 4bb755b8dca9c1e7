"""Faults on real processes, as sentences: ``kill("trainer", at="after_claim")``.

A process that may be hit says where it is with ``reached(point)``. A ``crew.Crew`` starts the processes; when a point
that a sentence names is reached it holds whoever reached it, sends the signal, sees it take effect, and lets go.

Invariants: a sentence is plain data; outside a crew ``reached`` does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

from penstock.errors import BadArgument

__all__ = ["Fired", "Kind", "Sentence", "kill", "reached", "stop", "take_part", "terminate"]

Kind = Literal["kill", "stop", "terminate"]


@dataclass(frozen=True)
class Sentence:
    """One fault: what happens to whom, when ``role`` reaches ``point`` for the ``nth`` time.

    Attributes:
        later_s: fire this long after the point was reached, the process running on: into the middle of what it does.
        for_s: how long a stop lasts.
    """

    kind: Kind
    victim: str
    role: str
    point: str
    nth: int = 1
    later_s: float = 0.0
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:g} s" if self.kind == "stop" else ""
        later = f" + {self.later_s:g} s" if self.later_s else ""
        return f"{self.kind} {self.victim}{lasting} at {self.role}:{self.point} #{self.nth}{later}"


def kill(victim: str, *, at: str, nth: int = 1, later_s: float = 0.0) -> Sentence:
    """``kill -9`` of ``victim``. ``at`` is a point of its own, or ``"role:point"`` of another's."""
    return _sentence("kill", victim, at, nth, later_s, 0.0)


def terminate(victim: str, *, at: str, nth: int = 1, later_s: float = 0.0) -> Sentence:
    """SIGTERM to ``victim``; it has fired when the process has ended."""
    return _sentence("terminate", victim, at, nth, later_s, 0.0)


def stop(victim: str, *, at: str, for_s: float, nth: int = 1, later_s: float = 0.0) -> Sentence:
    """SIGSTOP of ``victim``, and SIGCONT ``for_s`` seconds later."""
    return _sentence("stop", victim, at, nth, later_s, for_s)


def _sentence(kind: Kind, victim: str, at: str, nth: int, later_s: float, for_s: float) -> Sentence:
    role, colon, point = at.partition(":")
    if nth < 1 or later_s < 0 or for_s < 0 or not (point if colon else role):
        raise BadArgument(f"{kind} {victim}: at={at!r}, nth={nth}, later_s={later_s}, for_s={for_s} makes no sense")
    return Sentence(kind, victim, role if colon else victim, point if colon else role, nth, later_s, for_s)


@dataclass(frozen=True)
class Fired:
    """A fault that took effect, on the process ``pid``."""

    sentence: Sentence
    pid: int


# -- inside a process -------------------------------------------------------------------------------------------------


class _Part:
    """What a process of a crew knows: which of its points matter, and whom to tell."""

    points: frozenset[str] = frozenset()
    stage: Connection | None = None


def reached(point: str) -> None:
    """Say that this process is at ``point``; returns when a fault that fires there has, if it leaves us alive.

    Outside a crew it does nothing.
    """
    if _Part.stage is None or point not in _Part.points:
        return
    _Part.stage.send_bytes(point.encode())
    _Part.stage.recv_bytes()


def take_part(stage: Connection, points: frozenset[str]) -> None:
    """Make this process one of a crew; the crew itself calls it, first thing in the process."""
    _Part.points, _Part.stage = points, stage
