"""What a Mooncake store connects to, and its limits. Invariant: a configuration that cannot work is not made."""

from __future__ import annotations

import msgspec

from penstock.errors import BadArgument
from penstock.retry import Policy

__all__ = ["STORE", "MooncakeConfig"]

MIB = 1 << 20
MAX_REPLICAS = 2

# A store that is away is waited for: until the deadline, not for a number of tries. The master believes in an owner
# that was killed for 10 s (client_ttl); a restarted master has no room until its owners are back (3 s here). A caller
# that waits asks about once a second and for nothing else meanwhile, so there is no load that a token bucket could take
# away; and a store is one endpoint, which quarantine cannot avoid (its segments have their own: see ``segments``).
STORE = Policy(
    timeout_s=30.0,
    max_attempts=1_000_000,
    base_s=0.05,
    cap_s=2.0,
    backpressure_base_s=0.5,
    backpressure_budget_s=8.0,
    bucket_tokens=0.0,
    quarantine_s=0.0,
)


class MooncakeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One client's view of a store. Addresses are ``host:port``.

    Attributes:
        master: the master's RPC address.
        metadata: the URL of the metadata server ("http://host:port/metadata").
        metrics: the master's metrics address, which is asked for the segments there are; "" = they are learned from
            what is read and written.
        segments: segments by name, where there is no ``metrics`` to ask.
        protocol: "tcp", or "rdma" with ``devices``.
        host: the address under which this client is known to others.
        replicas: 2 = every value lies in two segments, under two keys; reads use either. One owner may then be lost.
        segment_bytes: memory that this client lends to the store; 0 = none, as it should be where clients come and go.
        local_buffer: bytes of memory registered for transfers, at most; as much again may be held in quarantine.
        chunk_bytes: bytes of one call; a larger value is a call of its own.
        chunk_keys: keys of one call.
        call_timeout_s: how long a call may take, and ``slow_bytes_per_s``: besides, for every so many bytes of it.
        slow_put_s: a put that failed after so long may still be at work in the library: its client is replaced.
        open_timeout_s: how long opening may take.
        verify: "full"; "paranoid" reads every value back and compares, after its put.
    """

    master: str
    metadata: str
    metrics: str = ""
    segments: tuple[str, ...] = ()
    protocol: str = "tcp"
    devices: str = ""
    host: str = "127.0.0.1"
    replicas: int = 1
    segment_bytes: int = 0
    local_buffer: int = 256 * MIB
    chunk_bytes: int = 32 * MIB
    chunk_keys: int = 400
    call_timeout_s: float = 10.0
    slow_bytes_per_s: float = 8.0 * MIB
    slow_put_s: float = 3.0
    open_timeout_s: float = 20.0
    verify: str = "full"

    def __post_init__(self) -> None:
        for name in ("master", *(("metrics",) if self.metrics else ())):
            address_of(getattr(self, name), name)
        if not self.metadata:
            raise BadArgument("metadata must be the URL of Mooncake's metadata server, or P2PHANDSHAKE")
        if not 1 <= self.replicas <= MAX_REPLICAS:
            raise BadArgument(f"replicas must be 1 or {MAX_REPLICAS}, got {self.replicas!r}")
        if self.verify not in ("full", "paranoid"):
            raise BadArgument(f"verify must be 'full' or 'paranoid', got {self.verify!r}")
        for name in ("local_buffer", "chunk_bytes", "chunk_keys"):
            if getattr(self, name) < 1:
                raise BadArgument(f"{name} must be 1 or more, got {getattr(self, name)!r}")
        for name in ("segment_bytes", "call_timeout_s", "slow_bytes_per_s", "slow_put_s", "open_timeout_s"):
            if not getattr(self, name) >= 0:
                raise BadArgument(f"{name} must be 0 or more, got {getattr(self, name)!r}")

    def call_time_s(self, nbytes: int) -> float:
        """Return how long a call that moves ``nbytes`` may take."""
        return self.call_timeout_s + (nbytes / self.slow_bytes_per_s if self.slow_bytes_per_s else 0.0)


def address_of(text: str, name: str) -> tuple[str, int]:
    """Return host and port of ``host:port``; raise ``BadArgument`` naming the setting if it is none."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise BadArgument(f"{name} must be host:port, got {text!r}")
    return host.strip("[]"), int(port)
