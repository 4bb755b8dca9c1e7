"""What puts and moved blocks mean."""

from __future__ import annotations

from penstock.ledger import facts as f
from penstock.ledger.books import Books
from penstock.ledger.readiness import refresh_group, refresh_promise, refresh_row, requeue_group
from penstock.ledger.state import GROUP_TAGS, Group, Partition, Row, Write


def put(books: Books, fact: f.Put) -> None:
    partition = books.partition(fact.partition)
    write = books.write_of(fact, partition)
    fresh = None if fact.fresh is None else set(fact.fresh)
    rows = partition.rows
    rows_by_id = partition.rows_by_id
    known: list[Row] = []
    for index, (key, row_id) in enumerate(zip(fact.keys, fact.ids, strict=True)):
        if row_id == 0:  # a row whose earlier put of the same bytes is all there is to say
            write.bury(index)
            continue
        if fresh is None or index in fresh:
            row = Row(row_id, key, fact.wall)
            rows[key] = row
            rows_by_id[row_id] = row
            row.writes = (write, index)
            row.produced = write.field_bits
        else:
            found = rows_by_id.get(row_id)
            if found is None:
                books.state.unseen += 1
                write.bury(index)
                continue
            row = found
            _supersede(books, partition, row, write, index)
        known.append(row)
    partition.put += len(fact.keys) if fresh is None else len(fresh)
    books.state.next_id = max(books.state.next_id, fact.write_id + 1, max(fact.ids, default=0) + 1)
    _account_new(partition, write, known)
    if write.live == 0:
        books.drop_write(write)
    _regroup(books, partition, write, known, fact)


def _account_new(partition: Partition, write: Write, known: list[Row]) -> None:
    if write.place is None:
        return
    if len(known) == write.size:
        partition.live_bytes += sum(write.row_bytes)
    else:
        partition.live_bytes += sum(write.row_bytes[i] for i in write.alive())


def _supersede(books: Books, partition: Partition, row: Row, write: Write, index: int) -> None:
    """Put ``write`` on top of the row's earlier ones and drop those of which nothing shows any more."""
    fields, names = write.field_bits, set(write.names)
    kept: list[Write | int] = [index, write]
    for older, at in row.pairs():
        if older.field_bits & ~fields or older.names - names:
            kept += (at, older)
            fields |= older.field_bits
            names |= older.names
        else:
            books.bury(partition, older, at)
    row.writes = tuple(reversed(kept))
    row.produced = fields


def _regroup(books: Books, partition: Partition, write: Write, rows: list[Row], fact: f.Put) -> None:
    """Place the put's rows in their groups and in the queues."""
    books.touched.add(partition.name)
    grouped = bool(write.names & GROUP_TAGS)
    producing = grouped or fact.fresh != []  # a stage that only adds a column does not answer for the group
    touched: dict[str, Group] = {}
    for row in rows:
        if grouped:
            books.join(partition, row)
        if row.group is not None:
            if producing:
                row.group.putters.add(fact.session_id)
            touched[row.group.gid] = row.group
        refresh_row(partition, row)
    for group in touched.values():
        if grouped:
            refresh_group(partition, group)
        else:
            refresh_promise(partition, group)
            requeue_group(partition, group)
        books.note_unfinished(partition, group)


def moved(books: Books, fact: f.Moved) -> None:
    write = books.state.writes.get(fact.place.block_id)
    if write is not None:
        write.place = fact.place
        if fact.kept is not None:
            write.kept = list(fact.kept)
