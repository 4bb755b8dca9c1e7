"""Bugs planted in the ledger, from outside: the explorer must find each of them, or it proves nothing.

Each is a ledger whose events, effects or replay are tampered with. None of them touches the real ledger's code.
"""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.ledger import events as ev
from penstock.ledger.facts import Entry, Removed
from penstock.ledger.machine import Ledger
from penstock.ledger.state import Partition
from penstock.requests import Ack, Claim, Claimed, Done, Pop, Release, Renew, Request, Tokens
from penstock.testing.explore.shell import LedgerFactory

__all__ = ["PLANTED", "Tampered"]


def _with_body(event: ev.Asked, body: Request) -> ev.Asked:
    return msgspec.structs.replace(event, body=body)


class Tampered(Ledger):
    """Lets a bug change what goes in and what comes out."""

    def handle(self, event: ev.AnyEvent, now: float) -> list[ev.AnyEffect]:
        tampered = self.going_in(event)
        return self.coming_out(event, super().handle(tampered, now)) if tampered is not None else []

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent | None:
        """What the ledger is told instead; None = nothing."""
        return event

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        """What the shell is told instead."""
        return effects

    def partition(self, name: str) -> Partition | None:
        return self.desk.state.partitions.get(name)

    def right_tokens(self, partition: str, task: str | None, keys: list[str], fallback: Tokens) -> Tokens:
        """The tokens that these keys are held under now, whoever asks."""
        found = self.partition(partition)
        if found is None or not found.tasks:
            return fallback
        of = found.final_task if task is None else found.tasks[task]
        held = {key: of.token_of(row.id) for key in keys if (row := found.rows.get(key)) is not None}
        tokens = [token for token in held.values() if token]
        return Tokens([*fallback.lease, *tokens], []) if tokens else fallback


class UnfencedAck(Tampered):
    """An ack or a pop is believed whatever its token."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, Ack):
            b = event.body
            tokens = self.right_tokens(b.partition, b.task, b.keys, b.tokens)
            return _with_body(event, msgspec.structs.replace(b, tokens=tokens))
        return event


class PopIgnoresHolder(Tampered):
    """A pop without a token takes rows that somebody holds."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, Pop) and not event.body.tokens.lease:
            b = event.body
            return _with_body(event, Pop(b.partition, b.keys, self.right_tokens(b.partition, None, b.keys, b.tokens)))
        return event


class ReleaseByAnybody(Tampered):
    """A release is believed whatever its token."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, Release):
            b = event.body
            tokens = self.right_tokens(b.partition, b.task, b.keys, b.tokens)
            return _with_body(event, Release(b.partition, b.task, b.keys, tokens))
        return event


class RenewByAnybody(Tampered):
    """A superseded lease can be renewed, and takes the row back."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, Renew):
            b = event.body
            tokens = self.right_tokens(b.partition, b.task, b.keys, b.tokens)
            return _with_body(event, Renew(b.partition, b.task, b.keys, tokens, b.lease_s))
        return event


class ConsumedAtClaim(Tampered):
    """A claimed row counts as trained at once."""

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:
        if isinstance(event, ev.Asked) and isinstance(event.body, Claim):
            partition = self.partition(event.body.partition)
            keys = [k for e in effects if isinstance(e, ev.Answer) and isinstance(e.body, Claimed) for k in e.body.keys]
            if keys and partition is not None:
                self.desk.record([Removed(partition.name, [partition.rows[k].id for k in keys], "trained", "")])
                effects, self.desk.out = [*effects, *self.desk.out], []
        return effects


class AckBeforeJournal(Tampered):
    """An ack is answered and never written down."""

    unwritten: tuple[type[Request], ...] = (Ack, Pop)

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:
        if isinstance(event, ev.Asked) and isinstance(event.body, self.unwritten):
            return [e for e in effects if not isinstance(e, ev.Persist)]
        return effects


class ReplyBeforeJournal(Tampered):
    """Replies leave before what they promise is written down."""

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        return sorted(effects, key=lambda effect: not isinstance(effect, ev.Answer))


class LeaseNotJournaled(AckBeforeJournal):
    """A lease lives in memory alone."""

    unwritten = (Claim,)


