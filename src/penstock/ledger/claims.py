"""Claims: leases are granted here, at once or when what they wait for becomes ready.

Rules: a claim is never granted past its deadline; an under-filled claim costs nobody else anything (each waiting claim
is tried on its own, in order of arrival, without scanning rows); groups never mix.
"""

from __future__ import annotations

import heapq

from penstock.errors import BadArgument, DataPlaneTimeout, RowRemoved, UnknownName
from penstock.ledger.desk import Desk, claimed, unique
from penstock.ledger.events import Asked
from penstock.ledger.facts import Leased, QueueOpened
from penstock.ledger.limits import MAX_QUEUES, check_fields
from penstock.ledger.readiness import find_queue, ready_rows, row_ready
from penstock.ledger.state import Group, Partition, Queue, Row, Session, Task, Waiter, Wanted
from penstock.ledger.waits import missing_for_claim
from penstock.requests import Claim, Claimed

_NOTHING = Claimed("", [], [], None)


def claim(desk: Desk, session: Session, asked: Asked) -> None:
    """Lease rows now, or wait, or answer that there is nothing."""
    body = asked.body
    assert isinstance(body, Claim)
    task = _validate(desk, body)
    if asked.deadline < desk.now:
        raise DataPlaneTimeout("the claim reached the plane after its deadline", partition=body.partition)
    task.wanted = Wanted(body.required, body.whole_groups or body.keys is not None)
    waiter = Waiter(asked.session_id, asked.call_id, asked.seq, body, asked.deadline, desk.now)
    if _try(desk, waiter):
        return
    if not body.blocking:
        desk.answer(asked, _NOTHING)
        return
    session.waiting[asked.seq] = waiter
    desk.claims.setdefault(body.partition, []).append(waiter)
    desk.wait_until(waiter.deadline)


def serve_waiting(desk: Desk, partition_name: str) -> None:
    """Try every waiting claim of a partition in which something has changed."""
    waiting = desk.claims.get(partition_name)
    if not waiting:
        return
    left = []
    for waiter in waiting:
        session = desk.state.sessions.get(waiter.session_id)
        if session is None or session.waiting.get(waiter.seq) is not waiter:
            continue
        if waiter.deadline <= desk.now:
            left.append(waiter)  # the next tick answers it
            continue
        if _lacks_rows(desk, waiter):
            left.append(waiter)
            continue
        try:
            served = _try(desk, waiter)
        except (UnknownName, RowRemoved, BadArgument) as error:  # cleared or removed while it waited
            desk.refuse(waiter, error)
            continue
        if not served:
            left.append(waiter)
    if left:
        desk.claims[partition_name] = left
    else:
        del desk.claims[partition_name]


def _lacks_rows(desk: Desk, waiter: Waiter) -> bool:
    """Whether the queue in which the claim found too few rows still has too few: nearly always, so it comes first."""
    queue, body = waiter.queue, waiter.body
    if queue is None or not isinstance(body, Claim):
        return False
    registered = desk.state.partitions[body.partition].tasks.get(body.task) is queue.task
    return registered and queue.count < body.min_rows


def expire_waiting(desk: Desk) -> None:
    """Answer the claims whose deadline has passed, saying what was missing."""
    for name, waiting in list(desk.claims.items()):
        late = [w for w in waiting if w.deadline <= desk.now]
        if not late:
            continue
        desk.claims[name] = [w for w in waiting if w.deadline > desk.now]
        if not desk.claims[name]:
            del desk.claims[name]
        for waiter in late:
            session = desk.state.sessions.get(waiter.session_id)
            if session is not None and session.waiting.get(waiter.seq) is waiter:
                desk.refuse(waiter, _timeout(desk, waiter))


def _timeout(desk: Desk, waiter: Waiter) -> DataPlaneTimeout:
    body = waiter.body
    assert isinstance(body, Claim)
    waited = desk.now - waiter.since
    missing = missing_for_claim(desk, body)
    return DataPlaneTimeout(
        f"claim of task {body.task!r} on partition {body.partition!r} waited {waited:.1f} s: " + "; ".join(missing),
        partition=body.partition,
        missing=missing,
        keys=body.keys or (),
        elapsed_s=waited,
    )


def _validate(desk: Desk, body: Claim) -> Task:
    """Refuse what can never be served; return the task that claims."""
    partition = desk.registered(body.partition)
    task = desk.task_of(partition, body.task)
    check_fields(partition.field_bits, body.required, partition.name)
    if body.lease_s is not None and not body.lease_s > 0:
        raise BadArgument(f"lease_s must be positive, got {body.lease_s!r}", partition=body.partition)
    if body.keys is not None:
        if not unique(body.keys):
            raise BadArgument("a claim names a key twice", partition=body.partition, keys=body.keys)
        return task
    if body.batch < 1:
        raise BadArgument(f"batch_size must be at least 1, got {body.batch}", partition=body.partition)
    if not 1 <= body.min_rows <= body.batch:
        raise BadArgument(f"min_rows must lie in 1..batch_size ({body.batch}), got {body.min_rows}")
    return task


