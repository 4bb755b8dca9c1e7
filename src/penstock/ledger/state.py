"""What a ledger remembers: plain slotted records, and the few rules that hold within one of them.

Durable: partitions, rows, writes, groups, leases, tombstones, sessions with their replies, counters; only ``apply``
changes them. Volatile: grants, waiting calls, queues' order, timers,
which hosts are up and what they are ordered.
Invariants: a row is in ``Partition.rows`` and ``rows_by_id`` from its first put to its removal; a queue's bit is
set in ``Unit.queued`` exactly while the unit is ready for it; ids grow and are never reused.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from penstock.ledger.hosts import Host
from penstock.ledger.writes import ABSENT, Write
from penstock.records import Tag
from penstock.requests import BlockPlace, Claim, FieldSpec, Grant, RegisterPartition, ReplyBody

GROUP_TAGS = frozenset({"group_id", "committed", "expected_num_keys", "num_keys"})


class Row:
    """A row. ``writes`` is (write, index, write, index, ...), oldest first, only those still needed."""

    __slots__ = ("consumed", "group", "id", "key", "produced", "queued", "wall", "writes")

    def __init__(
        self, row_id: int, key: str, wall: float, writes: tuple[Write | int, ...] = (), produced: int = 0
    ) -> None:
        self.id = row_id
        self.key = key
        self.wall = wall
        self.group: Group | None = None
        self.writes = writes
        self.produced = produced  # field bits
        self.consumed = 0  # task bits
        self.queued = 0  # queue bits

    def pairs(self) -> list[tuple[Write, int]]:
        """(write, index) pairs, newest first."""
        writes = self.writes
        if len(writes) == 2:  # nearly always; the rest of this file's loops are written out for the same reason: speed
            return [writes]  # type: ignore[list-item]
        return [(writes[i], writes[i + 1]) for i in range(len(writes) - 2, -1, -2)]  # type: ignore[misc]

    def tag(self, name: str) -> object:
        """The tag's newest value; None when the row does not have it."""
        writes = self.writes
        for i in range(len(writes) - 2, -1, -2):
            column = writes[i].columns.get(name)  # type: ignore[union-attr]
            if column is not None:
                value = column.get(writes[i + 1], ABSENT)  # type: ignore[arg-type]
                if value is not ABSENT:
                    return value
        return None

    def has_tag(self, name: str) -> bool:
        return any(name in write.names_of(index) for write, index in self.pairs())

    def declares_group(self) -> bool:
        """Whether a tag of the row speaks of its group; a row that nobody tagged is in none."""
        return any(write.names_of(index) & GROUP_TAGS for write, index in self.pairs())

    def tags(self) -> dict[str, Tag]:
        """All tags, the newest value of each."""
        merged: dict[str, Tag] = {}
        writes = self.writes
        for i in range(0, len(writes), 2):
            write: Write = writes[i]  # type: ignore[assignment]
            index: int = writes[i + 1]  # type: ignore[assignment]
            for name, column in write.columns.items():
                if column.constant:
                    merged[name] = column.values[0]
                else:
                    value = column.get(index, ABSENT)
                    if value is not ABSENT:
                        merged[name] = value  # type: ignore[assignment]
        return merged

    def length(self) -> int | None:
        """Length of the row's first ragged field, as its oldest put had it; None = it has none."""
        for write, index in reversed(self.pairs()):
            if write.lengths is not None:
                return write.lengths[index]
        return None

    def bytes(self) -> int:
        """Payload bytes of the row."""
        writes = self.writes
        size = 0
        for i in range(0, len(writes), 2):
            write: Write = writes[i]  # type: ignore[assignment]
            if write.place is not None:
                size += write.row_bytes[writes[i + 1]]  # type: ignore[index]
        return size


class Group:
    """The rows of one ``group_id``. ``done``: committed and complete. ``partial``: may be handed out as it is."""

    __slots__ = (
        "done",
        "expected",
        "first_bytes",
        "gid",
        "gone",
        "id",
        "partial",
        "promised_bytes",
        "promised_rows",
        "putters",
        "queued",
        "rows",
        "wall",
    )

    def __init__(self, group_id: int, gid: str, wall: float) -> None:
        self.id = group_id
        self.gid = gid
        self.wall = wall
        self.rows: dict[int, Row] = {}
        self.expected: int | None = None
        self.done = False
        self.partial = False
        self.queued = 0
        self.putters: tuple[int, ...] = ()  # sessions that made rows of it or tagged them
        self.gone = 0  # rows that were removed and cannot come back: nothing stays promised to them
        self.first_bytes = 0
        self.promised_bytes = 0
        self.promised_rows = 0

    def add_putter(self, session_id: int) -> None:
        if session_id not in self.putters:
            self.putters += (session_id,)