class NoIdempotencyKey(Tampered):
    """A repeated request is taken for a new one."""

    repeated: tuple[type[Request], ...] = (Ack, Pop, Release, Renew, Claim)

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, self.repeated):
            session = self.desk.state.sessions.get(event.session_id)
            if session is not None and event.seq in session.replies:
                return msgspec.structs.replace(event, seq=1_000_000 + event.call_id)
        return event


class SecondLeaseForRepeatedClaim(NoIdempotencyKey):
    """A repeated claim gets other rows than the first time."""

    repeated = (Claim,)


class TombstoneForgotten(Tampered):
    """A removed row leaves no trace."""

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        for partition in self.desk.state.partitions.values():
            partition.tombstones.clear()
        return effects


class ExpiryDoesNotSupersede(Tampered):
    """A token that has expired stays good after the row was leased again."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._once: dict[str, set[str]] = {}  # key -> tokens it was ever held under

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        for effect in effects:
            if isinstance(effect, ev.Answer) and isinstance(effect.body, Claimed):
                for key in effect.body.keys:
                    self._once.setdefault(key, set()).add(effect.body.token)
        return effects

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, Pop) and event.body.tokens.lease:
            b = event.body
            if all(set(b.tokens.lease) & self._once.get(key, set()) for key in b.keys):
                tokens = self.right_tokens(b.partition, None, b.keys, b.tokens)
                return _with_body(event, Pop(b.partition, b.keys, tokens))
        return event


class SessionEndKeepsLeases(Tampered):
    """The leases of a session that has ended are held for ever."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent | None:
        return None if isinstance(event, ev.SessionGone) else event


class AbandonedClaimKept(Tampered):
    """A claim whose reply nobody got keeps its rows."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        return msgspec.structs.replace(event, abandoned=[]) if isinstance(event, ev.Heard) else event


class ReplayOutOfOrder(Tampered):
    """Recovery applies each entry after the one that followed it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._held_back: tuple[Entry, float] | None = None

    def replay(self, entry: Entry, now: float) -> None:
        if self._held_back is None:
            self._held_back = (entry, now)
            return
        super().replay(entry, now)
        super().replay(*self._held_back)
        self._held_back = None


class ReplayForgetsReplies(Tampered):
    """After a restart a repeated request is decided anew."""

    def replay(self, entry: Entry, now: float) -> None:
        super().replay(msgspec.structs.replace(entry, reply=None), now)


class BatchNotAtomic(Tampered):
    """Of a refused batch, what could be applied is applied."""

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:
        if not (isinstance(event, ev.Asked) and isinstance(event.body, Ack | Release) and len(event.body.keys) > 1):
            return effects
        if any(isinstance(e, ev.Answer) and isinstance(e.body, Done) for e in effects):
            return effects
        for index, key in enumerate(event.body.keys):
            alone = msgspec.structs.replace(event.body, keys=[key])
            part = msgspec.structs.replace(event, body=alone, seq=2_000_000 + 10 * event.call_id + index, call_id=0)
            effects += [e for e in Ledger.handle(self, part, self.desk.now) if not isinstance(e, ev.Answer)]
        return effects


class ResumeWithoutSecret(Tampered):
    """Whoever knows a session's number may take it over."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.SessionResumes):
            session = self.desk.state.sessions.get(event.session_id)
            if session is not None:
                return msgspec.structs.replace(event, secret=session.secret)
        return event


_BUGS: tuple[type[Tampered], ...] = (
    UnfencedAck,
    PopIgnoresHolder,
    ReleaseByAnybody,
    RenewByAnybody,
    ConsumedAtClaim,
    AckBeforeJournal,
    ReplyBeforeJournal,
    LeaseNotJournaled,
    NoIdempotencyKey,
    SecondLeaseForRepeatedClaim,
    TombstoneForgotten,
    ExpiryDoesNotSupersede,
    SessionEndKeepsLeases,
    AbandonedClaimKept,
    ReplayOutOfOrder,
    ReplayForgetsReplies,
    BatchNotAtomic,
    ResumeWithoutSecret,
)
PLANTED: dict[str, LedgerFactory] = {bug.__name__: bug for bug in _BUGS}
