"""Which endpoints to leave alone for a while after a failure.

Invariants: a failure holds an endpoint for ``hold_s`` from then; a success lifts it at once; nobody starves: when all
are held all are eligible, the one whose failure is oldest first.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Quarantine"]

_MAX_ENDPOINTS = 4096  # endpoints remembered; of more than that the oldest failure is forgotten


class Quarantine:
    """Holds a failed endpoint for ``hold_s`` seconds; 0 holds nobody."""

    __slots__ = ("_failed_at", "_hold_s")

    def __init__(self, hold_s: float = 30.0) -> None:
        self._hold_s = hold_s
        self._failed_at: dict[str, float] = {}  # in order of failure

    def failed(self, endpoint: str, now: float) -> None:
        """Hold ``endpoint``, from now."""
        self._failed_at.pop(endpoint, None)
        self._failed_at[endpoint] = now
        if len(self._failed_at) > _MAX_ENDPOINTS:
            del self._failed_at[next(iter(self._failed_at))]

    def lift(self, endpoint: str) -> None:
        """Forget the failures of ``endpoint``."""
        self._failed_at.pop(endpoint, None)

    def held(self, now: float) -> list[str]:
        """The endpoints that are held, oldest failure first."""
        return [endpoint for endpoint in self._failed_at if self._holds(endpoint, now)]

    def eligible(self, endpoints: Sequence[str], now: float) -> list[str]:
        """Return those of ``endpoints`` that are free, in the order given; if none is, all, oldest failure first."""
        self._forget_expired(now)
        free = [endpoint for endpoint in endpoints if endpoint not in self._failed_at]
        return free or [endpoint for endpoint in self._failed_at if endpoint in endpoints]

    def _holds(self, endpoint: str, now: float) -> bool:
        return now < self._failed_at[endpoint] + self._hold_s

    def _forget_expired(self, now: float) -> None:
        while self._failed_at and not self._holds(oldest := next(iter(self._failed_at)), now):
            del self._failed_at[oldest]

    def __repr__(self) -> str:
        return f"Quarantine({len(self._failed_at)} failed, {self._hold_s:g} s)"
