"""A token bucket per endpoint, so that an outage does not multiply its own load.

Source: gRPC proposal A6, "Throttling Retry Attempts and Hedged RPCs": 10 tokens, one less per failure, a tenth more
per success, no retry while half or less is left. First attempts always go.

Invariants: ``0 <= tokens <= capacity``; an attempt counts once whatever its number of keys, split by the share that
failed (one broken connection under a batch of 400 keys is one failure; break-even is one key in eleven, as in A6).
Kept in thousandths, as gRPC does: tenths do not add up in binary.
"""

from __future__ import annotations

from penstock.errors import BadArgument

__all__ = ["TokenBucket"]

_UNIT = 1000


class TokenBucket:
    """Starts full with ``capacity`` tokens."""

    __slots__ = ("_capacity", "_gain", "_tokens")

    def __init__(self, capacity: float = 10.0, per_success: float = 0.1) -> None:
        if capacity <= 0 or not 0 <= per_success <= 1:
            raise BadArgument(
                f"a bucket needs capacity > 0 and 0 <= per_success <= 1; got {capacity!r}, {per_success!r}"
            )
        self._capacity = round(capacity * _UNIT)
        self._gain = round(per_success * _UNIT)
        self._tokens = self._capacity

    @property
    def tokens(self) -> float:
        return self._tokens / _UNIT

    @property
    def full(self) -> bool:
        return self._tokens == self._capacity

    def may_retry(self) -> bool:
        """Whether more than half is left."""
        return 2 * self._tokens > self._capacity

    def record(self, *, failed: int, answered: int) -> None:
        """Count one attempt, of whose keys so many failed and so many were answered."""
        total = failed + answered
        if total == 0:
            return
        change = (answered * self._gain - failed * _UNIT) / total
        self._tokens = max(0, min(self._capacity, self._tokens + round(change)))

    def __repr__(self) -> str:
        return f"TokenBucket({self.tokens:g} of {self._capacity / _UNIT:g})"
