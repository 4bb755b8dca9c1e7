"""What a store of payload bytes promises: one outcome per key, and what the five outcomes that are no success mean.

Invariants: the outcomes of a call are aligned with its keys; a failure is never a value ("missing", "not there yet",
"damaged", "failed" and "full" are different answers, an empty value is another one again); a value comes back whole and
verified or not at all; no call outlives its deadline; keys are written once and never change what they name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from penstock.errors import (
    BadArgument,
    BatchError,
    CorruptPayload,
    DataPlaneError,
    DataPlaneFull,
    DataPlaneNotReady,
    DataPlaneReadError,
    DataPlaneTimeout,
    UnknownName,
    abbreviate,
)
from penstock.payload.block import Readable
from penstock.retry import Deadline, Reason, RetryStatistics

__all__ = [
    "EXISTS",
    "MAX_KEY_BYTES",
    "BlockStore",
    "Buffer",
    "Corrupt",
    "Failed",
    "Full",
    "Missing",
    "NotReady",
    "Ok",
    "Outcome",
    "StoreStatistics",
    "Value",
    "check_keys",
    "error_of",
    "raise_failures",
]

Buffer: TypeAlias = Readable
Value: TypeAlias = Buffer | Sequence[Buffer]
"""The bytes to be stored: one buffer, or pieces that are stored as one value, in order."""

MAX_KEY_BYTES = 512  # of its UTF-8
EXISTS = "exists"  # Failed.code of a put whose key names other bytes already
_NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True)
class Ok:
    """Done. ``nbytes`` is the value's length; ``view`` its bytes after a get, the caller's own, else empty."""

    view: memoryview = field(default=_NOTHING, repr=False)
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Missing:
    """The store answered: there is no such key."""


@dataclass(frozen=True, slots=True)
class NotReady:
    """The key is there, its value is still being written: until the deadline, or its writer died."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Bytes came, more than once, and are not those that were put. ``kind`` says what does not match."""

    kind: str


@dataclass(frozen=True, slots=True)
class Failed:
    """Given up. For a put it is unknown whether the value is there; putting it again is safe.

    Attributes:
        code: the store's last word: one of its codes, ``"exists"``, ``"deadline"`` when it never answered.
        attempts: tries made; ``elapsed_s``: seconds spent.
        reason: why no further try was made, a ``penstock.retry.Reason``.
    """

    code: str
    attempts: int = 1
    elapsed_s: float = 0.0
    reason: str = Reason.FATAL.value


@dataclass(frozen=True, slots=True)
class Full:
    """No room, for as long as backpressure is waited out."""


