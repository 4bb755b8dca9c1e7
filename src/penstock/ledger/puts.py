"""Puts: a grant is checked and admitted, the block is copied by its writer, the commit makes it visible whole.

Rules: everything that can be refused is refused before the copy; a commit applies all of its rows or none; a repeated
put of the same bytes is a success without effect; a row that was removed does not come back.
"""

from __future__ import annotations

import msgspec

from penstock.errors import BadArgument, DataPlaneBadRequest, DataPlaneFull, RowRemoved, UnknownName, abbreviate
from penstock.ledger import capacity, placing
from penstock.ledger.desk import Desk, unique
from penstock.ledger.events import Asked, DropGrant, Fill
from penstock.ledger.facts import Put
from penstock.ledger.limits import check_fields, check_names
from penstock.ledger.state import Partition, PendingGrant, Row, Session, Tombstone, Waiter
from penstock.ledger.writes import ABSENT, TagValues
from penstock.records import as_int
from penstock.requests import BlockPlace, Commit, Done, FieldSpec, Grant, GrantAgain, PutTags, TagColumn

_DECLARING = ("expected_num_keys", "num_keys")


def grant(desk: Desk, session: Session, asked: Asked) -> None:
    """Check a put and ask for room for it."""
    body = asked.body
    assert isinstance(body, Grant)
    partition = desk.registered(body.partition)
    _check_rows(body.partition, body.keys, body.tags, desk.config.max_rows)
    if not body.keys or not body.fields:
        raise BadArgument("a put needs rows and fields", partition=body.partition)
    if len(body.row_bytes) != len(body.keys) or (body.lengths is not None and len(body.lengths) != len(body.keys)):
        raise BadArgument("row_bytes and lengths must be aligned with the keys", partition=body.partition)
    if body.nbytes < sum(body.row_bytes) or min(body.row_bytes, default=0) < 0 or min(body.lengths or [0]) < 0:
        raise BadArgument("sizes do not add up", partition=body.partition)
    if body.nbytes < 1:
        raise BadArgument("a block has at least one byte", partition=body.partition)
    placing.check(desk, body)
    _check_specs(partition, body.fields)
    check_fields(partition.field_bits, [spec.name for spec in body.fields], partition.name)
    capacity.ask(desk, Waiter(session.id, asked.call_id, 0, body, asked.deadline, desk.now))


def _check_rows(partition: str, keys: list[str], tags: list[TagColumn], max_rows: int) -> None:
    if not unique(keys):
        raise BadArgument("a put names a key twice", partition=partition, keys=_twice(keys))
    check_names("keys", keys, partition)
    check_names("tag names", [column.name for column in tags], partition)
    size = len(keys)
    for column in tags:
        rows = column.rows
        aligned = len(column.values) in (1, size) if rows is None else len(column.values) == len(rows)
        if not aligned or any(not 0 <= i < size for i in rows or ()):
            raise BadArgument(f"tag {column.name!r} is not aligned with the keys", partition=partition)
        if column.name in _DECLARING and max((as_int(value) or 0 for value in column.values), default=0) > max_rows:
            text = f"tag {column.name!r} declares a group that can never fit: the limit is {max_rows} rows"
            raise DataPlaneFull(text, partition=partition)
    if not unique([column.name for column in tags]):
        raise BadArgument("a put names a tag twice", partition=partition)


