"""What may be asked of a plane, and what it answers: closed, tagged records, the only things that cross its wire.

The same records are the wire's bodies, the ledger's events and the simulator's moves. Arrays, not maps: positions are
part of ``WIRE_VERSION``, which both sides state in ``OpenSession``/``ResumeSession`` and ``Welcome``.

Invariants: no path, no callable, no payload byte; keys are names, tags are primitives; a mutation is identified by
(session, sequence) in its ``Call``.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from penstock.debts import AnyDebt
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, GroupPolicy, Tag

WIRE_VERSION = 1


class Record(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of everything on the wire."""


# -- shared parts ---------------------------------------------------------------------------------------------------


class FieldSpec(msgspec.Struct, frozen=True, array_like=True):
    """A column's type. ``dtype`` is torch's short name ("int64", "bfloat16") or "object"; ``rank`` is per row."""

    name: str
    dtype: str
    rank: int


class TagColumn(msgspec.Struct, frozen=True, array_like=True):
    """One tag of a put's rows.

    Attributes:
        values: one value for all rows (length 1, ``rows`` None), or one per row, or one per row named in ``rows``.
        rows: indices, within the put, of the rows that carry this tag; None = all.
    """

    name: str
    values: list[Tag]
    rows: list[int] | None = None


class Tokens(msgspec.Struct, frozen=True, array_like=True):
    """The leases under which a request's keys are held.

    Attributes:
        lease: distinct tokens.
        of: per key of the request an index into ``lease``, ``NO_TOKEN``, or ``ANY_TOKEN`` (whichever of ``lease``);
            empty = the same for all keys: any of ``lease``, or none when that is empty.
    """

    lease: list[str]
    of: list[int]


NO_TOKEN = -1
ANY_TOKEN = -2


class BlockPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a block lies: an arena, bytes ``[offset, offset + nbytes)`` of it, and the slot's generation."""

    block_id: int
    arena_id: int
    offset: int
    nbytes: int
    generation: int
    pin: int = 0


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Where some fields of the asked rows lie: row i is row ``index[i]`` of ``Located.blocks[block[i]]``."""

    fields: list[str]
    block: list[int]
    index: list[int]


class RowIssue(msgspec.Struct, frozen=True, array_like=True):
    """Why one row cannot be read: an error code (``errors.code_of``) and a sentence."""

    key: str
    code: str
    why: str


# -- sessions -------------------------------------------------------------------------------------------------------


class OpenSession(Record, frozen=True):
    """Begin a life on the plane. ``client_id`` (63 random bits) names the client object across its sessions."""

    version: int
    client_id: int
    owner: str
    role: str
    host: str
    pid: int


class ResumeSession(Record, frozen=True):
    """Come back to a session after a lost connection or a restart of the plane."""

    version: int
    client_id: int
    session_id: int
    secret: str


class Heartbeat(Record, frozen=True):
    """I live. States the last grant and pin received, and those still held; what was answered before is freed.

    ``withdrawn``: calls of this connection whose callers have left; a put among them waits for room no longer.
    """

    grant_high: int
    pin_high: int
    grants: list[int]
    pins: list[int]
    withdrawn: list[int] = []


class Goodbye(Record, frozen=True):
    """End the session now: its leases return, its grants are freed."""


# -- mutations (journaled; identified by the call's sequence) --------------------------------------------------------


class RegisterPartition(Record, frozen=True):
    partition: str
    fields: list[str]
    num_samples: int
    tasks: list[str]
    group_size: int | None = None
    enums: dict[str, list[str]] | None = None
    policy: GroupPolicy | None = None


class PutTags(Record, frozen=True):
    """A tag-only put to existing rows."""

    partition: str
    keys: list[str]
    tags: list[TagColumn]


class Commit(Record, frozen=True):
    """The granted slot is filled: make the put visible, whole.

    ``content`` is xxh3-64 over the block's column checksums: two puts of the same bytes at the same row are the same.
    """

    grant: int
    content: int


class Claim(Record, frozen=True):
    """See ``DataPlaneClient.claim_meta``. ``batch`` is 0 with ``keys``. The wait is bounded by the call's deadline."""

    partition: str
    task: str
    required: list[str]
    batch: int
    min_rows: int = 1
    blocking: bool = True
    keys: list[str] | None = None
    whole_groups: bool = False
    lease_s: float | None = None
    dp_rank: int | None = None


