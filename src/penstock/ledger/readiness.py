"""Which units are ready for which queue, kept up to date by events, never by scanning.

A row is ready for a queue when its required fields are produced, its task has not consumed it and nobody holds it. A
group is ready for a whole-group queue when it is done (committed and complete) and all of its rows are ready; a group
past its deadline under the policy ``partial`` is ready with those of its committed rows that are, late ones included.
"""

from __future__ import annotations

from penstock.ledger.state import Group, Partition, Queue, Row, Task
from penstock.records import as_int, expected_of, is_true


def row_ready(row: Row, task: Task, mask: int) -> bool:
    """Whether a claim of ``task`` that needs the fields of ``mask`` may take the row."""
    return row.produced & mask == mask and not row.consumed & task.bit and row.id not in task.held


def ready_rows(group: Group, task: Task, mask: int) -> list[Row]:
    """The rows that a whole-group claim would get of this group now; [] = the group is not ready."""
    rows = [row for row in group.rows.values() if row_ready(row, task, mask)]
    if group.done and len(rows) == len(group.rows):
        return rows
    return [row for row in rows if is_true(row.tag("committed"))] if group.partial else []


def refresh_row(partition: Partition, row: Row) -> None:
    """Bring the row's place in the queues of single rows up to date."""
    for queue in partition.queues:
        if queue.whole:
            continue
        queued = row.queued & queue.bit
        if row_ready(row, queue.task, queue.mask):
            if not queued:
                queue.push(row, 1)
        elif queued:
            row.queued &= ~queue.bit
            queue.count -= 1


def refresh_group(partition: Partition, group: Group) -> None:
    """Bring what follows from the group's rows and tags up to date: expected, done, promise, whole-group queues."""
    default = partition.request.group_size
    committed = bool(group.rows)
    declared: int | None = None
    for row in group.rows.values():
        said, expected = _standing(row, default)
        committed = committed and said
        if expected is not None and (declared is None or expected > declared):
            declared = expected
    group.expected = declared
    done = committed and (declared is None or len(group.rows) == declared)
    partition.depth += done - group.done
    group.done = done
    refresh_promise(partition, group)
    requeue_group(partition, group)


def _standing(row: Row, default: int | None) -> tuple[bool, int | None]:
    """Whether the row says that it is committed, and how many rows it says its group has."""
    writes = row.writes
    if len(writes) == 2 and default is None:
        standing = writes[0].standing  # type: ignore[union-attr]
        if standing is not None:
            return standing
    return is_true(row.tag("committed")), expected_of_row(row, default)


def requeue_group(partition: Partition, group: Group) -> None:
    """Bring the group's place in the whole-group queues up to date; its rows and tags are as they were."""
    for queue in partition.queues:
        if queue.whole:
            _refresh_in(queue, group)


def _refresh_in(queue: Queue, group: Group) -> None:
    ready = len(ready_rows(group, queue.task, queue.mask))
    queue.count += ready - queue.counted.pop(group.id, 0)
    if ready:
        queue.counted[group.id] = ready
        if not group.queued & queue.bit:
            queue.push(group, 0)
    else:
        group.queued &= ~queue.bit


def expected_of_row(row: Row, default: int | None) -> int | None:
    """``records.expected_of`` without building the row's tags."""
    for name in ("expected_num_keys", "num_keys"):
        number = as_int(row.tag(name))
        if number is not None:
            return number
    return expected_of({"group_id": "g"} if row.tag("group_id") is not None else {}, default)


def refresh_promise(partition: Partition, group: Group) -> None:
    """A group is charged whole from its admission: what it may still grow by stays promised to it."""
    size = max(group.first_bytes, partition.mean_row_bytes)
    want = max((group.expected or 0) - group.gone, len(group.rows))
    promised_bytes = max(0, want * size - sum(row.bytes() for row in group.rows.values())) if group.rows else 0
    promised_rows = want - len(group.rows) if group.rows else 0
    partition.promised_bytes += promised_bytes - group.promised_bytes
    partition.promised_rows += promised_rows - group.promised_rows
    group.promised_bytes, group.promised_rows = promised_bytes, promised_rows


def find_queue(partition: Partition, task: Task, required: list[str], whole: bool) -> Queue | None:
    """The queue of a task's claims with these required fields; None before the first."""
    mask = partition.mask_of(required)
    return next((q for q in partition.queues if q.task is task and q.mask == mask and q.whole == whole), None)


def open_queue(partition: Partition, task: Task, required: list[str], whole: bool) -> Queue:
    """Return the queue of a task's claims with these required fields; made, in one pass over the rows, at first use."""
    found = find_queue(partition, task, required, whole)
    if found is not None:
        return found
    queue = Queue(task, required, partition.mask_of(required), whole, 1 << len(partition.queues))
    partition.queues.append(queue)
    _fill(partition, queue)
    return queue


def _fill(partition: Partition, queue: Queue) -> None:
    if queue.whole:
        for group in partition.groups.values():
            _refresh_in(queue, group)
    else:
        task, mask = queue.task, queue.mask
        queue.extend([row for row in partition.rows.values() if row_ready(row, task, mask)])
        queue.heap.sort()


def rebuild(partition: Partition) -> None:
    """Derive anew, after replay, everything that is kept up to date by events while serving."""
    for row in partition.rows.values():
        row.queued = 0
    for group in partition.groups.values():
        group.queued = 0
    for queue in partition.queues:
        queue.reset()
    for group in partition.groups.values():
        refresh_group(partition, group)
    for queue in partition.queues:
        if not queue.whole:
            _fill(partition, queue)
