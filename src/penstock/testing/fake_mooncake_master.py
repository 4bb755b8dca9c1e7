"""What the fake's master and segment owners know and do: keys, segments, leases, and the codes they answer.

Invariants: not thread-safe (the fake holds its lock); every rule here was seen on the real store, 0.3.13; a key names
at most one value in one segment; bytes in use are those of the values there are.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock.retry import Clock

__all__ = [
    "BAD_PARAMS",
    "LEASED",
    "MASTER_GONE",
    "MISSING",
    "NOT_READY",
    "NO_ROOM",
    "TRANSFER_FAILED",
    "Master",
    "ReplicaDescriptor",
    "Segment",
    "Stored",
    "WriteConfig",
]

NO_ROOM = -200
BAD_PARAMS = -600
NOT_READY = -703
MISSING = -704
LEASED = -706
TRANSFER_FAILED = -800
MASTER_GONE = -900

_HIGH_WATERMARK = 0.9  # --eviction_high_watermark_ratio as it is


class Status(enum.Enum):
    PROCESSING = 2
    COMPLETE = 3


@dataclass(frozen=True)
class WriteConfig:
    """As ``ReplicateConfig``."""

    preferred_segment: str = ""
    with_hard_pin: bool = True
    replica_num: int = 1


@dataclass(eq=False)
class Segment:
    name: str
    capacity: int
    died_at: float | None = None
    used: int = 0

    @property
    def alive(self) -> bool:
        return self.died_at is None


@dataclass(eq=False)
class Stored:
    """A key's value and where it lies. Its bytes can change under everybody: see ``late``."""

    value: bytearray
    segment: Segment
    pinned: bool
    status: Status = Status.PROCESSING
    leased_until: float = 0.0


@dataclass(frozen=True)
class _Buffer:
    size: int
    transport_endpoint: str


@dataclass(frozen=True)
class _Memory:
    buffer_descriptor: _Buffer


@dataclass(frozen=True)
class ReplicaDescriptor:
    """As the library's: where a key's value lies."""

    status: Status
    size: int
    segment: str

    def is_memory_replica(self) -> bool:
        return True

    def get_memory_descriptor(self) -> _Memory:
        return _Memory(_Buffer(self.size, self.segment))


@dataclass(eq=False)
class Master:
    """The state. ``up`` False = the process is gone; ``forget`` = it was started again."""

    clock: Clock
    client_ttl_s: float
    lease_s: float
    evicting: bool
    up: bool = True
    segments: dict[str, Segment] = field(default_factory=dict)
    keys: dict[str, Stored] = field(default_factory=dict)
    evicted: int = 0

    # -- segments -----------------------------------------------------------------------------------------------------

    def add_segment(self, name: str, capacity: int) -> Segment:
        segment = self.segments[name] = Segment(name, capacity)
        return segment

    def unmount_dead(self) -> None:
        """Stop believing in owners that were silent for ``client_ttl_s``: what they held is missing from now on."""
        now = self.clock()
        for name, segment in list(self.segments.items()):
            if segment.died_at is not None and now - segment.died_at >= self.client_ttl_s:
                del self.segments[name]
                for key in [key for key, stored in self.keys.items() if stored.segment is segment]:
                    self.forget(key)

    def restart(self) -> None:
        """Lose every key; the living owners come back with all their room."""
        self.keys.clear()
        self.segments = {name: segment for name, segment in self.segments.items() if segment.alive}
        for segment in self.segments.values():
            segment.used = 0
        self.up = True

    # -- keys ---------------------------------------------------------------------------------------------------------

    def begin_write(self, key: str, nbytes: int, config: WriteConfig) -> Stored | int:
        """Make room for a value. One that is there goes first, whatever comes of the new one.

        The real store writes a value of the same length over the old one, where it lies.
        """
        if nbytes == 0 or not key:
            return BAD_PARAMS
        there = self.keys.get(key)
        if there is not None and len(there.value) == nbytes and there.status is Status.COMPLETE:
            there.status = Status.PROCESSING
            return there
        self.forget(key)
        segment = self._place(nbytes, config.preferred_segment)
        if segment is None:
            return NO_ROOM
        segment.used += nbytes
        stored = self.keys[key] = Stored(bytearray(nbytes), segment, config.with_hard_pin)
        return stored

    def end_write(self, key: str, stored: Stored) -> None:
        if self.keys.get(key) is stored:
            stored.status = Status.COMPLETE

    def forget(self, key: str) -> None:
        stored = self.keys.pop(key, None)
        if stored is not None:
            stored.segment.used -= len(stored.value)

    def find(self, key: str) -> Stored | int:
        """Return what may be read, and lease it to the reader; else the code that says why not."""
        stored = self.keys.get(key)
        if stored is None:
            return MISSING
        if stored.status is not Status.COMPLETE:
            return NOT_READY
        stored.leased_until = self.clock() + self.lease_s
        return stored

    def remove(self, key: str, *, force: bool) -> int:
        stored = self.keys.get(key)
        if stored is None:
            return MISSING
        if not force and stored.status is not Status.COMPLETE:
            return NOT_READY
        if not force and self.clock() < stored.leased_until:
            return LEASED
        self.forget(key)
        return 0

    # -- room ---------------------------------------------------------------------------------------------------------

    def _place(self, nbytes: int, preferred: str) -> Segment | None:
        """The preferred segment if it has room, else in silence any other."""
        if self.evicting:
            self._evict(nbytes)
        first = [self.segments[preferred]] if preferred in self.segments else []
        others = sorted(self.segments.values(), key=lambda segment: segment.used - segment.capacity)
        return next((one for one in [*first, *others] if one.used + nbytes <= one.capacity), None)

    def _evict(self, nbytes: int) -> None:
        """Drop the oldest values that are neither pinned nor leased, in silence, while there is too much."""
        capacity, used = _sum_capacity(self.segments.values()), sum(one.used for one in self.segments.values())
        for key, stored in list(self.keys.items()):
            if used + nbytes <= _HIGH_WATERMARK * capacity:
                return
            if not stored.pinned and self.clock() >= stored.leased_until:
                used -= len(stored.value)
                self.forget(key)
                self.evicted += 1


def _sum_capacity(segments: Iterable[Segment]) -> int:
    return sum(segment.capacity for segment in segments)