def _twice(keys: list[str]) -> list[str]:
    seen: set[str] = set()
    return [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


def _check_specs(partition: Partition, specs: list[FieldSpec]) -> None:
    if not unique([spec.name for spec in specs]):
        raise BadArgument("a put names a field twice", partition=partition.name)
    for spec in specs:
        first = partition.specs.get(spec.name)
        if first is not None and (first.dtype, first.rank) != (spec.dtype, spec.rank):
            raise BadArgument(
                f"field {spec.name!r} of partition {partition.name!r} holds {first.dtype} of rank {first.rank}; "
                f"refused {spec.dtype} of rank {spec.rank}",
                partition=partition.name,
                missing=[spec.name],
            )


def drop(desk: Desk, grant_id: int) -> None:
    """The grant will not be committed: it no longer reserves room."""
    pending = desk.state.grants.pop(grant_id, None)
    if pending is not None:
        capacity.release(desk.books.partition(pending.request.partition), pending)
        desk.books.touch(pending.request.partition)
        if pending.lives:
            placing.let_go(desk, pending, [])
        else:
            desk.out.append(DropGrant(grant_id))
        desk.counters["grants.dropped"] += 1


def commit(desk: Desk, session: Session, asked: Asked) -> None:
    """Make a granted put visible."""
    body = asked.body
    assert isinstance(body, Commit)
    pending = desk.state.grants.get(body.grant)
    if pending is None or pending.client_id != session.client_id:
        desk.answer(asked, GrantAgain())
        return
    if pending.place is None and not pending.lives:
        raise DataPlaneBadRequest(f"grant {body.grant} has no slot yet")
    try:
        places = placing.sealed(pending, body)
        put = _decide(desk, pending, body.content, session.id, asked.wall)
    except DataPlaneBadRequest:
        drop(desk, body.grant)
        raise
    if put is None:  # repeated bytes: there already, or trained already
        drop(desk, body.grant)
        desk.answer(asked, Done())
    elif pending.lives:
        _commit_on_hosts(desk, pending, put, places, asked)
    else:
        _make_visible(desk, pending, put, asked)
        desk.out.append(Fill(pending.id))
        desk.answer(asked, Done())


def _commit_on_hosts(desk: Desk, pending: PendingGrant, put: Put, places: list[BlockPlace], asked: Asked) -> None:
    """What is acknowledged lies, for certain, on as many hosts as was asked for at least."""
    kept = placing.count_places(desk, pending, places)
    if kept is None:
        drop(desk, pending.id)
        desk.counters["grants.again"] += 1
        desk.answer(asked, GrantAgain())
        return
    _make_visible(desk, pending, msgspec.structs.replace(put, place=kept[0], replica=(*kept[1:], None)[0]), asked)
    placing.let_go(desk, pending, kept)
    desk.answer(asked, Done())


def _make_visible(desk: Desk, pending: PendingGrant, put: Put, asked: Asked) -> None:
    del desk.state.grants[pending.id]
    capacity.release(desk.books.partition(put.partition), pending)
    desk.record([put], asked, Done())
    desk.counters["rows.put"] += len(put.keys)
    desk.counters["bytes.put"] += sum(put.row_bytes)


def _decide(desk: Desk, pending: PendingGrant, content: int, session_id: int, wall: float) -> Put | None:
    request = pending.request
    partition = desk.books.partition(request.partition)
    if not partition.registered or partition.cleared_at > pending.stamp:
        raise _removed(partition, request.keys, "the partition was cleared")
    _check_specs(partition, request.fields)
    ids, fresh = _fates(desk, partition, pending, content)
    if not any(ids):
        return None
    return Put(
        pending.id, partition.name, session_id, request.keys, ids, fresh, request.fields, request.tags, pending.place,
        content, request.row_bytes, request.lengths, wall,
    )  # fmt: skip


def _fates(desk: Desk, partition: Partition, pending: PendingGrant, content: int) -> tuple[list[int], list[int] | None]:
    """What becomes of each row: (ids, positions of those that are new, None = all); id 0: nothing new is said of it."""
    keys = pending.request.keys
    if (
        partition.rows.keys().isdisjoint(keys)
        and partition.tombstones.keys().isdisjoint(keys)
        and not (pending.cleared or partition.closed_groups)
    ):
        return list(desk.new_ids(len(keys))), None
    judge = _Judge(partition, pending, content)
    ids = [judge.fate(index, key) for index, key in enumerate(keys)]
    removed = [key for key, row_id in zip(keys, ids, strict=True) if row_id == _REMOVED]
    if removed:
        raise _removed(partition, removed, "a late put does not bring them back")
    fresh = [index for index, row_id in enumerate(ids) if row_id == _FRESH]
    for index, row_id in zip(fresh, desk.new_ids(len(fresh)), strict=True):
        ids[index] = row_id
    return ids, None if len(fresh) == len(ids) else fresh


_FRESH, _REMOVED = -1, -2


class _Judge:
    """What becomes of the rows of one put, one by one."""

    def __init__(self, partition: Partition, pending: PendingGrant, content: int) -> None:
        self._partition = partition
        self._pending = pending
        self._content = content
        self._columns = {column.name: TagValues(column) for column in pending.request.tags}
        self._mask = partition.mask_of([spec.name for spec in pending.request.fields])
        self._equal: dict[int, bool] = {}  # write id -> whether it brought the same tags; looked at once for all rows

    def fate(self, index: int, key: str) -> int:
        """A row's id, 0 = nothing new is said of it, ``_FRESH`` or ``_REMOVED``."""
        partition, pending = self._partition, self._pending
        if key in pending.cleared:  # whoever made the row since then made another one
            return _REMOVED
        row = partition.rows.get(key)
        if row is not None:
            if self._says_nothing_new(row, index):
                return 0
            given_up = self._closed(index, key) and (row.group is None or row.group.gid not in partition.closed_groups)
            return _REMOVED if given_up else row.id
        stone = partition.stone_of(key)
        if stone is not None and stone.reason not in _NO_REPEAT and (self._content, index) in stone.contents:
            return 0
        return _REMOVED if self._closed(index, key) or _bars(stone, pending.stamp) else _FRESH

    def _closed(self, index: int, key: str) -> bool:
        """Whether the put names a group for the row that was given up."""
        gids = self._columns.get("group_id")
        tag = None if gids is None else gids.get(index)
        return (key if tag is None else str(tag)) in self._partition.closed_groups

    def _says_nothing_new(self, row: Row, index: int) -> bool:
        """Whether the row's newest values of these fields and tags came from the same bytes at the same place."""
        names = {name for name, column in self._columns.items() if column.get(index, ABSENT) is not ABSENT}
        for write, at in row.pairs():
            if write.field_bits & self._mask or write.names_of(at) & names:
                if write.content != self._content or at != index or write.field_bits != self._mask:
                    return False
                if write.id not in self._equal:
                    self._equal[write.id] = write.tag_order == self._pending.request.tags
                return self._equal[write.id]
        return False


# A repeat of the same bytes is a success, except of a cleared row, which is put anew, and of a lost one: its producer
# must not take for safe what nobody can read.
_NO_REPEAT = ("cleared", "lost")


def _bars(stone: Tombstone | None, stamp: int) -> bool:
    """Whether a tombstone refuses a put granted at ``stamp``: a cleared row may be put anew, others may not."""
    return stone is not None and (stone.reason != "cleared" or stone.at > stamp)


def _removed(partition: Partition, keys: list[str], why: str) -> RowRemoved:
    reasons = sorted({stone.reason for key in keys if (stone := partition.stone_of(key)) is not None})
    how = f" ({' or '.join(reasons)})" if reasons else ""
    return RowRemoved(
        f"rows of partition {partition.name!r} were removed{how}, {why}: {abbreviate(keys)}",
        partition=partition.name,
        keys=keys,
    )


def put_tags(desk: Desk, session: Session, asked: Asked) -> None:
    """Merge tags into existing rows."""
    body = asked.body
    assert isinstance(body, PutTags)
    partition = desk.registered(body.partition)
    _check_rows(body.partition, body.keys, body.tags, desk.config.max_rows)
    absent = [key for key in body.keys if key not in partition.rows]
    if absent:
        stones = [key for key in absent if (s := partition.stone_of(key)) is not None and s.reason != "cleared"]
        if stones:
            raise _removed(partition, stones, "a late tag does not bring them back")
        raise UnknownName(
            f"unknown rows of partition {partition.name!r}: {abbreviate(absent)}", partition=partition.name, keys=absent
        )
    if not body.keys or not body.tags:
        desk.answer(asked, Done())
        return
    _check_closed(partition, body)
    ids = [partition.rows[key].id for key in body.keys]
    put = Put(
        desk.new_ids(1)[0], partition.name, session.id, body.keys, ids, [], [], body.tags, None, 0, [], None, asked.wall
    )  # fmt: skip
    desk.conclude([put], asked, Done())


def _check_closed(partition: Partition, body: PutTags) -> None:
    """Refuse tags that would begin a group anew that was given up."""
    gids = next((TagValues(column) for column in body.tags if column.name == "group_id"), None)
    if gids is None or not partition.closed_groups:
        return
    removed = [key for index, key in enumerate(body.keys) if str(gids.get(index)) in partition.closed_groups]
    if removed:
        raise _removed(partition, removed, "with their group; a late tag does not bring it back")