class Ack(Record, frozen=True):
    """Consumed by ``task``; by the final task: trained and removed. ``tokens`` say which leases hold the keys."""

    partition: str
    task: str
    keys: list[str]
    tokens: Tokens


class Release(Record, frozen=True):
    """Give rows back unconsumed."""

    partition: str
    task: str
    keys: list[str]
    tokens: Tokens


class Renew(Record, frozen=True):
    """Let the leases end ``lease_s`` seconds from now; None = with the session."""

    partition: str
    task: str
    keys: list[str]
    tokens: Tokens
    lease_s: float | None


class Pop(Record, frozen=True):
    """Remove rows as trained."""

    partition: str
    keys: list[str]
    tokens: Tokens


class Evict(Record, frozen=True):
    """Remove rows as evicted, under a reason."""

    partition: str
    keys: list[str]
    reason: str


class Clear(Record, frozen=True):
    """Remove rows as cleared; ``keys`` None = every row and the registration."""

    partition: str
    keys: list[str] | None


# -- not journaled --------------------------------------------------------------------------------------------------


class Grant(Record, frozen=True):
    """Ask for room for a put. Waits, in order, for capacity; checks everything that can be checked before the copy.

    Attributes:
        nbytes: size of the block, header included.
        row_bytes: payload bytes per row, aligned with ``keys``.
        lengths: per row, the length of the first ragged field; None when there is none.
    """

    partition: str
    keys: list[str]
    fields: list[FieldSpec]
    tags: list[TagColumn]
    nbytes: int
    row_bytes: list[int]
    lengths: list[int] | None = None


class Locate(Record, frozen=True):
    """Where are these fields of these rows? Pins the blocks it names for the caller."""

    partition: str
    keys: list[str]
    fields: list[str]


class Damaged(Record, frozen=True):
    """A block failed its checksum at a reader; the plane verifies for itself before it believes."""

    block_id: int


class ListMetadata(Record, frozen=True):
    """``after`` (a group id) and ``limit`` (0 = the plane's) page; groups come in order of group id."""

    partition: str
    committed: bool | None = None
    min_version: int | None = None
    max_version: int | None = None
    older_than_s: float | None = None
    ready_for: str | None = None
    limit: int = 0
    after: str | None = None


class Depth(Record, frozen=True):
    partition: str


class CheckConsumption(Record, frozen=True):
    partition: str
    tasks: list[str]


class Ping(Record, frozen=True):
    pass


class Capabilities(Record, frozen=True):
    pass


class Audit(Record, frozen=True):
    """``partition`` None = all, those that were cleared included."""

    partition: str | None = None


class Why(Record, frozen=True):
    partition: str
    task: str | None = None
    key: str | None = None
    group: str | None = None


class Status(Record, frozen=True):
    pass


class Shutdown(Record, frozen=True):
    """End cleanly (``penstock serve`` taking over an auto-started plane, or an operator)."""

    reason: str


Mutation: TypeAlias = RegisterPartition | PutTags | Commit | Claim | Ack | Release | Renew | Pop | Evict | Clear
Query: TypeAlias = (
    Grant
    | Locate
    | Damaged
    | ListMetadata
    | Depth
    | CheckConsumption
    | Ping
    | Capabilities
    | Audit
    | Why
    | Status
    | Shutdown
)
Request: TypeAlias = OpenSession | ResumeSession | Heartbeat | Goodbye | Mutation | Query
MUTATIONS = (RegisterPartition, PutTags, Commit, Claim, Ack, Release, Renew, Pop, Evict, Clear)


