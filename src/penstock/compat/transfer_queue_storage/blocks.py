"""Where the values of a TransferQueue system lie: a store of bytes, or a Penstock plane; one small interface for both.

Invariants: names are written once; a put stores all of its values or raises, and what it stored before it raised is
removed again as far as that goes; a get returns every value, whole and in memory of the caller's own, or raises a
``BatchError`` that names what failed; no call outlives its deadline.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from penstock.compat.transfer_queue_storage.frames import ALIGN, Pieces, length
from penstock.errors import (
    BatchError,
    DataPlaneClearError,
    DataPlaneError,
    DataPlaneWriteError,
    RowRemoved,
    UnknownName,
)
from penstock.payload.stores.contract import BlockStore, Ok, raise_failures
from penstock.plane.contract import DataPlaneClient
from penstock.retry import Deadline

__all__ = ["Blocks", "PlaneBlocks", "StoreBlocks"]

_COLUMN = "value"
_TASK = "transfer_queue"  # never claims: TransferQueue's own controller says who reads what
_UNDO_S = 2.0
_PADDING = memoryview(bytes(ALIGN))
_GONE = (UnknownName, RowRemoved)


class Blocks(Protocol):
    """Keeps values under names. Every call raises errors of Penstock's tree only."""

    def put(self, names: Sequence[str], values: Sequence[Pieces], deadline: Deadline) -> None: ...

    def get(self, names: Sequence[str], sizes: Sequence[int], deadline: Deadline) -> list[memoryview]: ...

    def remove(self, names: Sequence[str], deadline: Deadline) -> None:
        """Remove values; one that is gone already is no error."""
        ...

    def close(self) -> None: ...


class StoreBlocks:
    """Values in a ``BlockStore``."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"<StoreBlocks on {self._store!r}>"

    def put(self, names: Sequence[str], values: Sequence[Pieces], deadline: Deadline) -> None:
        outcomes = self._store.put_many(names, values, deadline)
        try:
            raise_failures(names, outcomes, "put", DataPlaneWriteError)
        except BatchError:
            with contextlib.suppress(DataPlaneError):  # the put's own error is what its caller must see
                self._store.remove_many(names, Deadline(_UNDO_S, deadline.clock))
            raise

    def get(self, names: Sequence[str], sizes: Sequence[int], deadline: Deadline) -> list[memoryview]:
        outcomes = self._store.get_many(names, sizes, deadline)
        raise_failures(names, outcomes, "get")
        return [outcome.view for outcome in outcomes if isinstance(outcome, Ok)]

    def remove(self, names: Sequence[str], deadline: Deadline) -> None:
        raise_failures(names, self._store.remove_many(names, deadline), "clear", DataPlaneClearError)

    def close(self) -> None:
        self._store.close()


class PlaneBlocks:
    """Values as rows of one partition of a Penstock plane: a put is one block of its shared memory."""

    def __init__(self, client: DataPlaneClient, partition: str, timeout_s: float) -> None:
        self._client = client
        self._partition = partition
        try:
            client.register_partition(partition, [_COLUMN], 1, [_TASK], timeout_s=timeout_s)
        except BaseException:
            client.close()
            raise

    def __repr__(self) -> str:
        return f"<PlaneBlocks of {self._partition!r} on {self._client!r}>"

    def put(self, names: Sequence[str], values: Sequence[Pieces], deadline: Deadline) -> None:
        rows = torch.nested.nested_tensor_from_jagged(*_jagged(values))
        tags = [{"committed": True}] * len(names)  # whole from the start: nothing more of it will come
        self._client.put_samples(names, self._partition, {_COLUMN: rows}, tags, timeout_s=deadline.remaining())

    def get(self, names: Sequence[str], sizes: Sequence[int], deadline: Deadline) -> list[memoryview]:
        distinct = list(dict.fromkeys(names))
        try:
            read = self._client.get_samples(distinct, self._partition, [_COLUMN], timeout_s=deadline.remaining())
        except _GONE as gone:
            raise _batch_error(gone, distinct) from gone
        rows = read[_COLUMN].unbind()
        views = {name: row.numpy().data for name, row in zip(distinct, rows, strict=True)}
        return [views[name][:size] for name, size in zip(names, sizes, strict=True)]

    def remove(self, names: Sequence[str], deadline: Deadline) -> None:
        self._client.clear_samples(list(names), self._partition, timeout_s=deadline.remaining())

    def close(self) -> None:
        self._client.close()


def _jagged(values: Sequence[Pieces]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all values behind one another, each padded so that the next is aligned, and where each begins."""
    lengths = [-(-length(pieces) // ALIGN) * ALIGN for pieces in values]
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
    offsets[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
    joined = bytearray().join(_padded(values))
    return torch.frombuffer(joined, dtype=torch.uint8), offsets


def _padded(values: Sequence[Pieces]) -> Iterator[memoryview]:
    for pieces in values:
        yield from pieces
        yield _PADDING[: -length(pieces) % ALIGN]


def _batch_error(gone: DataPlaneError, names: Sequence[str]) -> BatchError:
    named = set(gone.keys) & set(names) or set(names)
    failures = {name: UnknownName(f"get: there is no {name!r}", keys=[name]) for name in names if name in named}
    return BatchError(f"get: {len(failures)} of {len(names)} keys failed: {gone}", failures=failures)
