"""Two peers, the messages under way between them, and everything that may happen next: the world of the handshake.

A state is plain tuples: both peers' endpoints, the set of messages under way (a resend of one that is under way adds
nothing) and what faults are left. Sessions are small numbers, even for A and odd for B, renamed after every step in the
order in which they are met, so that states that differ in names alone are one. A machine is pure: what a peer does in a
state it has been in before is remembered, and not worked out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from penstock.endpoint.events import (
    Arrived,
    Broken,
    Carry,
    Event,
    Finished,
    GiveUp,
    Kind,
    Message,
    Open,
    Post,
    Send,
    Session,
    Settle,
    Timer,
)
from penstock.endpoint.machine import End, Pair
from penstock.endpoint.table import State
from penstock.endpoint.timing import Timing
from penstock.errors import IllegalTransition

__all__ = ["Budget", "Local", "MakePair", "Move", "Net", "Said", "World", "WorldState", "matched"]

Place: TypeAlias = "tuple[int, str, int, bool]"  # an endpoint: session, state, peer or -1, whether it carries work
Local: TypeAlias = "tuple[Place | None, Place | None, bool]"  # primary, candidate, whether somebody waits
Said: TypeAlias = "tuple[str, int, int]"  # kind, src, dst or -1
Net: TypeAlias = "tuple[Said, ...]"
MakePair: TypeAlias = Callable[[Callable[[], Session], Timing], Pair]

NOBODY: Local = (None, None, False)
SIDES = ("A", "B")
_TIMING = Timing()
_NO_TIME = 0.0  # time stands still: timers go off when the explorer says so, limits pass as evictions
_FAILURES = 2  # so many that the next endpoint asks by its timer, which may go off at once: that holds for fewer, too
_WAITER = 0
_WORK = 0


class Budget(NamedTuple):
    """How often each fault may strike, and how much work may be posted.

    ``haste``: timers that go off while something that concerns their endpoint is still under way.
    """

    restarts: int = 0
    losses: int = 0
    duplicates: int = 0
    evictions: int = 0
    haste: int = 0
    posts: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self._asdict().items() if count) or "no fault"


class WorldState(NamedTuple):
    a: Local
    b: Local
    net: Net
    budget: Budget


class Move(NamedTuple):
    """One thing that may happen. ``names``: what the sessions are called afterwards."""

    label: tuple[str, ...]
    fault: bool
    delivery: bool
    after: WorldState
    names: dict[int, int]
    what: str  # what is wrong with it, in itself; "" = nothing


class Reaction(NamedTuple):
    """What a peer did about an event."""

    after: Local
    said: tuple[Said, ...]
    what: str


@dataclass(frozen=True)
class World:
    """Args: wants: whether A, whether B wants to be connected. make_pair: the machine, or a broken one."""

    wants: tuple[bool, bool]
    budget: Budget
    make_pair: MakePair = Pair

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", {})

    def initial(self) -> WorldState:
        return WorldState(NOBODY, NOBODY, (), self.budget)

    # -- what may happen ----------------------------------------------------------------------------------------------

    def moves(self, state: WorldState) -> Iterator[Move]:
        """Everything that may happen next."""
        yield from self._deliveries(state)
        for side, local in ((0, state.a), (1, state.b)):
            yield from self._local_moves(state, side, local)
            yield from self._local_faults(state, side, local)

    def _deliveries(self, state: WorldState) -> Iterator[Move]:
        budget = state.budget
        for i, said in enumerate(state.net):
            rest = state.net[:i] + state.net[i + 1 :]
            side = 1 - (said[1] & 1)
            yield self._react(state, side, ("arrive", *said), rest, budget)
            if budget.duplicates:
                less = budget._replace(duplicates=budget.duplicates - 1)
                yield self._react(state, side, ("arrive twice", *said), state.net, less)
            if budget.losses:
                less = budget._replace(losses=budget.losses - 1)
                yield self._after(state, ("lose", *map(str, said)), True, False, state.a, state.b, rest, less)

    def _local_moves(self, state: WorldState, side: int, local: Local) -> Iterator[Move]:
        if self.wants[side]:
            yield self._react(state, side, ("open",), state.net, state.budget)
        for place in local[:2]:
            if place is not None and not _is_concerned(place[0], state.net):
                yield self._react(state, side, ("timer", place[0]), state.net, state.budget)
            elif place is not None and state.budget.haste:
                less = state.budget._replace(haste=state.budget.haste - 1)
                yield self._react(state, side, ("timer", place[0]), state.net, less)
        primary = local[0]
        if primary is not None and primary[3]:
            yield self._react(state, side, ("finish", primary[0]), state.net, state.budget)
        elif primary is not None and primary[1] == "R" and state.budget.posts:
            less = state.budget._replace(posts=state.budget.posts - 1)
            yield self._react(state, side, ("post", primary[0]), state.net, less)

    def _local_faults(self, state: WorldState, side: int, local: Local) -> Iterator[Move]:
        budget = state.budget
        if budget.restarts and local != NOBODY:
            less = budget._replace(restarts=budget.restarts - 1)
            a, b = (NOBODY, state.b) if side == 0 else (state.a, NOBODY)
            yield self._after(state, ("restart", SIDES[side]), True, False, a, b, state.net, less)
        if budget.evictions:
            less = budget._replace(evictions=budget.evictions - 1)
            for place in local[:2]:
                if place is not None:
                    yield self._react(state, side, ("evict", place[0]), state.net, less)
            if local[2]:
                yield self._react(state, side, ("give up",), state.net, less)

    def _react(self, state: WorldState, side: int, told: tuple[object, ...], net: Net, budget: Budget) -> Move:
        local = state.a if side == 0 else state.b
        reaction = self._reaction(local, told, _fresh(state, side))
        for said in reaction.said:
            if said not in net:
                net = (*net, said)
        a, b = (reaction.after, state.b) if side == 0 else (state.a, reaction.after)
        label = (str(told[0]), SIDES[side], *map(str, told[1:]))
        fault = budget is not state.budget and told[0] not in ("post", "timer")
        return self._after(state, label, fault, told[0] == "arrive", a, b, net, budget, reaction.what)

    def _after(
        self,
        _state: WorldState,
        label: tuple[str, ...],
        fault: bool,
        delivery: bool,
        a: Local,
        b: Local,
        net: Net,
        budget: Budget,
        what: str = "",
    ) -> Move:
        net = tuple(said for said in net if not _is_spent(a, b, said))
        names = _names(a, b, net)
        after = WorldState(_renamed(a, names), _renamed(b, names), _renamed_net(net, names), budget)
        return Move(label, fault, delivery, after, names, what)

    # -- what a peer does about it ------------------------------------------------------------------------------------

    def _reaction(self, local: Local, told: tuple[object, ...], fresh: int) -> Reaction:
        known: dict[object, Reaction] = self._known  # type: ignore[attr-defined]
        key = (local, told, fresh)
        found = known.get(key)
        if found is None:
            found = known[key] = self._work_out(local, told, fresh)
        return found

    def _work_out(self, local: Local, told: tuple[object, ...], fresh: int) -> Reaction:
        pair = self.make_pair(lambda: _session(fresh), _TIMING)
        _restore(pair, local)
        try:
            effects = pair.handle(_event(told), _NO_TIME)
            pair.check_invariants()
        except (AssertionError, IllegalTransition) as broken:
            return Reaction(local, (), f"{type(broken).__name__}: {broken}")
        after = _snapshot(pair)
        said = tuple(_said(e.message) for e in effects if isinstance(e, Send))
        carried = [_number(e.session) for e in effects if isinstance(e, Carry)]
        settled = sum(isinstance(e, Settle) for e in effects)
        what = _rebound(local, after) or _lie(after, said) or _unsettled(local, after, carried, settled)
        return Reaction(after, said, what)


# -- what must hold of a single step of a single peer -----------------------------------------------------------------


def _rebound(before: Local, after: Local) -> str:
    """A binding is written once."""
    bound = {place[0]: place[2] for place in before[:2] if place and place[2] >= 0}
    for place in after[:2]:
        if place and bound.get(place[0], place[2]) != place[2]:
            return "binding: a session that was bound is bound to another"
    return ""


def _lie(after: Local, said: tuple[Said, ...]) -> str:
    """A ``RST`` says only what can never become true again."""
    for kind, src, dst in said:
        if kind == "RST" and not _is_past(after, src, dst):
            return "RST soundness: a session is said to be dead or bound to another, and is not"
    return ""


def _is_past(local: Local, x: int, other: int) -> bool:
    """Whether ``x`` is dead, or bound to another than ``other``."""
    for place in local[:2]:
        if place and place[0] == x:
            return place[2] not in (-1, other)
    return True


def _unsettled(before: Local, after: Local, carried: list[int], settled: int) -> str:
    """Work is carried by ready endpoints only, and settled exactly once."""
    ready = {place[0] for place in after[:2] if place and place[1] == "R"}
    if not set(carried) <= ready:
        return "work: it was posted to an endpoint that is not ready"
    owed = sum(place[3] for place in before[:2] if place) + len(carried)
    kept = sum(place[3] for place in after[:2] if place)
    return "" if owed == kept + settled else f"work: of {owed}, {settled} settled and {kept} still carried"


# -- what must hold of a state ----------------------------------------------------------------------------------------


def matched(state: WorldState) -> tuple[int, int] | None:
    """The sessions of A and B if both primaries are ready and bound to each other."""
    a, b = state.a[0], state.b[0]
    if a and b and a[1] == b[1] == "R" and a[2] == b[0] and b[2] == a[0]:
        return a[0], b[0]
    return None


def objection(state: WorldState) -> str:
    """What is wrong with a state; "" = nothing."""
    for ours, theirs in ((state.a, state.b), (state.b, state.a)):
        bound = {place[0]: place[2] for place in theirs[:2] if place}
        for place in ours[:2]:
            if place and place[1] == "R" and bound.get(place[2], place[0]) != place[0]:
                return "agreement: an endpoint is ready, and its peer is not bound to it"
    for kind, src, dst in state.net:
        if kind == "RST" and not _is_past(state.b if src & 1 else state.a, src, dst):
            return "RST soundness: what a RST under way says is not so"
    return ""


def _is_concerned(session: int, net: Net) -> bool:
    return any(session in said for said in net)


def _is_spent(a: Local, b: Local, said: Said) -> bool:
    """Whether a message can never again change anything, whenever it arrives: it is as good as gone.

    Its addressee is dead or bound to another than its sender, for ever, and so nobody learns from it; and what it would
    be answered, ``RST``, concerns a sender that is dead or bound to another. (``REP`` has an effect elsewhere: a PING.)
    """
    kind, src, dst = said
    if dst < 0:
        return False
    ours, theirs = (a, b) if src & 1 == 0 else (b, a)
    if kind == "RST":
        return _is_past(theirs, dst, src)
    dead = all(place is None or place[0] != dst for place in theirs[:2])
    return (dead or (kind != "REP" and _is_past(theirs, dst, src))) and _is_past(ours, src, dst)


# -- names ------------------------------------------------------------------------------------------------------------


def _names(a: Local, b: Local, net: Net) -> dict[int, int]:
    """Number the sessions of each side in the order in which they are met: endpoints, their peers, messages."""
    met = [place[0] for place in (a[0], a[1], b[0], b[1]) if place]
    met += [place[2] for place in (a[0], a[1], b[0], b[1]) if place and place[2] >= 0]
    for said in net:
        met.append(said[1])
        if said[2] >= 0:
            met.append(said[2])
    names: dict[int, int] = {}
    count = [0, 1]
    for session in met:
        if session not in names:
            side = session & 1
            names[session] = count[side]
            count[side] += 2
    return names


def _renamed(local: Local, names: dict[int, int]) -> Local:
    primary, candidate, waits = local
    return _place_renamed(primary, names), _place_renamed(candidate, names), waits


def _place_renamed(place: Place | None, names: dict[int, int]) -> Place | None:
    return place and (names[place[0]], place[1], names[place[2]] if place[2] >= 0 else -1, place[3])


def _renamed_net(net: Net, names: dict[int, int]) -> Net:
    return tuple(sorted((kind, names[src], names[dst] if dst >= 0 else -1) for kind, src, dst in net))


def _fresh(state: WorldState, side: int) -> int:
    """The smallest name of that side that is nowhere in use: names in use have no gaps."""
    used = [place[0] for local in (state.a, state.b) for place in local[:2] if place]
    used += [place[2] for local in (state.a, state.b) for place in local[:2] if place]
    used += [number for said in state.net for number in said[1:]]
    return max((number + 2 for number in used if number >= 0 and number & 1 == side), default=side)


# -- tuples and machines ----------------------------------------------------------------------------------------------


def _session(number: int) -> Session:
    return Session(number & 1, number >> 1)


def _number(session: Session) -> int:
    return session.counter * 2 + session.boot


def _restore(pair: Pair, local: Local) -> None:
    pair.primary, pair.candidate = _endpoint(local[0]), _endpoint(local[1])
    pair.waiters = {_WAITER} if local[2] else set()
    pair.failures = _FAILURES


def _endpoint(place: Place | None) -> End | None:
    if place is None:
        return None
    session, state, peer, works = place
    endpoint = End(_session(session), State[state], _session(peer) if peer >= 0 else None, _NO_TIME)
    endpoint.work = {_WORK} if works else set()
    endpoint.made = True
    return endpoint


def _snapshot(pair: Pair) -> Local:
    return _place(pair.primary), _place(pair.candidate), bool(pair.waiters)


def _place(endpoint: End | None) -> Place | None:
    if endpoint is None:
        return None
    peer = -1 if endpoint.peer is None else _number(endpoint.peer)
    return _number(endpoint.session), endpoint.state.name, peer, bool(endpoint.work)


def _said(message: Message) -> Said:
    return message.kind.name, _number(message.src), -1 if message.dst is None else _number(message.dst)


def _event(told: tuple[object, ...]) -> Event:
    match told:
        case ("arrive" | "arrive twice", str(kind), int(src), int(dst)):
            return Arrived(Message(Kind[kind], _session(src), _session(dst) if dst >= 0 else None))
        case ("open",):
            return Open(_WAITER)
        case ("give up",):
            return GiveUp(_WAITER)
        case ("timer", int(session)):
            return Timer(_session(session))
        case ("evict", int(session)):
            return Broken(_session(session), "evicted")
        case ("post", int(session)):
            return Post(_session(session), _WORK)
        case ("finish", int(session)):
            return Finished(_session(session), _WORK)
    raise AssertionError(told)
