"""Leases are kept and ended here: ack, release, renew, pop, evict, clear. Each is all or none.

Rules: a lease is changed by its token alone; an unknown or superseded token changes nothing (``LeaseLost``); a finished
token's repeat is the same success; only evict and clear may end other people's leases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from penstock.errors import BadArgument, LeaseLost, abbreviate
from penstock.ledger.desk import Desk, unique
from penstock.ledger.events import Asked
from penstock.ledger.facts import AnyFact, Consumed, GroupClosed, PartitionCleared, Removed, Renewed, Returned
from penstock.ledger.limits import MAX_REASON
from penstock.ledger.state import Group, Partition, Row, Session, Task
from penstock.requests import ANY_TOKEN, Ack, Clear, Done, Evict, Pop, Release, Renew, Tokens


def ack(desk: Desk, session: Session, asked: Asked) -> None:
    """The task is done with the rows: consumed, or trained and removed if it is the final task."""
    body = asked.body
    assert isinstance(body, Ack)
    partition = desk.registered(body.partition)
    task = desk.task_of(partition, body.task)
    final = task is partition.final_task
    rows = _held(partition, task, body.keys, body.tokens, _removed_by if final else _consumed_or_gone)
    if not rows:
        desk.answer(asked, Done())
        return
    fact = (
        Removed(partition.name, _ids(rows), "trained", "") if final else Consumed(partition.name, task.name, _ids(rows))
    )
    desk.conclude([fact], asked, Done())
    desk.counters["rows.acked"] += len(rows)


def release(desk: Desk, session: Session, asked: Asked) -> None:
    """Give rows back, unconsumed."""
    body = asked.body
    assert isinstance(body, Release)
    partition = desk.registered(body.partition)
    task = desk.task_of(partition, body.task)

    def over(partition: Partition, task: Task, key: str, row: Row | None, tokens: frozenset[str]) -> bool:
        if row is not None and task.lapsed.get(row.id, ("", False))[0] in tokens:
            return True
        stone = partition.tombstones.get(key) if row is None else None
        if stone is not None and task is partition.final_task and stone.reason == "trained":
            return stone.token in tokens or stone.at < partition.cleared_at
        return _consumed_or_gone(partition, task, key, row, tokens)

    rows = [row for row in _held(partition, task, body.keys, body.tokens, over) if row.id in task.held]
    if rows:
        returned = Returned(partition.name, task.name, _ids(rows), counted=False, why=f"released by {session.who()}")
        desk.conclude([returned], asked, Done())
    else:
        desk.answer(asked, Done())


def renew(desk: Desk, session: Session, asked: Asked) -> None:
    """Bound the leases anew; a lapsed one that nobody has superseded is held again."""
    body = asked.body
    assert isinstance(body, Renew)
    if body.lease_s is not None and not body.lease_s > 0:
        raise BadArgument(f"lease_s must be positive, got {body.lease_s!r}", partition=body.partition)
    partition = desk.registered(body.partition)
    task = desk.task_of(partition, body.task)
    rows = _held(partition, task, body.keys, body.tokens, _never)
    if rows:
        desk.conclude([Renewed(partition.name, task.name, session.id, _ids(rows), body.lease_s)], asked, Done())
    else:
        desk.answer(asked, Done())


def pop(desk: Desk, session: Session, asked: Asked) -> None:
    """Remove rows as trained. Looks at the final task's lease only; rows that nobody leased need no token."""
    body = asked.body
    assert isinstance(body, Pop)
    partition = _mentioned(desk, body.partition)
    _check_keys(partition, body.keys)
    task = partition.final_task if partition.tasks else None
    rows: list[Row] = []
    lost: list[str] = []
    for key, tokens in zip(body.keys, tokens_per_key(partition, body.keys, body.tokens), strict=True):
        row = partition.rows.get(key)
        if row is None:
            stone = partition.tombstones.get(key)
            if tokens and (stone is None or stone.token not in tokens):
                lost.append(key)
        elif task is not None and _may_pop(row, task, tokens):
            rows.append(row)
        else:
            lost.append(key)
    if lost:
        raise _lease_lost(partition, lost, "pop")
    _remove(desk, partition, rows, "trained", "", asked)


def _may_pop(row: Row, task: Task, tokens: frozenset[str]) -> bool:
    lease = task.held.get(row.id)
    if lease is not None:
        return lease.token in tokens
    if not tokens:
        return True
    return task.token_of(row.id) in tokens  # nobody holds it: the last who did may pop it, released or not


def evict(desk: Desk, session: Session, asked: Asked) -> None:
    """Remove rows that are stale or abandoned, under a reason; whoever holds them loses them."""
    body = asked.body
    assert isinstance(body, Evict)
    partition = _mentioned(desk, body.partition)
    _check_keys(partition, body.keys)
    if not 0 < len(body.reason) <= MAX_REASON:
        raise BadArgument(f"an eviction's reason must have 1 to {MAX_REASON} characters", partition=partition.name)
    rows = [row for row in map(partition.rows.get, body.keys) if row is not None]
    _remove(desk, partition, rows, "evicted", body.reason, asked)


