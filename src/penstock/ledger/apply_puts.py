"""What puts and moved blocks mean."""

from __future__ import annotations

from penstock.ledger import facts as f
from penstock.ledger.books import Books
from penstock.ledger.readiness import refresh_promise, refresh_row, requeue_group
from penstock.ledger.state import GROUP_TAGS, Group, Partition, Row
from penstock.ledger.writes import Write


def put(books: Books, fact: f.Put) -> None:
    """Make the put visible: rows are made or added to, and placed in groups and queues."""
    partition = books.partition(fact.partition)
    write = books.write_of(fact, partition)
    known: list[Row] = []
    if fact.fresh is None:
        made = _all_made(partition, write, fact)
    else:
        made, known = _made_and_known(books, partition, write, fact)
    partition.put += len(made)
    if partition.tombstones:
        for row in made:
            partition.tombstones.pop(row.key, None)
    books.state.next_id = max(books.state.next_id, fact.write_id + 1, max(fact.ids, default=0) + 1)
    _account_new(books, partition, write, len(made) + len(known))
    if write.live == 0:
        books.drop_write(write)
    else:
        books.note_places(write)
    if not books.replaying:
        _enqueue(partition, write, made, known)
    _regroup(books, partition, write, made + known, fact)


def _all_made(partition: Partition, write: Write, fact: f.Put) -> list[Row]:
    """The put of new rows only: nearly every put."""
    wall, bits = fact.wall, write.field_bits
    made = [
        Row(row_id, key, wall, (write, index), bits)
        for index, (key, row_id) in enumerate(zip(fact.keys, fact.ids, strict=True))
    ]
    partition.rows.update(zip(fact.keys, made, strict=True))
    partition.rows_by_id.update(zip(fact.ids, made, strict=True))
    return made


def _made_and_known(books: Books, partition: Partition, write: Write, fact: f.Put) -> tuple[list[Row], list[Row]]:
    made: list[Row] = []
    known: list[Row] = []
    fresh = set(fact.fresh or ())
    for index, (key, row_id) in enumerate(zip(fact.keys, fact.ids, strict=True)):
        if row_id == 0:  # a row whose earlier put of the same bytes is all there is to say
            write.bury(index)
        elif index in fresh:
            row = Row(row_id, key, fact.wall, (write, index), write.field_bits)
            partition.rows[key] = row
            partition.rows_by_id[row_id] = row
            made.append(row)
        else:
            found = partition.rows_by_id.get(row_id)
            if found is None:
                write.bury(index)
            else:
                _supersede(books, partition, found, write, index)
                known.append(found)
    return made, known


def _enqueue(partition: Partition, write: Write, made: list[Row], known: list[Row]) -> None:
    for queue in partition.queues:
        if not queue.whole and write.field_bits & queue.mask == queue.mask:
            queue.extend(made)
    if partition.queues:
        for row in known:
            refresh_row(partition, row)


def _account_new(books: Books, partition: Partition, write: Write, number: int) -> None:
    if write.place is None:
        return
    if number == write.size:
        books.account(partition, write, sum(write.row_bytes))
    else:
        books.account(partition, write, sum(write.row_bytes[i] for i in write.alive()))


def _supersede(books: Books, partition: Partition, row: Row, write: Write, index: int) -> None:
    """Put ``write`` on top of the row's earlier ones and drop those of which nothing shows any more."""
    fields, names = write.field_bits, set(write.names_of(index))
    kept: list[Write | int] = [index, write]
    for older, at in row.pairs():
        shown = older.names_of(at)
        if older.field_bits & ~fields or shown - names:
            kept += (at, older)
            fields |= older.field_bits
            names |= shown
        else:
            books.bury(partition, older, at)
    row.writes = tuple(reversed(kept))
    row.produced = fields


def _regroup(books: Books, partition: Partition, write: Write, rows: list[Row], fact: f.Put) -> None:
    """Place the put's rows in their groups, and bring those up to date."""
    books.touch(partition.name)
    grouped = bool(write.names & GROUP_TAGS)
    producing = grouped or fact.fresh != []  # a stage that only adds a column does not answer for the group
    touched: dict[str, Group] = {}
    for row in rows if partition.groups or grouped else ():
        if grouped and (not write.sparse or row.declares_group()):
            books.join(partition, row)
        if row.group is not None:
            if producing:
                row.group.add_putter(fact.session_id)
            touched[row.group.gid] = row.group
    for group in touched.values() if not books.replaying else ():
        if grouped:
            books.refresh(partition, group)
        else:
            refresh_promise(partition, group)
            requeue_group(partition, group)
            books.note_unfinished(partition, group)


def moved(books: Books, fact: f.Moved) -> None:
    write = books.state.writes.get(fact.place.block_id)
    if write is not None:
        books.lay(write, fact.place, fact.replica)
        if fact.kept is not None:
            write.kept = list(fact.kept)


def host_is(books: Books, fact: f.HostIs) -> None:
    books.host(fact.place.host_id).place = fact.place


def store_may_hold(books: Books, fact: f.StoreMayHold) -> None:
    books.host(fact.host_id).stored.update(dict.fromkeys(fact.blocks))


def store_freed(books: Books, fact: f.StoreFreed) -> None:
    stored = books.host(fact.host_id).stored
    for block_id in fact.blocks:
        stored.pop(block_id, None)