Unit: TypeAlias = Row | Group


class Lease:
    """Rows claimed by a task for a session under one token. ``until``: ledger seconds, None = with the session.

    ``seq``: the claim's sequence in its session, which is ``claimant`` if another has renewed the lease since.
    """

    __slots__ = (
        "claimant",
        "lease_s",
        "partition",
        "rows",
        "seq",
        "session_id",
        "task",
        "token",
        "until",
        "whole_groups",
    )

    def __init__(self, token: str, partition: str, task: str, session_id: int, seq: int) -> None:
        self.token = token
        self.partition = partition
        self.task = task
        self.session_id = session_id
        self.seq = seq
        self.rows: dict[int, Row] = {}
        self.lease_s: float | None = None
        self.until: float | None = None
        self.whole_groups = False
        self.claimant: int | None = None


class Wanted:
    """What a task's claims ask for: ``whole``: groups, be it by their keys; ``rows``: at least so many."""

    __slots__ = ("fields", "rows", "whole")

    def __init__(self, fields: list[str], whole: bool, rows: int = 1) -> None:
        self.fields = fields
        self.whole = whole
        self.rows = rows


class Task:
    """A consumer's cursor.

    ``held``: row id -> its lease. ``lapsed``: row id -> (token, released) of a lease that ended without a successor.
    ``ended``: row id -> token under which it was consumed (tasks that are not final). ``deliveries``: failed ones.
    ``wanted``: by its last claim in this life.
    """

    __slots__ = ("bit", "consumed", "deliveries", "ended", "held", "index", "lapsed", "name", "wanted")

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.bit = 1 << index
        self.consumed = 0  # live rows with this task's bit
        self.held: dict[int, Lease] = {}
        self.lapsed: dict[int, tuple[str, bool]] = {}
        self.ended: dict[int, str] = {}
        self.deliveries: dict[int, int] = {}
        self.wanted: Wanted | None = None

    def forget(self, row_id: int, consumed: bool) -> Lease | None:
        """The row is gone. Return the lease that held it."""
        self.consumed -= consumed
        if self.lapsed:
            self.lapsed.pop(row_id, None)
        if self.ended:
            self.ended.pop(row_id, None)
        if self.deliveries:
            self.deliveries.pop(row_id, None)
        lease = self.held.pop(row_id, None)
        if lease is not None:
            lease.rows.pop(row_id, None)
        return lease

    def token_of(self, row_id: int) -> str:
        """The newest token under which the row was leased and not yet consumed; "" = never."""
        lease = self.held.get(row_id)
        return lease.token if lease is not None else self.lapsed.get(row_id, ("", False))[0]


class Queue:
    """Units that are ready for (task, required fields), oldest first. Stale heap entries are skipped when met."""

    __slots__ = ("bit", "count", "counted", "heap", "mask", "required", "task", "whole")

    def __init__(self, task: Task, required: list[str], mask: int, whole: bool, bit: int) -> None:
        self.task = task
        self.required = required
        self.mask = mask
        self.whole = whole
        self.bit = bit
        self.heap: list[int] = []
        self.count = 0  # ready rows (also for whole groups)
        self.counted: dict[int, int] = {}  # whole groups: ready group -> rows counted for it

    def reset(self) -> None:
        """Forget every unit; whoever calls this clears the units' bits."""
        self.heap, self.count, self.counted = [], 0, {}

    def push(self, unit: Unit, rows: int) -> None:
        unit.queued |= self.bit
        self.count += rows
        heapq.heappush(self.heap, unit.id)

    def extend(self, rows: list[Row]) -> None:
        """Queue rows that were just made: their ids are beyond any in the heap, so that it stays one."""
        bit = self.bit
        for row in rows:
            row.queued |= bit
        self.heap.extend([row.id for row in rows])
        self.count += len(rows)

    def trim(self, partition: Partition) -> None:
        """Rebuild the heap when most of it is stale; O(1) amortised."""
        if len(self.heap) > 2 * self.count + 1024:
            units: Mapping[int, Unit] = partition.groups_by_id if self.whole else partition.rows_by_id
            self.heap = sorted({i for i in self.heap if (u := units.get(i)) is not None and u.queued & self.bit})


class Tombstone:
    """A removed row, remembered against late writes.

    ``token``: the lease under which it was trained, if there was one; an eviction or a clear is nobody's success.
    ``contents``: (content, index) of its puts. ``at``: the ledger's count of clears when it was removed:
    what was removed before the partition's last whole clear bars nothing any more. ``detail``: how a lost row was lost.
    """

    __slots__ = ("at", "contents", "detail", "reason", "token", "until")

    def __init__(
        self, reason: str, token: str, contents: tuple[tuple[int, int], ...], at: int, until: float, detail: str = ""
    ) -> None:
        self.reason = reason
        self.detail = detail
        self.token = token
        self.contents = contents
        self.at = at
        self.until = until


