"""What the failure of one read means: whether it goes again, and where. The one place that decides it.

Invariant: by type and code, never by the name of a class or the words of a message; what is not listed is final.
"""

from __future__ import annotations

from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneNotReady,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    StaleSlotError,
    TransportError,
)
from penstock.retry import Kind

__all__ = ["NOT_READY", "classify"]

NOT_READY = "not_ready"
_SAID_TWICE = frozenset({"unauthorised"})  # of a TransportError's codes: once, it may be a bit that was flipped


def classify(error: DataPlaneError) -> tuple[Kind, str]:
    """Return how ``error``, of one read at one port, is to be taken, and its code for logs and counts.

    ``MISSING``: the host has answered that the slot is another block's; it is not asked again. ``FATAL``: asking again
    would change nothing. Both leave the block's other places. ``CORRUPT``: what is said twice is believed.
    """
    if isinstance(error, TransportError):
        return (Kind.CORRUPT if error.code in _SAID_TWICE else Kind.RETRYABLE), error.code
    for cls, kind, code in _KINDS:
        if isinstance(error, cls):
            return kind, code
    return Kind.FATAL, type(error).__name__


_KINDS: tuple[tuple[type[DataPlaneError], Kind, str], ...] = (
    (StaleSlotError, Kind.MISSING, "stale"),
    (CorruptPayload, Kind.CORRUPT, "corrupt"),
    (DataPlaneNotReady, Kind.BACKPRESSURE, NOT_READY),
    (DataPlaneTimeout, Kind.RETRYABLE, "timeout"),
    (DataPlaneUnavailable, Kind.RETRYABLE, "unavailable"),
)
