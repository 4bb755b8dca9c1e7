"""The twin of a store: values in this process's memory, under the same contract.

    shelf = Shelf(capacity_bytes=1 << 20)
    with MemoryStore(shelf) as store, MemoryStore(shelf) as another: ...

Stores of one shelf see the same values, as clients of one Mooncake do; ``shelf_named`` is how ``memory://NAME`` finds
it. Invariants: as the contract's; a call never waits, so a shelf without room says so at once; a value is copied in and
copied out, so nobody's buffer is anybody else's.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from penstock.errors import BadArgument, DataPlaneUnavailable, RefusedType
from penstock.payload.stores.contract import (
    EXISTS,
    Corrupt,
    Failed,
    Full,
    Missing,
    Ok,
    Outcome,
    StoreStatistics,
    Value,
    check_keys,
)
from penstock.payload.stores.envelope import as_pieces
from penstock.retry import Clock, Deadline, Reason, RetryStatistics

__all__ = ["DEFAULT_CAPACITY_BYTES", "MemoryStore", "Shelf", "shelf_named"]

DEFAULT_CAPACITY_BYTES = 1 << 30
_LATE = Failed("deadline", attempts=0, reason=Reason.DEADLINE.value)
_NEVER_RETRIED = RetryStatistics(
    runs=0, attempts=0, retries=0, waited_s=0.0, outcomes={}, given_up={}, tokens={}, quarantined=()
)


_serials = itertools.count(1)


class Shelf:
    """What stores of one name have in common: the values, and the life they belong to."""

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY_BYTES, *, name: str = "") -> None:
        if capacity_bytes < 0:
            raise BadArgument(f"capacity_bytes must be 0 or more, got {capacity_bytes}")
        self.name = name
        self.capacity_bytes = capacity_bytes
        self._serial = next(_serials)
        self._lives = 1
        self._values: dict[str, bytes] = {}
        self._used = 0
        self._lock = threading.Lock()

    @property
    def life(self) -> str:
        """Its name; no two shelves of a machine have ever the same."""
        return f"memory-{os.getpid()}-{self._serial}-{self._lives}"

    def restart(self) -> None:
        """Lose every value, as a store does whose master was restarted: each open store says so once."""
        with self._lock:
            self._lives += 1
            self._values.clear()
            self._used = 0

    def put(self, key: str, value: bytes) -> Outcome:
        with self._lock:
            there = self._values.get(key)
            if there is not None:
                return Ok(nbytes=len(value)) if there == value else Failed(EXISTS)
            if self._used + len(value) > self.capacity_bytes:
                return Full()
            self._values[key] = value
            self._used += len(value)
            return Ok(nbytes=len(value))

    def get(self, key: str) -> bytes | None:
        with self._lock:
            return self._values.get(key)

    def remove(self, key: str) -> Outcome:
        with self._lock:
            self._used -= len(self._values.pop(key, b""))
            return Ok()

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return self._used

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Shelf({self.name!r}, {len(self)} values, {self.used_bytes} of {self.capacity_bytes} bytes)"


_named: weakref.WeakValueDictionary[str, Shelf] = weakref.WeakValueDictionary()
_naming = threading.Lock()


def shelf_named(name: str) -> Shelf:
    """Return this process's shelf of that name, made if nobody has it; it lives as long as a store has it open."""
    with _naming:
        shelf = _named.get(name)
        if shelf is None:
            shelf = _named[name] = Shelf(name=name)
        return shelf


