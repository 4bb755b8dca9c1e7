"""What happens to a ledger, and what it wants done: frozen records in the domain's words.

``now`` is monotonic seconds, ``wall`` seconds since the epoch; both come from the shell. ``deadline`` is ``now``'s.
Effects are carried out in order; what follows a ``Persist`` is carried out only once its entry is as durable as the
plane's level says.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from penstock.ledger.facts import Entry
from penstock.requests import BlockPlace, Granted, HostPlace, OpenSession, ReplyBody, Request, RowIssue, Source

GOODBYE = "goodbye"  # why a session ended that said so itself


class Event(msgspec.Struct, frozen=True):
    """Base of what happens."""


class SessionOpens(Event, frozen=True):
    """A client begins a session; id and secret are the shell's random choice. ``call_id`` is answered ``Welcome``."""

    session_id: int
    secret: str
    call_id: int
    request: OpenSession
    wall: float


class SessionResumes(Event, frozen=True):
    """A client comes back. The shell has checked nothing; the ledger checks the secret."""

    session_id: int
    secret: str
    call_id: int


class Asked(Event, frozen=True):
    """A call of an open session."""

    session_id: int
    call_id: int
    seq: int
    done_below: int
    abandoned: list[int]
    deadline: float
    body: Request
    wall: float


class Heard(Event, frozen=True):
    """A sign of life that asks for nothing (heartbeat)."""

    session_id: int
    done_below: int = 0
    abandoned: list[int] = []


class Disconnected(Event, frozen=True):
    """The session's connection closed. No death certificate: the session lives on until its heartbeat is overdue."""

    session_id: int


class Withdrawn(Event, frozen=True):
    """Nobody waits for the answers to these calls any more: puts among them leave the queue for room."""

    calls: frozenset[int]


class SessionGone(Event, frozen=True):
    """The session ended for certain: goodbye, or the kernel says that its process is dead."""

    session_id: int
    why: str


class Allotted(Event, frozen=True):
    """The shell found a slot for a grant."""

    grant: int
    place: BlockPlace


class NotAllotted(Event, frozen=True):
    """The shell gave a grant up: no slot before the deadline, or its holder no longer wants it."""

    grant: int


class BlocksLost(Event, frozen=True):
    """Blocks are missing or damaged; their rows are lost, and named."""

    block_ids: list[int]
    why: str


class BlockMoved(Event, frozen=True):
    """A block lies elsewhere now. ``kept``: original row indices that it still holds, in order; None = all."""

    place: BlockPlace
    kept: list[int] | None = None


class Tick(Event, frozen=True):
    """Time has passed. Expected at least once a second; a gap beyond that means that the plane itself was stopped."""

    wall: float


class Effect(msgspec.Struct, frozen=True):
    """Base of what is wanted."""


class Persist(Effect, frozen=True):
    """Append this entry to the journal before anything after it is carried out."""

    entry: Entry


class Answer(Effect, frozen=True):
    """Send a reply to a call of a session, if it is connected."""

    session_id: int
    call_id: int
    body: ReplyBody


class Allot(Effect, frozen=True):
    """Room is reserved: find a slot of ``nbytes`` for ``grant``, report ``Allotted``, answer the call ``Granted``.

    The grant's number is the id of the block that will lie there.
    """

    session_id: int
    call_id: int
    grant: int
    nbytes: int
    deadline: float


class Assign(Effect, frozen=True):
    """Room is reserved on a host, whose agent finds the slot: answer the call with ``granted``.

    The shell keeps the client's grant in mind as any other: ``NotAllotted`` says that the client does not hold it.
    """

    session_id: int
    call_id: int
    granted: Granted


class Unassign(Effect, frozen=True):
    """A grant on a host is over, committed or dropped: it is the client's no longer."""

    grant: int


class Fill(Effect, frozen=True):
    """The grant's slot holds a visible block now (WRITING -> READY)."""

    block_id: int


class DropGrant(Effect, frozen=True):
    """The grant will never be committed; its slot is free once its writer cannot touch it any more."""

    grant: int


class FreeBlock(Effect, frozen=True):
    """The block's last row is gone."""

    block_id: int


class Resolve(Effect, frozen=True):
    """Pin these blocks for the session, but for those on hosts, and answer the call ``Located``."""

    session_id: int
    call_id: int
    blocks: list[BlockPlace]
    sources: list[Source]
    issues: list[RowIssue]
    others: list[BlockPlace] = []
    hosts: list[HostPlace] = []


class EndSession(Effect, frozen=True):
    """The session is over: close its connection; its grants and pins follow its process, not it."""

    session_id: int
    why: str


AnyEvent: TypeAlias = (
    SessionOpens
    | SessionResumes
    | Asked
    | Heard
    | Disconnected
    | Withdrawn
    | SessionGone
    | Allotted
    | NotAllotted
    | BlocksLost
    | BlockMoved
    | Tick
)
AnyEffect: TypeAlias = (
    Persist | Answer | Allot | Assign | Unassign | Fill | DropGrant | FreeBlock | Resolve | EndSession
)
