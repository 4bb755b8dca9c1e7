"""What the removal of rows, groups and partitions means."""

from __future__ import annotations

from penstock.ledger import facts as f
from penstock.ledger.books import Books
from penstock.ledger.limits import MAX_REASONS
from penstock.ledger.readiness import refresh_group
from penstock.ledger.state import Group, Partition, Row, Tombstone
from penstock.ledger.writes import Write


def removed(books: Books, fact: f.Removed) -> None:
    partition = books.partition(fact.partition)
    rows = books.rows_of(partition, fact.ids)
    at = books.next_clear() if fact.reason == "cleared" else books.state.clears
    groups: dict[int, Group] = {}
    for row in rows:
        if row.group is not None:
            groups[row.group.id] = row.group
        _remove_row(books, partition, row, fact, at)
    _count_removed(partition, fact.reason, fact.detail, len(rows))
    for group in groups.values():
        books.after_leaving(partition, group)
    for queue in partition.queues:
        queue.trim(partition)
    books.forget_old_graves(partition)
    books.touch(partition.name)
    if fact.reason != "trained":
        books.note(partition.name, f"{len(rows)} rows {fact.reason} {fact.detail}".rstrip(), [row.key for row in rows])


def _remove_row(books: Books, partition: Partition, row: Row, fact: f.Removed, at: int) -> None:
    row_id, reason = row.id, fact.reason
    token = partition.final_task.token_of(row_id) if reason == "trained" and partition.tasks else ""
    if reason == "trained":
        partition.finished_rows += 1
        partition.finished_bytes += row.bytes()
    pairs = row.pairs()
    contents = tuple([(write.content, index) for write, index in pairs if write.place is not None])
    for write, index in pairs:
        books.bury(partition, write, index)
    del partition.rows[row.key]
    del partition.rows_by_id[row_id]
    if row.queued:
        for queue in partition.queues:
            if row.queued & queue.bit:
                queue.count -= 1
        row.queued = 0
    for task in partition.tasks.values():
        lease = task.forget(row_id, bool(row.consumed & task.bit))
        if lease is not None and not lease.rows:
            books.drop_if_empty(lease)
    if row.group is not None:
        del row.group.rows[row_id]
        row.group.gone += reason != "cleared"  # a cleared row may be put anew
        row.group = None
        partition.grouped -= 1
    detail = fact.detail if reason == "lost" else ""
    books.remember(partition, row.key, Tombstone(reason, token, contents, at, books.grave_end(), detail))


def _count_removed(partition: Partition, reason: str, detail: str, number: int) -> None:
    if reason == "trained":
        partition.trained += number
    elif reason == "cleared":
        partition.cleared += number
    elif reason == "quarantined":
        partition.quarantined += number
    else:
        counts = partition.evicted if reason == "evicted" else partition.lost
        if detail not in counts and len(counts) >= MAX_REASONS:
            detail = "other"
        counts[detail] = counts.get(detail, 0) + number


def group_closed(books: Books, fact: f.GroupClosed) -> None:
    partition = books.partition(fact.partition)
    partition.closed_groups.pop(fact.group, None)  # the oldest stays first
    partition.closed_groups[fact.group] = books.grave_end()


def partial_allowed(books: Books, fact: f.PartialAllowed) -> None:
    partition = books.partition(fact.partition)
    group = partition.groups.get(fact.group)
    if group is not None:
        group.partial = True
        if not books.replaying:
            refresh_group(partition, group)
        books.touch(partition.name)


def partition_cleared(books: Books, fact: f.PartitionCleared) -> None:
    """All of it at once: nothing is looked at row by row but the writes that it needed."""
    partition = books.partition(fact.partition)
    keys = list(partition.rows)
    at = partition.cleared_at = books.next_clear()
    _drop_writes(books, partition)
    for lease in [lease for lease in books.state.leases.values() if lease.partition == partition.name]:
        lease.rows.clear()
        books.drop_if_empty(lease)
    for group in partition.groups.values():
        if not group.done:
            group.rows.clear()
            books.note_unfinished(partition, group)
    stone = Tombstone("cleared", "", (), at, books.grave_end())  # one for all: only its time and reason matter
    partition.tombstones.update(dict.fromkeys(keys, stone))
    partition.graves.extend([(stone.until, key) for key in keys])
    books.forget_old_graves(partition)
    partition.cleared += len(keys)
    partition.unregister()
    books.touch(partition.name)
    books.note(partition.name, f"cleared whole: {len(keys)} rows", keys)


def _drop_writes(books: Books, partition: Partition) -> None:
    needed: dict[int, Write] = {}
    for row in partition.rows.values():
        for write, _ in row.pairs():
            needed[write.id] = write
    for write in needed.values():
        write.bury_all()
        books.drop_write(write)
