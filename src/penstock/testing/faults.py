"""Faults on real processes, as sentences: ``kill("trainer", at="trainer.saved")``.

A process that may be hit says where it is with ``reached(point)``. A ``director.Director`` hears it: when a point that
a sentence names is reached it holds whoever reached it, does what the sentence says, sees it take effect, and lets go.

Invariants: a sentence is plain data; a point whose name has a dot stands in ``penstock.points``, any other is a test's
own; in a process that takes no part ``reached`` does nothing.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from penstock.errors import BadArgument, abbreviate
from penstock.points import POINTS, reached

__all__ = ["Fired", "Kind", "Missed", "Sentence", "delay", "kill", "reached", "stop", "terminate"]

Kind = Literal["kill", "stop", "terminate", "delay"]

_LASTING = ("stop", "delay")
_POINTS = frozenset(point.name for point in POINTS)


@dataclass(frozen=True)
class Sentence:
    """One fault: what happens to whom, when ``role`` reaches ``point`` for the ``nth`` time.

    Attributes:
        later_s: fire this long after the point was reached, the process running on: into the middle of what it does.
        for_s: how long a stop or a delay lasts.
    """

    kind: Kind
    victim: str
    role: str
    point: str
    nth: int = 1
    later_s: float = 0.0
    for_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.for_s:g} s" if self.kind in _LASTING else ""
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


def delay(victim: str, *, at: str, for_s: float, nth: int = 1) -> Sentence:
    """Hold the thread of ``victim`` that is at its point for ``for_s`` seconds; its other threads run on."""
    sentence = _sentence("delay", victim, at, nth, 0.0, for_s)
    if sentence.role != victim:
        raise BadArgument(f"{sentence}: who is delayed is who reached the point; use stop for anybody else")
    return sentence


def _sentence(kind: Kind, victim: str, at: str, nth: int, later_s: float, for_s: float) -> Sentence:
    role, colon, point = at.partition(":")
    if nth < 1 or later_s < 0 or for_s < 0 or not (point if colon else role):
        raise BadArgument(f"{kind} {victim}: at={at!r}, nth={nth}, later_s={later_s}, for_s={for_s} makes no sense")
    named = point if colon else role
    if "." in named and named not in _POINTS:
        near = difflib.get_close_matches(named, _POINTS, n=3, cutoff=0.0)
        raise BadArgument(f"{kind} {victim}: no point is called {named!r}; the nearest are {abbreviate(near)}")
    return Sentence(kind, victim, role if colon else victim, named, nth, later_s, for_s)


@dataclass(frozen=True)
class Fired:
    """A fault that took effect on the process ``pid``. ``at``: monotonic seconds, when that was seen."""

    sentence: Sentence
    pid: int
    at: float


@dataclass(frozen=True)
class Missed:
    """A fault whose moment came, and that took no effect."""

    sentence: Sentence
    why: str

    def __str__(self) -> str:
        return f"{self.sentence}: {self.why}"
