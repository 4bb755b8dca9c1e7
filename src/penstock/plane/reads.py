"""Reading rows: one atomic locate, blocks opened and verified, columns as views or gathers; what becomes of bad ones.

Invariants: all asked rows or an error that names the missing ones (``drop``: all that can be read, and which); a read
is of one moment, whatever is read again; nothing that failed its checks is served; a damaged block is reported to the
plane, which has it looked at, and read once more; a block that cannot be got at is waited for until the deadline, or,
with ``drop``, left out as soon as that is clear.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    FieldNotProduced,
    StaleSlotError,
    UnknownName,
    abbreviate,
    error_of,
)
from penstock.payload import decode
from penstock.plane.again import settled
from penstock.plane.arenas import ArenaGone
from penstock.plane.blocks import Blocks, Opened, Opening
from penstock.plane.link import Link
from penstock.points import reached
from penstock.requests import Done, Locate, Located, RowIssue, Source, Status, StatusReport
from penstock.retry import Answer, Deadline, Kind, Policy, Retrier

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["RE_READ", "Reads"]

# The endpoint is this host's memory: neither a budget nor a quarantine would spare anybody anything. Or it is a store,
# which comes back: what may still be had is waited for until the caller's deadline.
RE_READ = Policy(max_attempts=100_000, base_s=0.01, cap_s=0.5, corrupt_attempts=2, bucket_tokens=0.0, quarantine_s=0.0)

log = logging.getLogger(__name__)

_Table: TypeAlias = "tuple[TensorDict, list[int]]"


class _Asked(NamedTuple):
    """What one read is about."""

    partition: str
    keys: list[str]
    fields: list[str]
    drop: bool


class _Unreadable(Exception):
    """These rows, by key, will not be read; no keys: none of this read."""

    def __init__(self, error: DataPlaneError, keys: Sequence[str]) -> None:
        super().__init__(str(error))
        self.error = error
        self.keys = list(keys)


class _Unopened(Exception):
    """Blocks of this attempt could not be opened. ``errors``: by key, why that row could not be read."""

    def __init__(self, errors: Mapping[str, DataPlaneError]) -> None:
        super().__init__(f"{len(errors)} rows")
        self.errors = dict(errors)

    def of(self, kind: type[DataPlaneError]) -> list[str]:
        """The rows whose error is of that kind."""
        return [key for key, error in self.errors.items() if isinstance(error, kind)]

    @property
    def waits(self) -> bool:
        """Whether all of them may come back, and nothing else is to be done for them."""
        return all(isinstance(error, DataPlaneUnavailable) for error in self.errors.values())

    def why(self, keys: Sequence[str]) -> str:
        """What was said of these rows, each thing once."""
        return "; ".join(dict.fromkeys(str(self.errors[key]) for key in keys))


class Reads:
    """The reads of one client. ``blocks``: how they are opened."""

    def __init__(self, link: Link, blocks: Blocks, retrier: Retrier) -> None:
        self._link = link
        self._blocks = blocks
        self._retrier = retrier

    def read(
        self, partition: str, keys: Sequence[str], fields: Sequence[str], deadline: Deadline, *, drop: bool
    ) -> _Table:
        """Return the columns and the positions, in ``keys``, of the rows that they hold.

        Raises:
            UnknownName, FieldNotProduced, DataPlaneReadError: see ``DataPlaneClient.get_samples``.
        """
        at = list(range(len(keys)))
        while True:
            if not at:
                return self._nothing(partition, fields, deadline), at
            try:
                asked = _Asked(partition, [keys[i] for i in at], list(fields), drop)
                table, kept = self._with_retries(asked, deadline)
            except _Unreadable as bad:
                if not drop or not bad.keys:
                    raise bad.error from None
                gone = set(bad.keys)
                at = [i for i in at if keys[i] not in gone]
            else:
                return table, [at[i] for i in kept]

    def _nothing(self, partition: str, fields: Sequence[str], deadline: Deadline) -> TensorDict:
        """No rows, with the dtypes that the partition's fields have."""
        from penstock.plane import columns as tables

        self._link.ask(Locate(partition, [], list(fields)), Located, deadline)  # refuses names that are not known
        status = self._link.ask(Status(), StatusReport, deadline, method="get_samples")
        specs = {spec.name: spec for p in status.partitions if p.partition == partition for spec in p.fields}
        return tables.table({name: tables.join(specs.get(name), []) for name in fields}, 0)

    def _with_retries(self, asked: _Asked, deadline: Deadline) -> _Table:
        last: list[DataPlaneError | _Unopened] = []
        opening = self._blocks.begin()

        def attempt(until: Deadline) -> Answer[_Table]:
            try:
                return Answer(Kind.OK, self._once(opening, asked, until))
            except _Unopened as unopened:
                last[:] = [unopened]
                if unopened.of(CorruptPayload):
                    return Answer(Kind.CORRUPT, code="CorruptPayload")
                return Answer(Kind.RETRYABLE, code="Unavailable" if unopened.waits else "StaleSlotError")
            except (StaleSlotError, ArenaGone) as stale:
                last[:] = [stale]
                return Answer(Kind.RETRYABLE, code=type(stale).__name__)
            finally:
                self._report(opening, until)

        end = settled(self._retrier, "read", asked.partition, attempt, deadline)
        if end.reason is None:
            assert end.value is not None
            return end.value
        raise _given_up(asked, last[0], end.attempts, deadline)

    def _once(self, opening: Opening, asked: _Asked, deadline: Deadline) -> _Table:
        """Locate, open, decode. The pins of what is not handed out return with the context."""
        reached("client.reading")
        try:
            locate = Locate(asked.partition, asked.keys, asked.fields)
            with self._link.call(locate, Located, deadline) as located, ExitStack() as stack:
                reached("client.pinned")
                if located.issues:
                    raise _issues(asked.partition, located.issues)
                table = self._decoded(opening, asked, located, stack, deadline)
                reached("client.read")
                return table
        except (UnknownName, FieldNotProduced) as lacking:
            raise _Unreadable(lacking, lacking.keys) from None

    def _decoded(
        self, opening: Opening, asked: _Asked, located: Located, stack: ExitStack, deadline: Deadline
    ) -> _Table:
        try:
            opened = opening.open(located, stack, deadline)
            kept = _kept(asked, located, opened, deadline)
            sources = _picked(located.sources, kept, opened) if opened.bad else located.sources
            columns = decode.gather([opened.blocks[at] for at in sorted(opened.blocks)], sources, len(kept))
            if opening.ended:
                raise DataPlaneUnavailable("the client was closed during the read", partition=asked.partition)
            table: TensorDict = decode.to_tensordict(columns, len(kept))
        except DataPlaneUnavailable as failed:
            if opening.lost():
                raise ArenaGone(f"an arena was let go of during the read: {failed}") from failed
            raise
        except DataPlaneError:
            raise
        except (RuntimeError, MemoryError) as failed:  # torch's and Python's words for "no memory"
            text = f"{len(asked.keys)} rows of partition {asked.partition!r} cannot be put together here: {failed}"
            raise DataPlaneReadError(text, partition=asked.partition, keys=asked.keys) from failed
        return table, kept

    def _report(self, opening: Opening, deadline: Deadline) -> None:
        """Tell the plane; the rows are marked lost if whoever owns the arena finds the damage too.

        A plane that does not answer to one report is not asked to take the others, each of which would cost its time
        beyond the deadline: whoever reads the blocks next finds their damage again.
        """
        while opening.damage:
            try:
                self._link.ask(opening.damage.pop(), Done, deadline)
            except (DataPlaneUnavailable, DataPlaneTimeout) as failed:
                log.warning("damage could not be reported, of %d blocks: %s", len(opening.damage) + 1, failed)
                opening.damage.clear()


