"""Bugs planted in the handshake: the explorer must find each of them, or it proves nothing.

Each is the real machine with one step or one entry of its table exchanged. The first two are known from real systems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar

from penstock.endpoint.events import Arrived, Effect, Event, Finished, Kind, Session, Settle
from penstock.endpoint.machine import End, Pair
from penstock.endpoint.table import TRANSITIONS, Rule, Rules, Standing, State, Step
from penstock.endpoint.timing import Timing
from penstock.testing.explore.handshake_world import MakePair

__all__ = ["PLANTED", "without"]


class ReestablishesAtOnce(Pair):
    """A different peer session means that the peer has restarted: drop the connection and make another."""

    __slots__ = ()

    def _reestablish(self, primary: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        assert primary is not None
        dropped = self._let_go(primary, "the peer has another session")
        self.primary = None
        return [*dropped, *self._make_bound(None, event, rule, now)]

    STEPS: ClassVar = {**Pair.STEPS, Step.MAKE_CANDIDATE: _reestablish}  # type: ignore[dict-item]  # of its own class


class BindsAgain(Pair):
    """A request of a new session is bound to the endpoint that is there: it is as good as another."""

    __slots__ = ()

    def _bind_again(self, primary: End | None, event: Event, _rule: Rule, now: float) -> list[Effect]:
        assert primary is not None
        assert isinstance(event, Arrived)
        primary.peer, primary.state = event.message.src, State.B
        return self._answer_request(primary, now)

    STEPS: ClassVar = {**Pair.STEPS, Step.MAKE_CANDIDATE: _bind_again}  # type: ignore[dict-item]  # of its own class


class ForgetsWork(Pair):
    """An endpoint retires and says nothing of the work that it carried."""

    __slots__ = ()

    def _let_go(self, endpoint: End, why: str) -> list[Effect]:
        return [effect for effect in super()._let_go(endpoint, why) if not isinstance(effect, Settle)]


class SettlesTwice(Pair):
    """Work that ends is settled, and settled again when its endpoint retires."""

    __slots__ = ()

    def _settle(self, endpoint: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        assert isinstance(event, Finished)
        settled = super()._settle(endpoint, event, rule, now)
        endpoint.work.add(event.work)
        return settled

    STEPS: ClassVar = {**Pair.STEPS, Step.SETTLE: _settle}  # type: ignore[dict-item]  # of its own class


class ReadyTooSoon(Pair):
    """Who answers a request is ready at once, and does not wait to hear that the other is bound."""

    __slots__ = ()

    def _make_ready(self, _endpoint: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        made = self._make_bound(None, event, rule, now)
        return [*made, *self._become_ready(self.primary, event, Rule(Step.BECOME_READY, State.R), now)]

    STEPS: ClassVar = {**Pair.STEPS, Step.MAKE_BOUND: _make_ready}  # type: ignore[dict-item]  # of its own class


def without(where: tuple[Standing, Kind | type[Event]], step: Step = Step.IGNORE) -> MakePair:
    """Return the machine with one entry of its table exchanged: it does ``step`` there."""
    rules: Rules = MappingProxyType({**TRANSITIONS, where: Rule(step)})

    def make(mint: Callable[[], Session], timing: Timing) -> Pair:
        return Pair(mint, timing, rules)

    return make


PLANTED: Mapping[str, MakePair] = {
    "a different peer means re-establish at once": ReestablishesAtOnce,
    "PING to an unbound endpoint draws RST": without((Standing.UNBOUND, Kind.PING), Step.RESET),
    "an endpoint is bound again": BindsAgain,
    "a retirement forgets its work": ForgetsWork,
    "work is settled twice": SettlesTwice,
    "ready before the peer is": ReadyTooSoon,
    "simultaneous opening is ignored": without((Standing.UNBOUND, Kind.REQ)),
    "a dead session draws no RST": without((Standing.GONE, Kind.PING)),
}