class MemoryStore:
    """A ``BlockStore`` on a shelf.

    Args:
        shelf: None = one of its own.
        clock: that of the callers' deadlines.
        on_restarted: called with the reason, in the thread of the call that finds out.
    """

    def __init__(
        self,
        shelf: Shelf | None = None,
        *,
        clock: Clock = time.monotonic,
        on_restarted: Callable[[str], None] | None = None,
    ) -> None:
        self._shelf: Shelf | None = shelf if shelf is not None else Shelf()
        self._clock = clock
        self._on_restarted = on_restarted
        self._lock = threading.Lock()
        self._life = self._shelf.life
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._written = self._read = self._restarts = 0

    # -- the four calls -----------------------------------------------------------------------------------------------

    def put_many(self, keys: Sequence[str], values: Sequence[Value], deadline: Deadline) -> list[Outcome]:
        check_keys(keys, unique=True)
        if len(values) != len(keys):
            raise BadArgument(f"{len(keys)} keys, but {len(values)} values")
        whole = [_joined(key, value) for key, value in zip(keys, values, strict=True)]
        shelf = self._open(deadline)
        outcomes = [_LATE if deadline.expired() else shelf.put(*pair) for pair in zip(keys, whole, strict=True)]
        return self._counted("put", outcomes)

    def get_many(self, keys: Sequence[str], sizes: Sequence[int] | None, deadline: Deadline) -> list[Outcome]:
        check_keys(keys)
        if sizes is not None and len(sizes) != len(keys):
            raise BadArgument(f"{len(keys)} keys, but {len(sizes)} sizes")
        shelf = self._open(deadline)
        expected: Sequence[int | None] = sizes if sizes is not None else [None] * len(keys)
        outcomes = [
            _LATE if deadline.expired() else _read(shelf.get(key), size)
            for key, size in zip(keys, expected, strict=True)
        ]
        return self._counted("get", outcomes)

    def remove_many(self, keys: Sequence[str], deadline: Deadline) -> list[Outcome]:
        check_keys(keys)
        shelf = self._open(deadline)
        outcomes = [_LATE if deadline.expired() else shelf.remove(key) for key in keys]
        return self._counted("remove", outcomes)

    def exists_many(self, keys: Sequence[str], deadline: Deadline) -> list[Outcome]:
        check_keys(keys)
        shelf = self._open(deadline)
        outcomes = [_LATE if deadline.expired() else _length(shelf.get(key)) for key in keys]
        return self._counted("exists", outcomes)

    # -- its life -----------------------------------------------------------------------------------------------------

    def life(self, deadline: Deadline) -> str:
        return self._open(deadline).life

    def statistics(self) -> StoreStatistics:
        shelf = self._shelf
        with self._lock:
            return StoreStatistics(
                outcomes=dict(self._outcomes),
                bytes_written=self._written,
                bytes_read=self._read,
                memory_bytes=shelf.used_bytes if shelf is not None else 0,
                quarantined_bytes=0,
                clients_replaced=0,
                restarts=self._restarts,
                failovers=0,
                retries=_NEVER_RETRIED,
            )

    def close(self, timeout_s: float = 5.0) -> None:  # noqa: ARG002  the contract's; nothing is waited for
        """Let go of the shelf. Idempotent."""
        self._shelf = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"MemoryStore({'closed' if self._shelf is None else self._shelf})"

    # -- how ----------------------------------------------------------------------------------------------------------

    def _open(self, deadline: Deadline) -> Shelf:
        shelf = self._shelf
        if shelf is None:
            raise DataPlaneUnavailable("the store is closed")
        if deadline.clock != self._clock:  # bound methods are equal, never identical
            raise BadArgument("the deadline is on another clock than the store")
        with self._lock:
            life = shelf.life
            is_restarted, self._life = life != self._life, life
            self._restarts += is_restarted
        if is_restarted:
            reason = "store was restarted, what it held is lost"
            if self._on_restarted is not None:
                self._on_restarted(reason)
            raise DataPlaneUnavailable(reason)
        return shelf

    def _counted(self, call: str, outcomes: list[Outcome]) -> list[Outcome]:
        nbytes = sum(outcome.nbytes for outcome in outcomes if isinstance(outcome, Ok))
        with self._lock:
            self._outcomes.update((call, type(outcome).__name__) for outcome in outcomes)
            self._written += nbytes if call == "put" else 0
            self._read += nbytes if call == "get" else 0
        return outcomes


def _joined(key: str, value: Value) -> bytes:
    try:
        return b"".join(piece.tobytes() for piece in as_pieces(value))
    except (TypeError, ValueError, BufferError) as error:
        raise RefusedType(f"the value of {key!r} is no buffer, and no sequence of buffers: {error}") from error


def _read(value: bytes | None, expected: int | None) -> Outcome:
    if value is None:
        return Missing()
    if expected is not None and len(value) != expected:
        return Corrupt("length")
    return Ok(memoryview(bytearray(value)), len(value))


def _length(value: bytes | None) -> Outcome:
    return Missing() if value is None else Ok(nbytes=len(value))
