"""Recounting from scratch everything that the ledger keeps up to date by events. For tests and the simulator."""

from __future__ import annotations

from penstock.ledger.desk import Desk
from penstock.ledger.readiness import ready_rows, row_ready
from penstock.ledger.reports import audit_partition
from penstock.ledger.state import Group, Partition, Row
from penstock.records import is_true


def check_invariants(desk: Desk) -> None:
    """Assert every invariant of the ledger's state."""
    state = desk.state
    live: dict[int, int] = {}
    for partition in state.partitions.values():
        _check_partition(desk, partition)
        for row in partition.rows.values():
            for write, _ in row.pairs():
                live[write.id] = live.get(write.id, 0) + 1
    assert {w.id: w.live for w in state.writes.values()} == live, "a write is kept without need, or dropped too early"
    for token, lease in state.leases.items():
        assert lease.token == token, token
        assert lease.rows, f"empty lease {token}"
        task = state.partitions[lease.partition].tasks[lease.task]
        assert all(task.held.get(row_id) is lease for row_id in lease.rows), f"{token} holds rows that others hold"


def _check_partition(desk: Desk, partition: Partition) -> None:
    name = partition.name
    audit = audit_partition(partition)
    assert audit.residue == 0, f"{name}: residue {audit.residue}"
    assert not audit.broken, f"{name}: {audit.broken}"
    assert {row.id: row for row in partition.rows.values()} == partition.rows_by_id, f"{name}: rows by id"
    assert {group.id: group for group in partition.groups.values()} == partition.groups_by_id, f"{name}: groups by id"
    assert partition.live_bytes == sum(row.bytes() for row in partition.rows.values()), f"{name}: live_bytes"
    assert partition.depth == sum(group.done for group in partition.groups.values()), f"{name}: depth"
    assert partition.promised_bytes == sum(g.promised_bytes for g in partition.groups.values()), f"{name}: promises"
    grants = [g for g in desk.state.grants.values() if g.request.partition == name]
    assert partition.grouped == sum(len(group.rows) for group in partition.groups.values()), f"{name}: grouped"
    assert partition.promised_rows == sum(g.promised_rows for g in partition.groups.values()), f"{name}: promises"
    assert partition.granted_rows == sum(g.rows for g in grants), f"{name}: grants"
    assert partition.admitted == {gid for g in grants for gid in g.groups}, f"{name}: admitted groups"
    assert partition.idle or desk.state.active.get(name) is partition, f"{name}: active"
    assert partition.granted_bytes == sum(g.bytes for g in grants), f"{name}: grants"
    for row in partition.rows.values():
        _check_row(partition, row)
    for group in partition.groups.values():
        _check_group(partition, group)
    _check_tasks(partition)
    _check_queues(partition)


def _check_row(partition: Partition, row: Row) -> None:
    assert partition.rows[row.key] is row
    produced = 0
    for write, index in row.pairs():
        produced |= write.field_bits
        assert write.dead is None or not write.dead[index], f"{row.key}: needs a write that has buried it"
    assert produced == row.produced, f"{row.key}: produced bits"
    assert row.group is None or row.group.rows.get(row.id) is row, f"{row.key}: group"


def _check_group(partition: Partition, group: Group) -> None:
    assert group.rows, f"empty group {group.gid}"
    complete = group.expected is None or len(group.rows) == group.expected
    done = complete and all(is_true(row.tag("committed")) for row in group.rows.values())
    assert group.done == done, f"group {group.gid}: done"


def _check_tasks(partition: Partition) -> None:
    for task in partition.tasks.values():
        assert task.consumed == sum(1 for row in partition.rows.values() if row.consumed & task.bit), task.name
        for row_id in (*task.held, *task.lapsed, *task.deliveries, *task.ended):
            assert row_id in partition.rows_by_id, f"{task.name}: remembers a row that is gone"
        assert not task.held.keys() & task.lapsed.keys(), f"{task.name}: held and lapsed"


def _check_queues(partition: Partition) -> None:
    for queue in partition.queues:
        if queue.whole:
            ready = {g.id: len(ready_rows(g, queue.task, queue.mask)) for g in partition.groups.values()}
            queued = {g.id for g in partition.groups.values() if g.queued & queue.bit}
            assert queued == {i for i, n in ready.items() if n}, f"queue of {queue.task.name}"
            assert queue.count == sum(ready.values()), f"queue of {queue.task.name}: count"
        else:
            ids = {r.id for r in partition.rows.values() if row_ready(r, queue.task, queue.mask)}
            assert ids == {r.id for r in partition.rows.values() if r.queued & queue.bit}, f"queue of {queue.task.name}"
            assert queue.count == len(ids), f"queue of {queue.task.name}: count"
            queued = ids
        assert queued <= set(queue.heap), f"queue of {queue.task.name}: heap"
