"""Reading rows from a TransferQueue: located at the registrar in one moment, blocks fetched and checked, columns made.

Invariants: all asked rows or an error that names those that cannot be read (``drop``: all that can be read); a block
that has gone since its rows were located means that they were written anew or removed: they are located once more;
nothing that failed its checks is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    StaleSlotError,
    abbreviate,
)
from penstock.payload import decode
from penstock.plane import columns as tables
from penstock.plane.again import settled
from penstock.plane.blocks import FetchedBlock
from penstock.plane.transfer_queue.desk import Desk
from penstock.plane.transfer_queue.queue_blocks import QueueBlocks
from penstock.plane.transfer_queue.stored import Where
from penstock.requests import Source
from penstock.retry import Answer, Deadline, Kind, Retrier

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["Reads"]


class _Asked(NamedTuple):
    partition: str
    keys: list[str]
    fields: list[str]
    drop: bool


class _Fetched(NamedTuple):
    """One try: where the rows lie, the blocks that came, and per position why a row cannot be read."""

    where: Where
    blocks: dict[int, FetchedBlock]
    bad: dict[int, DataPlaneError]


class Reads:
    """The reads of one client."""

    def __init__(self, desk: Desk, blocks: QueueBlocks, retrier: Retrier) -> None:
        self._desk = desk
        self._blocks = blocks
        self._retrier = retrier

    def read(
        self, partition: str, keys: list[str], fields: list[str], deadline: Deadline, *, drop: bool
    ) -> tuple[TensorDict, list[int]]:
        """Return the columns and the positions, in ``keys``, of the rows that they hold.

        Raises:
            UnknownName, FieldNotProduced, DataPlaneReadError: see ``DataPlaneClient.get_samples``.
        """
        asked = _Asked(partition, keys, fields, drop)
        got = self._fetch(asked, deadline)
        rows = [i for i in range(len(got.where.kept)) if i not in got.bad]
        if got.bad and not drop:
            raise _unreadable(asked, got, deadline)
        return self._table(asked, got, rows), [got.where.kept[i] for i in rows]

    def _fetch(self, asked: _Asked, deadline: Deadline) -> _Fetched:
        last: list[_Fetched] = []
        blocks: dict[int, FetchedBlock] = {}  # a number is one block's for ever: what has come is not fetched again

        def attempt(until: Deadline) -> Answer[_Fetched]:
            got = self._once(asked, blocks, until)
            last[:] = [got]
            kinds = {type(error) for error in got.bad.values()}
            if CorruptPayload in kinds:
                return Answer(Kind.CORRUPT, code="CorruptPayload")
            if kinds - {DataPlaneTimeout, DataPlaneReadError}:
                return Answer(Kind.RETRYABLE, code=min(kind.__name__ for kind in kinds))
            return Answer(Kind.OK, got)  # read, or no other try would help

        settled(self._retrier, "read", asked.partition, attempt, deadline)
        return last[0]

    def _once(self, asked: _Asked, blocks: dict[int, FetchedBlock], deadline: Deadline) -> _Fetched:
        arguments = {"partition": asked.partition, "keys": asked.keys, "fields": asked.fields, "drop": asked.drop}
        located: Where = self._desk.ask("locate", deadline, **arguments).value
        sizes = {number: size for number, size in located.blocks if number not in blocks}
        came = self._blocks.get(sizes, deadline) if sizes else {}
        blocks.update((number, block) for number, block in came.items() if isinstance(block, FetchedBlock))
        failed = {at: came[number] for at, (number, _) in enumerate(located.blocks) if number not in blocks}
        bad: dict[int, DataPlaneError] = {}
        for source in located.sources:
            for i, at in enumerate(source.block):
                error = failed.get(at)
                if isinstance(error, DataPlaneError):
                    bad[i] = error
        return _Fetched(located, blocks, bad)

    def _table(self, asked: _Asked, got: _Fetched, rows: list[int]) -> TensorDict:
        if not rows:
            return tables.table({name: tables.join(got.where.specs.get(name), []) for name in asked.fields}, 0)
        order = [number for number, _ in got.where.blocks if number in got.blocks]
        at = {number: n for n, number in enumerate(order)}
        moved = {old: at[number] for old, (number, _) in enumerate(got.where.blocks) if number in at}
        sources = [_of_rows(source, rows, moved) for source in got.where.sources]
        try:
            columns = decode.gather([got.blocks[number] for number in order], sources, len(rows))
            table: TensorDict = decode.to_tensordict({name: columns[name] for name in asked.fields}, len(rows))
        except (RuntimeError, MemoryError) as failed:  # torch's and Python's words for "no memory"
            if isinstance(failed, DataPlaneError):
                raise
            text = f"{len(rows)} rows of partition {asked.partition!r} cannot be put together here: {failed}"
            raise DataPlaneReadError(text, partition=asked.partition, keys=asked.keys) from failed
        return table


def _of_rows(source: Source, rows: Sequence[int], moved: Mapping[int, int]) -> Source:
    return Source(source.fields, [moved[source.block[i]] for i in rows], [source.index[i] for i in rows])


def _unreadable(asked: _Asked, got: _Fetched, deadline: Deadline) -> DataPlaneError:
    keys = list(dict.fromkeys(asked.keys[got.where.kept[i]] for i in got.bad))
    errors = list(got.bad.values())
    why = "; ".join(dict.fromkeys(str(error) for error in errors))
    return _class_of(errors)(
        f"rows {abbreviate(keys)} of partition {asked.partition!r} cannot be read: {why}",
        partition=asked.partition,
        keys=keys,
        missing=[why],
        elapsed_s=deadline.elapsed(),
    )


def _class_of(errors: Sequence[DataPlaneError]) -> type[DataPlaneError]:
    """The class that says most: damage before silence, silence before what has gone."""
    for cls in (CorruptPayload, DataPlaneTimeout, DataPlaneUnavailable, StaleSlotError):
        if any(isinstance(error, cls) for error in errors):
            return cls
    return DataPlaneReadError
