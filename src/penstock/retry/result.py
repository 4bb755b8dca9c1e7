"""What an attempt answers and how a run ends, key by key.

Invariants: one answer per key, never one for all; a failure is never a value (``reason`` says that there is none);
turning failures into an exception keeps every key's own cause.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Generic, TypeVar

from penstock.errors import BatchError, CorruptPayload, DataPlaneError, DataPlaneTimeout, abbreviate
from penstock.retry.policy import Kind, Reason

__all__ = ["Answer", "RetryResult", "Settled"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What one key of an attempt came to. ``code`` is the endpoint's own word for it, for logs and counts."""

    kind: Kind
    value: T | None = None
    code: str = ""


@dataclass(frozen=True, slots=True)
class Settled(Generic[T]):
    """How one key ended. ``reason`` None = it succeeded."""

    value: T | None
    reason: Reason | None
    code: str
    attempts: int


@dataclass(frozen=True, slots=True)
class RetryResult(Generic[T]):
    """How every key ended, in the order given."""

    path: str
    settled: dict[str, Settled[T]]
    elapsed_s: float

    @property
    def failures(self) -> dict[str, Settled[T]]:
        """The keys that were given up."""
        return {key: end for key, end in self.settled.items() if end.reason is not None}

    def require_all(self, error: type[DataPlaneError], *, partition: str | None = None) -> None:
        """Raise a ``BatchError`` with one failure per key that was given up; do nothing when all succeeded.

        A failure is a ``DataPlaneTimeout`` where the deadline ended it, ``CorruptPayload`` where the bytes were
        damaged, else ``error``.
        """
        failures = {key: self._error_of(key, end, error, partition) for key, end in self.failures.items()}
        if not failures:
            return
        counts = Counter(end.reason for end in self.failures.values() if end.reason)
        reasons = ", ".join(f"{reason}: {n}" for reason, n in counts.most_common())
        raise BatchError(
            f"{self.path}: {len(failures)} of {len(self.settled)} keys failed within {self.elapsed_s:.3f} s "
            f"({reasons}): {abbreviate(list(failures))}",
            failures=failures,
            partition=partition,
        )

    def _error_of(
        self, key: str, end: Settled[T], error: type[DataPlaneError], partition: str | None
    ) -> DataPlaneError:
        special = {Reason.DEADLINE: DataPlaneTimeout, Reason.CORRUPT: CorruptPayload}
        cls = special.get(end.reason, error) if end.reason else error
        code = f", last code {end.code}" if end.code else ""
        return cls(
            f"{self.path} of {key!r} given up after {end.attempts} attempts: {end.reason}{code}",
            partition=partition,
            keys=[key],
            attempts=end.attempts,
            elapsed_s=self.elapsed_s,
        )
