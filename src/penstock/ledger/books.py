"""What a ledger remembers, and the moves that several facts share. Only the ``apply`` modules call these.

``clock`` is the ledger's own time in seconds (see ``machine``). ``freed`` collects blocks whose last row is gone;
``touched`` the partitions in which something may have become ready, or room was made.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable
from itertools import islice
from typing import TypeAlias

from penstock.config import PlaneConfig
from penstock.ledger import facts as f
from penstock.ledger.hosts import Host
from penstock.ledger.limits import HISTORY_EVENTS, HISTORY_KEYS
from penstock.ledger.readiness import rebuild, refresh_group, refresh_row, requeue_group
from penstock.ledger.state import Group, Lease, Partition, Row, Session, State, Tombstone
from penstock.ledger.writes import Write
from penstock.parts import BlockPlace, HostPlace

MANY_TIMERS = 4096  # timers beyond which those that nobody needs any more are dropped
Timer: TypeAlias = tuple[float, int, str, tuple[str, ...]]  # (when, order, kind, of what)


class Books:
    """State, and the shared moves."""

    def __init__(self, config: PlaneConfig) -> None:
        self.config = config
        self.state = State()
        self.clock = 0.0
        self.wall = 0.0
        self.replaying = False  # what follows from rows is derived once at its end
        self.freed: list[Write] = []
        self.touched: dict[str, None] = {}  # in order
        self.timers: list[Timer] = []
        self._timer_order = 0
        self._many_timers = MANY_TIMERS

    def partition(self, name: str) -> Partition:
        """The partition's record, made at first mention."""
        found = self.state.partitions.get(name)
        if found is None:
            found = self.state.partitions[name] = self.state.active[name] = Partition(name)
        return found

    def start_timer(self, after_s: float, kind: str, *what: str) -> None:
        """Have ``timers.fire`` look at something later. While replaying nothing is started: a life starts its own."""
        if self.replaying:
            return
        self._timer_order += 1
        heapq.heappush(self.timers, (self.clock + after_s, self._timer_order, kind, what))
        if len(self.timers) > self._many_timers:
            wanted = {(timer[0], *timer[2:]): timer for timer in self.timers if self._is_wanted(timer)}  # each once
            self.timers = list(wanted.values())
            heapq.heapify(self.timers)
            self._many_timers = max(MANY_TIMERS, 2 * len(self.timers))

    def _is_wanted(self, timer: Timer) -> bool:
        """Whether what the timer is about is still there, and waits for it: leases are acked, groups completed."""
        when, _, kind, what = timer
        if kind == "lease":
            lease = self.state.leases.get(what[0])
            return lease is not None and lease.until == when
        if kind in ("host", "loss"):
            host = self.state.hosts.get(int(what[0]))
            waits = host is not None and host.state == "silent" and host.until == when
            return waits if kind == "host" else host is not None and bool(host.losing)
        group = self.partition(what[0]).groups.get(what[1])
        return group is not None and not group.done

    def start_deadline(self, partition: Partition, group: Group) -> None:
        """The partition's policy bounds how long the group may stay undone."""
        policy = partition.request.policy
        if policy is not None and policy.deadline_s is not None and policy.on_deadline != "wait":
            self.start_timer(policy.deadline_s, "group", partition.name, group.gid)

    def start_grace(self, partition: Partition, group: Group) -> None:
        """Look at an undone group again once those who could still finish it, or take what is left, have had time."""
        stays_short = group.gone and any(queue.whole for queue in partition.queues)
        if stays_short or self.state.sessions.keys().isdisjoint(group.putters):
            self.start_timer(self.config.abandon_grace_s, "abandon", partition.name, group.gid)

    def touch(self, partition: str) -> None:
        """Something in the partition may have become ready, or room was made."""
        self.touched[partition] = None

    def note(self, partition: str, text: str, keys: Iterable[str] = ()) -> None:
        """Remember an event of this life for ``why``."""
        if self.replaying:
            return
        state, named = self.state, tuple(islice(keys, HISTORY_KEYS))
        state.history.append((self.wall, partition, text, named))
        state.history_keys += len(named)
        while len(state.history) > HISTORY_EVENTS or state.history_keys > HISTORY_KEYS:
            state.history_keys -= len(state.history.popleft()[3])

    def rows_of(self, partition: Partition, ids: list[int]) -> list[Row]:
        """The rows with these ids; replay may not have seen all of them yet."""
        return [row for row in map(partition.rows_by_id.get, ids) if row is not None]

    def write_of(self, fact: f.Put, partition: Partition) -> Write:
        for spec in fact.fields:
            partition.specs.setdefault(spec.name, spec)
            if spec.name not in partition.fields:
                partition.fields.append(spec.name)
        bits = partition.mask_of([spec.name for spec in fact.fields])
        write = Write(fact.write_id, fact.fields, bits, fact.tags, len(fact.keys))
        write.live = len(fact.keys)
        write.partition = fact.partition
        write.place, write.replica = fact.place, fact.replica
        if write.hosted:
            write.rows = array("Q", fact.ids or bytes(8 * len(fact.keys)))
        write.content = fact.content
        write.row_bytes = array("Q", fact.row_bytes)
        write.lengths = None if fact.lengths is None else array("Q", fact.lengths)
        write.session_id = fact.session_id
        write.wall = fact.wall
        self.state.writes[write.id] = write
        return write

    def host(self, host_id: int) -> Host:
        """The host's record, made at first mention."""
        found = self.state.hosts.get(host_id)
        if found is None:
            found = self.state.hosts[host_id] = Host(HostPlace(host_id, 0, "", "", []))
        return found

    def lay(self, write: Write, place: BlockPlace, replica: BlockPlace | None) -> None:
        """The block lies there, and nowhere else."""
        self.unlay(write)
        write.place, write.replica = place, replica
        self.note_places(write)

    def note_places(self, write: Write) -> None:
        """Hosts know what lies with them. While replaying nothing is noted: ``derive`` does it for what is left."""
        for place in write.places() if write.hosted and not self.replaying else ():
            self.host(place.host).holds(place)

    def unlay(self, write: Write) -> None:
        for place in write.places() if write.hosted and not self.replaying else ():
            self.host(place.host).lets_go(write.id)

    def account(self, partition: Partition, write: Write, nbytes: int) -> None:
        """The partition has so many bytes more in the write's block, or fewer."""
        partition.live_bytes += nbytes
        if write.hosted:
            partition.hosted_bytes += nbytes

    def bury(self, partition: Partition, write: Write, index: int) -> None:
        if write.place is not None:
            self.account(partition, write, -write.row_bytes[index])
        if write.bury(index):
            self.drop_write(write)

    def drop_write(self, write: Write) -> None:
        """Nothing of the write shows any more. Replay keeps it: a checkpoint's later slice may still name it."""
        if not self.replaying and self.state.writes.pop(write.id, None) is not None and write.place is not None:
            self.unlay(write)
            self.freed.append(write)

    def join(self, partition: Partition, row: Row) -> None:
        tag = row.tag("group_id")
        gid = row.key if tag is None else str(tag)
        group = row.group
        if group is not None:
            if group.gid == gid:
                return
            self.leave(partition, row)
        group = partition.groups.get(gid)
        if group is None:
            group = Group(self.state.next_group, gid, row.wall)
            self.state.next_group += 1
            group.first_bytes = row.bytes()
            partition.groups[gid] = group
            partition.groups_by_id[group.id] = group
            self.start_deadline(partition, group)
        group.rows[row.id] = row
        row.group = group
        partition.grouped += 1

    def leave(self, partition: Partition, row: Row) -> None:
        group = row.group
        if group is not None:
            row.group = None
            del group.rows[row.id]
            partition.grouped -= 1
            self.after_leaving(partition, group)

    def after_leaving(self, partition: Partition, group: Group) -> None:
        """The group has lost rows. What is left of it is not whole any more, and may have to be given up."""
        if not self.replaying or not group.rows:
            self.refresh(partition, group)
        if not group.rows:
            del partition.groups[group.gid]
            del partition.groups_by_id[group.id]
        elif not self.replaying and not group.done:
            self.start_grace(partition, group)

    def refresh(self, partition: Partition, group: Group) -> None:
        """The group's rows or tags have changed. One that is not done any more has its deadline anew."""
        was_done = group.done
        refresh_group(partition, group)
        if was_done and group.rows and not group.done:
            self.start_deadline(partition, group)
        self.note_unfinished(partition, group)

    def note_unfinished(self, partition: Partition, group: Group) -> None:
        """Sessions remember the groups that would be abandoned if they ended."""
        name = (partition.name, group.gid)
        for session_id in group.putters:
            session = self.state.sessions.get(session_id)
            if session is not None:
                if group.done or not group.rows:
                    session.unfinished.discard(name)
                else:
                    session.unfinished.add(name)

    def requeue(self, partition: Partition, rows: list[Row]) -> None:
        """The rows' holds have changed."""
        self.touch(partition.name)
        if self.replaying or not partition.queues:
            return
        groups: dict[int, Group] = {}
        for row in rows:
            refresh_row(partition, row)
            if row.group is not None:
                groups[row.group.id] = row.group
        for group in groups.values():
            requeue_group(partition, group)
        for queue in partition.queues:
            queue.trim(partition)

    def derive(self) -> None:
        """Replay only restates rows: bring up to date, in one pass, everything that follows from them."""
        for host in self.state.hosts.values():
            host.blocks.clear()
            host.nbytes = 0
        for write in self.state.writes.values():
            if write.live and write.hosted:
                for place in write.places():
                    self.host(place.host).holds(place)
        for partition in self.state.partitions.values():
            rebuild(partition)
            for group in partition.groups.values():
                self.note_unfinished(partition, group)

    def hold(self, lease: Lease, lease_s: float | None) -> None:
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

    def drop_if_empty(self, lease: Lease) -> None:
        if not lease.rows:
            self.state.leases.pop(lease.token, None)
            session = self.state.sessions.get(lease.session_id)
            if session is not None:
                session.leases.pop(lease.token, None)

    def next_clear(self) -> int:
        self.state.clears += 1
        return self.state.clears

    def grave_end(self) -> float:
        return self.clock + self.config.tombstone_s

    def remember(self, partition: Partition, key: str, stone: Tombstone) -> None:
        partition.tombstones[key] = stone
        partition.graves.append((stone.until, key))

    def forget_old_graves(self, partition: Partition) -> None:
        graves = partition.graves
        while graves and (graves[0][0] <= self.clock or len(graves) > self.config.max_tombstones):
            until, key = graves.popleft()
            stone = partition.tombstones.get(key)
            if stone is not None and stone.until == until:
                del partition.tombstones[key]

    @staticmethod
    def forget_replies(session: Session, done_below: int) -> None:
        """The client has taken every reply to a sequence below ``done_below``."""
        first, replies = session.done_below, session.replies
        if done_below > first:
            session.done_below = done_below
            taken = range(first, done_below) if done_below - first < len(replies) else list(replies)
            for seq in taken:
                if seq < done_below:
                    replies.pop(seq, None)

    def forget_expired(self) -> None:
        """Drop tombstones, of rows and of groups, whose horizon has passed."""
        limit = self.config.max_tombstones
        for partition in list(self.state.active.values()):
            self.forget_old_graves(partition)
            if partition.idle:
                del self.state.active[partition.name]
            closed = partition.closed_groups
            while closed and (closed[first := next(iter(closed))] <= self.clock or len(closed) > limit):
                del closed[first]