def _try(desk: Desk, waiter: Waiter) -> bool:
    """Grant the claim if what it needs is ready."""
    body = waiter.body
    assert isinstance(body, Claim)
    partition = desk.registered(body.partition)
    task = desk.task_of(partition, body.task)
    if body.keys is not None:
        if body.whole_groups:  # no rows come from the queue: it says how the task takes groups
            _queue_of(desk, partition, task, body)
        rows = _by_key(partition, task, body, waiter)
    else:
        queue = waiter.queue = _queue_of(desk, partition, task, body)
        rows = _whole_groups(partition, queue, body) if body.whole_groups else _oldest(partition, queue, body)
    if not rows:
        if body.keys == []:
            desk.answer(waiter, _NOTHING)
            return True
        return False
    token = desk.new_token()
    ids = [row.id for row in rows]
    session_id, seq = waiter.session_id, waiter.seq
    leased = Leased(partition.name, task.name, token, session_id, seq, ids, body.lease_s, body.whole_groups)
    desk.record([leased], waiter)
    desk.answer(waiter, claimed(desk.state, desk.state.leases[token]))
    desk.counters["rows.leased"] += len(rows)
    return True


def _queue_of(desk: Desk, partition: Partition, task: Task, body: Claim) -> Queue:
    """The queue of claims like this one. Its opening is recorded at once, for it stays if the claim is refused."""
    queue = find_queue(partition, task, body.required, body.whole_groups)
    if queue is not None:
        return queue
    known = len(partition.queues)
    if known >= MAX_QUEUES:
        raise BadArgument(
            f"claims of partition {partition.name!r} have named {known} different sets of required fields, "
            "more are not kept apart",
            partition=partition.name,
        )
    desk.record([QueueOpened(partition.name, task.name, body.required, body.whole_groups)])
    return partition.queues[-1]


def _oldest(partition: Partition, queue: Queue, body: Claim) -> list[Row]:
    """Up to ``batch`` ready rows; none if fewer than ``min_rows`` are ready."""
    rows: list[Row] = []
    if queue.count < body.min_rows:
        return rows
    want = min(body.batch, queue.count)
    while len(rows) < want:
        row = partition.rows_by_id.get(heapq.heappop(queue.heap))
        if row is not None and row.queued & queue.bit:
            row.queued &= ~queue.bit  # a stale second entry must not take it again
            queue.count -= 1
            rows.append(row)
    return rows


def _whole_groups(partition: Partition, queue: Queue, body: Claim) -> list[Row]:
    """Ready groups, oldest first, as many as fit into ``batch``; none if they hold fewer than ``min_rows`` rows."""
    rows: list[Row] = []
    taken: dict[int, Group] = {}
    if queue.count < body.min_rows:
        return rows
    while queue.heap and len(rows) < body.batch:
        group = partition.groups_by_id.get(queue.heap[0])
        if group is None or not group.queued & queue.bit or group.id in taken:
            heapq.heappop(queue.heap)
            continue
        of_group = ready_rows(group, queue.task, queue.mask)
        if len(of_group) > body.batch:
            _put_back(queue, list(taken))
            raise BadArgument(
                f"group {group.gid!r} has {len(of_group)} rows, more than batch_size {body.batch}",
                partition=partition.name,
                keys=[row.key for row in of_group],
            )
        if len(rows) + len(of_group) > body.batch:
            break
        heapq.heappop(queue.heap)
        taken[group.id] = group
        rows += of_group
    if len(rows) < body.min_rows:
        _put_back(queue, list(taken))
        return []
    return rows


def _put_back(queue: Queue, group_ids: list[int]) -> None:
    for group_id in group_ids:
        heapq.heappush(queue.heap, group_id)


def _by_key(partition: Partition, task: Task, body: Claim, waiter: Waiter) -> list[Row]:
    """Exactly the named rows, or none while one of them is leased or unready; gone rows are an error at once."""
    keys = body.keys or []
    mask = partition.mask_of(body.required)
    if waiter.blocker:
        row = partition.rows.get(waiter.blocker)
        if row is not None and not row_ready(row, task, mask):
            return []
    rows = []
    gone = []
    waiter.blocker = ""
    for key in keys:
        row = partition.rows.get(key)
        if row is None or row.consumed & task.bit:
            gone.append(key)
        elif not waiter.blocker and not row_ready(row, task, mask):
            waiter.blocker = key
        else:
            rows.append(row)
    if gone:
        removed = [key for key in gone if key in partition.rows or partition.stone_of(key) is not None]
        if removed:
            raise RowRemoved(
                f"rows removed, or consumed by {task.name!r} already: {removed[:8]}",
                partition=partition.name,
                keys=removed,
            )
        raise UnknownName(
            f"unknown rows of partition {partition.name!r}: {gone[:8]}", partition=partition.name, keys=gone
        )
    return [] if waiter.blocker else rows
