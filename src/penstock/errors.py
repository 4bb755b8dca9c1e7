"""Every failure Penstock raises, in one tree.

    DataPlaneError (RuntimeError)
    ├── DataPlaneUnavailable            it provably did not happen; reads raise it freely
    │   ├── MissingExtra (ImportError)  an optional package is not installed; names the extra
    │   └── TransportError              a connection could not be made, or broke; ``code`` says how
    ├── DataPlaneTimeout (TimeoutError) the deadline passed; the outcome is unknown, repeating is safe
    ├── DataPlaneReadError              rows exist but could not be read; names them
    │   ├── StaleSlotError              a reference to a slot that has been recycled
    │   └── CorruptPayload              length, tag or checksum does not match
    ├── DataPlaneWriteError             a write was refused
    │   └── DataPlaneFull               no room for new groups before the deadline
    ├── DataPlaneClearError             rows that should be gone are still there; names them
    ├── DataPlaneNotReady               what was asked for is not there yet
    │   └── FieldNotProduced (KeyError) a field of an existing row has not been put yet
    ├── DataPlaneBadRequest             the caller's mistake; nothing changed
    │   ├── BadArgument (ValueError)
    │   ├── UnknownName (KeyError)      an unknown task, field, partition or row
    │   ├── RefusedType (TypeError)     a value of a type that is not carried
    │   ├── LeaseLost                   the lease was superseded or never existed
    │   └── RowRemoved                  a late write to a row that was removed
    ├── BatchError                      per-key failures, as the field ``failures``
    ├── JournalCorrupt                  the journal is damaged before its tail
    ├── EventsCorrupt                   a file of run events is damaged before its tail
    ├── ControllerError                 a run cannot go on; says why and what to do
    │   └── VersionWentBack             the trainer stands at an earlier step than the run
    ├── PromptRejected                  raised by a generator: this prompt can never be answered
    └── IllegalTransition               a machine has no entry for this event in its state: our own bug

Invariant: an error names what is missing (fields ``partition``, ``keys``, ``missing``) and carries
``attempts``, ``elapsed_s`` and the plane's ``incarnation`` where they are known. ``code_of``/``error_of`` carry errors
over a wire by a closed set of codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = [
    "BadArgument",
    "BatchError",
    "ControllerError",
    "CorruptPayload",
    "DataPlaneBadRequest",
    "DataPlaneClearError",
    "DataPlaneError",
    "DataPlaneFull",
    "DataPlaneNotReady",
    "DataPlaneReadError",
    "DataPlaneTimeout",
    "DataPlaneUnavailable",
    "DataPlaneWriteError",
    "EventsCorrupt",
    "FieldNotProduced",
    "IllegalTransition",
    "JournalCorrupt",
    "LeaseLost",
    "MissingExtra",
    "PromptRejected",
    "RefusedType",
    "RowRemoved",
    "StaleSlotError",
    "TransportError",
    "UnknownName",
    "VersionWentBack",
    "abbreviate",
    "code_of",
    "error_of",
]

_SHOWN_NAMES = 8  # names spelled out in a message; the field carries them all


def abbreviate(names: Sequence[str], shown: int = _SHOWN_NAMES) -> str:
    """Return ``names`` for a message: the first few, then how many more there are."""
    head = ", ".join(repr(n) for n in names[:shown])
    return head if len(names) <= shown else f"{head} and {len(names) - shown} more"


class DataPlaneError(RuntimeError):
    """Base of every failure.

    Args:
        message: what went wrong and what to do about it.
        partition: the partition concerned.
        keys: the rows concerned, all of them.
        missing: what is awaited or unknown, in words (``"field 'logprobs' of 'a_g0'"``).
        attempts: tries made before giving up.
        elapsed_s: seconds spent.
        incarnation: the plane's life that answered, 0 if none did.
    """

    def __init__(
        self,
        message: str,
        *,
        partition: str | None = None,
        keys: Sequence[str] = (),
        missing: Sequence[str] = (),
        attempts: int = 0,
        elapsed_s: float = 0.0,
        incarnation: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.partition = partition
        self.keys = list(keys)
        self.missing = list(missing)
        self.attempts = attempts
        self.elapsed_s = elapsed_s
        self.incarnation = incarnation

    def __str__(self) -> str:  # KeyError would show repr(message)
        return self.message


class DataPlaneUnavailable(DataPlaneError):
    """The plane could not be reached; it provably did not happen."""


class MissingExtra(DataPlaneUnavailable, ImportError):
    """An optional package is missing; the message says which extra to install."""


class TransportError(DataPlaneUnavailable):
    """A connection could not be made, or broke. What was under way on it did not arrive, as far as is known here.

    Args:
        code: ``timeout``, ``refused``, ``reset``, ``closed``, ``truncated``, ``unauthorised`` or ``protocol``.
    """

    def __init__(self, message: str, *, code: str, elapsed_s: float = 0.0) -> None:
        super().__init__(message, elapsed_s=elapsed_s)
        self.code = code


class DataPlaneTimeout(DataPlaneError, TimeoutError):
    """The deadline passed. The outcome is unknown; repeating the call is safe."""


class DataPlaneReadError(DataPlaneError):
    """Rows exist but could not be read; ``keys`` names them."""


class StaleSlotError(DataPlaneReadError):
    """A reference to a slot whose generation has moved on."""


class CorruptPayload(DataPlaneReadError):
    """A length, tag or checksum does not match; nothing was served."""


class DataPlaneWriteError(DataPlaneError):
    """A write was refused; nothing became visible."""


class DataPlaneFull(DataPlaneWriteError):
    """There was no room for new groups before the deadline."""


class DataPlaneClearError(DataPlaneError):
    """Rows that should be gone are still there; ``keys`` names them."""


class DataPlaneNotReady(DataPlaneError):
    """What was asked for is not there yet; asking later may succeed."""


class FieldNotProduced(DataPlaneNotReady, KeyError):
    """A field of an existing row has not been put yet."""


class DataPlaneBadRequest(DataPlaneError):
    """The caller's mistake. Nothing changed."""


