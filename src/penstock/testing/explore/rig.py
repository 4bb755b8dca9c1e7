"""Drives the real ledger and the model side by side, one action at a time, and says where they part.

Actions are plain tuples, so that a path can be printed, hashed and run again.

Checked after each action: the reply is the predicted one; a refusal and a repeat change nothing; rows, holders and
tombstones are the model's; the ledger's own invariants hold; a ledger that replays the journal, or a checkpoint, is
equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.config import PlaneConfig
from penstock.ledger import events as ev
from penstock.ledger.facts import Entry
from penstock.ledger.machine import Ledger
from penstock.requests import (
    Ack,
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
    Pop,
    RegisterPartition,
    Release,
    Renew,
    ReplyBody,
    Request,
    Tokens,
)
from penstock.testing.explore.model import Model
from penstock.testing.explore.shell import Action, Client, Disagreement, LedgerFactory, Sent, Shell
from penstock.testing.sim.recovery import differences, owed, state_of

__all__ = ["Rig", "Shape"]

_PARTITION = "p"
_LEASE_S = 0.5  # of client A's claims; B's are bounded by its session alone
_TICK_S = 0.9  # longer than a lease, shorter than what the ledger takes for a stop of the plane
_CODES = {"LeaseLost": "lease_lost", "RowRemoved": "row_removed", "UnknownName": "unknown"}
_CONTENTS = (11, 22)


@dataclass(frozen=True, slots=True)
class Shape:
    """A small configuration: rows, tasks (the last is final), and how many failed deliveries a row may have."""

    name: str
    rows: int
    tasks: tuple[str, ...]
    max_deliveries: int
    depth: int
    start: tuple[Action, ...] = (("put", 0),)
    slow_puts: bool = False  # B's puts are granted in one step and committed in another; rows are cleared, too

    def rig(self, make_ledger: LedgerFactory) -> Rig:
        return Rig(self, make_ledger)


@dataclass(slots=True)
class _Pending:
    """A put of B between its grant and its commit. ``cleared``: rows cleared meanwhile; ``forgotten``: by a crash."""

    block: int
    which: int
    cleared: set[str] = field(default_factory=set)
    forgotten: bool = False


class Rig:
    """One path through the state space."""

    def __init__(self, shape: Shape, make_ledger: LedgerFactory = Ledger) -> None:
        self.shape = shape
        self.keys = [f"k{i}" for i in range(shape.rows)]
        self.model = Model(shape.tasks, shape.max_deliveries)
        config = PlaneConfig(dead_after_s=1e6, resume_grace_s=1e6, max_deliveries=shape.max_deliveries)
        self._shell = Shell(config, make_ledger)
        self._checked = True
        self._action: Action = ()
        self._pending: _Pending | None = None
        self._clients = {name: Client(name, number) for number, name in enumerate("AB", 1)}
        for client in self._clients.values():
            self._shell.open(client)
        self._register()

    @property
    def ledger(self) -> Ledger:
        return self._shell.ledger

    # -- what may happen next -----------------------------------------------------------------------------------------

    def enabled(self) -> list[Action]:
        """Every action that means something here, one for each class of alike ones."""
        actions: list[Action] = [("put", 0), ("put", 1), ("pop", "A", "", ("k0",)), ("expire",), ("crash",)]
        actions += [("evict", ("k0",)), ("intrude",)]
        if self.shape.slow_puts:
            actions += [("clear", ("k0",)), ("clear_all",), ("commit",) if self._pending else ("grant", 1)]
        first = self._clients["A"]  # B does the same things; that A's alone come twice halves the exponent
        if first.sent:
            actions += [("settle", "A"), ("again", "A")]
            if self._abandonable(first.sent[-1]):
                actions.append(("abandon", "A"))
        for name, client in self._clients.items():
            actions.append(("end", name))
            actions += [("claim", name, task) for task in self.shape.tasks]
            for token, task, keys in self._distinct_tokens(client):
                actions += self._with_token(name, token, task, keys)
        return actions

    def _with_token(self, name: str, token: str, task: str, keys: tuple[str, ...]) -> list[Action]:
        """What a client, or the other one by mistake, may do with a token. The index stands for the token."""
        own = self._clients[name].tokens.index((token, task, keys))
        actions: list[Action] = [(verb, name, own, keys) for verb in ("ack", "release", "renew")]
        if task == self.model.final:
            actions.append(("pop", name, own, keys))
        if len(keys) > 1:
            actions += [("ack", name, own, keys[:1]), ("release", name, own, keys[:1])]
        return actions

    def _distinct_tokens(self, client: Client) -> list[tuple[str, str, tuple[str, ...]]]:
        """Of tokens that are good for the same, and of those that are good for nothing, one."""
        seen: dict[object, tuple[str, str, tuple[str, ...]]] = {}
        for entry in client.tokens:
            token, task, keys = entry
            standing = tuple(self._standing(key, task, token) for key in keys)
            seen[task, keys, standing] = entry
        return list(seen.values())

    def _standing(self, key: str, task: str, token: str) -> str:
        row = self.model.rows[key]
        hold = row.holds[task]
        if row.reason:
            return "ending" if row.ending == token else "stale"
        if token in (hold.token, hold.last):
            return "held" if token == hold.token else "released" if hold.released else "lapsed"
        return "ended" if hold.ended == token else "stale"

    def _abandonable(self, sent: Sent) -> bool:
        return isinstance(sent.body, Claim) and isinstance(sent.reply, Claimed) and bool(sent.reply.token)

    def canonical(self) -> object:
        """This state up to the names of tokens and numbers: equal states have equal futures."""
        names: dict[str, int] = {"": 0}

        def name(token: str | None) -> int:
            return -1 if token is None else names.setdefault(token, len(names))

        rows = tuple(
            (key, row.reason, row.void, name(row.ending), tuple(sorted(row.contents)), *(
                (name(h.token), name(h.last), h.released, name(h.ended), h.owner, h.timed, h.deliveries)
                for h in row.holds.values()
            ))
            for key, row in self.model.rows.items()
        )  # fmt: skip
        tokens = tuple(
            frozenset((names.get(token, -2), task, keys) for token, task, keys in self._distinct_tokens(client))
            for client in self._clients.values()
        )
        first = self._clients["A"]
        session = state_of(self.ledger).sessions.get(first.session_id)
        remembered = session.replies.keys() if session is not None else ()
        latest = tuple(
            (self._alike(first, s, names), s.kept, s.seq < first.done_below, s.seq in remembered)
            for s in first.sent[-1:]
        )
        waits = self._pending
        pending = waits and (waits.which, frozenset(waits.cleared), waits.forgotten)
        return rows, tokens, latest, pending

    def _alike(self, client: Client, sent: Sent, names: dict[str, int]) -> object:
        token = ""
        if sent.action[0] in ("ack", "release", "renew", "pop") and isinstance(sent.action[2], int):
            token = client.tokens[sent.action[2]][0]
        reply: object = type(sent.reply).__name__
        if isinstance(sent.reply, Claimed):
            reply = (names.get(sent.reply.token, -2), tuple(sent.reply.keys))
        return sent.action[0], sent.action[3:], names.get(token, -2), reply

    # -- one step -----------------------------------------------------------------------------------------------------

    def apply(self, action: Action, checked: bool = True) -> None:
        """Do it. Raises ``Disagreement`` where ledger and model part; the ledger's own assertions pass through.

        ``checked`` False: a step that has been checked before is only done again.
        """
        self._checked = checked
        self._action = action
        getattr(self, f"_do_{action[0]}")(*action[1:])
        if checked:
            self.ledger.check_invariants()
            self._compare_state()

    def _owed(self) -> dict[str, object]:
        return owed(self.ledger) if self._checked else {}

    def _do_put(self, which: int) -> None:
        client = self._clients["A"]
        reply = self._request(client, Commit(self._grant(client), _CONTENTS[which]))
        self._expect(self.model.put(self.keys, _CONTENTS[which]), reply)

    def _do_grant(self, which: int) -> None:
        self._pending = _Pending(self._grant(self._clients["B"]), which)

    def _do_commit(self) -> None:
        pending, self._pending = self._pending, None
        assert pending is not None
        reply = self._request(self._clients["B"], Commit(pending.block, _CONTENTS[pending.which]))
        if pending.forgotten:
            self._must(isinstance(reply, GrantAgain), "another grant", reply)
        else:
            self._expect(self.model.put(self.keys, _CONTENTS[pending.which], pending.cleared), reply)

    def _do_clear(self, keys: tuple[str, ...]) -> None:
        reply = self._request(self._clients["B"], Clear(_PARTITION, list(keys)))
        self._expect(self.model.clear(keys), reply)
        if self._pending is not None:
            self._pending.cleared.update(keys)

    def _do_clear_all(self) -> None:
        """Clear everything with the registration, and register again."""
        reply = self._request(self._clients["B"], Clear(_PARTITION, None))
        self._expect(self.model.clear_all(), reply)
        self._register()
        if self._pending is not None:
            self._pending.cleared.update(self.keys)

    def _register(self) -> None:
        register = RegisterPartition(_PARTITION, ["f"], self.shape.rows, list(self.shape.tasks))
        self._shell.ask(self._clients["B"], register)

    def _grant(self, client: Client) -> int:
        count = len(self.keys)
        grant = Grant(_PARTITION, self.keys, [FieldSpec("f", "int64", 1)], [], count, [1] * count)
        return self._shell.grant(client, grant)

    def _do_claim(self, name: str, task: str) -> None:
        client = self._clients[name]
        expected = self.model.claimable(task)
        timed = name == "A"
        body = Claim(_PARTITION, task, ["f"], 9, blocking=False, lease_s=_LEASE_S if timed else None)
        reply = self._request(client, body)
        self._must(isinstance(reply, Claimed) and reply.keys == expected, f"rows {expected}", reply)
        if isinstance(reply, Claimed) and reply.token:
            used = [token for c in self._clients.values() for token, _, _ in c.tokens]
            self._must(reply.token not in used, "a fresh token", reply)
            client.tokens.append((reply.token, task, tuple(reply.keys)))
            self.model.claimed(task, expected, reply.token, name, timed)

    def _do_ack(self, name: str, own: int, keys: tuple[str, ...]) -> None:
        token, task, _ = self._clients[name].tokens[own]
        body = Ack(_PARTITION, task, list(keys), Tokens([token], []))
        reply = self._request(self._clients[name], body)
        self._expect(self.model.ack(task, keys, token), reply)

    def _do_pop(self, name: str, own: int | str, keys: tuple[str, ...]) -> None:
        token = self._clients[name].tokens[own][0] if isinstance(own, int) else ""
        body = Pop(_PARTITION, list(keys), Tokens([token] if token else [], []))
        reply = self._request(self._clients[name], body)
        self._expect(self.model.pop(keys, token), reply)

    def _do_release(self, name: str, own: int, keys: tuple[str, ...]) -> None:
        token, task, _ = self._clients[name].tokens[own]
        body = Release(_PARTITION, task, list(keys), Tokens([token], []))
        reply = self._request(self._clients[name], body)
        self._expect(self.model.release(task, keys, token), reply)

    def _do_renew(self, name: str, own: int, keys: tuple[str, ...]) -> None:
        token, task, _ = self._clients[name].tokens[own]
        timed = name == "A"
        body = Renew(_PARTITION, task, list(keys), Tokens([token], []), _LEASE_S if timed else None)
        reply = self._request(self._clients[name], body)
        self._expect(self.model.renew(task, keys, token, name, timed), reply)

    def _do_evict(self, keys: tuple[str, ...]) -> None:
        reply = self._request(self._clients["B"], Evict(_PARTITION, list(keys), "stale"))
        self._expect(self.model.evict(keys), reply)

    def _do_expire(self) -> None:
        self._shell.now += _TICK_S
        self._shell.handle(ev.Tick(self._shell.now))
        self.model.expire()

    def _do_end(self, name: str) -> None:
        client = self._clients[name]
        self._shell.handle(ev.SessionGone(client.session_id, "goodbye"))
        self.model.session_ends(name)
        self._shell.open(client)

    def _do_settle(self, name: str) -> None:
        """The client says that it has every reply."""
        client = self._clients[name]
        client.done_below = client.seq + 1
        self._shell.handle(ev.Heard(client.session_id, client.done_below, []))

    def _do_abandon(self, name: str) -> None:
        """The reply to the client's latest claim was never handed to its caller."""
        client = self._clients[name]
        sent = client.sent.pop()
        assert isinstance(sent.reply, Claimed)
        self._shell.handle(ev.Heard(client.session_id, client.done_below, [sent.seq]))
        if sent.seq >= client.done_below:
            self.model.abandon(sent.reply.token)

    def _do_again(self, name: str) -> None:
        """The latest request of this session comes once more."""
        client = self._clients[name]
        sent = client.sent[-1]
        if sent.seq < client.done_below:
            before = self._owed()
            reply = self._shell.send(client, sent.body, sent.seq)
            self._must(isinstance(reply, Failed), "a refusal", reply)
            self._must(self._owed() == before, "no change", "a change")
        elif sent.kept:
            self._repeat(client, sent)
        else:  # it was refused, or changed nothing, in a life that has ended: it is decided anew
            client.sent.remove(sent)
            client.seq, latest = sent.seq - 1, client.seq
            self.apply(sent.action, self._checked)
            client.seq = latest

    def _repeat(self, client: Client, sent: Sent) -> None:
        before = self._owed()
        reply = self._shell.send(client, sent.body, sent.seq)
        if isinstance(sent.reply, Claimed):
            holding = self.model.holding(sent.reply.token) if sent.reply.token else []
            as_before = isinstance(reply, Claimed) and sorted(reply.keys) == sorted(holding)
            self._must(as_before, f"the same lease of {holding}", reply)
        else:
            self._must(reply == sent.reply, sent.reply, reply)
        self._must(self._owed() == before, "no change by a repeat", "a change")

    def _do_intrude(self) -> None:
        """Somebody without its secret wants to take A's session over."""
        before = self._owed()
        let_in = self._shell.resume(self._clients["A"].session_id, "guessed")
        self._must(not let_in, "a refusal", "a welcome")
        self._must(self._owed() == before, "no change", "a change")

    def _do_crash(self) -> None:
        """Kill -9: a new life replays what was journaled, and both clients come back."""
        if self._checked:
            self._compare_with(self._shell.entries)
        self._shell.crash()
        if self._pending is not None:
            self._pending.forgotten = True
        for client in self._clients.values():
            self._must(self._shell.resume(client.session_id, client.secret), "a welcome", "a refusal")
            for sent in client.sent:
                sent.kept = sent.kept and sent.changed

    # -- comparison ---------------------------------------------------------------------------------------------------

    def _request(self, client: Client, body: Request) -> ReplyBody:
        """A fresh mutation; what is refused must not change anything."""
        client.seq += 1
        before, written = self._owed(), len(self._shell.entries)
        reply = self._shell.send(client, body, client.seq)
        if isinstance(reply, Failed):
            self._must(self._owed() == before, "no change by a refusal", reply)
        changed = any(entry.seq for entry in self._shell.entries[written:])
        client.sent.append(Sent(self._action, body, client.seq, reply, True, changed))
        return reply

    def check_recovery(self) -> None:
        """What the journal gives back, and what a checkpoint alone gives back, is what is."""
        self._action = ("recover",)
        self._compare_with(self._shell.entries)
        self._action = ("checkpoint",)
        self._compare_with(list(self.ledger.checkpoint(1)))

    def _compare_with(self, entries: list[Entry]) -> None:
        found = differences(self.ledger, self._shell.replayed(entries))
        self._must(not found, "the state that was", "; ".join(found))

    def _compare_state(self) -> None:
        partition = state_of(self.ledger).partitions[_PARTITION]
        for key, row in self.model.rows.items():
            real = partition.rows.get(key)
            self._must((real is None) == bool(row.reason), f"row there: {not row.reason}", real)
            if real is None:
                stone = partition.tombstones.get(key)
                told = (stone.reason, stone.token) if stone is not None else None
                self._must(told == (row.reason, row.ending), f"tombstone {row.reason} {row.ending!r}", told)
                continue
            for task in partition.tasks.values():
                hold = row.holds[task.name]
                lease = task.held.get(real.id)
                holder = lease.token if lease is not None else ""
                self._must(holder == hold.token, f"held under {hold.token!r}", holder)
                failed = task.deliveries.get(real.id, 0)
                self._must(failed == hold.deliveries, f"{hold.deliveries} failed deliveries", failed)

    def _expect(self, outcome: str, reply: ReplyBody) -> None:
        said = "done" if isinstance(reply, Done) else "something else"
        if isinstance(reply, Failed):
            said = _CODES.get(reply.code, reply.code)
        self._must(said == outcome, outcome, reply)

    def _must(self, holds: bool, expected: object, got: object) -> None:
        if not holds:
            raise Disagreement(f"{' '.join(map(str, self._action))}: expected {expected}, got {got}")
