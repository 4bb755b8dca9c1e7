"""The ledger's machine: ``handle(event, now) -> effects``.

Time: deadlines of leases, sessions and groups run on the ledger's own clock, which stands still while the plane itself
is stopped (a gap between two events far beyond the expected tick): a plane that wakes does not bury the living.
Deadlines of waiting calls run on the shell's clock, for their callers have gone on living. Nothing is judged but at a
``Tick``, so that a shell can read its sockets first.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneBadRequest, DataPlaneError, DataPlaneUnavailable
from penstock.ledger import agents, capacity, claims, events, holds, losses, puts, reports, row_list, sessions, timers
from penstock.ledger.apply import apply
from penstock.ledger.checkpoint import checkpoint as restate
from penstock.ledger.desk import Desk, failed
from penstock.ledger.events import Answer, AnyEffect, AnyEvent, Asked
from penstock.ledger.facts import Entry, LifeBegan, Moved, Registered
from penstock.ledger.invariants import check_invariants
from penstock.ledger.limits import MAX_NAME, MAX_REPLIES, check_fields, check_names
from penstock.ledger.state import Session
from penstock.requests import (
    MUTATIONS,
    Ack,
    Audit,
    BlockPlace,
    Capabilities,
    CheckConsumption,
    Claim,
    Clear,
    Commit,
    Damaged,
    Depth,
    Done,
    Enlist,
    Evict,
    Grant,
    HostReport,
    ListMetadata,
    ListRows,
    Locate,
    Pop,
    PutTags,
    RegisterPartition,
    Release,
    Renew,
    ReplyBody,
    Status,
    Why,
)

IDS_PER_LIFE = 1 << 32  # grants are not journaled: a life begins beyond any number that the last one can have given
TICK_S = 1.0  # the shell ticks at least this often
STOPPED_S = 2 * TICK_S  # a longer silence means that the plane itself was stopped

Handler = Callable[[Desk, Session, Asked], None]


def register(desk: Desk, session: Session, asked: Asked) -> None:
    """Register a partition, or register it again: fields merge, sizes are replaced, tasks and enums must agree."""
    body = asked.body
    assert isinstance(body, RegisterPartition)
    check_names("a partition's name", [body.partition], body.partition[:MAX_NAME])
    check_names("task names", body.tasks, body.partition)
    if not body.tasks or len(set(body.tasks)) != len(body.tasks):
        raise BadArgument(
            f"consumer_tasks must name at least one task, each once: {body.tasks}", partition=body.partition
        )
    if body.group_size is not None and not 1 <= body.group_size <= desk.config.max_rows:
        raise BadArgument(
            f"grpo_group_size must lie in 1..{desk.config.max_rows} (the plane's rows), got {body.group_size}",
            partition=body.partition,
        )
    known = desk.state.partitions.get(body.partition)
    check_fields(
        () if known is None else {**known.field_bits, **dict.fromkeys(known.fields)}, body.fields, body.partition
    )
    if known is not None and known.registered:
        for what, now, before in (("tasks", body.tasks, list(known.tasks)), ("enums", body.enums, known.request.enums)):
            if now != before:
                raise BadArgument(
                    f"partition {body.partition!r} is registered with {what} {before}; refused {now}",
                    partition=body.partition,
                )
        merged = msgspec.structs.replace(body, fields=list(dict.fromkeys([*known.request.fields, *body.fields])))
        if merged == known.request:  # callers register at every step
            desk.answer(asked, Done())
            return
    desk.conclude([Registered(body)], asked, Done())


HANDLERS: dict[type[Any], Handler] = {
    RegisterPartition: register,
    Grant: puts.grant,
    Commit: puts.commit,
    PutTags: puts.put_tags,
    Claim: claims.claim,
    Ack: holds.ack,
    Release: holds.release,
    Renew: holds.renew,
    Pop: holds.pop,
    Evict: holds.evict,
    Clear: holds.clear,
    Locate: reports.locate,
    ListMetadata: reports.list_metadata,
    ListRows: row_list.list_rows,
    Depth: reports.depth,
    CheckConsumption: reports.check_consumption,
    Capabilities: reports.capabilities,
    Audit: reports.audit,
    Why: reports.why,
    Status: reports.status,
    Enlist: agents.enlist,
    HostReport: agents.report,
    Damaged: agents.damaged,
}


class Ledger:
    """See the module. ``now`` must not go backwards."""

    def __init__(self, config: PlaneConfig) -> None:
        self.desk = Desk(config)
        self._last = 0.0  # the shell's clock at the last event
        self._behind = 0.0  # how far the ledger's clock is behind the shell's
        self._events: dict[type[Any], Callable[[Any], None]] = {
            events.SessionOpens: lambda e: sessions.opens(self.desk, e),
            events.SessionResumes: lambda e: sessions.resumes(self.desk, e),
            events.Asked: self._asked,
            events.Heard: self._heard,
            events.Disconnected: self._disconnected,
            events.Withdrawn: self._withdrawn,
            events.SessionGone: self._session_gone,
            events.Allotted: self._allotted,
            events.NotAllotted: lambda e: puts.drop(self.desk, e.grant),
            events.BlocksLost: lambda e: losses.lose_rows(self.desk, e.block_ids, e.why),
            events.BlockMoved: lambda e: self.desk.record([Moved(e.place, e.kept)]),
            events.Tick: self._tick,
        }

    def __repr__(self) -> str:
        state = self.desk.state
        rows = sum(len(p.rows) for p in state.partitions.values())
        return f"<Ledger incarnation={state.incarnation} rows={rows} sessions={len(state.sessions)}>"

    @property
    def incarnation(self) -> int:
        """The number of this life; 0 before ``begin_life``."""
        return self.desk.state.incarnation

    # -- recovery --

    def replay(self, entry: Entry, now: float) -> None:
        """Apply one journal entry of an earlier life. Entries come in order, before ``begin_life``."""
        books = self.desk.books
        books.clock = self._last = now
        books.replaying = True
        for fact in entry.facts:
            apply(books, fact)
        books.freed.clear()
        books.touched.clear()
        session = books.state.sessions.get(entry.session_id)
        if session is not None:
            if entry.seq and entry.reply is not None:
                session.replies.setdefault(entry.seq, entry.reply)
            books.forget_replies(session, entry.done_below)
        books.state.checkpoints = max(books.state.checkpoints, entry.checkpoint)

    def begin_life(self, incarnation: int, now: float, wall: float) -> list[AnyEffect]:
        """Start serving. Sessions of the earlier life may resume within ``resume_grace_s``."""
        desk = self.desk
        self._last = now
        desk.books.replaying = False
        desk.books.derive()
        desk.state.writes = {write.id: write for write in desk.state.writes.values() if write.live}
        desk.now = desk.books.clock = now
        desk.books.wall = wall
        if incarnation <= desk.state.incarnation:
            raise BadArgument(f"incarnation {incarnation} is not beyond {desk.state.incarnation}")
        for session in desk.state.sessions.values():
            session.connected = False
            session.heard = now
            session.due = now + desk.config.resume_grace_s
        base = incarnation if desk.config.durability == "memory" else desk.state.next_id + IDS_PER_LIFE
        desk.state.next_id = max(desk.state.next_id, base)
        desk.record([LifeBegan(incarnation, wall, desk.state.next_id, first=desk.state.first_life)])
        timers.restart(desk)
        return self._take()

    def live_blocks(self) -> list[BlockPlace]:
        """Where the blocks lie that rows still need, in the plane's own arenas."""
        writes = self.desk.state.writes.values()
        return [w.place for w in writes if w.place is not None and w.live and not w.hosted]

    @property
    def sessions(self) -> int:
        """Sessions that have not ended; those of an earlier life that may still come back included."""
        return len(self.desk.state.sessions)

    @property
    def live_bytes(self) -> int:
        """Payload bytes of all rows that lie in the plane's own arenas."""
        return sum(p.live_bytes - p.hosted_bytes for p in self.desk.state.partitions.values())

    def sparse_blocks(self) -> list[tuple[BlockPlace, list[int], list[int]]]:
        """Blocks in the plane's arenas less than half alive, with the rows to keep: as first put, as they lie in it."""
        return [
            (w.place, kept := w.alive(), kept if w.kept is None else [bisect_left(w.kept, i) for i in kept])
            for w in self.desk.state.writes.values()
            if w.place is not None and not w.hosted and 0 < 2 * w.live < (w.size if w.kept is None else len(w.kept))
        ]

    def checkpoint(self, rows_per_slice: int = 1000) -> Iterator[Entry]:
        """Restate what is alive; see ``ledger.checkpoint``."""
        return restate(self.desk, rows_per_slice)

    # -- serving --

    def handle(self, event: AnyEvent, now: float) -> list[AnyEffect]:
        """Decide. The effects are to be carried out in order."""
        self._advance(now)
        self._events[type(event)](event)
        self._serve()
        return self._take()

    def next_timer(self) -> float:
        """The shell's time at which the next ``Tick`` has something to judge; within ``TICK_S`` of the last event."""
        desk = self.desk
        soonest = [self._last + TICK_S]
        if desk.books.timers:
            soonest.append(desk.books.timers[0][0] + self._behind)
        soonest += desk.deadlines[:1]
        return min(soonest)

    def statistics(self) -> dict[str, int]:
        """Counts since the start of this life."""
        return dict(self.desk.counters)

    def check_invariants(self) -> None:
        """Recount everything that is kept up to date by events; for tests and the simulator."""
        check_invariants(self.desk)

    def _advance(self, now: float) -> None:
        gap = now - self._last
        if gap > STOPPED_S:
            self._behind += gap - TICK_S
            self.desk.counters["stopped"] += 1
        self._last = max(now, self._last)
        self.desk.now = self._last
        self.desk.books.clock = self._last - self._behind

    def _take(self) -> list[AnyEffect]:
        out, self.desk.out = self.desk.out, []
        return out

    def _serve(self) -> None:
        """Serve waiting calls, as long as serving one makes something ready for another."""
        desk = self.desk
        touched = desk.books.touched
        while touched:
            if desk.grants:
                capacity.serve_waiting(desk)
            name = next(iter(touched))
            del touched[name]
            claims.serve_waiting(desk, name)
        agents.serve_waiting(desk)

    def _asked(self, event: Asked) -> None:
        desk = self.desk
        session = desk.state.sessions.get(event.session_id)
        if session is None:
            error = DataPlaneUnavailable(f"session {event.session_id} has ended")
            desk.out.append(Answer(event.session_id, event.call_id, failed(error)))
            return
        desk.books.wall = event.wall
        sessions.heard(desk, session)
        sessions.settle(desk, session, event.done_below, event.abandoned)
        is_mutation = isinstance(event.body, MUTATIONS)
        try:
            if is_mutation != (event.seq > 0):
                raise BadArgument("mutations carry a sequence number, questions do not")
            if is_mutation and self._seen(session, event):
                return
            if len(session.replies) >= MAX_REPLIES:
                self._too_many_replies(event)
                return
            handler = HANDLERS.get(type(event.body))
            if handler is None:
                raise DataPlaneBadRequest(f"{type(event.body).__name__} is not for the ledger")
            handler(desk, session, event)
        except DataPlaneError as error:
            desk.refuse(event, error)

    def _seen(self, session: Session, event: Asked) -> bool:
        """A repeat gets the old reply, or takes the place of the call that still waits."""
        desk = self.desk
        if event.seq < session.done_below:
            raise BadArgument(f"sequence {event.seq} is below {session.done_below}, which the client said is done")
        waiter = session.waiting.get(event.seq)
        if waiter is not None:
            waiter.call_id = event.call_id
            waiter.deadline = event.deadline
            desk.wait_until(event.deadline)
            return True
        reply: ReplyBody | None = desk.session_reply(session, event.seq)
        if reply is None:
            return False
        desk.counters["calls.repeated"] += 1
        desk.out.append(Answer(session.id, event.call_id, reply))
        return True

    def _too_many_replies(self, event: Asked) -> None:
        """Refuse, and remember nothing of it."""
        text = f"{MAX_REPLIES} replies wait for the client to say that it has them (done below)"
        self.desk.counters["refused.replies"] += 1
        self.desk.out.append(Answer(event.session_id, event.call_id, failed(DataPlaneBadRequest(text))))

    def _heard(self, event: events.Heard) -> None:
        session = self.desk.state.sessions.get(event.session_id)
        if session is not None:
            sessions.heard(self.desk, session)
            sessions.settle(self.desk, session, event.done_below, event.abandoned)

    def _disconnected(self, event: events.Disconnected) -> None:
        session = self.desk.state.sessions.get(event.session_id)
        if session is not None:
            session.connected = False

    def _session_gone(self, event: events.SessionGone) -> None:
        session = self.desk.state.sessions.get(event.session_id)
        if session is not None:
            sessions.end(self.desk, session, event.why)

    def _allotted(self, event: events.Allotted) -> None:
        pending = self.desk.state.grants.get(event.grant)
        if pending is not None:
            pending.place = event.place

    def _withdrawn(self, event: events.Withdrawn) -> None:
        capacity.withdraw(self.desk, event.calls)
        agents.withdraw(self.desk, event.calls)

    def _tick(self, event: events.Tick) -> None:
        desk = self.desk
        desk.books.wall = event.wall
        for session in list(desk.state.sessions.values()):
            if session.due <= desk.books.clock:
                silent = desk.books.clock - session.heard
                sessions.end(desk, session, f"silent for {silent:.1f} s")
        timers.fire(desk)
        desk.books.forget_expired()
        if desk.deadlines and desk.deadlines[0] <= desk.now:
            claims.expire_waiting(desk)
            capacity.expire_waiting(desk)
            agents.expire_waiting(desk)
        while desk.deadlines and desk.deadlines[0] <= desk.now:
            heapq.heappop(desk.deadlines)
