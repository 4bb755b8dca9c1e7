"""The durable state as plain values: equal fingerprints mean that a replayed ledger owes what the live one does.

Left out: what is volatile (grants, waiting calls, history, the order of queues), what restarts in full (durations), and
the bytes promised to groups (an estimate, renewed when a group changes).
"""

from __future__ import annotations

from penstock.ledger.machine import Ledger
from penstock.ledger.state import Lease, Partition, Row, Session, Task
from penstock.requests import Claimed, ReplyBody


def fingerprint(ledger: Ledger) -> dict[str, object]:
    """Return the durable state of ``ledger``, by name of what it is about."""
    state = ledger.desk.state
    if ledger.desk.books.replaying:
        ledger.desk.books.derive()
    found: dict[str, object] = {"incarnation": state.incarnation, "first life": state.first_life}
    for partition in state.partitions.values():
        found.update(_partition(partition))
    for session in state.sessions.values():
        found[f"session {session.id}"] = _session(session)
    for token, lease in state.leases.items():
        keys = sorted(row.key for row in lease.rows.values())
        owner = (lease.partition, lease.task, lease.session_id)
        found[f"lease {token}"] = (owner, keys, lease.lease_s, lease.whole_groups)
    found["blocks"] = sorted(
        (w.id, w.places(), w.live, w.content, tuple(w.kept or ()))
        for w in state.writes.values()
        if w.place is not None and w.live
    )
    hosts = {place.host for w in state.writes.values() if w.live and w.hosted for place in w.places()}
    hosts |= {host.id for host in state.hosts.values() if host.stored}
    found["hosts"] = [(state.hosts[host_id].place, sorted(state.hosts[host_id].stored)) for host_id in sorted(hosts)]
    return found


def _session(session: Session) -> object:
    """(secret, client, done below, replies, leases). A claim's reply is ("lease", token or "" if it holds nothing)."""
    replies = {seq: _reply(reply) for seq, reply in session.replies.items()}
    return (session.secret, session.client_id, session.done_below, replies, sorted(session.leases))


def _reply(reply: ReplyBody | Lease) -> object:
    if isinstance(reply, Lease):
        return ("lease", reply.token if reply.rows else "")
    return ("lease", "") if isinstance(reply, Claimed) else reply


def _partition(p: Partition) -> dict[str, object]:
    found: dict[str, object] = {
        f"partition {p.name}": (p.registered, p.request if p.registered else None, sorted(p.closed_groups)),
        f"counts {p.name}": (p.put, p.trained, p.cleared, p.quarantined, p.evicted, p.lost, p.finished_rows),
        f"fields {p.name}": (sorted(p.fields), sorted((s.name, s.dtype, s.rank) for s in p.specs.values())),
        f"sizes {p.name}": (p.depth, p.live_bytes, p.promised_rows),
        f"queues {p.name}": sorted((q.task.name, sorted(q.required), q.whole, q.count) for q in p.queues),
        f"tombstones {p.name}": {
            key: (s.reason, s.token, sorted(s.contents), s.at < p.cleared_at, s.detail)
            for key, s in p.tombstones.items()
        },
    }
    for row in p.rows.values():
        found[f"row {p.name}/{row.key}"] = _row(p, row)
    return found


def _row(p: Partition, row: Row) -> object:
    group = (
        None
        if row.group is None
        else (row.group.gid, row.group.done, row.group.partial, row.group.expected, row.group.gone)
    )
    writes = [(write.id, index) for write, index in row.pairs()]
    tasks = [_task(row, task) for task in p.tasks.values()]
    return (row.id, row.wall, writes, row.tags(), sorted(p.names_of(row.produced)), group, tasks)


def _task(row: Row, task: Task) -> object:
    lease = task.held.get(row.id)
    return (
        bool(row.consumed & task.bit),
        lease.token if lease is not None else None,
        task.lapsed.get(row.id),
        task.ended.get(row.id),
        task.deliveries.get(row.id, 0),
    )
