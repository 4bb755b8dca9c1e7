"""What happens to a keeper beside what any server's machine hears, and what it wants done: the words of ``keeper``.

The rest of its words are those of the shell that it shares with the plane (``ledger.events``): sessions, calls, slots.
"""

from __future__ import annotations

from typing import TypeAlias

from penstock.hosting import HostReport, Orders
from penstock.ledger.events import (
    Allot,
    Allotted,
    Answer,
    Asked,
    BlockMoved,
    BlocksLost,
    Disconnected,
    DropGrant,
    Effect,
    EndSession,
    Event,
    Fill,
    FreeBlock,
    Heard,
    NotAllotted,
    Resolve,
    SessionGone,
    SessionOpens,
    SessionResumes,
    Tick,
    Withdrawn,
)
from penstock.parts import BlockPlace, HostPlace

__all__ = [
    "AnyEffect",
    "AnyEvent",
    "Copied",
    "Enlisting",
    "Found",
    "Keep",
    "NotCopied",
    "Ordered",
    "Replicate",
    "Verify",
]


class Found(Event, frozen=True):
    """Blocks of earlier lives lie there, whole as far as their headers say, and rows need them."""

    places: list[BlockPlace]


class Enlisting(Event, frozen=True):
    """The plane has taken this host in, for the first time or again: what it says is all that it knows of it."""

    live: list[BlockPlace]
    after: int


class Ordered(Event, frozen=True):
    """The plane has answered the report ``said``."""

    orders: Orders
    said: HostReport


class Copied(Event, frozen=True):
    """The second host has the block, verified, at ``place``."""

    grant: int
    place: BlockPlace


class NotCopied(Event, frozen=True):
    """The second host does not have the block, as far as is known."""

    grant: int
    why: str


class Keep(Effect, frozen=True):
    """The grant's slot is READY; its writer holds it until he lets go, which is told as ``NotAllotted``."""

    grant: int


class Replicate(Effect, frozen=True):
    """Have ``replica`` pull the block; tell ``Copied`` or ``NotCopied`` by the deadline."""

    grant: int
    content: int
    place: BlockPlace
    replica: HostPlace
    deadline: float


class Verify(Effect, frozen=True):
    """Compare the block with its checksums; if they differ, tell ``BlocksLost``."""

    block_id: int


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
    | Found
    | Enlisting
    | Ordered
    | Copied
    | NotCopied
)
AnyEffect: TypeAlias = Answer | Allot | Fill | Keep | DropGrant | FreeBlock | Resolve | EndSession | Replicate | Verify
