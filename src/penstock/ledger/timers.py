"""What the passing of time does: leases expire, unfinished groups reach their deadline or are given up as abandoned."""

from __future__ import annotations

import heapq

from penstock.ledger.desk import Desk
from penstock.ledger.facts import AnyFact, PartialAllowed, Removed
from penstock.ledger.holds import closing
from penstock.ledger.sessions import give_back
from penstock.ledger.state import Group, Partition, Row
from penstock.records import is_true


def fire(desk: Desk) -> None:
    """Carry out every timer that is due."""
    timers = desk.books.timers
    while timers and timers[0][0] <= desk.books.clock:
        _, _, kind, what = heapq.heappop(timers)
        if kind == "lease":
            _lease_expires(desk, what[0])
        elif kind == "group":
            _group_is_late(desk, *what)
        else:
            _group_abandoned(desk, *what)


def _lease_expires(desk: Desk, token: str) -> None:
    lease = desk.state.leases.get(token)
    if lease is None or lease.until is None or lease.until > desk.books.clock:
        return  # ended or renewed meanwhile
    desk.record(give_back(desk, lease, f"lease {token} expired"))
    desk.counters["leases.expired"] += 1


def _group_of(desk: Desk, name: str, gid: str) -> tuple[Partition, Group] | None:
    partition = desk.state.partitions.get(name)
    group = partition.groups.get(gid) if partition is not None else None
    return None if partition is None or group is None else (partition, group)


def _group_is_late(desk: Desk, name: str, gid: str) -> None:
    """The group's deadline under its partition's policy has passed."""
    found = _group_of(desk, name, gid)
    if found is None or found[1].done or found[1].partial:
        return
    partition, group = found
    policy = partition.request.policy
    if policy is None or policy.on_deadline == "wait":
        return
    committed = [row for row in group.rows.values() if is_true(row.tag("committed"))]
    if policy.on_deadline == "partial" and len(committed) >= policy.min_ready:
        desk.record([PartialAllowed(name, gid)])
    else:
        _evict(desk, partition, list(group.rows.values()), "incomplete")


def _group_abandoned(desk: Desk, name: str, gid: str) -> None:
    found = _group_of(desk, name, gid)
    if found is None:
        return
    partition, group = found
    rows = unfinished(group)
    if rows and desk.state.sessions.keys().isdisjoint(group.putters):
        _evict(desk, partition, rows, "abandoned")


def unfinished(group: Group) -> list[Row]:
    """The rows that are given up with their producers: those of a group that says that more is to come.

    It says so by a tag ``committed`` that is false, or by fewer rows than declared. Of a group that is handed out as it
    is, only those that are not committed: nobody can claim them.
    """
    rows = list(group.rows.values())
    open_rows = [row for row in rows if row.has_tag("committed") and not is_true(row.tag("committed"))]
    if group.done or group.partial:
        return open_rows
    return rows if open_rows or (group.expected is not None and len(rows) < group.expected) else []


def _evict(desk: Desk, partition: Partition, rows: list[Row], reason: str) -> None:
    facts: list[AnyFact] = [Removed(partition.name, [row.id for row in rows], "evicted", reason)]
    facts += closing(partition, rows)
    desk.record(facts)
    desk.counters[f"groups.{reason}"] += 1


def restart(desk: Desk) -> None:
    """A life begins: what was bounded in the last one is bounded in full again."""
    books, sessions = desk.books, desk.state.sessions.keys()
    for lease in desk.state.leases.values():
        books.hold(lease, lease.lease_s)
    for partition in desk.state.partitions.values():
        for group in partition.groups.values():
            if group.done:
                continue
            if not group.partial:
                books.start_deadline(partition, group)
            if sessions.isdisjoint(group.putters):
                books.start_timer(desk.config.abandon_grace_s, "abandon", partition.name, group.gid)
