"""What a plane says of itself: its books, why something waits, its status.

Invariant: every number is a count unless its name says otherwise.
"""

from __future__ import annotations

import msgspec

from penstock.debts import AnyDebt
from penstock.parts import FieldSpec, HostPlace, Record

__all__ = [
    "AuditReport",
    "HostStatus",
    "PartitionAudit",
    "PartitionStatus",
    "SessionStatus",
    "StatusReport",
    "WhyReport",
]


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
    """The plane at a glance; every number is a count unless its name says otherwise.

    ``plane``: its name, the same in all its lives; 0 = it forgets its rows with each (durability ``memory``).
    """

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
    hosts: list[HostStatus] = []
    plane: int = 0


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A host of the plane. ``state``: "up", "silent" (its rows wait for it) or "gone" (they do not any more)."""

    place: HostPlace
    state: str
    silent_s: float
    blocks: int
    nbytes: int


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
