"""Two machines, and the messages between them in the test's hands: every race can be written down and replayed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from penstock.endpoint.events import (
    Answer,
    Arrived,
    Broken,
    Drained,
    Effect,
    Event,
    GiveUp,
    Kind,
    Message,
    Open,
    Retire,
    Send,
    Session,
    SetTimer,
    Timer,
)
from penstock.endpoint.machine import End, Pair
from penstock.endpoint.table import State
from penstock.endpoint.timing import Timing

TIMING = Timing()


class Peer:
    """One side. A restart forgets everything and begins another boot."""

    def __init__(self, number: int) -> None:
        self.boots = itertools.count(number, 2)
        self.restart()

    def restart(self) -> None:
        boot = next(self.boots)
        numbers = itertools.count(1)
        self.pair = Pair(lambda: Session(boot, next(numbers)), TIMING)
        self.answers: dict[int, Session] = {}
        self.retired: dict[Session, str] = {}
        self.effects: list[Effect] = []

    @property
    def primary(self) -> End:
        assert self.pair.primary is not None
        return self.pair.primary

    @property
    def session(self) -> Session:
        return self.primary.session


class Duo:
    """Two peers, ``a`` and ``b``. ``now`` is the test's."""

    def __init__(self) -> None:
        self.a, self.b = Peer(1), Peer(2)
        self.now = 0.0
        self.under_way: list[Message] = []

    def tell(self, peer: Peer, event: Event) -> list[Effect]:
        """Handle one event at ``peer``; what it sends is under way afterwards."""
        effects = peer.pair.handle(event, self.now)
        peer.pair.check_invariants()
        for effect in effects:
            if isinstance(effect, Send):
                self.under_way.append(effect.message)
            elif isinstance(effect, Answer):
                peer.answers[effect.waiter] = effect.session
            elif isinstance(effect, Retire):
                peer.retired[effect.session] = effect.why
        peer.effects += effects
        return effects

    def open(self, peer: Peer, waiter: int = 1) -> None:
        self.tell(peer, Open(waiter))

    def give_up(self, peer: Peer, waiter: int = 1) -> None:
        self.tell(peer, GiveUp(waiter))

    def breaks(self, peer: Peer, why: str = "broken") -> None:
        self.tell(peer, Broken(peer.session, why))

    def timer(self, peer: Peer) -> None:
        self.tell(peer, Timer(peer.session))

    def drain(self, peer: Peer) -> None:
        for session in list(peer.pair.draining):
            self.tell(peer, Drained(session))

    def take(self, kind: Kind, choose: Callable[[Message], bool] = lambda _: True) -> Message:
        """Take the oldest message of ``kind`` off the wire, without delivering it."""
        message = next(m for m in self.under_way if m.kind is kind and choose(m))
        self.under_way.remove(message)
        return message

    def deliver(self, to: Peer, message: Message) -> list[Effect]:
        return self.tell(to, Arrived(message))

    def hand(self, kind: Kind, to: Peer) -> Message:
        """Deliver the oldest message of ``kind`` that is for ``to``."""
        message = self.take(kind, lambda m: self._addressee(m) is to)
        self.deliver(to, message)
        return message

    def settle(self) -> None:
        """Deliver everything, oldest first, until nothing is under way."""
        for _ in range(100):
            if not self.under_way:
                return
            message = self.under_way.pop(0)
            self.deliver(self._addressee(message), message)
        raise AssertionError("messages beget messages")

    def _addressee(self, message: Message) -> Peer:
        return self.b if message.src.boot % 2 else self.a  # A's boots are odd, B's even

    @property
    def connected(self) -> bool:
        """Whether both primaries are ready and bound to each other."""
        a, b = self.a.pair.primary, self.b.pair.primary
        if a is None or b is None or a.state is not State.R or b.state is not State.R:
            return False
        return a.peer == b.session and b.peer == a.session

    def connect(self) -> Duo:
        self.open(self.a)
        self.settle()
        assert self.connected
        return self


def timers(effects: list[Effect]) -> list[tuple[float, float]]:
    return [(e.at_least_s, e.at_most_s) for e in effects if isinstance(e, SetTimer)]
