"""How a process fetches blocks from other hosts: one frozen object, every limit named with its unit.

Invariant: a pooled connection is given up before the server would close it, so that a read never begins on one that is
about to go.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from penstock.config import MIB
from penstock.errors import BadArgument
from penstock.retry import Policy

__all__ = ["TransportConfig"]


class TransportConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The client's side of the transport. Seconds, bytes and counts as the names say.

    Attributes:
        prefer: the wire that is tried first; the others follow where the host offers them.
        attempt_timeout_s: for one read: connect, request, status, payload and acknowledgement together, besides what
            its size takes at ``slowest_bytes_per_s``; but a peer that is silent for so long is given up at once.
        slowest_bytes_per_s: what a read makes at least, over whatever network, if nothing is wrong.
        attempts_per_call: ports tried in one call for one slot (layer 1).
        calls_per_slot: calls for one slot in one round, each at the block's next place, over fresh connections from
            the second on (layer 2).
        call_base_s, call_cap_s: wait before a further call: between 0 and ``min(cap, base * 2**n)``.
        rounds: rounds of one batch; the next has what failed retryably (layer 3).
        round_base_s, round_cap_s: wait before a further round, likewise.
        corrupt_reads: reads of one place that may come damaged before the next place is asked; 2 = one re-read.
        not_ready_base_s, not_ready_budget_s: the wait's base after "not ready", and how long a slot waits so in all.
        port_quarantine_s: how long a port, or a host, is left alone after a failure while another is free.
        retry_tokens: retry budget of each port and host, as in gRPC's A6; 0 = none is kept.
        pool_endpoint_max_age_s: an older connection is closed at checkout and replaced.
        server_idle_s: after so long without a request the server closes a connection.
        pool_max_idle: idle connections kept for each port.
        max_reads: reads under way at once from one host.
        max_bytes_in_flight: bytes being received at once from one host; a larger block goes alone.
        max_blocks_in_turn: blocks of one batch that are under way or wait for their turn at their hosts; the others
            follow as these end.
        max_block_bytes: a longer one is refused before memory is taken for it.
        check_in_thread_bytes: blocks of at least so many bytes are verified beside the event loop, not on it.
        keep_buffers_bytes: receive memory kept for the next batch when nothing refers to it any more.
        close_timeout_s: for connections to say goodbye when the client is closed.
    """

    prefer: Literal["tcp", "ucx", "memory"] = "tcp"
    attempt_timeout_s: float = 5.0
    slowest_bytes_per_s: float = 64.0 * MIB
    attempts_per_call: int = 2
    calls_per_slot: int = 2
    call_base_s: float = 0.05
    call_cap_s: float = 0.5
    rounds: int = 3
    round_base_s: float = 1.0
    round_cap_s: float = 2.0
    corrupt_reads: int = 2
    not_ready_base_s: float = 0.5
    not_ready_budget_s: float = 5.0
    port_quarantine_s: float = 30.0
    retry_tokens: float = 10.0
    pool_endpoint_max_age_s: float = 100.0
    server_idle_s: float = 120.0
    pool_max_idle: int = 8
    max_reads: int = 8
    max_bytes_in_flight: int = 256 * MIB
    max_blocks_in_turn: int = 4096
    max_block_bytes: int = 64 * 1024 * MIB
    check_in_thread_bytes: int = 4 * MIB
    keep_buffers_bytes: int = 256 * MIB
    close_timeout_s: float = 2.0

    def __post_init__(self) -> None:
        for name in (
            "attempts_per_call",
            "calls_per_slot",
            "rounds",
            "corrupt_reads",
            "max_reads",
            "max_blocks_in_turn",
        ):
            if getattr(self, name) < 1:
                raise BadArgument(f"{name} must be 1 or more, got {getattr(self, name)!r}")
        for name in (
            "attempt_timeout_s",
            "slowest_bytes_per_s",
            "max_bytes_in_flight",
            "max_block_bytes",
            "pool_endpoint_max_age_s",
        ):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise BadArgument(f"{name} must be finite and positive, got {getattr(self, name)!r}")
        for name in ("pool_max_idle", "check_in_thread_bytes", "keep_buffers_bytes", "close_timeout_s"):
            if not getattr(self, name) >= 0:
                raise BadArgument(f"{name} must be 0 or more, got {getattr(self, name)!r}")
        if self.pool_endpoint_max_age_s >= self.server_idle_s:
            raise BadArgument(
                f"pool_endpoint_max_age_s ({self.pool_endpoint_max_age_s:g}) must be less than server_idle_s "
                f"({self.server_idle_s:g}): the client would use connections that the server closes"
            )
        self.rotation, self.calls, self.batch  # noqa: B018 - each policy checks its limits

    def attempt_s(self, nbytes: int) -> float:
        """Seconds that one read of ``nbytes`` may take."""
        return self.attempt_timeout_s + nbytes / self.slowest_bytes_per_s

    @property
    def rotation(self) -> Policy:
        """Layer 1: one call for one slot, port after port, at once."""
        return Policy(
            max_attempts=self.attempts_per_call,
            base_s=0.0,
            cap_s=0.0,
            backpressure_base_s=0.0,
            backpressure_budget_s=0.0,  # a slot that is not ready is not more so at the next port
            corrupt_attempts=self.corrupt_reads,
            bucket_tokens=self.retry_tokens,
            quarantine_s=self.port_quarantine_s,
        )

    @property
    def calls(self) -> Policy:
        """Layer 2: one slot in one round, place after place."""
        return Policy(
            max_attempts=self.calls_per_slot,
            base_s=self.call_base_s,
            cap_s=self.call_cap_s,
            backpressure_base_s=self.not_ready_base_s,
            backpressure_budget_s=self.not_ready_budget_s,
            bucket_tokens=self.retry_tokens,
            quarantine_s=self.port_quarantine_s,
        )

    @property
    def batch(self) -> Policy:
        """Layer 3: all slots of a batch, side by side, round after round."""
        return Policy(
            max_attempts=self.rounds,
            base_s=self.round_base_s,
            cap_s=self.round_cap_s,
            backpressure_base_s=self.not_ready_base_s,
            backpressure_budget_s=self.not_ready_budget_s,
            bucket_tokens=0.0,
            quarantine_s=0.0,
            batch=1,
            workers=self.max_blocks_in_turn,
        )
