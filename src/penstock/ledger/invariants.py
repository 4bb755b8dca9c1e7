"""Recounting from scratch everything that the ledger keeps up to date by events. For tests and the simulator."""

from __future__ import annotations

from penstock.ledger.desk import Desk
from penstock.ledger.hosts import Host
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
    for host in state.hosts.values():
        _check_host(desk, host)
    agents = [host.session_id for host in state.hosts.values() if host.session_id]
    assert len(agents) == len(set(agents)), "a session is the agent of two hosts"
    for write in state.writes.values():
        hosts = [place.host for place in write.places()]
        assert write.replica is None or (write.hosted and len(set(hosts)) == 2), f"block {write.id}: {hosts}"


def _check_host(desk: Desk, host: Host) -> None:
    """What a host is said to hold is what writes and grants say; what it is told is no more and no less than that."""
    who, state = host.who(), desk.state
    lies = {w.id: p.nbytes for w in state.writes.values() if w.live for p in w.places() if p.host == host.id}
    assert host.blocks == lies, f"{who}: blocks {host.blocks.keys() ^ lies.keys()}"
    assert host.nbytes == sum(lies.values()), f"{who}: bytes"
    granted = {g.id: g.request.nbytes for g in state.grants.values() if host.id in g.lives}
    assert host.grants == granted, f"{who}: grants"
    assert host.granted_bytes == sum(granted.values()), f"{who}: granted bytes"
    assert (host.state == "up") == (host.session_id in state.sessions), f"{who} is {host.state}"
    if host.state != "up":
        assert host.report is None, f"{who} is {host.state} and waits for orders"
        assert not host.has_orders, f"{who} is {host.state} and has orders"
    if host.state == "gone":
        assert not host.blocks, f"{who} is gone, and rows wait for it"
        assert all(next(iter(g.lives)) != host.id for g in state.grants.values() if g.lives), f"{who}: grants"
    assert host.losing.keys() <= host.blocks.keys(), f"{who} loses what does not lie there"
    assert host.report is None or not host.has_orders, f"{who} waits for orders that are there"
    lying = host.blocks.keys() | granted.keys() if host.is_store else set[int]()
    assert host.stored.keys() >= lying, f"{who}: nobody would know what to free"
    orders = host.orders()
    assert host.blocks.keys() >= set(orders.adopt), f"{who} is to adopt what rows do not need there"
    assert host.blocks.keys().isdisjoint(orders.free), f"{who} is to free what rows need there"
    assert granted.keys().isdisjoint(orders.free), f"{who} is to free what may still be committed"


def _check_partition(desk: Desk, partition: Partition) -> None:
    name = partition.name
    audit = audit_partition(partition)
    assert audit.residue == 0, f"{name}: residue {audit.residue}"
    assert not audit.broken, f"{name}: {audit.broken}"
    assert {row.id: row for row in partition.rows.values()} == partition.rows_by_id, f"{name}: rows by id"
    assert {group.id: group for group in partition.groups.values()} == partition.groups_by_id, f"{name}: groups by id"
    assert partition.live_bytes == sum(row.bytes() for row in partition.rows.values()), f"{name}: live_bytes"
    hosted = [w.row_bytes[i] for row in partition.rows.values() for w, i in row.pairs() if w.hosted]
    assert partition.hosted_bytes == sum(hosted), f"{name}: hosted_bytes"
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
        assert write.rows is None or write.rows[index] == row.id, f"{row.key}: its write on hosts does not know it"
        assert (write.rows is not None) == write.hosted, f"{row.key}: rows of a write in the arena"
        assert write.partition == partition.name, f"{row.key}: its write is of partition {write.partition!r}"
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
