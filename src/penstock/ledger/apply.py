"""The only code that changes durable state: what each fact means, the same when decided and when replayed.

Facts name rows by id. On replay a fact may name rows that are not known yet, because the segment that made them has
been dropped: it is skipped for those rows, whose whole state follows in the checkpoint.
``Books.freed`` collects blocks whose last row is gone; ``Books.touched`` what waiting calls may be waiting for.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterable
from typing import Any

from penstock.config import PlaneConfig
from penstock.ledger import facts as f
from penstock.ledger.leasing import Step, check_step
from penstock.ledger.readiness import open_queue, refresh_group, refresh_promise, refresh_row, requeue_group
from penstock.ledger.state import (
    GROUP_TAGS,
    Group,
    Lease,
    Partition,
    Row,
    Session,
    State,
    Task,
    Tombstone,
    Write,
)


class Books:
    """State, and the application of facts to it. ``clock`` is the ledger's own time in seconds (see ``machine``)."""

    def __init__(self, config: PlaneConfig) -> None:
        self.config = config
        self.state = State()
        self.clock = 0.0
        self.wall = 0.0
        self.freed: list[int] = []
        self.touched: set[str] = set()  # partitions in which something may have become ready, or room was made
        self.timers: list[tuple[float, int, str, tuple[str, ...]]] = []  # (when, order, kind, of what)
        self._timer_order = 0
        self._meanings: dict[type[f.Fact], Callable[[Any], None]] = {
            f.LifeBegan: self._life_began,
            f.SessionOpened: self._session_opened,
            f.SessionEnded: self._session_ended,
            f.Registered: self._registered,
            f.QueueOpened: self._queue_opened,
            f.Put: self._put,
            f.Leased: self._leased,
            f.Renewed: self._renewed,
            f.Returned: self._returned,
            f.Consumed: self._consumed,
            f.Removed: self._removed,
            f.GroupClosed: self._group_closed,
            f.PartialAllowed: self._partial_allowed,
            f.PartitionCleared: self._partition_cleared,
            f.Moved: self._moved,
            f.WriteIs: self._write_is,
            f.RowsAre: self._rows_are,
            f.TombstonesAre: self._tombstones_are,
            f.CountersAre: self._counters_are,
            f.RepliesAre: self._replies_are,
        }

    def apply(self, fact: f.AnyFact) -> None:
        """Change the state as ``fact`` says."""
        self._meanings[type(fact)](fact)

    def partition(self, name: str) -> Partition:
        """The partition's record, made at first mention."""
        found = self.state.partitions.get(name)
        if found is None:
            found = self.state.partitions[name] = Partition(name)
        return found

    def start_timer(self, after_s: float, kind: str, *what: str) -> None:
        self._timer_order += 1
        heapq.heappush(self.timers, (self.clock + after_s, self._timer_order, kind, what))

    def note(self, partition: str, text: str, keys: Iterable[str] = ()) -> None:
        """Remember an event for ``why``."""
        self.state.history.append((self.wall, partition, text, tuple(keys)))

    # -- lives, sessions, partitions --

    def _life_began(self, fact: f.LifeBegan) -> None:
        self.state.incarnation = max(self.state.incarnation, fact.incarnation)
        self.state.next_id = max(self.state.next_id, fact.next_id)

    def _session_opened(self, fact: f.SessionOpened) -> None:
        known = self.state.sessions.get(fact.session_id)
        if known is not None:  # a checkpoint restates it
            return
        session = Session(
            fact.session_id, fact.secret, fact.client_id, fact.owner, fact.role, fact.host, fact.pid
        )  # fmt: skip
        session.heard = self.clock
        session.due = self.clock + self.config.dead_after_s
        self.state.sessions[fact.session_id] = session

    def _session_ended(self, fact: f.SessionEnded) -> None:
        session = self.state.sessions.pop(fact.session_id, None)
        if session is None:
            return
        for partition, gid in sorted(session.unfinished):
            group = self.partition(partition).groups.get(gid)
            if group is not None and not any(s in self.state.sessions for s in group.putters):
                self.start_timer(self.config.abandon_grace_s, "abandon", partition, gid)
        self.note("", f"session of {session.who()} ended: {fact.why}")

    def _registered(self, fact: f.Registered) -> None:
        request = fact.request
        partition = self.partition(request.partition)
        partition.registered = True
        partition.request = request
        partition.fields = list(dict.fromkeys([*partition.fields, *request.fields]))
        for name in request.tasks:
            if name not in partition.tasks:
                partition.tasks[name] = Task(name, len(partition.tasks))
        for group in partition.groups.values():  # a changed group size changes what is complete
            refresh_group(partition, group)
        self.touched.add(partition.name)

    def _queue_opened(self, fact: f.QueueOpened) -> None:
        partition = self.partition(fact.partition)
        task = partition.tasks.get(fact.task)
        if task is not None:
            open_queue(partition, task, list(fact.required), fact.whole_groups)

    # -- puts --

    def _put(self, fact: f.Put) -> None:
        partition = self.partition(fact.partition)
        write = self._write_of(fact, partition)
        fresh = None if fact.fresh is None else set(fact.fresh)
        rows = partition.rows
        units = partition.units
        known: list[Row] = []
        for index, (key, row_id) in enumerate(zip(fact.keys, fact.ids, strict=True)):
            if row_id == 0:  # a row whose earlier put of the same bytes is all there is to say
                write.bury(index)
                continue
            if fresh is None or index in fresh:
                row = Row(row_id, key, fact.wall)
                rows[key] = row
                units[row_id] = row
                row.writes = (write, index)
                row.produced = write.field_bits
            else:
                unit = units.get(row_id)
                if unit is None:
                    self.state.unseen += 1
                    write.bury(index)
                    continue
                assert isinstance(unit, Row)
                row = unit
                self._supersede(partition, row, write, index)
            known.append(row)
        partition.put += len(fact.keys) if fresh is None else len(fresh)
        self.state.next_id = max(self.state.next_id, fact.write_id + 1, max(fact.ids, default=0) + 1)
        self._account_new(partition, write, known)
        if write.live == 0:
            self._drop_write(write)
        self._regroup(partition, write, known, fact.session_id)
        self.touched.add(partition.name)

    def _write_of(self, fact: f.Put, partition: Partition) -> Write:
        for spec in fact.fields:
            partition.specs.setdefault(spec.name, spec)
            if spec.name not in partition.fields:
                partition.fields.append(spec.name)
        bits = partition.mask_of([spec.name for spec in fact.fields])
        write = Write(fact.write_id, fact.fields, bits, fact.tags, len(fact.keys))
        write.live = len(fact.keys)
        write.place = fact.place
        write.content = fact.content
        write.row_bytes = array("Q", fact.row_bytes)
        write.lengths = None if fact.lengths is None else array("Q", fact.lengths)
        write.session_id = fact.session_id
        write.wall = fact.wall
        self.state.writes[write.id] = write
        return write

    @staticmethod
    def _account_new(partition: Partition, write: Write, known: list[Row]) -> None:
        if write.place is None:
            return
        if len(known) == write.size:
            partition.live_bytes += sum(write.row_bytes)
        else:
            partition.live_bytes += sum(write.row_bytes[i] for i in write.alive())

    def _supersede(self, partition: Partition, row: Row, write: Write, index: int) -> None:
        """Put ``write`` on top of the row's earlier ones and drop those of which nothing shows any more."""
        fields, names = write.field_bits, set(write.names)
        kept: list[Write | int] = [index, write]
        for older, at in row.pairs():
            if older.field_bits & ~fields or older.names - names:
                kept += (at, older)
                fields |= older.field_bits
                names |= older.names
            else:
                self._bury(partition, older, at)
        row.writes = tuple(reversed(kept))
        row.produced = fields

    def _bury(self, partition: Partition, write: Write, index: int) -> None:
        if write.place is not None:
            partition.live_bytes -= write.row_bytes[index]
        if write.bury(index):
            self._drop_write(write)

    def _drop_write(self, write: Write) -> None:
        if self.state.writes.pop(write.id, None) is not None and write.place is not None:
            self.freed.append(write.id)

    def _regroup(self, partition: Partition, write: Write, rows: list[Row], session_id: int) -> None:
        """Place the put's rows in their groups and in the queues."""
        self.touched.add(partition.name)
        grouped = bool(write.names & GROUP_TAGS)
        touched: dict[str, Group] = {}
        for row in rows:
            if grouped:
                self._join(partition, row)
            if row.group is not None:
                row.group.putters.add(session_id)
                touched[row.group.gid] = row.group
            refresh_row(partition, row)
        for group in touched.values():
            if grouped:
                refresh_group(partition, group)
            else:
                refresh_promise(partition, group)
                requeue_group(partition, group)
            self._note_unfinished(partition, group)

    def _note_unfinished(self, partition: Partition, group: Group) -> None:
        """Sessions remember the groups that would be abandoned if they ended."""
        name = (partition.name, group.gid)
        for session_id in group.putters:
            session = self.state.sessions.get(session_id)
            if session is not None:
                if group.done or not group.rows:
                    session.unfinished.discard(name)
                else:
                    session.unfinished.add(name)

    def _join(self, partition: Partition, row: Row) -> None:
        tag = row.tag("group_id")
        gid = row.key if tag is None else str(tag)
        group = row.group
        if group is not None:
            if group.gid == gid:
                return
            self._leave(partition, row)
        group = partition.groups.get(gid)
        if group is None:
            group = Group(self.state.next_id, gid, row.wall)
            self.state.next_id += 1
            group.first_bytes = row.bytes()
            partition.groups[gid] = group
            partition.units[group.id] = group
            policy = partition.request.policy
            if policy is not None and policy.deadline_s is not None and policy.on_deadline != "wait":
                self.start_timer(policy.deadline_s, "group", partition.name, gid)
        group.rows[row.id] = row
        row.group = group

    def _leave(self, partition: Partition, row: Row) -> None:
        group = row.group
        if group is not None:
            row.group = None
            del group.rows[row.id]
            self._after_leaving(partition, group)

    def _after_leaving(self, partition: Partition, group: Group) -> None:
        refresh_group(partition, group)
        self._note_unfinished(partition, group)
        if not group.rows:
            del partition.groups[group.gid]
            del partition.units[group.id]

    def _requeue(self, partition: Partition, rows: list[Row]) -> None:
        """The rows' holds have changed."""
        self.touched.add(partition.name)
        if not partition.queues:
            return
        groups: dict[int, Group] = {}
        for row in rows:
            refresh_row(partition, row)
            if row.group is not None:
                groups[row.group.id] = row.group
        for group in groups.values():
            requeue_group(partition, group)

    # -- leases --

    def _rows(self, partition: Partition, ids: list[int]) -> list[Row]:
        rows = []
        for row_id in ids:
            row = partition.units.get(row_id)
            if isinstance(row, Row):
                rows.append(row)
            else:
                self.state.unseen += 1
        return rows

    def _leased(self, fact: f.Leased) -> None:
        partition = self.partition(fact.partition)
        task = partition.tasks[fact.task]
        lease = self.state.leases.get(fact.token)
        if lease is None:
            lease = Lease(fact.token, fact.partition, fact.task, fact.session_id, fact.seq)
            lease.whole_groups = fact.whole_groups
        rows = self._rows(partition, fact.ids)
        for row in rows:
            if task.held.get(row.id) is lease:
                continue  # a checkpoint restates it
            check_step(row, task, Step.CLAIM)
            task.held[row.id] = lease
            task.lapsed.pop(row.id, None)
            lease.rows[row.id] = row
        self.state.next_token = max(self.state.next_token, int(fact.token.rpartition("-")[2]) + 1)
        self._hold(lease, fact.lease_s)
        session = self.state.sessions.get(fact.session_id)
        if session is not None and fact.seq >= max(session.done_below, 1):
            session.replies[fact.seq] = lease
        self._requeue(partition, rows)

    def _hold(self, lease: Lease, lease_s: float | None) -> None:
        """Register the lease and start its expiry."""
        lease.lease_s = lease_s
        lease.until = None
        self.state.leases[lease.token] = lease
        session = self.state.sessions.get(lease.session_id)
        if session is not None:
            session.leases[lease.token] = lease
        if lease_s is not None:
            lease.until = self.clock + lease_s
            self.start_timer(lease_s, "lease", lease.token)

    def _drop_if_empty(self, lease: Lease) -> None:
        if not lease.rows:
            self.state.leases.pop(lease.token, None)
            session = self.state.sessions.get(lease.session_id)
            if session is not None:
                session.leases.pop(lease.token, None)

    def _renewed(self, fact: f.Renewed) -> None:
        partition = self.partition(fact.partition)
        task = partition.tasks[fact.task]
        rows = self._rows(partition, fact.ids)
        renewed: dict[str, Lease] = {}
        for row in rows:
            check_step(row, task, Step.RENEW)
            token = task.token_of(row.id)
            lease = self.state.leases.get(token) or renewed.get(token)
            if lease is None:
                lease = Lease(token, partition.name, task.name, fact.session_id, 0)
            renewed[token] = lease
            lease.rows[row.id] = row
            task.held[row.id] = lease
            task.lapsed.pop(row.id, None)
        for lease in renewed.values():
            previous = self.state.sessions.get(lease.session_id)
            if previous is not None:
                previous.leases.pop(lease.token, None)
            lease.session_id = fact.session_id  # it belongs to whoever renews it with its token
            self._hold(lease, fact.lease_s)
        self._requeue(partition, rows)

    def _returned(self, fact: f.Returned) -> None:
        partition = self.partition(fact.partition)
        task = partition.tasks[fact.task]
        rows = self._rows(partition, fact.ids)
        for row in rows:
            check_step(row, task, Step.RETURN)
            lease = task.held.pop(row.id)
            lease.rows.pop(row.id, None)
            task.lapsed[row.id] = (lease.token, not fact.counted)
            if fact.counted:
                task.deliveries[row.id] = task.deliveries.get(row.id, 0) + 1
            self._drop_if_empty(lease)
        self._requeue(partition, rows)
        self.note(partition.name, f"{len(rows)} rows leased for {task.name!r} returned: {fact.why}", _keys(rows))

    def _consumed(self, fact: f.Consumed) -> None:
        partition = self.partition(fact.partition)
        task = partition.tasks[fact.task]
        rows = self._rows(partition, fact.ids)
        for row in rows:
            check_step(row, task, Step.CONSUME)
            task.ended[row.id] = task.token_of(row.id)
            lease = task.held.pop(row.id, None)
            if lease is not None:
                lease.rows.pop(row.id, None)
                self._drop_if_empty(lease)
            task.lapsed.pop(row.id, None)
            row.consumed |= task.bit
            task.consumed += 1
        self._requeue(partition, rows)

    # -- removal --

    def _removed(self, fact: f.Removed) -> None:
        partition = self.partition(fact.partition)
        rows = self._rows(partition, fact.ids)
        at = self._next_clear() if fact.reason == "cleared" else 0
        groups: dict[int, Group] = {}
        for row in rows:
            if row.group is not None:
                groups[row.group.id] = row.group
            self._remove_row(partition, row, fact.reason, at)
        self._count_removed(partition, fact.reason, fact.detail, len(rows))
        for group in groups.values():
            self._after_leaving(partition, group)
        for queue in partition.queues:
            queue.trim(partition.units)
        self._forget_old_graves(partition)
        self.touched.add(partition.name)
        if fact.reason != "trained":
            self.note(partition.name, f"{len(rows)} rows {fact.reason} {fact.detail}".rstrip(), _keys(rows))

    def _next_clear(self) -> int:
        self.state.clears += 1
        return self.state.clears

    def _remove_row(self, partition: Partition, row: Row, reason: str, at: int) -> None:
        token = partition.final_task.token_of(row.id) if partition.tasks else ""
        if reason == "trained":
            partition.finished_rows += 1
            partition.finished_bytes += row.bytes()
        contents = tuple((write.content, index) for write, index in row.pairs() if write.place is not None)
        for write, index in row.pairs():
            self._bury(partition, write, index)
        del partition.rows[row.key]
        del partition.units[row.id]
        for queue in partition.queues:
            if row.queued & queue.bit:
                queue.count -= 1
        row.queued = 0
        for task in partition.tasks.values():
            lease = task.held.get(row.id)
            task.consumed -= bool(row.consumed & task.bit)
            task.forget(row.id)
            if lease is not None:
                self._drop_if_empty(lease)
        if row.group is not None:
            del row.group.rows[row.id]
            row.group = None
        self._bury_key(partition, row.key, Tombstone(reason, token, contents, at, self._grave_end()))

    def _grave_end(self) -> float:
        return self.clock + self.config.tombstone_s

    def _bury_key(self, partition: Partition, key: str, stone: Tombstone) -> None:
        partition.tombstones[key] = stone
        partition.graves.append((stone.until, key))

    def _forget_old_graves(self, partition: Partition) -> None:
        graves = partition.graves
        while graves and (graves[0][0] <= self.clock or len(graves) > self.config.max_tombstones):
            until, key = graves.popleft()
            stone = partition.tombstones.get(key)
            if stone is not None and stone.until == until:
                del partition.tombstones[key]

    @staticmethod
    def forget_replies(session: Session, done_below: int) -> None:
        """The client has taken every reply to a sequence below ``done_below``."""
        if done_below > session.done_below:
            session.done_below = done_below
            for seq in [seq for seq in session.replies if seq < done_below]:
                del session.replies[seq]

    def forget_expired(self) -> None:
        """Drop tombstones, of rows and of groups, whose horizon has passed."""
        for partition in self.state.partitions.values():
            self._forget_old_graves(partition)
            for gid in [g for g, until in partition.closed_groups.items() if until <= self.clock]:
                del partition.closed_groups[gid]

    @staticmethod
    def _count_removed(partition: Partition, reason: str, detail: str, number: int) -> None:
        if reason == "trained":
            partition.trained += number
        elif reason == "cleared":
            partition.cleared += number
        elif reason == "quarantined":
            partition.quarantined += number
        else:
            counts = partition.evicted if reason == "evicted" else partition.lost
            counts[detail] = counts.get(detail, 0) + number

    def _group_closed(self, fact: f.GroupClosed) -> None:
        partition = self.partition(fact.partition)
        partition.closed_groups[fact.group] = self._grave_end()

    def _partial_allowed(self, fact: f.PartialAllowed) -> None:
        partition = self.partition(fact.partition)
        group = partition.groups.get(fact.group)
        if group is not None:
            group.partial = True
            refresh_group(partition, group)
            self.touched.add(partition.name)

    def _partition_cleared(self, fact: f.PartitionCleared) -> None:
        partition = self.partition(fact.partition)
        rows = list(partition.rows.values())
        at = partition.cleared_at = self._next_clear()
        for row in rows:
            self._remove_row(partition, row, "cleared", at)
        for group in partition.groups.values():
            self._note_unfinished(partition, group)
        partition.cleared += len(rows)
        partition.unregister()
        self.touched.add(partition.name)
        self.note(partition.name, f"cleared whole: {len(rows)} rows")

    def _moved(self, fact: f.Moved) -> None:
        write = self.state.writes.get(fact.place.block_id)
        if write is not None:
            write.place = fact.place
            if fact.kept is not None:
                write.kept = list(fact.kept)

    # -- checkpoints --

    def _write_is(self, fact: f.WriteIs) -> None:
        if fact.put.write_id in self.state.writes:
            return
        partition = self.partition(fact.put.partition)
        write = self._write_of(fact.put, partition)
        write.kept = fact.kept
        write.dead = bytearray(b"\x01" * write.size)
        write.live = 0
        self.state.next_id = max(self.state.next_id, write.id + 1)

    def _rows_are(self, fact: f.RowsAre) -> None:
        partition = self.partition(fact.partition)
        rows = [row for row in (self._row_is(partition, state) for state in fact.rows) if row is not None]
        groups: dict[int, Group] = {}
        for row in rows:
            if row_is_tagged(row):
                self._join(partition, row)
            if row.group is not None:
                row.group.putters.update(write.session_id for write, _ in row.pairs())
                groups[row.group.id] = row.group
            refresh_row(partition, row)
        for group in groups.values():
            refresh_group(partition, group)
            self._note_unfinished(partition, group)

    def _row_is(self, partition: Partition, state: f.RowIs) -> Row | None:
        if state.id in partition.units:
            return None  # known from a put that is still in the journal
        row = Row(state.id, state.key, state.wall)
        partition.rows[row.key] = row
        partition.units[row.id] = row
        pairs: list[Write | int] = []
        for write_id, index in state.writes:
            write = self.state.writes[write_id]
            if write.dead is not None and write.dead[index]:
                write.dead[index] = 0
                write.live += 1
                if write.place is not None:
                    partition.live_bytes += write.row_bytes[index]
            pairs += (write, index)
            row.produced |= write.field_bits
        row.writes = tuple(pairs)
        self._task_state(partition, row, state)
        self.state.next_id = max(self.state.next_id, row.id + 1)
        return row

    @staticmethod
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

    def _tombstones_are(self, fact: f.TombstonesAre) -> None:
        partition = self.partition(fact.partition)
        for stone in fact.rows:
            if stone.key not in partition.tombstones and stone.key not in partition.rows:
                contents = tuple((content, index) for content, index in stone.contents)
                until = self.clock + stone.left_s
                self._bury_key(partition, stone.key, Tombstone(stone.reason, stone.token, contents, stone.at, until))
            self.state.clears = max(self.state.clears, stone.at)
        for gid, left_s in fact.groups:
            partition.closed_groups.setdefault(gid, self.clock + left_s)

    def _counters_are(self, fact: f.CountersAre) -> None:
        partition = self.partition(fact.partition)
        partition.registered = fact.registered
        partition.put, partition.trained, partition.cleared = fact.put, fact.trained, fact.cleared
        partition.quarantined = fact.quarantined
        partition.evicted, partition.lost = dict(fact.evicted), dict(fact.lost)
        partition.finished_bytes, partition.finished_rows = fact.finished_bytes, fact.finished_rows
        partition.cleared_at = fact.cleared_at
        self.state.clears = max(self.state.clears, fact.cleared_at)

    def _replies_are(self, fact: f.RepliesAre) -> None:
        session = self.state.sessions.get(fact.session_id)
        if session is not None:
            for seq, reply in fact.replies:
                session.replies.setdefault(seq, reply)
            self.forget_replies(session, fact.done_below)


def row_is_tagged(row: Row) -> bool:
    """Whether the row belongs to a declared group (as opposed to a row nobody tagged)."""
    return any(write.names & GROUP_TAGS for write, _ in row.pairs())


def _keys(rows: Iterable[Row]) -> list[str]:
    return [row.key for row in rows]
