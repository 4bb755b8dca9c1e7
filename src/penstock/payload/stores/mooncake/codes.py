"""What each code of Mooncake Store means: one table, for all calls.

Names as in the library's ``types.h``; what they do was observed on 0.3.13. Invariants: every answer of the library
passes through ``meaning_of``; a code that is not in the table is unknown: it is tried once more and then given up.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.retry import Kind

__all__ = [
    "EXISTS",
    "LATE",
    "MISALIGNED",
    "MISSING",
    "NOT_READY",
    "NOT_SENT",
    "NO_LINK",
    "NO_MEMORY",
    "RAISED",
    "TOO_SMALL",
    "Meaning",
    "meaning_of",
    "told",
]

MISSING = -704
NOT_READY = -703
EXISTS = -705
TOO_SMALL = -600  # the buffer, or no parameter that the library takes

# Words of our own, for what is no answer of the library's.
LATE = -1_000_001  # the call did not come back in time; it may still be at work
MISALIGNED = -1_000_002  # it answered for more keys or fewer than it was asked
RAISED = -1_000_003  # it raised
NO_LINK = -1_000_004  # there is no connection to ask on
NO_MEMORY = -1_000_005  # our registered memory is lent to other calls
NOT_SENT = -1_000_006  # not tried: the deadline has come, or its segment has just left others waiting


@dataclass(frozen=True, slots=True)
class Meaning:
    """What to do about a code.

    Attributes:
        settled: nothing was transferred and nothing will be: the memory that was named is free again.
    """

    kind: Kind
    word: str
    settled: bool = False
    known: bool = True


_TABLE: dict[int, Meaning] = {
    -1: Meaning(Kind.RETRYABLE, "INTERNAL_ERROR"),
    -10: Meaning(Kind.BACKPRESSURE, "BUFFER_OVERFLOW", settled=True),
    -101: Meaning(Kind.RETRYABLE, "SEGMENT_NOT_FOUND", settled=True),
    -103: Meaning(Kind.RETRYABLE, "CLIENT_NOT_FOUND", settled=True),
    -200: Meaning(Kind.BACKPRESSURE, "NO_AVAILABLE_HANDLE", settled=True),
    -400: Meaning(Kind.FATAL, "INVALID_KEY", settled=True),
    TOO_SMALL: Meaning(Kind.FATAL, "INVALID_PARAMS", settled=True),
    -601: Meaning(Kind.FATAL, "ILLEGAL_CLIENT"),
    -702: Meaning(Kind.RETRYABLE, "INVALID_REPLICA"),
    NOT_READY: Meaning(Kind.RETRYABLE, "REPLICA_IS_NOT_READY", settled=True),
    MISSING: Meaning(Kind.MISSING, "OBJECT_NOT_FOUND", settled=True),
    EXISTS: Meaning(Kind.FATAL, "OBJECT_ALREADY_EXISTS", settled=True),
    -706: Meaning(Kind.RETRYABLE, "OBJECT_HAS_LEASE", settled=True),
    -707: Meaning(Kind.RETRYABLE, "LEASE_EXPIRED"),
    -708: Meaning(Kind.RETRYABLE, "OBJECT_HAS_REPLICATION_TASK", settled=True),
    -712: Meaning(Kind.RETRYABLE, "REPLICA_IS_GONE"),
    -714: Meaning(Kind.RETRYABLE, "-714"),
    -800: Meaning(Kind.RETRYABLE, "TRANSFER_FAIL"),
    -801: Meaning(Kind.CORRUPT, "-801"),
    -900: Meaning(Kind.RETRYABLE, "RPC_FAIL"),
    -901: Meaning(Kind.RETRYABLE, "RPC_TIMEOUT"),
    -1010: Meaning(Kind.RETRYABLE, "UNAVAILABLE_IN_CURRENT_STATUS"),
    -1012: Meaning(Kind.FATAL, "-1012"),
    -1700: Meaning(Kind.BACKPRESSURE, "-1700", settled=True),
    LATE: Meaning(Kind.RETRYABLE, "late"),
    MISALIGNED: Meaning(Kind.RETRYABLE, "misaligned"),
    RAISED: Meaning(Kind.RETRYABLE, "raised", known=False),
    NO_LINK: Meaning(Kind.RETRYABLE, "no connection", settled=True),
    NO_MEMORY: Meaning(Kind.RETRYABLE, "no memory", settled=True),
    NOT_SENT: Meaning(Kind.RETRYABLE, "not sent", settled=True),
}


def meaning_of(code: int) -> Meaning:
    """Return what ``code`` means."""
    return _TABLE.get(code) or Meaning(Kind.RETRYABLE, "unknown", known=False)


def told(code: int) -> str:
    """Return ``code`` for people and for ``Failed.code``."""
    return meaning_of(code).word if code <= LATE else str(code)
