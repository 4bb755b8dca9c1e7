"""What a checkpoint restates: whole objects, skipped where replay knows them already."""

from __future__ import annotations

from penstock.ledger import facts as f
from penstock.ledger.books import Books
from penstock.ledger.state import GROUP_TAGS, Partition, Row, Tombstone
from penstock.ledger.writes import Write


def write_is(books: Books, fact: f.WriteIs) -> None:
    if fact.put.write_id in books.state.writes:
        return
    partition = books.partition(fact.put.partition)
    write = books.write_of(fact.put, partition)
    write.kept = fact.kept
    write.dead = bytearray(b"\x01" * write.size)
    write.live = 0
    books.state.next_id = max(books.state.next_id, write.id + 1)


def rows_are(books: Books, fact: f.RowsAre) -> None:
    partition = books.partition(fact.partition)
    for state in fact.rows:
        row = _row_is(books, partition, state)
        if row is None:
            continue
        if row.declares_group():
            books.join(partition, row)
        if row.group is not None:
            for write, index in row.pairs():
                if write.names_of(index) & GROUP_TAGS:
                    row.group.add_putter(write.session_id)


def _row_is(books: Books, partition: Partition, state: f.RowIs) -> Row | None:
    if state.id in partition.rows_by_id:
        return None  # known from a put that is still in the journal
    row = Row(state.id, state.key, state.wall)
    partition.rows[row.key] = row
    partition.rows_by_id[row.id] = row
    pairs: list[Write | int] = []
    for write_id, index in state.writes:
        write = books.state.writes[write_id]
        if write.dead is not None and write.dead[index]:
            write.dead[index] = 0
            write.live += 1
            if write.place is not None:
                books.account(partition, write, write.row_bytes[index])
        if write.rows is not None:
            write.rows[index] = state.id
        pairs += (write, index)
        row.produced |= write.field_bits
    row.writes = tuple(pairs)
    _task_state(partition, row, state)
    books.state.next_id = max(books.state.next_id, row.id + 1)
    return row


def _task_state(partition: Partition, row: Row, state: f.RowIs) -> None:
    tasks = list(partition.tasks.values())
    for index, token in zip(state.consumed, state.ended, strict=True):
        row.consumed |= tasks[index].bit
        tasks[index].consumed += 1
        tasks[index].ended[row.id] = token
    for index, number in state.deliveries:
        tasks[index].deliveries[row.id] = number
    for index, token, released in state.lapsed:
        tasks[index].lapsed[row.id] = (token, released)


def tombstones_are(books: Books, fact: f.TombstonesAre) -> None:
    partition = books.partition(fact.partition)
    for stone in fact.rows:
        if stone.key not in partition.tombstones and stone.key not in partition.rows:
            contents = tuple((content, index) for content, index in stone.contents)
            until = books.clock + stone.left_s
            remembered = Tombstone(stone.reason, stone.token, contents, stone.at, until, stone.detail)
            books.remember(partition, stone.key, remembered)
        books.state.clears = max(books.state.clears, stone.at)
    for gid, left_s in fact.groups:
        partition.closed_groups.setdefault(gid, books.clock + left_s)


def groups_are(books: Books, fact: f.GroupsAre) -> None:
    groups = books.partition(fact.partition).groups
    for gid, gone in fact.gone:
        if gid in groups:
            groups[gid].gone = gone


def counters_are(books: Books, fact: f.CountersAre) -> None:
    partition = books.partition(fact.partition)
    partition.registered = fact.registered
    partition.put, partition.trained, partition.cleared = fact.put, fact.trained, fact.cleared
    partition.quarantined = fact.quarantined
    partition.evicted, partition.lost = dict(fact.evicted), dict(fact.lost)
    partition.finished_bytes, partition.finished_rows = fact.finished_bytes, fact.finished_rows
    partition.cleared_at = fact.cleared_at
    books.state.clears = max(books.state.clears, fact.cleared_at)


def replies_are(books: Books, fact: f.RepliesAre) -> None:
    session = books.state.sessions.get(fact.session_id)
    if session is not None:
        for seq, reply in fact.replies:
            session.replies.setdefault(seq, reply)
        books.forget_replies(session, fact.done_below)
