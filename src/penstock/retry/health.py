"""What is known of the endpoints, shared by all runs of one client: their retry budgets and who is in quarantine.

Invariants: an endpoint nothing is known of may be used and retried; memory is bounded (a full bucket is not kept, and
of too many drained ones the first to be touched is forgotten); ``now`` is given, never read.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.retry.bucket import TokenBucket
from penstock.retry.policy import Policy
from penstock.retry.quarantine import Quarantine

__all__ = ["Health"]

_MAX_BUCKETS = 4096  # endpoints with a drained bucket that are remembered


class Health:
    """Judges endpoints by the limits of ``policy``."""

    __slots__ = ("_buckets", "_policy", "quarantine")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._buckets: dict[str, TokenBucket] = {}
        self.quarantine = Quarantine(policy.quarantine_s)

    def tokens(self) -> dict[str, float]:
        """Tokens left by endpoint; endpoints that are not named have all."""
        return {endpoint: bucket.tokens for endpoint, bucket in self._buckets.items()}

    def may_retry(self, endpoint: str) -> bool:
        """Whether the budget of ``endpoint`` allows a retry. First attempts do not ask."""
        bucket = self._buckets.get(endpoint)
        return bucket is None or bucket.may_retry()

    def eligible(self, endpoints: Sequence[str], now: float) -> list[str]:
        """Return whom to use, best first; empty only when ``endpoints`` is."""
        return self.quarantine.eligible(endpoints, now)

    def record(self, endpoint: str, *, failed: int, answered: int, now: float) -> None:
        """Count one attempt at ``endpoint``: of its keys so many failed and so many were answered.

        Any answer shows that the endpoint lives and lifts its quarantine.
        """
        if answered:
            self.quarantine.lift(endpoint)
        elif failed:
            self.quarantine.failed(endpoint, now)
        if self._policy.bucket_tokens and (failed or endpoint in self._buckets):  # a full one gains nothing
            self._charge(endpoint, failed, answered)

    def _charge(self, endpoint: str, failed: int, answered: int) -> None:
        bucket = self._buckets.pop(endpoint, None)
        if bucket is None:
            bucket = TokenBucket(self._policy.bucket_tokens, self._policy.tokens_per_success)
        bucket.record(failed=failed, answered=answered)
        if bucket.full:
            return
        self._buckets[endpoint] = bucket
        if len(self._buckets) > _MAX_BUCKETS:
            del self._buckets[next(iter(self._buckets))]

    def __repr__(self) -> str:
        return f"Health({len(self._buckets)} endpoints short of tokens, {self.quarantine!r})"
