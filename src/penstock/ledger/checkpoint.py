"""Restating what is alive, in slices, while the ledger goes on: what the journal needs to drop its older segments.

The order makes replay exact, though facts are journaled between the slices: first the lives, sessions, registrations
and queues, in one entry; then rows, each slice with the writes it names and the leases that hold them; then, because
they are absolute and must have the last word, tombstones, replies and counters. A fact about a row that replay has not
seen yet is skipped there: the row's slice, written later, holds its effect.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.ledger import facts as f
from penstock.ledger.desk import Desk
from penstock.ledger.state import Lease, Partition, Row, Session
from penstock.ledger.writes import Write
from penstock.requests import Claimed

TOMBSTONES_PER_SLICE = 5000
STORED_PER_SLICE = 20_000


def checkpoint(desk: Desk, rows_per_slice: int) -> Iterator[f.Entry]:
    """Yield entries to append, in order; the ledger may handle events between two of them."""
    state = desk.state
    state.checkpoints += 1
    number = state.checkpoints
    yield f.Entry(_opening(desk), checkpoint=number)
    written: set[int] = set()
    for name in list(state.partitions):
        ids = list(state.partitions[name].rows_by_id)
        for start in range(0, len(ids), rows_per_slice):
            facts = _slice(desk, name, ids[start : start + rows_per_slice], written)
            if facts:
                yield f.Entry(facts, checkpoint=number)
    for name in list(state.partitions):
        stones = list(state.partitions[name].tombstones)
        for start in range(0, len(stones), TOMBSTONES_PER_SLICE):
            yield f.Entry([_tombstones(desk, name, stones[start : start + TOMBSTONES_PER_SLICE])], checkpoint=number)
    for host in list(state.hosts.values()):
        blocks = list(host.stored)
        for start in range(0, len(blocks), STORED_PER_SLICE):
            stored = [block_id for block_id in blocks[start : start + STORED_PER_SLICE] if block_id in host.stored]
            yield f.Entry([f.StoreMayHold(host.id, stored)], checkpoint=number)
    yield f.Entry(_closing(desk), checkpoint=number)


def _opening(desk: Desk) -> list[f.AnyFact]:
    state = desk.state
    facts: list[f.AnyFact] = [_life(desk)]
    facts += [
        f.SessionOpened(s.id, s.secret, s.client_id, s.owner, s.role, s.host, s.pid) for s in state.sessions.values()
    ]
    facts += [f.HostIs(host.place) for host in state.hosts.values() if host.state != "gone"]
    for partition in state.partitions.values():
        if partition.registered:
            facts.append(f.Registered(partition.request))
            facts.append(f.FieldsAre(partition.name, partition.fields, list(partition.specs.values())))
        facts += [f.QueueOpened(partition.name, q.task.name, q.required, q.whole) for q in partition.queues]
    return facts


def _slice(desk: Desk, name: str, ids: list[int], written: set[int]) -> list[f.AnyFact]:
    partition = desk.state.partitions.get(name)
    if partition is None:
        return []
    rows = [row for row in map(partition.rows_by_id.get, ids) if row is not None]
    facts: list[f.AnyFact] = []
    for row in rows:
        for write, _ in row.pairs():
            if write.id not in written:
                written.add(write.id)
                facts.append(_write(partition, write))
    facts.append(f.RowsAre(name, [_row(partition, row) for row in rows]))
    for task in partition.tasks.values():
        held: dict[str, tuple[Lease, list[int]]] = {}
        for row in rows:
            lease = task.held.get(row.id)
            if lease is not None:
                held.setdefault(lease.token, (lease, []))[1].append(row.id)
        facts += [_lease(lease, row_ids) for lease, row_ids in held.values()]
    partial = {row.group.gid for row in rows if row.group is not None and row.group.partial}
    facts += [f.PartialAllowed(name, gid) for gid in sorted(partial)]
    return facts


def _lease(lease: Lease, row_ids: list[int]) -> f.Leased:
    return f.Leased(
        lease.partition,
        lease.task,
        lease.token,
        lease.session_id,
        lease.seq,
        row_ids,
        lease.lease_s,
        lease.whole_groups,
        lease.claimant,
    )


def _write(partition: Partition, write: Write) -> f.WriteIs:
    lengths = None if write.lengths is None else list(write.lengths)
    keys = [""] * write.size  # the rows that need it carry their own
    put = f.Put(
        write.id, partition.name, write.session_id, keys, [], None, write.fields, write.tag_order, write.place,
        write.content, list(write.row_bytes), lengths, write.wall, write.replica,
    )  # fmt: skip
    return f.WriteIs(put, write.kept)


def _row(partition: Partition, row: Row) -> f.RowIs:
    tasks = list(partition.tasks.values())
    consumed = [t for t in tasks if row.consumed & t.bit]
    return f.RowIs(
        row.id,
        row.key,
        row.wall,
        [(write.id, index) for write, index in reversed(row.pairs())],
        [t.index for t in consumed],
        [t.ended.get(row.id, "") for t in consumed],
        [(t.index, t.deliveries[row.id]) for t in tasks if row.id in t.deliveries],
        [(t.index, *t.lapsed[row.id]) for t in tasks if row.id in t.lapsed],
    )


def _tombstones(desk: Desk, name: str, keys: list[str]) -> f.TombstonesAre:
    clock = desk.books.clock
    found = desk.state.partitions[name].tombstones
    stones = [(key, found[key]) for key in keys if key in found]
    return f.TombstonesAre(
        name,
        [
            f.TombstoneIs(key, s.reason, s.token, list(s.contents), s.at, max(0.0, s.until - clock), s.detail)
            for key, s in stones
        ],
        [],
    )


def _closing(desk: Desk) -> list[f.AnyFact]:
    state, clock = desk.state, desk.books.clock
    facts: list[f.AnyFact] = []
    for p in state.partitions.values():
        facts.append(
            f.TombstonesAre(p.name, [], [(gid, max(0.0, until - clock)) for gid, until in p.closed_groups.items()])
        )
        facts.append(f.GroupsAre(p.name, [(gid, group.gone) for gid, group in p.groups.items() if group.gone]))
        facts.append(
            f.CountersAre(
                p.name, p.registered, p.put, p.trained, dict(p.evicted), p.cleared, p.quarantined, dict(p.lost),
                p.finished_bytes, p.finished_rows, p.cleared_at,
            )
        )  # fmt: skip
    facts += [_replies(session) for session in state.sessions.values()]
    facts.append(_life(desk))
    return facts


def _life(desk: Desk) -> f.LifeBegan:
    state = desk.state
    return f.LifeBegan(state.incarnation, desk.books.wall, state.next_id, state.clears, state.first_life)


def _replies(session: Session) -> f.RepliesAre:
    """A lease that still holds rows restates itself; one that holds none any more is an empty reply."""
    replies = [
        (seq, Claimed("", [], [], None) if isinstance(reply, Lease) else reply)
        for seq, reply in session.replies.items()
        if not (isinstance(reply, Lease) and reply.rows)
    ]
    return f.RepliesAre(session.id, session.done_below, replies)
