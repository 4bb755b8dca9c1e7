"""A ledger under test: asks it things in one line each, keeps its journal, recounts its invariants after each event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from penstock.config import PlaneConfig
from penstock.ledger import events as ev
from penstock.ledger.facts import Entry
from penstock.ledger.machine import Ledger
from penstock.records import GroupPolicy
from penstock.requests import (
    MUTATIONS,
    Ack,
    Audit,
    AuditReport,
    BlockPlace,
    Claim,
    Claimed,
    Clear,
    Commit,
    Done,
    Evict,
    Failed,
    FieldSpec,
    Grant,
    GrantAgain,
    OpenSession,
    PartitionAudit,
    Pop,
    PutTags,
    RegisterPartition,
    Release,
    Renew,
    ReplyBody,
    TagColumn,
    Tokens,
)
from penstock.testing.sim.recovery import differences

WALL = 1_000_000.0


def tokens(*lease: str) -> Tokens:
    return Tokens(list(lease), [])


def group_tags(gid: str, expected: int, committed: bool = True) -> list[TagColumn]:
    return [
        TagColumn("group_id", [gid]),
        TagColumn("expected_num_keys", [expected]),
        TagColumn("committed", [committed]),
    ]


class Office:
    """One ledger, its journal, and the sessions opened on it."""

    def __init__(self, **config: Any) -> None:
        self.config = PlaneConfig(**config)
        self.now = 100.0
        self.journal: list[Entry] = []
        self.answers: dict[int, list[ReplyBody]] = {}  # call id -> replies
        self.freed: list[int] = []
        self.filled: list[int] = []
        self.dropped: list[int] = []
        self.unassigned: list[int] = []
        self.ended: list[int] = []
        self.resolved: list[ev.Resolve] = []
        self._calls = 0
        self._seqs: dict[int, int] = {}
        self._incarnation = 1
        self.ledger = Ledger(self.config)
        self._carry_out(self.ledger.begin_life(1, self.now, WALL))

    def _carry_out(self, effects: Sequence[ev.AnyEffect]) -> None:
        for effect in effects:
            if isinstance(effect, ev.Persist):
                self.journal.append(effect.entry)
            elif isinstance(effect, ev.Answer):
                self.answers.setdefault(effect.call_id, []).append(effect.body)
            elif isinstance(effect, ev.Allot):
                place = BlockPlace(effect.grant, 1, effect.grant * 4096, effect.nbytes, 1)
                self.event(ev.Allotted(effect.grant, place))
                self.answers.setdefault(effect.call_id, []).append(Failed("granted", str(effect.grant)))
            elif isinstance(effect, ev.Assign):
                self.answers.setdefault(effect.call_id, []).append(effect.granted)
            elif isinstance(effect, ev.Unassign):
                self.unassigned.append(effect.grant)
            elif isinstance(effect, ev.FreeBlock):
                self.freed.append(effect.block_id)
            elif isinstance(effect, ev.Fill):
                self.filled.append(effect.block_id)
            elif isinstance(effect, ev.DropGrant):
                self.dropped.append(effect.grant)
            elif isinstance(effect, ev.EndSession):
                self.ended.append(effect.session_id)
            elif isinstance(effect, ev.Resolve):
                self.resolved.append(effect)

    def event(self, event: ev.AnyEvent) -> None:
        self._carry_out(self.ledger.handle(event, self.now))
        self.ledger.check_invariants()

    def open(self, session_id: int = 1, client_id: int | None = None) -> int:
        request = OpenSession(1, client_id or session_id, f"owner{session_id}", "test", "host", session_id)
        self.event(ev.SessionOpens(session_id, f"secret{session_id}", 0, request, WALL))
        self._seqs.setdefault(session_id, 0)
        return session_id

    def post(
        self,
        session: int,
        body: Any,
        timeout_s: float = 5.0,
        seq: int | None = None,
        done_below: int = 0,
        abandoned: Sequence[int] = (),
    ) -> int:
        """Send a call; return its id."""
        self._calls += 1
        call = self._calls
        if seq is None:
            seq = 0
            if isinstance(body, MUTATIONS):
                seq = self._seqs[session] = self._seqs[session] + 1
        self.event(
            ev.Asked(session, call, seq, done_below, list(abandoned), self.now + timeout_s, body, WALL + self.now)
        )
        return call

    def reply(self, call: int) -> ReplyBody | None:
        """The one reply to a call so far."""
        replies = self.answers.get(call, [])
        assert len(replies) <= 1, replies
        return replies[0] if replies else None

    def ask(self, session: int, body: Any, **how: Any) -> ReplyBody:
        reply = self.reply(self.post(session, body, **how))
        assert reply is not None, f"{body} is not answered"
        return reply

    def fails(self, session: int, body: Any, code: str, **how: Any) -> Failed:
        reply = self.ask(session, body, **how)
        assert isinstance(reply, Failed), reply
        assert reply.code == code, reply
        return reply

    def done(self, session: int, body: Any, **how: Any) -> None:
        assert self.ask(session, body, **how) == Done()

    def later(self, seconds: float) -> None:
        """Let time pass in ticks of at most half a second."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.event(ev.Tick(WALL + self.now))

    # -- sentences --

    def register(self, session: int = 1, name: str = "p", tasks: Sequence[str] = ("train",), **more: Any) -> None:
        policy: GroupPolicy | None = more.pop("policy", None)
        self.done(session, RegisterPartition(name, ["x"], 8, list(tasks), policy=policy, **more))

    def grant(
        self,
        session: int,
        keys: Sequence[str],
        fields: Sequence[str] = ("x",),
        tags: Sequence[TagColumn] = (),
        row_bytes: int = 100,
        partition: str = "p",
        dtype: str = "int64",
        **how: Any,
    ) -> int:
        """Ask for room; return the call."""
        body = Grant(
            partition,
            list(keys),
            [FieldSpec(name, dtype, 1) for name in fields],
            list(tags),
            row_bytes * len(keys) + 64,
            [row_bytes] * len(keys),
            [3] * len(keys),
        )
        return self.post(session, body, **how)

    def granted(self, call: int) -> int | None:
        """The grant that a call got."""
        reply = self.reply(call)
        return int(reply.message) if isinstance(reply, Failed) and reply.code == "granted" else None

    def put(self, session: int, keys: Sequence[str], content: int | None = None, **how: Any) -> ReplyBody:
        """Grant and commit; return the reply that ends it."""
        call = self.grant(session, keys, **how)
        grant = self.granted(call)
        if grant is None:
            reply = self.reply(call)
            assert reply is not None, "the put waits"
            return reply
        made = hash((tuple(keys), tuple(how.get("fields", ())))) & 0xFFFF_FFFF
        return self.ask(session, Commit(grant, made if content is None else content))

    def put_done(self, session: int, keys: Sequence[str], **how: Any) -> None:
        reply = self.put(session, keys, **how)
        assert reply == Done(), reply

    def tag(self, session: int, keys: Sequence[str], **tags: Any) -> ReplyBody:
        return self.ask(session, PutTags("p", list(keys), [TagColumn(name, [value]) for name, value in tags.items()]))

    def claim(
        self, session: int, batch: int = 8, task: str = "train", required: Sequence[str] = ("x",), **more: Any
    ) -> Claimed:
        """A claim that does not wait."""
        reply = self.ask(session, Claim("p", task, list(required), batch, blocking=False, **more))
        assert isinstance(reply, Claimed), reply
        return reply

    def waiting_claim(
        self, session: int, batch: int = 8, task: str = "train", timeout_s: float = 5.0, **more: Any
    ) -> int:
        """A claim that waits; return its call."""
        return self.post(session, Claim("p", task, ["x"], batch, **more), timeout_s=timeout_s)

    def claimed(self, call: int) -> Claimed | None:
        reply = self.reply(call)
        assert reply is None or isinstance(reply, Claimed), reply
        return reply

    def ack(self, session: int, keys: Sequence[str], *lease: str, task: str = "train") -> ReplyBody:
        return self.ask(session, Ack("p", task, list(keys), tokens(*lease)))

    def release(self, session: int, keys: Sequence[str], *lease: str, task: str = "train") -> ReplyBody:
        return self.ask(session, Release("p", task, list(keys), tokens(*lease)))

    def renew(self, session: int, keys: Sequence[str], *lease: str, lease_s: float | None = None) -> ReplyBody:
        return self.ask(session, Renew("p", "train", list(keys), tokens(*lease), lease_s))

    def pop(self, session: int, keys: Sequence[str], *lease: str) -> ReplyBody:
        return self.ask(session, Pop("p", list(keys), tokens(*lease)))

    def evict(self, session: int, keys: Sequence[str], reason: str = "stale") -> ReplyBody:
        return self.ask(session, Evict("p", list(keys), reason))

    def clear(self, session: int, keys: Sequence[str] | None) -> ReplyBody:
        return self.ask(session, Clear("p", None if keys is None else list(keys)))

    def audit(self, name: str = "p") -> PartitionAudit:
        session = next(reversed(self.ledger.desk.state.sessions))
        report = self.ask(session, Audit(name))
        assert isinstance(report, AuditReport)
        assert report.residue == 0
        return report.partitions[0]

    # -- lives --

    def crash(self, entries: Sequence[Entry] | None = None) -> None:
        """kill -9 and restart: a new ledger from the journal (or from ``entries`` in its place)."""
        self.journal = list(self.journal if entries is None else entries)
        live, self.ledger = self.ledger, Ledger(self.config)
        for entry in self.journal:
            self.ledger.replay(entry, self.now)
        assert not differences(live, self.ledger)
        self._incarnation += 1
        self._carry_out(self.ledger.begin_life(self._incarnation, self.now, WALL + self.now))
        self.ledger.check_invariants()

    def resume(self, session: int, secret: str | None = None) -> ReplyBody:
        self._calls += 1
        self.event(ev.SessionResumes(session, secret or f"secret{session}", self._calls))
        reply = self.reply(self._calls)
        assert reply is not None
        return reply


AGAIN = GrantAgain()