class Partition:
    """A named flow. After a clear of everything it stays, unregistered, for its counters."""

    __slots__ = (
        "admitted",
        "cleared",
        "cleared_at",
        "closed_groups",
        "depth",
        "evicted",
        "field_bits",
        "fields",
        "finished_bytes",
        "finished_rows",
        "granted_bytes",
        "granted_rows",
        "graves",
        "grouped",
        "groups",
        "groups_by_id",
        "hosted_bytes",
        "listing",
        "live_bytes",
        "lost",
        "name",
        "promised_bytes",
        "promised_rows",
        "put",
        "quarantined",
        "queues",
        "registered",
        "request",
        "row_listing",
        "rows",
        "rows_by_id",
        "specs",
        "tasks",
        "tombstones",
        "trained",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.put = self.trained = self.cleared = self.quarantined = 0
        self.evicted: dict[str, int] = {}
        self.lost: dict[str, int] = {}
        self.finished_bytes = self.finished_rows = 0
        self.cleared_at = 0  # the ledger's count of clears when all of it was cleared last
        self.tombstones: dict[str, Tombstone] = {}
        self.graves: deque[tuple[float, str]] = deque()  # tombstones in the order of their expiry
        self.granted_bytes = 0  # grants in flight
        self.granted_rows = 0
        self.admitted: set[str] = set()  # groups that do not exist yet and that a grant in flight was admitted for
        self.unregister()

    def unregister(self) -> None:
        """Start afresh but for the counters, the tombstones and the grants in flight. The rows must be gone."""
        self.request = RegisterPartition(self.name, [], 0, [])
        self.registered = False
        self.fields: list[str] = []
        self.field_bits: dict[str, int] = {}
        self.specs: dict[str, FieldSpec] = {}
        self.tasks: dict[str, Task] = {}
        self.rows: dict[str, Row] = {}
        self.rows_by_id: dict[int, Row] = {}
        self.groups: dict[str, Group] = {}
        self.groups_by_id: dict[int, Group] = {}
        self.queues: list[Queue] = []
        self.closed_groups: dict[str, float] = {}
        self.grouped = 0  # rows that are in a group
        self.listing: tuple[float, list[str]] | None = None  # when a listing began, and the names it goes through
        self.row_listing: tuple[float, list[int]] | None = None  # likewise, of rows
        self.depth = 0
        self.live_bytes = 0
        self.hosted_bytes = 0  # of these, those that lie on hosts, not in the plane's arena
        self.promised_bytes = 0  # what admitted groups may still grow by
        self.promised_rows = 0

    @property
    def idle(self) -> bool:
        """Cleared, and forgotten but for its counters."""
        return not (self.registered or self.tombstones or self.graves or self.granted_rows or self.granted_bytes)

    @property
    def final_task(self) -> Task:
        return next(reversed(self.tasks.values()))

    def bit_of(self, field: str) -> int:
        """The field's bit, given out at first sight."""
        bit = self.field_bits.get(field)
        if bit is None:
            bit = self.field_bits[field] = 1 << len(self.field_bits)
        return bit

    def stone_of(self, key: str) -> Tombstone | None:
        """What is remembered of a removed row, unless all of the partition has been cleared since."""
        stone = self.tombstones.get(key)
        return None if stone is None or stone.at < self.cleared_at else stone

    def mask_of(self, fields: list[str]) -> int:
        mask = 0
        for field in fields:
            mask |= self.bit_of(field)
        return mask

    def names_of(self, mask: int) -> list[str]:
        return [name for name, bit in self.field_bits.items() if bit & mask]

    @property
    def mean_row_bytes(self) -> int:
        """Mean payload bytes of the rows that were trained; 0 before the first."""
        return self.finished_bytes // self.finished_rows if self.finished_rows else 0


class Session:
    """One client's life. ``replies``: sequence -> reply, until the client has taken it; a claim's is its lease."""

    __slots__ = (
        "client_id",
        "connected",
        "done_below",
        "due",
        "heard",
        "host",
        "id",
        "leases",
        "owner",
        "pid",
        "replies",
        "role",
        "secret",
        "unfinished",
        "waiting",
    )

    def __init__(
        self, session_id: int, secret: str, client_id: int, owner: str, role: str, host: str, pid: int
    ) -> None:
        self.id = session_id
        self.secret = secret
        self.client_id = client_id
        self.owner = owner
        self.role = role
        self.host = host
        self.pid = pid
        self.connected = True
        self.heard = 0.0
        self.due = 0.0  # ledger seconds by which it must be heard of
        self.done_below = 0
        self.replies: dict[int, ReplyBody | Lease] = {}
        self.leases: dict[str, Lease] = {}
        self.waiting: dict[int, Waiter] = {}  # mutations that wait, by sequence
        self.unfinished: set[tuple[str, str]] = set()  # (partition, group) it has put to and that is not done

    def who(self) -> str:
        where = f"pid {self.pid} on {self.host}" if self.pid else self.host
        return f"{self.owner or self.role} ({where})"


class Departed:
    """A session that has ended: ``at``: when, on the ledger's clock."""

    __slots__ = ("at", "pid", "who", "why")

    def __init__(self, who: str, pid: int, why: str, at: float) -> None:
        self.who = who
        self.pid = pid
        self.why = why
        self.at = at


class PendingGrant:
    """A put between its grant and its commit. ``stamp``: the ledger's count of clears when it was granted.

    ``lives``: of the agents on whose hosts the block may lie, by host, the writer's own first; empty = in the arena.
    """

    __slots__ = (
        "bytes",
        "cleared",
        "client_id",
        "groups",
        "id",
        "lives",
        "place",
        "request",
        "rows",
        "session_id",
        "stamp",
    )

    def __init__(self, grant_id: int, session: Session, request: Grant, stamp: int) -> None:
        self.id = grant_id
        self.session_id = session.id
        self.client_id = session.client_id
        self.request = request
        self.stamp = stamp
        self.place: BlockPlace | None = None
        self.lives: dict[int, int] = {}
        self.bytes = 0  # reserved for it
        self.rows = 0
        self.cleared: set[str] = set()  # keys that were cleared, before they existed, after this grant
        self.groups: list[str] = []  # groups that do not exist yet and that it was the first to be admitted for


class Charge:
    """What a put asks for: bytes and rows reserved until its commit.

    ``begins``: it begins something new, a row of its own or a group; else it only finishes what was admitted.
    ``groups``: the declared groups that it begins.
    """

    __slots__ = ("begins", "bytes", "groups", "rows")

    def __init__(self, size: int = 0, rows: int = 0, begins: bool = False, groups: Sequence[str] = ()) -> None:
        self.bytes = size
        self.rows = rows
        self.begins = begins
        self.groups = list(groups)


class Waiter:
    """A call that waits: a claim for rows, or a grant for capacity. ``deadline`` is on the shell's clock."""

    __slots__ = ("blocker", "body", "call_id", "charge", "deadline", "limit", "queue", "seq", "session_id", "since")

    def __init__(
        self, session_id: int, call_id: int, seq: int, body: Claim | Grant, deadline: float, since: float
    ) -> None:
        self.session_id = session_id
        self.call_id = call_id
        self.seq = seq
        self.body = body
        self.deadline = deadline
        self.since = since
        self.charge = Charge()  # a grant: what it asked for when last tried
        self.limit = ""  # a grant: the partition whose own limit it waits for, "" = the plane's
        self.queue: Queue | None = None  # a claim: where it found too little when last tried
        self.blocker = ""  # a claim by key: the row that was not ready when last tried


class State:
    """All of it."""

    __slots__ = (
        "active",
        "checkpoints",
        "clears",
        "departed",
        "first_life",
        "grants",
        "history",
        "history_keys",
        "hosts",
        "incarnation",
        "leases",
        "next_group",
        "next_id",
        "next_token",
        "ordered",
        "partitions",
        "sessions",
        "writes",
    )

    def __init__(self) -> None:
        self.incarnation = 0
        self.first_life = 0  # its number is the name of this plane: no other plane has had it
        self.next_id = 1
        self.next_group = 1  # groups are numbered anew at each start: the journal names them by group_id
        self.next_token = 1
        self.clears = 1
        self.checkpoints = 0
        self.partitions: dict[str, Partition] = {}
        self.active: dict[str, Partition] = {}  # all but those of which only the counters are left
        self.sessions: dict[int, Session] = {}
        self.departed: dict[int, Departed] = {}  # the last to end, oldest first
        self.writes: dict[int, Write] = {}
        self.leases: dict[str, Lease] = {}
        self.grants: dict[int, PendingGrant] = {}
        self.hosts: dict[int, Host] = {}
        self.ordered: dict[int, None] = {}  # hosts that have orders which their waiting calls do not know of yet
        self.history: deque[tuple[float, str, str, tuple[str, ...]]] = deque()
        self.history_keys = 0  # keys that it names, in all