class BadArgument(DataPlaneBadRequest, ValueError):
    """An argument is out of range or malformed."""


class UnknownName(DataPlaneBadRequest, KeyError):
    """A task, field, partition or row that is not known; the message says which kind."""


class RefusedType(DataPlaneBadRequest, TypeError):
    """A value of a type that is not carried; the message names field and type."""


class LeaseLost(DataPlaneBadRequest):
    """The lease was superseded by another claim, or never existed. Nothing changed."""


class RowRemoved(DataPlaneBadRequest):
    """A late write to rows that were removed; ``keys`` names them. Nothing changed."""


class BatchError(DataPlaneError):
    """Per-key failures of one batch.

    Args:
        failures: key -> the error of that key. Keys that are not named succeeded.
        successes: key -> what it came to, where the call has something to hand over.
    """

    def __init__(
        self,
        message: str,
        *,
        failures: Mapping[str, DataPlaneError],
        successes: Mapping[str, object] | None = None,
        partition: str | None = None,
    ) -> None:
        super().__init__(message, partition=partition, keys=list(failures))
        self.failures = dict(failures)
        self.successes = dict(successes or {})


class JournalCorrupt(DataPlaneError):
    """The journal is damaged before its tail; the plane does not start on it."""


class EventsCorrupt(DataPlaneError):
    """A file of run events is damaged before its tail; the message names the line. Nothing of it was read.

    Args:
        line: the damaged line's number, from 1.
    """

    def __init__(self, message: str, *, line: int) -> None:
        super().__init__(message)
        self.line = line


class ControllerError(DataPlaneError):
    """A run cannot go on. Nothing of it is lost: run it again once the cause is gone."""


class VersionWentBack(ControllerError):
    """The trainer stands at an earlier step than the run: its checkpoint is not the run's."""


class PromptRejected(DataPlaneError):
    """Raised by a generator: this prompt can never be answered. It is dropped, with the message as the reason."""


class IllegalTransition(DataPlaneError):
    """A machine has no entry for an event in the state it is in: our own bug.

    Args:
        subject: the object concerned, its state and the event, in words.
        history: the object's last events, oldest first.
    """

    def __init__(self, subject: str, *, history: Sequence[str] = ()) -> None:
        super().__init__(f"{subject}; last events: {'; '.join(history) or 'none'}")
        self.history = list(history)


# What may cross a wire, by name. BatchError is built by clients; MissingExtra, TransportError, IllegalTransition,
# EventsCorrupt and the controller's errors are local: none of them travels.
_ON_WIRE: dict[str, type[DataPlaneError]] = {
    cls.__name__: cls
    for cls in (
        DataPlaneError,
        DataPlaneUnavailable,
        DataPlaneTimeout,
        DataPlaneReadError,
        StaleSlotError,
        CorruptPayload,
        DataPlaneWriteError,
        DataPlaneFull,
        DataPlaneClearError,
        DataPlaneNotReady,
        FieldNotProduced,
        DataPlaneBadRequest,
        BadArgument,
        UnknownName,
        RefusedType,
        LeaseLost,
        RowRemoved,
    )
}


def code_of(error: DataPlaneError) -> str:
    """Return the wire code of ``error``: its class name, or that of its nearest ancestor that travels."""
    for cls in type(error).__mro__:
        if cls.__name__ in _ON_WIRE:
            return cls.__name__
    return DataPlaneError.__name__


def error_of(code: str) -> type[DataPlaneError]:
    """Return the error class for a wire code; an unknown code is a plain ``DataPlaneError``."""
    return _ON_WIRE.get(code, DataPlaneError)
