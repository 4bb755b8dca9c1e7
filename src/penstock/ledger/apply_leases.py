"""What claims, renewals, returns and consumption mean."""

from __future__ import annotations

from penstock.ledger import facts as f
from penstock.ledger.books import Books
from penstock.ledger.leasing import Step, check_step
from penstock.ledger.state import Lease


def leased(books: Books, fact: f.Leased) -> None:
    partition = books.partition(fact.partition)
    task = partition.tasks[fact.task]
    lease = books.state.leases.get(fact.token)
    if lease is None:
        lease = Lease(fact.token, fact.partition, fact.task, fact.session_id, fact.seq)
        lease.whole_groups = fact.whole_groups
        lease.claimant = fact.claimant
    rows = books.rows_of(partition, fact.ids)
    for row in rows:
        if task.held.get(row.id) is lease:
            continue  # a checkpoint restates it
        check_step(row, task, Step.CLAIM)
        task.held[row.id] = lease
        task.lapsed.pop(row.id, None)
        lease.rows[row.id] = row
    books.state.next_token = max(books.state.next_token, int(fact.token.rpartition("-")[2]) + 1)
    if lease.rows:
        books.hold(lease, fact.lease_s)
    session = books.state.sessions.get(fact.session_id if fact.claimant is None else fact.claimant)
    if session is not None and fact.seq >= max(session.done_below, 1):
        session.replies[fact.seq] = lease
    books.requeue(partition, rows)


def renewed(books: Books, fact: f.Renewed) -> None:
    partition = books.partition(fact.partition)
    task = partition.tasks[fact.task]
    rows = books.rows_of(partition, fact.ids)
    renewed: dict[str, Lease] = {}
    for row in rows:
        check_step(row, task, Step.RENEW)
        token = task.token_of(row.id)
        lease = books.state.leases.get(token) or renewed.get(token)
        if lease is None:
            lease = Lease(token, partition.name, task.name, fact.session_id, 0)
        renewed[token] = lease
        lease.rows[row.id] = row
        task.held[row.id] = lease
        task.lapsed.pop(row.id, None)
    for lease in renewed.values():
        previous = books.state.sessions.get(lease.session_id)
        if previous is not None:
            previous.leases.pop(lease.token, None)
        if lease.session_id != fact.session_id:  # it belongs to whoever renews it with its token
            lease.claimant = lease.session_id if lease.claimant is None else lease.claimant
            lease.session_id = fact.session_id
        books.hold(lease, fact.lease_s)
    books.requeue(partition, rows)


def returned(books: Books, fact: f.Returned) -> None:
    partition = books.partition(fact.partition)
    task = partition.tasks[fact.task]
    rows = books.rows_of(partition, fact.ids)
    for row in rows:
        check_step(row, task, Step.RETURN)
        lease = task.held.pop(row.id)
        lease.rows.pop(row.id, None)
        task.lapsed[row.id] = (lease.token, not fact.counted)
        if fact.counted:
            task.deliveries[row.id] = task.deliveries.get(row.id, 0) + 1
        books.drop_if_empty(lease)
    books.requeue(partition, rows)
    books.note(
        partition.name, f"{len(rows)} rows leased for {task.name!r} returned: {fact.why}", [row.key for row in rows]
    )


def consumed(books: Books, fact: f.Consumed) -> None:
    partition = books.partition(fact.partition)
    task = partition.tasks[fact.task]
    rows = books.rows_of(partition, fact.ids)
    for row in rows:
        check_step(row, task, Step.CONSUME)
        task.ended[row.id] = task.token_of(row.id)
        lease = task.held.pop(row.id, None)
        if lease is not None:
            lease.rows.pop(row.id, None)
            books.drop_if_empty(lease)
        task.lapsed.pop(row.id, None)
        row.consumed |= task.bit
        task.consumed += 1
    books.requeue(partition, rows)
