"""What the passing of time does: leases expire, hosts are gone, groups that are not whole are late or given up.

Rule: only ``evict`` and ``clear`` end other people's leases. A group of which somebody holds a row is looked at again.
"""

from __future__ import annotations

import heapq

from penstock.ledger import losses
from penstock.ledger.desk import Desk
from penstock.ledger.facts import AnyFact, PartialAllowed, Removed
from penstock.ledger.holds import closing
from penstock.ledger.sessions import give_back
from penstock.ledger.state import Group, Partition, Row
from penstock.records import is_true

AGAIN_S = 1.0  # after which a group is looked at again of which somebody holds a row


def fire(desk: Desk) -> None:
    """Carry out every timer that is due."""
    timers = desk.books.timers
    while timers and timers[0][0] <= desk.books.clock:
        _, _, kind, what = heapq.heappop(timers)
        if kind == "lease":
            _lease_expires(desk, what[0])
        elif kind == "host":
            losses.grace_ends(desk, int(what[0]))
        elif kind == "loss":
            host = desk.state.hosts.get(int(what[0]))
            if host is not None and host.losing:
                losses.lose_some(desk, host)
        elif kind == "group":
            _group_is_late(desk, *what)
        else:
            _group_stays_short(desk, *what)


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
        _evict(desk, partition, group, list(group.rows.values()), "incomplete", "group")


def _group_stays_short(desk: Desk, name: str, gid: str) -> None:
    """The grace has passed of a group whose producers are gone, or that lost a row which cannot come back."""
    found = _group_of(desk, name, gid)
    if found is None:
        return
    partition, group = found
    rows = unfinished(partition, group)
    if rows and desk.state.sessions.keys().isdisjoint(group.putters):
        _evict(desk, partition, group, rows, "abandoned", "abandon")
    elif stuck(partition, group):
        _evict(desk, partition, group, list(group.rows.values()), "incomplete", "abandon")


def unfinished(partition: Partition, group: Group) -> list[Row]:
    """The rows that are given up with their producers: those of a group that says that more is to come.

    It says so by a tag ``committed`` that is false, or by fewer rows than declared. Of a group that is handed out as it
    is, only those that are not committed: nobody can claim them. A group that was put whole and is taken row by row is
    not short of anything.
    """
    rows = list(group.rows.values())
    open_rows = [row for row in rows if row.has_tag("committed") and not is_true(row.tag("committed"))]
    if group.done or group.partial:
        return open_rows
    if open_rows:
        return rows
    put_whole = len(rows) + group.gone >= (group.expected or 0)
    row_by_row = put_whole and all(False in ways for ways in _claimed_how(partition, group))
    return rows if _short(group) and not row_by_row else []


def stuck(partition: Partition, group: Group) -> bool:
    """Whether what is left of a group that cannot be whole again waits for a task that claims nothing but whole groups.

    A policy with a deadline sees to such groups itself.
    """
    policy = partition.request.policy
    if group.done or not group.gone or not _short(group) or (policy is not None and policy.on_deadline != "wait"):
        return False
    return any(ways == {True} for ways in _claimed_how(partition, group))


def _short(group: Group) -> bool:
    return group.expected is not None and len(group.rows) < group.expected


def _claimed_how(partition: Partition, group: Group) -> list[set[bool]]:
    """For each task that has not consumed all rows of the group: whether it has claimed whole groups, rows, or both."""
    rows = group.rows.values()
    tasks = [task for task in partition.tasks.values() if any(not row.consumed & task.bit for row in rows)]
    return [{queue.whole for queue in partition.queues if queue.task is task} for task in tasks]


def _evict(desk: Desk, partition: Partition, group: Group, rows: list[Row], reason: str, timer: str) -> None:
    if any(row.id in task.held for task in partition.tasks.values() for row in rows):
        desk.books.start_timer(AGAIN_S, timer, partition.name, group.gid)
        return
    facts: list[AnyFact] = [Removed(partition.name, [row.id for row in rows], "evicted", reason)]
    facts += closing(partition, rows)
    desk.record(facts)
    desk.counters[f"groups.{reason}"] += 1


def restart(desk: Desk) -> None:
    """A life begins: what was bounded in the last one is bounded in full again."""
    books = desk.books
    for lease in desk.state.leases.values():
        books.hold(lease, lease.lease_s)
    losses.await_hosts(desk)
    for partition in desk.state.partitions.values():
        for group in partition.groups.values():
            if group.done:
                continue
            if not group.partial:
                books.start_deadline(partition, group)
            books.start_grace(partition, group)
