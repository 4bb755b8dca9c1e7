"""The only code that changes durable state: what each fact means, the same when decided and when replayed.

Facts name rows by id. On replay a fact may name rows that are not known yet, because the segment that made them has
been dropped: it is skipped for those rows, whose whole state follows in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from penstock.ledger import facts as f
from penstock.ledger.apply_checkpoint import counters_are, groups_are, replies_are, rows_are, tombstones_are, write_is
from penstock.ledger.apply_leases import consumed, leased, renewed, returned
from penstock.ledger.apply_puts import host_is, moved, put, store_freed, store_may_hold
from penstock.ledger.apply_removals import group_closed, partial_allowed, partition_cleared, removed
from penstock.ledger.books import Books
from penstock.ledger.limits import DEPARTED
from penstock.ledger.readiness import open_queue
from penstock.ledger.state import Departed, Session, Task


def life_began(books: Books, fact: f.LifeBegan) -> None:
    books.state.incarnation = max(books.state.incarnation, fact.incarnation)
    books.state.first_life = books.state.first_life or fact.first or fact.incarnation
    books.state.next_id = max(books.state.next_id, fact.next_id)
    books.state.clears = max(books.state.clears, fact.clears)


def session_opened(books: Books, fact: f.SessionOpened) -> None:
    known = books.state.sessions.get(fact.session_id)
    if known is not None:  # a checkpoint restates it
        return
    session = Session(
        fact.session_id, fact.secret, fact.client_id, fact.owner, fact.role, fact.host, fact.pid
    )  # fmt: skip
    session.heard = books.clock
    session.due = books.clock + books.config.dead_after_s
    books.state.sessions[fact.session_id] = session


def session_ended(books: Books, fact: f.SessionEnded) -> None:
    session = books.state.sessions.pop(fact.session_id, None)
    if session is None:
        return
    departed = books.state.departed
    departed[session.id] = Departed(session.who(), session.pid, fact.why, books.clock)
    if len(departed) > DEPARTED:
        del departed[next(iter(departed))]
    for partition, gid in sorted(session.unfinished):
        group = books.partition(partition).groups.get(gid)
        if group is not None and not any(s in books.state.sessions for s in group.putters):
            books.start_timer(books.config.abandon_grace_s, "abandon", partition, gid)
    books.note("", f"session of {session.who()} ended: {fact.why}")


def registered(books: Books, fact: f.Registered) -> None:
    request = fact.request
    partition = books.partition(request.partition)
    repoliced = partition.registered and partition.request.policy != request.policy
    resized = partition.request.group_size != request.group_size
    partition.registered = True
    books.state.active[partition.name] = partition
    partition.fields = list(dict.fromkeys([*partition.fields, *request.fields]))
    declared = list(dict.fromkeys([*partition.request.fields, *request.fields]))
    partition.request = msgspec.structs.replace(request, fields=declared)
    for name in request.tasks:
        if name not in partition.tasks:
            partition.tasks[name] = Task(name, len(partition.tasks))
    if resized and not books.replaying:  # another group size: other groups are complete
        for group in partition.groups.values():
            books.refresh(partition, group)
    if repoliced:
        for group in partition.groups.values():
            if not group.done:
                books.start_deadline(partition, group)
                books.start_grace(partition, group)
    books.touch(partition.name)


def fields_are(books: Books, fact: f.FieldsAre) -> None:
    partition = books.partition(fact.partition)
    partition.fields = list(dict.fromkeys([*partition.fields, *fact.names]))
    partition.mask_of(fact.names)
    for spec in fact.specs:
        partition.specs.setdefault(spec.name, spec)


def queue_opened(books: Books, fact: f.QueueOpened) -> None:
    partition = books.partition(fact.partition)
    task = partition.tasks.get(fact.task)
    if task is not None:
        open_queue(partition, task, list(fact.required), fact.whole_groups)
        for group in partition.groups.values() if fact.whole_groups else ():
            if group.gone and not group.done:
                books.start_grace(partition, group)


MEANINGS: dict[type[f.Fact], Callable[[Books, Any], None]] = {
    f.LifeBegan: life_began,
    f.SessionOpened: session_opened,
    f.SessionEnded: session_ended,
    f.Registered: registered,
    f.FieldsAre: fields_are,
    f.QueueOpened: queue_opened,
    f.Put: put,
    f.Leased: leased,
    f.Renewed: renewed,
    f.Returned: returned,
    f.Consumed: consumed,
    f.Removed: removed,
    f.GroupClosed: group_closed,
    f.PartialAllowed: partial_allowed,
    f.PartitionCleared: partition_cleared,
    f.Moved: moved,
    f.HostIs: host_is,
    f.StoreMayHold: store_may_hold,
    f.StoreFreed: store_freed,
    f.WriteIs: write_is,
    f.RowsAre: rows_are,
    f.TombstonesAre: tombstones_are,
    f.GroupsAre: groups_are,
    f.CountersAre: counters_are,
    f.RepliesAre: replies_are,
}


def apply(books: Books, fact: f.AnyFact) -> None:
    """Change the state as ``fact`` says."""
    MEANINGS[type(fact)](books, fact)
