"""Where decisions are written down: facts are applied and journaled, effects collected, replies remembered.

Invariant: a decision is one ``Persist`` followed by what depends on it; a reply to a mutation is remembered until the
client says that it has it, so that a repeat gets the same reply and has no second effect.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneError, UnknownName, code_of
from penstock.ledger.apply import apply
from penstock.ledger.books import Books
from penstock.ledger.events import Answer, AnyEffect, Asked, FreeBlock, Persist
from penstock.ledger.facts import AnyFact, Entry
from penstock.ledger.hosts import Order
from penstock.ledger.state import Group, Lease, Partition, Session, State, Task, Waiter
from penstock.records import as_int
from penstock.requests import Claimed, Failed, ReplyBody

MANY_DEADLINES = 4096  # beyond which those of calls that were served are dropped


class Desk:
    """The working surface of one ledger: its books, the present moment, and what is to be done."""

    def __init__(self, config: PlaneConfig) -> None:
        self.config = config
        self.books = Books(config)
        self.now = 0.0  # the shell's clock
        self.out: list[AnyEffect] = []
        self.claims: dict[str, list[Waiter]] = {}  # waiting claims by partition, in order of arrival
        self.grants: list[Waiter] = []  # waiting grants, in order of arrival
        self.refused: dict[str, Waiter] = {}  # by partition, the last put that found no room before its deadline
        self.counters: Counter[str] = Counter()
        self.deadlines: list[float] = []  # a heap: those of waiting calls; one that was served stays until it passes
        self._many_deadlines = MANY_DEADLINES

    @property
    def state(self) -> State:
        return self.books.state

    @property
    def plane(self) -> int:
        """What this plane is called by agents; 0 = they need not remember it: it will not remember their blocks."""
        return 0 if self.config.durability == "memory" else self.state.first_life

    def record(self, facts: list[AnyFact], asked: Asked | Waiter | None = None, reply: ReplyBody | None = None) -> None:
        """Apply ``facts`` and journal them with the reply (a claim's is rebuilt from its lease)."""
        for fact in facts:
            apply(self.books, fact)
        session = self.state.sessions.get(asked.session_id) if asked is not None else None
        self.out.append(
            Persist(
                Entry(
                    facts=facts,
                    session_id=session.id if session else 0,
                    seq=asked.seq if asked is not None and session else 0,
                    done_below=session.done_below if session else 0,
                    reply=reply,
                )
            )
        )
        for write in self.books.freed:
            if not write.hosted:
                self.out.append(FreeBlock(write.id))
            for place in write.places() if write.hosted else ():
                self.order("free", write.id, place.host)
        self.books.freed.clear()

    def order(self, what: Order, block_id: int, host_id: int) -> None:
        """Have a host's agent do something, if it is up; when it comes back it hears of everything anyway."""
        host = self.state.hosts.get(host_id)
        if host is not None and host.order(what, block_id):
            self.state.ordered[host_id] = None

    def conclude(self, facts: list[AnyFact], asked: Asked, reply: ReplyBody) -> None:
        """Record a mutation that took effect, and answer it."""
        self.record(facts, asked, reply)
        self.answer(asked, reply)

    def answer(self, asked: Asked | Waiter, reply: ReplyBody) -> None:
        """Send ``reply``, and remember it if the call was a mutation."""
        session = self.state.sessions.get(asked.session_id)
        if session is not None and asked.seq:
            session.waiting.pop(asked.seq, None)
            session.replies.setdefault(asked.seq, reply)
        self.out.append(Answer(asked.session_id, asked.call_id, reply))

    def refuse(self, asked: Asked | Waiter, error: DataPlaneError) -> None:
        """Answer with ``error``. Nothing has changed."""
        self.counters[f"refused.{type(error).__name__}"] += 1
        self.answer(asked, failed(error))

    def registered(self, name: str) -> Partition:
        """The partition, or ``UnknownName``."""
        partition = self.state.partitions.get(name)
        if partition is None or not partition.registered:
            known = sorted(p.name for p in self.state.partitions.values() if p.registered)
            raise UnknownName(f"unknown partition {name!r}; registered are {known}", partition=name, missing=[name])
        return partition

    def task_of(self, partition: Partition, name: str) -> Task:
        """The task, or ``UnknownName``."""
        task = partition.tasks.get(name)
        if task is None:
            raise UnknownName(
                f"unknown task {name!r} of partition {partition.name!r}; declared are {list(partition.tasks)}",
                partition=partition.name,
                missing=[name],
            )
        return task

    def wait_until(self, deadline: float) -> None:
        """A call waits: the shell must look again at its deadline."""
        heapq.heappush(self.deadlines, deadline)
        if len(self.deadlines) > self._many_deadlines:
            waiting = [w for of_partition in self.claims.values() for w in of_partition] + self.grants
            agents = [host.report.until for host in self.state.hosts.values() if host.report is not None]
            self.deadlines = sorted({w.deadline for w in waiting} | set(agents))
            self._many_deadlines = max(MANY_DEADLINES, 2 * len(self.deadlines))

    def new_ids(self, count: int) -> range:
        """Take ``count`` fresh ids."""
        first = self.state.next_id
        self.state.next_id += count
        return range(first, first + count)

    def new_token(self) -> str:
        """A fresh lease token: (incarnation, counter)."""
        token = f"{self.state.incarnation}-{self.state.next_token}"
        self.state.next_token += 1
        return token

    def session_reply(self, session: Session, seq: int) -> ReplyBody | None:
        """The remembered reply to a mutation, a claim's rebuilt from its lease; None = not decided yet."""
        reply = session.replies.get(seq)
        return claimed(self.state, reply) if isinstance(reply, Lease) else reply


def failed(error: DataPlaneError) -> Failed:
    """Put ``error`` on the wire."""
    return Failed(
        code_of(error), error.message, error.partition, list(error.keys), list(error.missing), error.elapsed_s
    )


def claimed(state: State, lease: Lease) -> Claimed:
    """What a claim got: the rows that its lease still holds, oldest first.

    Their tags say ``partial`` of a group that is handed out as it is, and ``deliveries`` of rows that came back: which
    delivery this is, 2 after one that failed.
    """
    partition = state.partitions.get(lease.partition)
    rows = list(lease.rows.values())
    if partition is None or not rows:
        return Claimed("", [], [], None)
    failed_before = partition.tasks[lease.task].deliveries
    tags = []
    lengths: list[int] = []
    measured = False
    for row in rows:
        tag = row.tags()
        if row.group is not None and row.group.partial and _is_part(lease, row.group):
            tag["partial"] = True
        if row.id in failed_before:
            tag["deliveries"] = failed_before[row.id] + 1
        length = as_int(tag.get("input_lengths")) if "input_lengths" in tag else None
        if length is None:
            length = row.length()
        measured |= length is not None
        lengths.append(length or 0)
        tags.append(tag)
    return Claimed(lease.token, [row.key for row in rows], tags, lengths if measured else None)


def _is_part(lease: Lease, group: Group) -> bool:
    """Whether a whole-group claim got some rows of a group that was allowed to be handed out as it is."""
    return lease.whole_groups and not (group.done and group.rows.keys() <= lease.rows.keys())


def unique(keys: Sequence[str]) -> bool:
    return len(set(keys)) == len(keys)
