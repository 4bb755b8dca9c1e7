"""What is missing when nothing moves, and who owes it: the part of ``why`` that a program reads.

Each debt has its facts as fields and says them in one sentence, ``says``. A report names the worst first: a plane that
is full, groups that lack rows, tasks that find none, hosts and sessions that are not heard of; at most eight of each.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = ["AnyDebt", "Debt", "FullPlane", "Party", "Room", "SilentHost", "SilentSession", "StarvedTask", "StuckGroup"]


class Party(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A session that owes something, holds something, or waits.

    Attributes:
        session_id: 0 = the plane does not know which it was.
        who: its owner or role, process and host, in words.
        pid: its process.
        silent_s: since it was last heard of; of one that has ended, since its end.
        ended: why it ended; "" = it lives.
        rows: that it holds under leases, or waits to put.
        waits_s: for how long it has been waiting; 0 if it does not.
    """

    session_id: int
    who: str
    pid: int = 0
    silent_s: float = 0.0
    ended: str = ""
    rows: int = 0
    waits_s: float = 0.0


class Debt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Base of what is missing. ``says``: all of it in a sentence."""

    says: str


class StuckGroup(Debt, frozen=True, kw_only=True, tag=True):
    """A group that is not whole: siblings are missing, or nobody has committed it.

    Attributes:
        rows, expected: how many there are of how many; ``expected`` None = nobody declared a number.
        gone: how many it had and has not any more: trained, evicted, quarantined, lost. They do not come back.
        committed: every row that is there says so.
        age_s: since its first row.
        owed_by: who put to it.
    """

    group: str
    rows: int
    expected: int | None
    gone: int
    committed: bool
    age_s: float
    owed_by: list[Party]


class StarvedTask(Debt, frozen=True, kw_only=True, tag=True):
    """A task that finds fewer rows ready than it asked for.

    Attributes:
        task: who starves; ``ready`` rows of the ``wanted`` that its last claim asked for at least.
        field: a column that rows lack; "" = no column is missing: there are no rows, or others hold them.
        rows: how many rows lack it, or are held; ``example`` is the key of one.
        stage: the task that has not acknowledged those rows; "" = all have, or the partition has no earlier one.
        unclaimed: how many of them nobody has claimed for that stage.
        owed_by: who holds them.
    """

    task: str
    ready: int
    wanted: int
    field: str
    rows: int
    example: str
    stage: str
    unclaimed: int
    owed_by: list[Party]


class Room(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What takes room in one partition.

    ``leased``: for the final task. ``unfinished``: rows of groups that are not whole. ``promised``: what admitted
    groups may still grow by. ``granted``: what is being written.
    """

    partition: str
    rows: int
    leased: int
    unfinished: int
    bytes: int
    promised_rows: int
    promised_bytes: int
    granted_rows: int
    granted_bytes: int


class FullPlane(Debt, frozen=True, kw_only=True, tag=True):
    """Puts of new groups wait for room.

    Attributes:
        limit: the partition whose own limit it is; "" = the plane's.
        used_bytes, max_bytes, used_rows, max_rows: taken or promised, of how much.
        waiting: who waits; the longest first.
        held: what takes the room, by partition.
        held_by: who holds rows under leases.
    """

    limit: str
    used_bytes: int
    max_bytes: int
    used_rows: int
    max_rows: int
    waiting: list[Party]
    held: list[Room]
    held_by: list[Party]


class SilentHost(Debt, frozen=True, kw_only=True, tag=True):
    """A host whose agent is not heard of, while rows lie there.

    Attributes:
        host: its name and id; ``address``: where its agent was reached.
        silent_s: since its agent's session ended; ``left_s``: until it counts as gone.
        rows: of those that were looked at, how many lie there and nowhere that is up: they are lost with the host.
        example: the key of one; "" = none.
        blocks: that lie there, of all partitions, those with a second place included.
    """

    host: str
    address: str
    silent_s: float
    left_s: float
    rows: int
    example: str
    blocks: int


class SilentSession(Debt, frozen=True, kw_only=True, tag=True):
    """A session whose sign of life is overdue, or that ended without a goodbye.

    Attributes:
        party: which, and how long it has been silent.
        dead_after_s: the silence after which the plane ends a session.
        unfinished: groups that it put to and that are not whole.
    """

    party: Party
    dead_after_s: float
    unfinished: int


AnyDebt: TypeAlias = StuckGroup | StarvedTask | FullPlane | SilentHost | SilentSession
