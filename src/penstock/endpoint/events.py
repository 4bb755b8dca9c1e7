"""What the handshake of one pair of peers is told (events), what it wants done (effects), and what peers say.

Messages are small, idempotent and addressed to a session; they may be lost, repeated, delayed and reordered.
What both ends must know of each other's resources (``params``) travels beside them and is never seen by the machine:
no guard can depend on a resource's id.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

__all__ = [
    "Answer",
    "Arrived",
    "Bind",
    "Broken",
    "Carry",
    "Drained",
    "Effect",
    "Event",
    "Finished",
    "GiveUp",
    "Kind",
    "Make",
    "Message",
    "Open",
    "Post",
    "Ready",
    "Retire",
    "Send",
    "Session",
    "SetTimer",
    "Settle",
    "Timer",
]


class Session(NamedTuple):
    """One endpoint's name, unique for ever: 64 random bits of its process's start, and a counter within it."""

    boot: int
    counter: int

    def __str__(self) -> str:
        return f"{self.boot:x}.{self.counter}"


class Kind(enum.Enum):
    """What a message says. ``REP``, ``ACK`` and ``PING`` make one claim: "my ``src`` is bound to your ``dst``"."""

    REQ = "REQ"  # src would like to be bound
    REP = "REP"  # and says so until it is answered
    ACK = "ACK"  # and knows that you are bound to it; also the answer to PING
    RST = "RST"  # src does not exist any more, or is bound to another than dst: true once, true for ever
    PING = "PING"  # and would like to hear so from you


class Message(NamedTuple):
    """``dst`` is None in ``REQ``, and only there."""

    kind: Kind
    src: Session
    dst: Session | None


# -- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """``waiter`` wants a ready endpoint. It waits by its own deadline, and says ``GiveUp`` when that has passed."""

    waiter: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """``waiter`` does not wait any more. One that was answered meanwhile is ignored."""

    waiter: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """The peer said this."""

    message: Message


@dataclass(frozen=True, slots=True)
class Timer:
    """The time of ``SetTimer`` is over. An extra one does no harm."""

    session: Session


@dataclass(frozen=True, slots=True)
class Broken:
    """The endpoint is of no further use: a transfer failed, its resources could not be had, or it is closed."""

    session: Session
    why: str


@dataclass(frozen=True, slots=True)
class Post:
    """Somebody wants to use the endpoint for ``work``. Answered ``Carry``, or ``Settle`` with the reason against it."""

    session: Session
    work: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The work that was carried has come to its end, well or not (``why``)."""

    session: Session
    work: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Drained:
    """The resources of a retired endpoint are closed."""

    session: Session


Event: TypeAlias = Open | GiveUp | Arrived | Timer | Broken | Post | Finished | Drained


# -- effects --------------------------------------------------------------------------------------------------------
# The effects of one endpoint are carried out in order: what is sent after ``Bind`` is sent when it is bound.


@dataclass(frozen=True, slots=True)
class Make:
    """Make fresh resources for this session. ``asked``: it was opened here, not by the peer's ``REQ``."""

    session: Session
    asked: bool


@dataclass(frozen=True, slots=True)
class Bind:
    """Bind the session's resources to the peer's, whose params came with the message. Once in a session's life."""

    session: Session
    peer: Session


@dataclass(frozen=True, slots=True)
class Send:
    """Say this to the peer, with the params of ``src``. Nobody waits for it to arrive."""

    message: Message


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send ``Timer`` after a time drawn uniformly from the range; replaces this session's earlier timer."""

    session: Session
    at_least_s: float
    at_most_s: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The endpoint can be used from both ends. Once in a session's life."""

    session: Session


@dataclass(frozen=True, slots=True)
class Answer:
    """The waiter has what it wanted."""

    waiter: int
    session: Session


@dataclass(frozen=True, slots=True)
class Carry:
    """Do the work on the endpoint; then say ``Finished``."""

    session: Session
    work: int


@dataclass(frozen=True, slots=True)
class Settle:
    """The work's one and only end: done, or failed because of ``why``."""

    work: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Retire:
    """Let go of the endpoint: break off what it carries, close its resources, then say ``Drained``."""

    session: Session
    why: str


Effect: TypeAlias = Make | Bind | Send | SetTimer | Ready | Answer | Carry | Settle | Retire