def clear(desk: Desk, session: Session, asked: Asked) -> None:
    """Remove rows as cleared; with ``keys`` None every row and the registration. Unknown names are nothing to clear."""
    body = asked.body
    assert isinstance(body, Clear)
    partition = desk.state.partitions.get(body.partition)
    if partition is None or not partition.registered:
        desk.answer(asked, Done())
    elif body.keys is None:
        desk.conclude([PartitionCleared(partition.name)], asked, Done())
    else:
        _check_keys(partition, body.keys)
        named = set(body.keys)
        for pending in desk.state.grants.values():
            if pending.request.partition == partition.name:
                pending.cleared.update(named.intersection(pending.request.keys))
        rows = [row for row in map(partition.rows.get, body.keys) if row is not None]
        _remove(desk, partition, rows, "cleared", "", asked)


def _remove(desk: Desk, partition: Partition, rows: list[Row], reason: str, detail: str, asked: Asked) -> None:
    if not rows:
        desk.answer(asked, Done())
        return
    facts: list[AnyFact] = [Removed(partition.name, _ids(rows), reason, detail)]
    if reason == "evicted":
        facts += closing(partition, rows)
    desk.conclude(facts, asked, Done())
    desk.counters[f"rows.{reason}"] += len(rows)


def closing(partition: Partition, rows: Iterable[Row]) -> list[GroupClosed]:
    """The groups that are not done and lose all of their rows with ``rows``: nothing may be added to them later."""
    losing: dict[str, int] = {}
    groups: dict[str, Group] = {}
    for row in rows:
        if row.group is not None and not row.group.done:
            groups[row.group.gid] = row.group
            losing[row.group.gid] = losing.get(row.group.gid, 0) + 1
    return [GroupClosed(partition.name, gid) for gid, group in groups.items() if losing[gid] == len(group.rows)]


_Over = Callable[[Partition, Task, str, Row | None, frozenset[str]], bool]


def _held(partition: Partition, task: Task, keys: list[str], tokens: Tokens, over: _Over) -> list[Row]:
    """The rows that ``tokens`` still hold; those for which it is ``over`` (a repeat) are left out, others refused."""
    _check_keys(partition, keys)
    rows: list[Row] = []
    lost: list[str] = []
    for key, mine in zip(keys, tokens_per_key(partition, keys, tokens), strict=True):
        row = partition.rows.get(key)
        if row is not None and not row.consumed & task.bit:
            lease = task.held.get(row.id)
            lapsed, released = task.lapsed.get(row.id, ("", False))
            if (lease.token in mine) if lease is not None else (lapsed in mine and not released):
                rows.append(row)
                continue
        if not over(partition, task, key, row, mine):
            lost.append(key)
    if lost:
        raise _lease_lost(partition, lost, task.name)
    return rows


def _consumed_by(partition: Partition, task: Task, key: str, row: Row | None, tokens: frozenset[str]) -> bool:
    return row is not None and bool(row.consumed & task.bit) and task.ended.get(row.id, "") in tokens


def _consumed_or_gone(partition: Partition, task: Task, key: str, row: Row | None, tokens: frozenset[str]) -> bool:
    """A row that was removed is nothing to do any more for a task that is not the final one."""
    gone = row is None and key in partition.tombstones
    return gone or _consumed_by(partition, task, key, row, tokens)


def _removed_by(partition: Partition, task: Task, key: str, row: Row | None, tokens: frozenset[str]) -> bool:
    stone = partition.tombstones.get(key) if row is None else None
    return stone is not None and stone.token in tokens


def _never(partition: Partition, task: Task, key: str, row: Row | None, tokens: frozenset[str]) -> bool:
    return False


def tokens_per_key(partition: Partition, keys: list[str], tokens: Tokens) -> list[frozenset[str]]:
    """The tokens that may hold each of a request's keys; the token of an empty claim is none."""
    every = frozenset(tokens.lease).difference(("",))
    if not tokens.of:
        return [every] * len(keys)
    if len(tokens.of) != len(keys) or min(tokens.of) < ANY_TOKEN or max(tokens.of) >= len(tokens.lease):
        raise BadArgument("a request's tokens must be aligned with its keys", partition=partition.name)
    each = [every.intersection((token,)) for token in tokens.lease]
    return [each[at] if at >= 0 else every if at == ANY_TOKEN else _NONE for at in tokens.of]


_NONE: frozenset[str] = frozenset()


def _lease_lost(partition: Partition, keys: list[str], what: str) -> LeaseLost:
    gone = sorted({stone.reason for key in keys if (stone := partition.stone_of(key)) is not None})
    removed = f" (rows {' or '.join(gone)} meanwhile)" if gone else ""
    return LeaseLost(
        f"{what}: the lease of {abbreviate(keys)} in partition {partition.name!r} was superseded or never existed"
        f"{removed}; nothing changed",
        partition=partition.name,
        keys=keys,
    )


def _mentioned(desk: Desk, name: str) -> Partition:
    """The partition, also when it was cleared: removing from it again is a success."""
    partition = desk.state.partitions.get(name)
    return partition if partition is not None else desk.registered(name)


def _check_keys(partition: Partition, keys: list[str]) -> None:
    if not unique(keys):
        raise BadArgument("a request names a key twice", partition=partition.name)


def _ids(rows: Iterable[Row]) -> list[int]:
    return [row.id for row in rows]