class Call(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One client message.

    Attributes:
        id: pairs the reply with the call, unique on its connection.
        seq: the mutation's sequence number in its session; 0 for anything else.
        done_below: replies to sequences below this have been taken; the plane may forget them.
        deadline_s: seconds left for the caller; the plane answers within them.
        abandoned: sequences whose replies were never handed to the caller; a claim among them is released.
        unpins: pins the client no longer needs.
        body: the request.
    """

    id: int
    seq: int
    done_below: int
    deadline_s: float
    abandoned: list[int]
    unpins: list[int]
    body: Request


# -- replies --------------------------------------------------------------------------------------------------------


class ArenaPlace(msgspec.Struct, frozen=True, array_like=True):
    """An arena a client may map: its id and the size of its file. Its path follows from id and data directory."""

    arena_id: int
    nbytes: int
    in_shm: bool


class Welcome(Record, frozen=True):
    version: int
    session_id: int
    secret: str
    resumed: bool
    heartbeat_s: float
    dead_after_s: float
    max_frame_bytes: int
    done_below: int = 0


class Done(Record, frozen=True):
    """It happened."""


class Failed(Record, frozen=True):
    """It did not. ``code`` names a class of ``errors``."""

    code: str
    message: str
    partition: str | None = None
    keys: list[str] = []
    missing: list[str] = []
    elapsed_s: float = 0.0


class Granted(Record, frozen=True):
    """Room for a put: copy the block to ``place``, then ``Commit(grant)``."""

    grant: int
    place: BlockPlace
    arena: ArenaPlace


class GrantAgain(Record, frozen=True):
    """The plane that gave this grant has died: ask for another and copy once more. Nothing happened."""


class Claimed(Record, frozen=True):
    """Rows leased under ``token``; ``tags`` and ``lengths`` are aligned with ``keys``. No rows: empty ``token``."""

    token: str
    keys: list[str]
    tags: list[dict[str, Tag]]
    lengths: list[int] | None


class Located(Record, frozen=True):
    """Where the asked rows lie. ``issues`` names rows that cannot be read; ``sources`` covers all others, in order."""

    blocks: list[BlockPlace]
    arenas: list[ArenaPlace]
    sources: list[Source]
    issues: list[RowIssue]


class Groups(Record, frozen=True):
    groups: list[DataPlaneGroupMeta]
    more: bool


class Number(Record, frozen=True):
    value: int


class Flag(Record, frozen=True):
    value: bool


class CapabilitiesAre(Record, frozen=True):
    value: DataPlaneCapabilities


class PartitionAudit(msgspec.Struct, frozen=True, kw_only=True):
    """The conservation equation of one partition, for its final task.

    ``residue`` = put - (in_flight + leased + trained + evicted + cleared + quarantined + lost); 0 or a bug of ours.
    ``broken`` names live rows whose own state contradicts the counts.
    """

    partition: str
    put: int = 0
    in_flight: int = 0
    leased: int = 0
    trained: int = 0
    evicted: dict[str, int] = {}
    cleared: int = 0
    quarantined: int = 0
    lost: dict[str, int] = {}
    residue: int = 0
    broken: list[str] = []
    live_bytes: int = 0
    registered: bool = True


class AuditReport(Record, frozen=True):
    incarnation: int
    partitions: list[PartitionAudit]

    @property
    def residue(self) -> int:
        """The sum of absolute residues: 0 when the books balance."""
        return sum(abs(p.residue) + len(p.broken) for p in self.partitions)


class WhyReport(Record, frozen=True):
    """Why something waits.

    Attributes:
        waits: who waits for what, in sentences, each with how long.
        history: the object's last events.
        owed: what is missing and who owes it, the worst first.
    """

    subject: str
    waits: list[str]
    history: list[str]
    owed: list[AnyDebt] = []


class StatusReport(Record, frozen=True):
    """The plane at a glance; every number is a count unless its name says otherwise."""

    incarnation: int
    pid: int
    uptime_s: float
    durability: str
    served: bool
    rows: int
    live_bytes: int
    arena_bytes: int
    max_bytes: int
    max_rows: int
    sessions: list[SessionStatus]
    partitions: list[PartitionStatus]
    counters: dict[str, int]


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True):
    session_id: int
    owner: str
    role: str
    pid: int
    silent_s: float
    leases: int
    connected: bool


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    partition: str
    fields: list[FieldSpec]
    tasks: list[str]
    rows: int
    groups: int
    depth: int
    leased: int
    waiting_claims: int
    waiting_puts: int
    live_bytes: int


ReplyBody: TypeAlias = (
    Welcome
    | Done
    | Failed
    | Granted
    | GrantAgain
    | Claimed
    | Located
    | Groups
    | Number
    | Flag
    | CapabilitiesAre
    | AuditReport
    | WhyReport
    | StatusReport
)


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One answer, to the call with the same ``id``; every answer states the plane's incarnation."""

    id: int
    incarnation: int
    body: ReplyBody
