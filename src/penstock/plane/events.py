"""What happens to a client's session (events) and what it wants done (effects): the words of ``courier``.

An *errand* is one caller's request, known by a number that the shell gives it. ``deadline`` and ``now`` are on the
shell's monotonic clock.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from penstock.requests import Call, Reply, ReplyBody, Request

__all__ = [
    "Beat",
    "Close",
    "Connected",
    "Disconnect",
    "Effect",
    "Ended",
    "Event",
    "GrantOver",
    "Learned",
    "Leave",
    "Lost",
    "NotConnected",
    "Opened",
    "Received",
    "Refused",
    "Settled",
    "Submit",
    "Take",
    "Transmit",
    "Unpinned",
    "Verdict",
]


class Verdict(enum.Enum):
    """What is known of an errand that ended without a reply."""

    NOTHING = "nothing happened"
    UNKNOWN = "outcome unknown"


class _Event(msgspec.Struct, frozen=True):
    pass


class Submit(_Event, frozen=True):
    """A caller wants ``body`` answered.

    ``once``: now or not at all; it waits for no reconnection (``ping``). ``remembered``: fill in the body's ``tokens``
    from the leases this client has.
    """

    errand: int
    body: Request
    deadline: float
    once: bool = False
    remembered: bool = False


class Take(_Event, frozen=True):
    """The caller has got the reply."""

    errand: int


class Leave(_Event, frozen=True):
    """The caller waits no more: his deadline, a signal. ``kept``: no byte of the latest ``Transmit`` has left."""

    errand: int
    kept: bool = False


class Connected(_Event, frozen=True):
    """A connection to the plane stands; nothing has been sent on it."""


class NotConnected(_Event, frozen=True):
    """An attempt to connect failed."""

    why: str


class Refused(_Event, frozen=True):
    """There will be no connection, and waiting does not help: the plane cannot be started."""

    why: str


class Lost(_Event, frozen=True):
    """The connection is gone. ``kept``: errands of which no byte of the latest ``Transmit`` has left."""

    why: str
    kept: frozenset[int] = frozenset()


class Received(_Event, frozen=True):
    """The plane said something."""

    reply: Reply


class Beat(_Event, frozen=True):
    """It is time to show a sign of life."""


class Unpinned(_Event, frozen=True):
    """These pins are no longer needed."""

    pins: tuple[int, ...]


class Learned(_Event, frozen=True):
    """The shell has found out which task of the partition is the final one."""

    partition: str
    final_task: str


class GrantOver(_Event, frozen=True):
    """Nothing will be written under this grant any more."""

    grant: int


class Close(_Event, frozen=True):
    """The client ends its session."""


class _Effect(msgspec.Struct, frozen=True):
    pass


class Transmit(_Effect, frozen=True):
    """Send this. ``errand`` 0 = the courier's own (opening, heartbeat, goodbye)."""

    call: Call
    errand: int = 0


class Settled(_Effect, frozen=True):
    """The errand's reply, for its caller to ``Take``."""

    errand: int
    body: ReplyBody
    incarnation: int


class Ended(_Effect, frozen=True):
    """There will be no reply."""

    errand: int
    verdict: Verdict
    why: str


class Opened(_Effect, frozen=True):
    """The session stands. ``resumed``: it is the one of before."""

    session_id: int
    resumed: bool
    heartbeat_s: float
    max_frame_bytes: int


class Disconnect(_Effect, frozen=True):
    """Drop the connection and report it ``Lost``: the plane refused the session or broke the protocol."""

    why: str


_OfCallers: TypeAlias = Submit | Take | Leave | Unpinned | Learned | GrantOver | Close
_OfTheConnection: TypeAlias = Connected | NotConnected | Refused | Lost | Received | Beat
Event: TypeAlias = _OfCallers | _OfTheConnection
Effect: TypeAlias = Transmit | Settled | Ended | Opened | Disconnect
