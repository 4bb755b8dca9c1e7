"""What the journal holds: facts, in entries. An entry is one decision: all of its facts and the reply, or none.

Rows are named by id: ids are never reused, so that replay can skip what a fact says of rows it has not seen (their
state follows in a later checkpoint). Durations are journaled, not deadlines: they restart in full.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from penstock.requests import BlockPlace, FieldSpec, HostPlace, RegisterPartition, ReplyBody, TagColumn

# Facts are added, and fields at the end with a default, without a new number: what an earlier Penstock has written is
# read. Not the other way round: to an earlier one a fact that it does not know is damage.
JOURNAL_VERSION = 1


class Fact(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of what a journal says."""


class LifeBegan(Fact, frozen=True):
    """A plane started. First fact of every life, and of every checkpoint.

    ``next_id``: ids below it have been used. ``clears``: how many clears there have been, for the tombstones' order.
    ``first``: the number of the plane's first life; 0: this is it.
    """

    incarnation: int
    wall: float
    next_id: int
    clears: int = 1
    first: int = 0


class SessionOpened(Fact, frozen=True):
    session_id: int
    secret: str
    client_id: int
    owner: str
    role: str
    host: str
    pid: int


class SessionEnded(Fact, frozen=True):
    session_id: int
    why: str


class Registered(Fact, frozen=True):
    request: RegisterPartition


class FieldsAre(Fact, frozen=True):
    """The fields of a partition, declared or put, and the types of those that were put: kept beyond their blocks."""

    partition: str
    names: list[str]
    specs: list[FieldSpec]


class QueueOpened(Fact, frozen=True):
    """A task has claimed with these required fields: its ready rows are kept in a queue from now on."""

    partition: str
    task: str
    required: list[str]
    whole_groups: bool


class Put(Fact, frozen=True):
    """A put became visible. ``place`` None: tags only. ``fresh``: positions of rows that it made; None = all.

    ``write_id`` is the block's id. ``ids`` are the rows' ids, aligned with ``keys``; 0: the put says nothing new of it.
    ``replica``: where the block lies a second time, on another host.
    """

    write_id: int
    partition: str
    session_id: int
    keys: list[str]
    ids: list[int]
    fresh: list[int] | None
    fields: list[FieldSpec]
    tags: list[TagColumn]
    place: BlockPlace | None
    content: int
    row_bytes: list[int]
    lengths: list[int] | None
    wall: float
    replica: BlockPlace | None = None


class Leased(Fact, frozen=True):
    """``seq``: the claim's sequence in the session that made it; its reply is rebuilt from the lease.

    ``claimant``: that session, if the lease has been renewed by another since; a checkpoint says so.
    """

    partition: str
    task: str
    token: str
    session_id: int
    seq: int
    ids: list[int]
    lease_s: float | None
    whole_groups: bool = False
    claimant: int | None = None


class Renewed(Fact, frozen=True):
    """The leases of these rows end ``lease_s`` from now, or with the session; lapsed ones are held again."""

    partition: str
    task: str
    session_id: int
    ids: list[int]
    lease_s: float | None


class Returned(Fact, frozen=True):
    """Leased rows are ready again. ``counted``: it was a delivery that failed (expiry, session end)."""

    partition: str
    task: str
    ids: list[int]
    counted: bool
    why: str


class Consumed(Fact, frozen=True):
    """A task that is not the final one is done with these rows."""

    partition: str
    task: str
    ids: list[int]


class Removed(Fact, frozen=True):
    """Rows are gone. ``reason``: trained, evicted, cleared, quarantined, lost; ``detail``: evicted or lost by what."""

    partition: str
    ids: list[int]
    reason: str
    detail: str


class GroupClosed(Fact, frozen=True):
    """No later put may add to this group."""

    partition: str
    group: str


class PartialAllowed(Fact, frozen=True):
    """The group's deadline has passed: whole-group claims may take what there is of it."""

    partition: str
    group: str


class PartitionCleared(Fact, frozen=True):
    """Every row is gone (cleared) and the partition is not registered any more."""

    partition: str


class Moved(Fact, frozen=True):
    """A block lies there from now on, and nowhere else but at ``replica``. ``kept`` None: it holds the rows it held."""

    place: BlockPlace
    kept: list[int] | None
    replica: BlockPlace | None = None


class HostIs(Fact, frozen=True):
    """Where a host's agent is reached; whether it is there, every life of the plane finds out anew."""

    place: HostPlace


class StoreMayHold(Fact, frozen=True):
    """These blocks may come to lie in the store: they were granted there."""

    host_id: int
    blocks: list[int]


class StoreFreed(Fact, frozen=True):
    """These do not lie there any more, by its agent's word."""

    host_id: int
    blocks: list[int]


# -- a checkpoint restates what is alive; it follows ``LifeBegan`` and is absolute --------------------------------


class WriteIs(Fact, frozen=True):
    """A put of which rows are alive. ``kept`` as in ``Moved``; the alive rows name it in ``RowIs``."""

    put: Put
    kept: list[int] | None


class RowIs(msgspec.Struct, frozen=True, array_like=True):
    """``writes``: (write id, index) pairs, oldest first. ``consumed``: positions of the tasks that have consumed it."""

    id: int
    key: str
    wall: float
    writes: list[tuple[int, int]]
    consumed: list[int] = []
    ended: list[str] = []
    deliveries: list[tuple[int, int]] = []
    lapsed: list[tuple[int, str, bool]] = []


class RowsAre(Fact, frozen=True):
    partition: str
    rows: list[RowIs]


class TombstoneIs(msgspec.Struct, frozen=True, array_like=True):
    key: str
    reason: str
    token: str
    contents: list[tuple[int, int]]
    at: int
    left_s: float
    detail: str = ""


class TombstonesAre(Fact, frozen=True):
    partition: str
    rows: list[TombstoneIs]
    groups: list[tuple[str, float]]


class GroupsAre(Fact, frozen=True):
    """Groups that have lost rows for good, and how many each."""

    partition: str
    gone: list[tuple[str, int]]


class CountersAre(Fact, frozen=True):
    partition: str
    registered: bool
    put: int
    trained: int
    evicted: dict[str, int]
    cleared: int
    quarantined: int
    lost: dict[str, int]
    finished_bytes: int
    finished_rows: int
    cleared_at: int


class RepliesAre(Fact, frozen=True):
    session_id: int
    done_below: int
    replies: list[tuple[int, ReplyBody]]


AnyFact: TypeAlias = (
    LifeBegan
    | SessionOpened
    | SessionEnded
    | Registered
    | FieldsAre
    | QueueOpened
    | Put
    | Leased
    | Renewed
    | Returned
    | Consumed
    | Removed
    | GroupClosed
    | PartialAllowed
    | PartitionCleared
    | Moved
    | HostIs
    | StoreMayHold
    | StoreFreed
    | WriteIs
    | RowsAre
    | TombstonesAre
    | GroupsAre
    | CountersAre
    | RepliesAre
)


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One journal record.

    Attributes:
        session_id, seq, done_below, reply: the mutation that was decided and its answer (None: a claim's is rebuilt
            from its lease); session 0 for decisions nobody asked for.
        checkpoint: number of the checkpoint this entry belongs to; 0 = none.
    """

    facts: list[AnyFact]
    session_id: int = 0
    seq: int = 0
    done_below: int = 0
    reply: ReplyBody | None = None
    checkpoint: int = 0
