"""What may be asked of a plane, and what it answers: closed, tagged records, the only things that cross its wire.

The same records are the wire's bodies, the ledger's events and the simulator's moves. Arrays, not maps: positions are
part of ``WIRE_VERSION``, which both sides state in ``OpenSession``/``ResumeSession`` and ``Welcome``. What they
are made of (``parts``), what a plane says of itself (``reports``) and what is about hosts (``hosting``) is named here
too.

Invariants: no path, no callable, no payload byte; keys are names, tags are primitives; a mutation is identified by
(session, sequence) in its ``Call``.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from penstock.hosting import Enlist, Enlisted, Hold, HostReport, Orders, Reserve, Seal, Sealed
from penstock.parts import (
    ANY_TOKEN,
    NO_TOKEN,
    ArenaPlace,
    BlockPlace,
    FieldSpec,
    HostPlace,
    Record,
    RowIssue,
    Source,
    TagColumn,
    Tokens,
)
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, DataPlaneRowMeta, GroupPolicy, Tag
from penstock.reports import (
    AuditReport,
    HostStatus,
    PartitionAudit,
    PartitionStatus,
    SessionStatus,
    StatusReport,
    WhyReport,
)

__all__ = [
    "ANY_TOKEN",
    "MUTATIONS",
    "NO_TOKEN",
    "WIRE_VERSION",
    "Ack",
    "ArenaPlace",
    "Audit",
    "AuditReport",
    "BlockPlace",
    "Call",
    "Capabilities",
    "CapabilitiesAre",
    "CheckConsumption",
    "Claim",
    "Claimed",
    "Clear",
    "Commit",
    "Damaged",
    "Depth",
    "Done",
    "Enlist",
    "Enlisted",
    "Evict",
    "Failed",
    "FieldSpec",
    "Flag",
    "Goodbye",
    "Grant",
    "GrantAgain",
    "Granted",
    "Groups",
    "Heartbeat",
    "Hold",
    "HostPlace",
    "HostReport",
    "HostStatus",
    "ListMetadata",
    "ListRows",
    "Locate",
    "Located",
    "Mutation",
    "Number",
    "OpenSession",
    "Orders",
    "PartitionAudit",
    "PartitionStatus",
    "Ping",
    "Pop",
    "PutTags",
    "Query",
    "Record",
    "RegisterPartition",
    "Release",
    "Renew",
    "Reply",
    "ReplyBody",
    "Request",
    "Reserve",
    "ResumeSession",
    "RowIssue",
    "Rows",
    "Seal",
    "Sealed",
    "SessionStatus",
    "Shutdown",
    "Source",
    "Status",
    "StatusReport",
    "TagColumn",
    "Tokens",
    "Welcome",
    "Why",
    "WhyReport",
]

WIRE_VERSION = 1  # no release has spoken it yet: until one does, records may grow without a new number


# -- sessions -------------------------------------------------------------------------------------------------------


class OpenSession(Record, frozen=True):
    """Begin a life on the plane. ``client_id`` (63 random bits) names the client object across its sessions.

    The plane keeps the ``pid`` that the kernel tells; 0, and the client's word in ``host``, for one on another machine.
    """

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
    ``places``: where hosts' agents have sealed the block, the writer's own host first; empty = in the plane's arena.
    """

    grant: int
    content: int
    places: list[BlockPlace] = []


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
        host: the host on which the block will lie; 0 = in the plane's own arena.
        replicas: on how many hosts it shall lie, and on how many it must (``at_least``) or the put is refused.
        avoid: hosts that did not take this client's copies lately: they are asked when no other is up.
    """

    partition: str
    keys: list[str]
    fields: list[FieldSpec]
    tags: list[TagColumn]
    nbytes: int
    row_bytes: list[int]
    lengths: list[int] | None = None
    host: int = 0
    replicas: int = 1
    at_least: int = 1
    avoid: list[int] = []


class Locate(Record, frozen=True):
    """Where are these fields of these rows? Pins the blocks it names for the caller."""

    partition: str
    keys: list[str]
    fields: list[str]


class Damaged(Record, frozen=True):
    """A block failed its checksum at a reader; who owns its arena verifies for itself before it is believed."""

    block_id: int
    host: int = 0


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


class ListRows(Record, frozen=True):
    """What is known of these rows, or, page by page, of all; ``after`` is the ``last`` of the page before."""

    partition: str
    keys: list[str] | None = None
    limit: int = 0
    after: int = 0


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
    | Enlist
    | HostReport
    | Reserve
    | Seal
    | Hold
    | ListMetadata
    | ListRows
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
    """Room for a put: copy the block to ``place``, then ``Commit(grant)``.

    For a put on a host ``place`` says no more than which host: the agent of its life ``life`` finds the slot
    (``Reserve``). ``replica``: the second host that is to pull the block (``Seal``).
    """

    grant: int
    place: BlockPlace
    arena: ArenaPlace
    replica: HostPlace | None = None
    life: int = 0


class GrantAgain(Record, frozen=True):
    """The plane that gave this grant has died: ask for another and copy once more. Nothing happened."""


class Claimed(Record, frozen=True):
    """Rows leased under ``token``; ``tags`` and ``lengths`` are aligned with ``keys``. No rows: empty ``token``."""

    token: str
    keys: list[str]
    tags: list[dict[str, Tag]]
    lengths: list[int] | None


class Located(Record, frozen=True):
    """Where the asked rows lie. ``issues`` names rows that cannot be read; ``sources`` covers all others, in order.

    ``others``: second places of some of the blocks (paired by block id); ``hosts``: the agents that hold any of them,
    those that are silent now last. Blocks on hosts are not pinned: their generation tells a reader that one has gone.
    """

    blocks: list[BlockPlace]
    arenas: list[ArenaPlace]
    sources: list[Source]
    issues: list[RowIssue]
    others: list[BlockPlace] = []
    hosts: list[HostPlace] = []


class Groups(Record, frozen=True):
    groups: list[DataPlaneGroupMeta]
    more: bool


class Rows(Record, frozen=True):
    """``last``: where the next page begins; 0 = there is none."""

    rows: list[DataPlaneRowMeta]
    last: int


class Number(Record, frozen=True):
    value: int


class Flag(Record, frozen=True):
    value: bool


class CapabilitiesAre(Record, frozen=True):
    value: DataPlaneCapabilities


ReplyBody: TypeAlias = (
    Welcome
    | Done
    | Failed
    | Granted
    | GrantAgain
    | Sealed
    | Enlisted
    | Orders
    | Claimed
    | Located
    | Groups
    | Rows
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
