"""Bugs planted in what the ledger does about hosts, from outside: the explorer must find each of them."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.ledger import events as ev
from penstock.ledger import losses
from penstock.ledger.facts import Entry, Put
from penstock.ledger.machine import Ledger
from penstock.ledger.state import PendingGrant
from penstock.requests import Commit, Enlist, Enlisted, Orders
from penstock.testing.explore.planted import Tampered
from penstock.testing.explore.shell import LedgerFactory

__all__ = ["PLANTED_ON_HOSTS"]


class _OrdersChanged(Tampered):
    """Changes orders on their way to the agent."""

    def changed(self, orders: Orders) -> Orders:
        raise NotImplementedError

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        return [
            msgspec.structs.replace(effect, body=self.changed(effect.body))
            if isinstance(effect, ev.Answer) and isinstance(effect.body, Orders)
            else effect
            for effect in effects
        ]


class FreeOrderLost(_OrdersChanged):
    """An agent is never told to free anything."""

    def changed(self, orders: Orders) -> Orders:
        return msgspec.structs.replace(orders, free=[])


class AdoptNeverOrdered(_OrdersChanged):
    """An agent is never told that rows need a block."""

    def changed(self, orders: Orders) -> Orders:
        return msgspec.structs.replace(orders, adopt=[])


class OrdersForgotten(_OrdersChanged):
    """Orders are forgotten once they are sent, not once they are carried out."""

    def changed(self, orders: Orders) -> Orders:
        for host in self.desk.state.hosts.values():
            host.carried_out(orders.number)
        return orders


class EnlistedForgetsBlocks(Tampered):
    """An agent that comes back is not told what rows need of it."""

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        return [
            msgspec.structs.replace(effect, body=Enlisted([], effect.body.after))
            if isinstance(effect, ev.Answer) and isinstance(effect.body, Enlisted)
            else effect
            for effect in effects
        ]


class ReplicaNotUsed(Tampered):
    """Rows of a host that is gone are lost although their blocks lie on a second one."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Tick):
            for write in self.desk.state.writes.values():
                silent = [p for p in write.places() if p.host and self.desk.state.hosts[p.host].state == "silent"]
                if write.replica is not None and silent:
                    self.desk.books.lay(write, silent[0], None)
        return event


class EarlierLifeCommits(Tampered):
    """A grant outlives the memory that it was given in."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._kept: list[PendingGrant] = []

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, Enlist):
            grants, place = self.desk.state.grants, event.body.place
            self._kept = [grants.pop(g.id) for g in list(grants.values()) if place.host_id in g.lives]
            for pending in self._kept:
                pending.lives[place.host_id] = place.life
        return event

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        self.desk.state.grants.update({pending.id: pending for pending in self._kept})
        self._kept = []
        return effects


class SilenceIsDeath(Tampered):
    """A host that is not heard of is gone at once."""

    def coming_out(self, event: ev.AnyEvent, effects: list[ev.AnyEffect]) -> list[ev.AnyEffect]:  # noqa: ARG002
        for host in [h for h in self.desk.state.hosts.values() if h.state == "silent"]:
            host.until = self.desk.books.clock
            losses.grace_ends(self.desk, host.id)
        effects, self.desk.out = [*effects, *self.desk.out], []
        return effects


class SilentHostsCount(Tampered):
    """A put is acknowledged though no host that holds it is heard of."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and isinstance(event.body, Commit):
            pending = self.desk.state.grants.get(event.body.grant)
            if pending is not None:
                pending.request = msgspec.structs.replace(pending.request, at_least=0)
        return event


class ReplayForgetsReplica(Tampered):
    """A restarted plane does not know of second places."""

    def replay(self, entry: Entry, now: float) -> None:
        facts = [msgspec.structs.replace(f, replica=None) if isinstance(f, Put) else f for f in entry.facts]
        super().replay(msgspec.structs.replace(entry, facts=facts), now)


class LateHostKeepsBlocks(Tampered):
    """A host that asks whether somebody needs its blocks gets no answer."""

    def going_in(self, event: ev.AnyEvent) -> ev.AnyEvent:
        if isinstance(event, ev.Asked) and hasattr(event.body, "done_with"):
            return msgspec.structs.replace(event, body=msgspec.structs.replace(event.body, done_with=[]))
        return event


_BUGS: tuple[type[Ledger], ...] = (
    FreeOrderLost,
    AdoptNeverOrdered,
    OrdersForgotten,
    EnlistedForgetsBlocks,
    ReplicaNotUsed,
    EarlierLifeCommits,
    SilenceIsDeath,
    SilentHostsCount,
    ReplayForgetsReplica,
    LateHostKeepsBlocks,
)
PLANTED_ON_HOSTS: dict[str, LedgerFactory] = {bug.__name__: bug for bug in _BUGS}
