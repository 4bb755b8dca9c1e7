"""Configuration: two frozen objects, every limit named with its unit. Unknown keys are errors; arguments win.

Nothing here reads the environment: the CLI does, once.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import msgspec

from penstock.errors import BadArgument

__all__ = ["ClientConfig", "Durability", "Integrity", "PlaneConfig", "config_from"]

GIB = 1024**3
MIB = 1024**2

Durability = Literal["memory", "process"]  # "disk" (fsync before the reply) is a later release's
Integrity = Literal["full", "header", "off", "paranoid"]


class PlaneConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a plane behaves. Seconds, bytes and rows as the names say.

    Attributes:
        durability: what an acknowledged put survives: ``memory`` dies with the plane, ``process`` survives kill -9 of
            any process (journal written before the reply, not synced).
        heartbeat_s: how often clients report; told to them at the opening of a session.
        dead_after_s: a session silent for this long has ended.
        resume_grace_s: after a restart, how long sessions of the earlier life may come back to their leases.
        max_deliveries: a row delivered more often than this goes to quarantine.
        tombstone_s, max_tombstones: how long, and how many, removed rows are remembered against late writes.
        abandon_grace_s: an unfinished group whose putting sessions have all ended is evicted after this long, and so is
            what is left of a whole group that lost a row for good.
        max_bytes, max_rows: capacity of the plane for new groups.
        partition_max_bytes, partition_max_rows: the same per partition; None = only the plane's.
        reserve_fraction: share of the capacity on top of it that finishing existing groups may draw on.
        warm_bytes: free arena memory kept resident so that the next put does not fault pages in.
        segment_bytes: a journal segment is closed at this size.
        max_frame_bytes: a larger message ends the connection that sent it.
        max_connections: further clients are refused.
        linger_s: an auto-started plane ends this long after its last client.
        host_grace_s: rows wait so long for a host that is silent; then those that lie nowhere else are lost, by name.
        store: the URL of a store (``penstock.payload.stores``) whose agent the plane's process starts and restarts;
            "" = none. Clients put there that are told to (``ClientConfig.store``).
    """

    durability: Durability = "process"
    heartbeat_s: float = 2.0
    dead_after_s: float = 10.0
    resume_grace_s: float = 10.0
    max_deliveries: int = 5
    tombstone_s: float = 600.0
    max_tombstones: int = 1_000_000
    abandon_grace_s: float = 60.0
    max_bytes: int = 4 * GIB
    max_rows: int = 4_000_000
    partition_max_bytes: int | None = None
    partition_max_rows: int | None = None
    reserve_fraction: float = 0.2
    warm_bytes: int = 256 * MIB
    segment_bytes: int = 64 * MIB
    max_frame_bytes: int = 256 * MIB
    max_connections: int = 1024
    linger_s: float = 1.0
    host_grace_s: float = 60.0
    store: str = ""

    def __post_init__(self) -> None:
        for name in ("heartbeat_s", "dead_after_s", "max_bytes", "max_rows", "max_deliveries", "max_frame_bytes"):
            if getattr(self, name) <= 0:
                raise BadArgument(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.dead_after_s <= self.heartbeat_s:
            raise BadArgument(f"dead_after_s ({self.dead_after_s}) must exceed heartbeat_s ({self.heartbeat_s})")
        if not 0.0 <= self.reserve_fraction <= 1.0:
            raise BadArgument(f"reserve_fraction must lie in 0..1, got {self.reserve_fraction!r}")
        if self.store and "://" not in self.store:
            raise BadArgument(f"store must be a URL such as mooncake://HOST:PORT?metadata=URL, got {self.store!r}")


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one client behaves.

    Attributes:
        timeout_s: default deadline of a call; every method takes its own.
        integrity: what a read verifies: ``full`` checksums, ``header`` (length, tag, generation), ``off``, or
            ``paranoid`` (``full``, and a read-back after each put).
        strict_tensors: True refuses non-tensor columns with a ``TypeError``; False carries msgspec-encodable values.
        owner, role: who this is, for ``why`` and ``status``.
        replicas: on how many hosts a put lies when it is acknowledged, 1 or 2 (planes of several hosts).
        under_replicated: True lets a put succeed on one host when no second one takes it; False refuses it.
        prefer: the wire over which other hosts' blocks are fetched, "tcp" or "ucx".
        store: where puts go: "" = shared memory of this machine; "mooncake" = the store of that kind that is enlisted
            at the plane; a URL = the one under that very URL. Reads find every row wherever it lies.
    """

    timeout_s: float = 30.0
    integrity: Integrity = "full"
    strict_tensors: bool = True
    owner: str = ""
    role: str = "client"
    replicas: int = 1
    under_replicated: bool = False
    prefer: Literal["tcp", "ucx"] = "tcp"
    store: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.timeout_s) and self.timeout_s >= 0):
            raise BadArgument(f"timeout_s must be finite and not negative, got {self.timeout_s!r}")
        if self.integrity not in ("full", "header", "off", "paranoid"):
            raise BadArgument(f"integrity must be full, header, off or paranoid, got {self.integrity!r}")
        if self.replicas not in (1, 2):
            raise BadArgument(f"replicas must be 1 or 2, got {self.replicas!r}")
        if self.store and self.replicas != 1:
            raise BadArgument("replicas are hosts; how often a store keeps a block its own URL says (replicas=2 there)")


C = TypeVar("C", PlaneConfig, ClientConfig)


def config_from(cls: type[C], options: dict[str, Any]) -> C:
    """Build ``cls`` from plain ``options``; an unknown or mistyped key is a ``BadArgument`` that names it."""
    unknown = sorted(set(options) - set(cls.__struct_fields__))
    if unknown:
        raise BadArgument(f"unknown options {unknown}; {cls.__name__} knows {sorted(cls.__struct_fields__)}")
    try:
        return msgspec.convert(options, cls)
    except msgspec.ValidationError as bad:
        raise BadArgument(f"{cls.__name__}: {bad}") from bad