_PASSING = (CorruptPayload, StaleSlotError, DataPlaneUnavailable)  # what another attempt may mend


def _kept(asked: _Asked, located: Located, opened: Opened, deadline: Deadline) -> list[int]:
    """Return the positions of the rows that can be served now.

    Raises:
        _Unopened: there are others, which another attempt may bring.
        _Unreadable: there are others, which none will.
    """
    errors = {asked.keys[i]: opened.bad[at] for at, i in _rows_in(located.sources, opened.bad)}
    if not errors:
        return list(range(len(asked.keys)))
    unopened = _Unopened(errors)
    final = [key for key, error in errors.items() if not isinstance(error, _PASSING)]
    if final:
        raise _unreadable(type(errors[final[0]]), "cannot be read", asked, unopened, final, 1, deadline)
    if not (asked.drop and unopened.waits):
        raise unopened
    kept = [i for i, key in enumerate(asked.keys) if key not in errors]
    if not kept:
        raise _given_up(asked, unopened, 1, deadline)
    return kept


def _given_up(asked: _Asked, last: DataPlaneError | _Unopened, attempts: int, deadline: Deadline) -> _Unreadable:
    if isinstance(last, _Unopened):
        if damaged := last.of(CorruptPayload):
            why = "are damaged and were not served"
            return _unreadable(CorruptPayload, why, asked, last, damaged, attempts, deadline)
        if last.waits:
            why = "are out of reach, and may come back"
            return _unreadable(DataPlaneUnavailable, why, asked, last, list(last.errors), attempts, deadline)
    cls = DataPlaneTimeout if deadline.expired() else DataPlaneReadError
    what = last if isinstance(last, DataPlaneError) else last.why(last.of(StaleSlotError))
    error = cls(
        f"the blocks of partition {asked.partition!r} moved during each of {attempts} reads: {what}",
        partition=asked.partition,
        attempts=attempts,
        elapsed_s=deadline.elapsed(),
    )
    return _Unreadable(error, [])


