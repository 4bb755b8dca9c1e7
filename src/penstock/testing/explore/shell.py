"""The ledger's shell in the explorer: clients with sessions, requests in, replies out, entries as a journal has them.

Invariant: an answer that depends on an entry comes after it, or it is a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from penstock.config import PlaneConfig
from penstock.ledger import events as ev
from penstock.ledger.facts import Entry
from penstock.ledger.machine import Ledger
from penstock.requests import WIRE_VERSION, BlockPlace, OpenSession, ReplyBody, Request, Welcome

__all__ = ["Action", "Client", "Disagreement", "LedgerFactory", "Sent", "Shell"]

Action: TypeAlias = tuple[Any, ...]
LedgerFactory: TypeAlias = Callable[[PlaneConfig], Ledger]


class Disagreement(AssertionError):
    """The ledger and what is expected of it part here."""


@dataclass(slots=True)
class Sent:
    """A request of a client. ``kept``: its reply is in the journal, or no life has ended since."""

    action: Action
    body: Request
    seq: int
    reply: ReplyBody
    kept: bool
    changed: bool


class Client:
    """One client, across its sessions. ``tokens``: (token, task, keys) of each claim it ever got."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.session_id = 0
        self.secret = ""
        self.sessions = 0
        self.seq = 0
        self.done_below = 1
        self.sent: list[Sent] = []
        self.tokens: list[tuple[str, str, tuple[str, ...]]] = []


class Shell:
    """Attributes: ledger: of this life; entries: the journal; now: the clock."""

    def __init__(self, config: PlaneConfig, make_ledger: LedgerFactory) -> None:
        self.entries: list[Entry] = []
        self.now = 0.0
        self._config = config
        self._make_ledger = make_ledger
        self._calls = 0
        self._incarnation = 0
        self._replies: dict[int, ReplyBody] = {}
        self._granted: dict[int, int] = {}
        self.ledger = make_ledger(config)
        self._begin_life()

    # -- sessions -----------------------------------------------------------------------------------------------------

    def open(self, client: Client) -> None:
        """Begin a session; requests of an earlier one are forgotten, tokens are not."""
        client.sessions += 1
        client.session_id, client.secret = 1000 * client.number + client.sessions, f"{client.name}{client.sessions}"
        client.seq, client.done_below, client.sent = 0, 1, []
        opening = OpenSession(WIRE_VERSION, client.number, client.name, "", "", 0)
        self._calls += 1
        self.handle(ev.SessionOpens(client.session_id, client.secret, self._calls, opening, self.now))

    def resume(self, session_id: int, secret: str) -> bool:
        """Try to come back to a session; return whether the ledger let us."""
        self._calls += 1
        self.handle(ev.SessionResumes(session_id, secret, self._calls))
        return isinstance(self._replies.pop(self._calls, None), Welcome)

    # -- requests -----------------------------------------------------------------------------------------------------

    def ask(self, client: Client, body: Request) -> ReplyBody:
        """Send a fresh mutation."""
        client.seq += 1
        return self.send(client, body, client.seq)

    def send(self, client: Client, body: Request, seq: int) -> ReplyBody:
        """Send a request under that sequence number."""
        call = self._call(client, body, seq)
        if call not in self._replies:
            raise Disagreement(f"{type(body).__name__} was not answered")
        return self._replies.pop(call)

    def question(self, client: Client, body: Request) -> ReplyBody:
        """Ask what is no mutation and is answered at once."""
        call = self._call(client, body, 0)
        if call not in self._replies:
            raise Disagreement(f"{type(body).__name__} was not answered")
        return self._replies.pop(call)

    def post(self, client: Client, body: Request) -> int:
        """Ask what may wait; return the call."""
        return self._call(client, body, 0)

    def taken(self, call: int) -> ReplyBody | None:
        """The answer to a call that was posted, if it has come."""
        return self._replies.pop(call, None)

    def grant(self, client: Client, body: Request) -> int:
        """Ask for room; return the grant."""
        return self._granted.pop(self._call(client, body, 0))

    def _call(self, client: Client, body: Request, seq: int) -> int:
        self._calls += 1
        deadline = self.now + 60.0
        self.handle(ev.Asked(client.session_id, self._calls, seq, client.done_below, [], deadline, body, self.now))
        return self._calls

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def handle(self, event: ev.AnyEvent) -> None:
        self._carry_out(self.ledger.handle(event, self.now))

    def crash(self) -> None:
        """Kill -9: a new life begins with what was journaled."""
        self.ledger = self.replayed(self.entries)
        self._begin_life()

    def replayed(self, entries: list[Entry]) -> Ledger:
        """What a new life would begin with."""
        reborn = self._make_ledger(self._config)
        for entry in entries:
            reborn.replay(entry, self.now)
        return reborn

    def _begin_life(self) -> None:
        self._incarnation += 1
        self._carry_out(self.ledger.begin_life(self._incarnation, self.now, self.now))

    def _carry_out(self, effects: list[ev.AnyEffect]) -> None:
        answered: set[int] = set()
        for effect in effects:
            if isinstance(effect, ev.Persist):
                if effect.entry.seq and effect.entry.session_id in answered:
                    raise Disagreement(f"the reply to sequence {effect.entry.seq} leaves before it is written down")
                self.entries.append(effect.entry)
            elif isinstance(effect, ev.Answer):
                answered.add(effect.session_id)
                self._replies[effect.call_id] = effect.body
            elif isinstance(effect, ev.Assign):
                self._replies[effect.call_id] = effect.granted
            elif isinstance(effect, ev.Allot):
                self._granted[effect.call_id] = effect.grant
                self.handle(ev.Allotted(effect.grant, BlockPlace(effect.grant, 0, 0, effect.nbytes, 1)))