Outcome: TypeAlias = Ok | Missing | NotReady | Corrupt | Failed | Full


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counts since the store was opened, and what it holds at this moment.

    Attributes:
        outcomes: (call, outcome) -> keys, as ``("get", "Missing")``.
        bytes_written, bytes_read: payload of the keys that succeeded.
        memory_bytes: registered for transfers; ``quarantined_bytes``: of these, held back because a late write may
            still land in them.
        clients_replaced: connections given up because a call on them did not come back.
        restarts: times the store was found to have lost everything.
        failovers: copies that were read because those before them failed.
        retries: the retrier's own counts.
    """

    outcomes: Mapping[tuple[str, str], int]
    bytes_written: int
    bytes_read: int
    memory_bytes: int
    quarantined_bytes: int
    clients_replaced: int
    restarts: int
    failovers: int
    retries: RetryStatistics


class BlockStore(Protocol):
    """Keeps values under keys. Fit for use from several threads.

    Every call raises ``BadArgument`` for a key that is no string, empty or too long and for a deadline on another
    clock, and ``DataPlaneUnavailable`` after ``close`` or once when the store was found to have been restarted.
    Everything else is an outcome.
    """

    def put_many(self, keys: Sequence[str], values: Sequence[Value], deadline: Deadline) -> list[Outcome]:
        """Store ``values``. A key is given once; one that already names other bytes is ``Failed("exists")``.

        The buffers are the store's until the call returns, not longer. Keys are to be minted once. Mooncake cannot
        compare and set: two callers that put different bytes under one key at the same moment may both be told ``Ok``
        (what is there is one of theirs, whole). A key that was removed must not be used again: what timed out may still
        land on it.
        """
        ...

    def get_many(self, keys: Sequence[str], sizes: Sequence[int] | None, deadline: Deadline) -> list[Outcome]:
        """Read values into memory of the caller's own, which stays valid after ``close``. Keys may repeat.

        ``sizes``: the lengths that the caller expects; a value of another length is ``Corrupt("length")``.
        """
        ...

    def remove_many(self, keys: Sequence[str], deadline: Deadline) -> list[Outcome]:
        """Remove values; one that is gone already is ``Ok``."""
        ...

    def exists_many(self, keys: Sequence[str], deadline: Deadline) -> list[Outcome]:
        """``Ok`` with the value's length, or ``Missing``."""
        ...

    def life(self, deadline: Deadline) -> str:
        """Return the name of the store's life. All clients see the same; another one means that everything is lost.

        Asks the store; a client that finds a life to have ended calls its ``on_restarted`` once.

        Raises:
            DataPlaneUnavailable: the store does not answer, or the life that was known has just been found to have
                ended (once).
        """
        ...

    def statistics(self) -> StoreStatistics: ...

    def close(self, timeout_s: float = 5.0) -> None:
        """End, idempotently, within ``timeout_s``. Calls that are under way end with ``DataPlaneUnavailable``."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_keys(keys: Sequence[str], *, unique: bool = False) -> None:
    """Raise ``BadArgument`` naming the first key that cannot be one, or with ``unique`` those that repeat."""
    if isinstance(keys, str):
        raise BadArgument(f"keys must be a sequence of strings, got one string {keys!r}")
    for key in keys:
        if not isinstance(key, str) or not key:
            raise BadArgument(f"a key must be a string that is not empty, got {key!r}")
        if not _encodable(key) or len(key.encode()) > MAX_KEY_BYTES:
            raise BadArgument(f"a key has at most {MAX_KEY_BYTES} bytes of UTF-8, no control characters: {key[:64]!r}")
    if unique and len(set(keys)) != len(keys):
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise BadArgument(f"keys of a put must be different; repeated: {abbreviate(repeated)}", keys=repeated)


def _encodable(key: str) -> bool:
    """Whether a key has UTF-8 (a lone surrogate has none) and no control character: stores use those in names."""
    return key.isprintable() or not any(
        ord(letter) < 0x20 or ord(letter) == 0x7F or 0xD800 <= ord(letter) <= 0xDFFF for letter in key
    )


def error_of(key: str, outcome: Outcome, what: str, error: type[DataPlaneError] = DataPlaneReadError) -> DataPlaneError:
    """Return the error that an outcome other than ``Ok`` means for ``key``.

    ``what`` is the call, for the message ("get"); ``error`` is for a ``Failed`` that no deadline ended
    (``DataPlaneWriteError`` for a put).
    """
    match outcome:
        case Missing():
            return UnknownName(f"{what}: the store has no key {key!r}", keys=[key])
        case NotReady():
            return DataPlaneNotReady(f"{what}: {key!r} is still being written", keys=[key])
        case Corrupt(kind):
            return CorruptPayload(f"{what}: {key!r} came damaged: {kind}", keys=[key])
        case Full():
            return DataPlaneFull(f"{what}: the store has no room for {key!r}", keys=[key])
        case Failed(code, attempts, elapsed_s, reason):
            cls = DataPlaneTimeout if reason == Reason.DEADLINE else error
            message = f"{what}: {key!r} given up after {attempts} attempts in {elapsed_s:.3f} s: {reason}, code {code}"
            return cls(message, keys=[key], attempts=attempts, elapsed_s=elapsed_s)
        case Ok():
            raise BadArgument(f"{what}: {key!r} did not fail")


def raise_failures(
    keys: Sequence[str], outcomes: Sequence[Outcome], what: str, error: type[DataPlaneError] = DataPlaneReadError
) -> None:
    """Raise one ``BatchError`` that names what failed and carries what succeeded, or return when all did."""
    paired = list(zip(keys, outcomes, strict=True))
    failures = {key: error_of(key, outcome, what, error) for key, outcome in paired if not isinstance(outcome, Ok)}
    if not failures:
        return
    words = sorted({_word(outcome) for outcome in outcomes if not isinstance(outcome, Ok)})
    raise BatchError(
        f"{what}: {len(failures)} of {len(keys)} keys failed ({', '.join(words)}): {abbreviate(list(failures))}",
        failures=failures,
        successes={key: outcome for key, outcome in paired if isinstance(outcome, Ok)},
    )


def _word(outcome: Outcome) -> str:
    match outcome:
        case Failed(code, attempts, _, _):
            return f"Failed {code} after {attempts} attempts"
        case Corrupt(kind):
            return f"Corrupt {kind}"
        case _:
            return type(outcome).__name__