def _unreadable(
    cls: type[DataPlaneError],
    what: str,
    asked: _Asked,
    unopened: _Unopened,
    keys: Sequence[str],
    attempts: int,
    deadline: Deadline,
) -> _Unreadable:
    why = unopened.why(keys)
    error = cls(
        f"rows {abbreviate(keys)} of partition {asked.partition!r} {what}: {why}",
        partition=asked.partition,
        keys=keys,
        missing=[why],
        attempts=attempts,
        elapsed_s=deadline.elapsed(),
    )
    return _Unreadable(error, keys)


def _issues(partition: str, issues: Sequence[RowIssue]) -> _Unreadable:
    keys = [issue.key for issue in issues]
    codes = {issue.code for issue in issues}
    cls = error_of(codes.pop()) if len(codes) == 1 else DataPlaneReadError
    why = "; ".join(dict.fromkeys(issue.why for issue in issues))
    text = f"rows {abbreviate(keys)} of partition {partition!r} cannot be read: {why}"
    return _Unreadable(cls(text, partition=partition, keys=keys, missing=[i.why for i in issues]), keys)


def _rows_in(sources: Sequence[Source], blocks: Mapping[int, object]) -> list[tuple[int, int]]:
    """Return (block, row) for every row that has a field in one of ``blocks``."""
    return [(block, i) for source in sources for i, block in enumerate(source.block) if block in blocks]


def _picked(sources: Sequence[Source], kept: Sequence[int], opened: Opened) -> list[Source]:
    """Return the sources of these rows alone, among the blocks that are open, in their order."""
    number = {at: n for n, at in enumerate(sorted(opened.blocks))}
    return [
        Source(source.fields, [number[source.block[i]] for i in kept], [source.index[i] for i in kept])
        for source in sources
    ]
