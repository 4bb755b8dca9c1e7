"""Sessions begin, resume and end here; a session's end gives its leases back.

A row whose delivery failed more than ``max_deliveries`` times is quarantined instead of going back; if a whole-group
claim held it, its group goes with it.
"""

from __future__ import annotations

import hmac

from penstock.errors import DataPlaneUnavailable
from penstock.ledger import capacity, losses, puts
from penstock.ledger.desk import Desk, failed
from penstock.ledger.events import Answer, EndSession, SessionOpens, SessionResumes
from penstock.ledger.facts import AnyFact, GroupClosed, Removed, Returned, SessionEnded, SessionOpened
from penstock.ledger.limits import MAX_REPLIES, shown
from penstock.ledger.state import Lease, Partition, Row, Session, Waiter
from penstock.requests import WIRE_VERSION, Failed, Welcome


def opens(desk: Desk, event: SessionOpens) -> None:
    """Begin a session."""
    r = event.request
    owner, role, host = (shown(text) for text in (r.owner, r.role, r.host))
    desk.record(
        [SessionOpened(event.session_id, event.secret, r.client_id, owner, role, host, r.pid)]
    )  # fmt: skip
    session = desk.state.sessions[event.session_id]
    desk.counters["sessions.opened"] += 1
    desk.out.append(Answer(event.session_id, event.call_id, _welcome(desk, session, resumed=False)))


def resumes(desk: Desk, event: SessionResumes) -> None:
    """Let a client come back to its session, if it is alive and the secret is right."""
    session = desk.state.sessions.get(event.session_id)
    if session is None or not hmac.compare_digest(session.secret.encode(), event.secret.encode()):
        error = DataPlaneUnavailable(f"session {event.session_id} has ended; open a new one")
        desk.out.append(Answer(event.session_id, event.call_id, failed(error)))
        return
    heard(desk, session)
    session.connected = True
    desk.counters["sessions.resumed"] += 1
    desk.out.append(Answer(event.session_id, event.call_id, _welcome(desk, session, resumed=True)))


def _welcome(desk: Desk, session: Session, *, resumed: bool) -> Welcome:
    c = desk.config
    return Welcome(
        WIRE_VERSION, session.id, session.secret, resumed, c.heartbeat_s, c.dead_after_s, c.max_frame_bytes,
        session.done_below,
    )  # fmt: skip


def heard(desk: Desk, session: Session) -> None:
    """The session gave a sign of life."""
    session.heard = desk.books.clock
    session.due = desk.books.clock + desk.config.dead_after_s


def settle(desk: Desk, session: Session, done_below: int, abandoned: list[int]) -> None:
    """Forget replies that were taken; undo claims whose replies never reached the caller."""
    desk.books.forget_replies(session, done_below)
    for seq in abandoned:
        _abandon(desk, session, seq)


def _abandon(desk: Desk, session: Session, seq: int) -> None:
    over = Failed("DataPlaneTimeout", "the caller has abandoned this call")
    waiter = _stop_waiting(desk, session, seq)
    if waiter is not None:  # a call that is never answered counts as open on its connection for ever
        desk.out.append(Answer(session.id, waiter.call_id, over))
    reply = session.replies.get(seq)
    if isinstance(reply, Lease) and reply.rows:
        rows = list(reply.rows.values())
        ids = [row.id for row in rows]
        desk.record([Returned(reply.partition, reply.task, ids, counted=False, why="the claim's reply was abandoned")])
        desk.counters["claims.abandoned"] += 1
    elif (
        reply is None and seq >= max(session.done_below, 1) and len(session.replies) < MAX_REPLIES
    ):  # should it still arrive, or arrive again, it must not take effect
        session.replies[seq] = over


def _stop_waiting(desk: Desk, session: Session, seq: int) -> Waiter | None:
    """Take a claim that nobody waits for any more off the list, now: cancelled ones come faster than deadlines pass."""
    waiter = session.waiting.pop(seq, None)
    if waiter is None:
        return None
    name = waiter.body.partition
    left = [other for other in desk.claims.get(name, ()) if other is not waiter]
    if left:
        desk.claims[name] = left
    else:
        desk.claims.pop(name, None)
    return waiter


def end(desk: Desk, session: Session, why: str) -> None:
    """End a session: its leases go back, counted as failed deliveries."""
    facts: list[AnyFact] = []
    for lease in list(session.leases.values()):
        facts += give_back(desk, lease, f"session of {session.who()} ended: {why}")
    for seq in list(session.waiting):
        _stop_waiting(desk, session, seq)
    capacity.leave_queue(desk, lambda waiter: waiter.session_id == session.id)
    facts.append(SessionEnded(session.id, why))
    desk.record(facts)
    for pending in [p for p in desk.state.grants.values() if p.lives and p.session_id == session.id]:
        puts.drop(desk, pending.id)  # its host's agent keeps the memory until its writer is done with it
    for host in [h for h in desk.state.hosts.values() if h.session_id == session.id]:
        losses.falls_silent(desk, host, why)
    desk.counters["sessions.ended"] += 1
    desk.out.append(EndSession(session.id, why))


def give_back(desk: Desk, lease: Lease, why: str) -> list[AnyFact]:
    """The facts of a delivery that failed: rows return, or go to quarantine if that was once too often."""
    partition = desk.books.partition(lease.partition)
    task = partition.tasks[lease.task]
    limit = desk.config.max_deliveries
    bad = {row.id: row for row in lease.rows.values() if task.deliveries.get(row.id, 0) + 1 > limit}
    facts: list[AnyFact] = []
    if lease.whole_groups and bad:
        facts += _with_their_groups(partition, bad)
    good = [row_id for row_id in lease.rows if row_id not in bad]
    if good:
        facts.append(Returned(partition.name, task.name, good, counted=True, why=why))
    if bad:
        detail = f"after {limit + 1} failed deliveries to {task.name!r}, the last: {why}"
        facts.append(Removed(partition.name, list(bad), "quarantined", detail))
        desk.counters["rows.quarantined"] += len(bad)
    return facts


def _with_their_groups(partition: Partition, bad: dict[int, Row]) -> list[AnyFact]:
    """Extend ``bad`` to whole groups, and close those groups."""
    groups = {row.group.gid: row.group for row in bad.values() if row.group is not None}
    for group in groups.values():
        bad.update(group.rows)
    return [GroupClosed(partition.name, gid) for gid in groups]
