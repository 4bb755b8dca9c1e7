"""The handshake of one pair of peers, as a pure machine: session pairs, make before break.

One object per peer: its ``primary`` endpoint and at most one candidate beside it. No I/O, no clock, no randomness: new
sessions come from ``mint``, a ``SetTimer`` is a range to draw from. ``table.TRANSITIONS`` is its behaviour.

Invariants: the binding local session -> peer session is written once; ready at both ends means bound to each other;
from there only a restart or something local (broken, closed, silent too long) leads away, never a message, a loss, a
repeat or a timer; nothing is posted to an endpoint that is not ready; every posted work is settled exactly once, at a
retirement too; who waits is answered when an endpoint is ready, and one is asked for as long as somebody waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import ClassVar, TypeAlias

from penstock.endpoint.events import (
    Answer,
    Arrived,
    Bind,
    Broken,
    Carry,
    Drained,
    Effect,
    Event,
    Finished,
    GiveUp,
    Kind,
    Make,
    Message,
    Open,
    Post,
    Ready,
    Retire,
    Send,
    Session,
    SetTimer,
    Settle,
    Timer,
)
from penstock.endpoint.table import TRANSITIONS, Rule, Rules, Standing, State, Step
from penstock.endpoint.timing import Timing
from penstock.errors import IllegalTransition

__all__ = ["End", "Pair"]

_REMEMBERED_EVENTS = 8


class End:
    """Our end of a session pair. ``peer`` is written once; ``heard_at``: when the peer last spoke for this session."""

    __slots__ = ("attempts", "heard_at", "made", "peer", "pinged_at", "session", "since", "state", "work")

    def __init__(self, session: Session, state: State, peer: Session | None, now: float) -> None:
        self.session = session
        self.state = state
        self.peer = peer
        self.work: set[int] = set()
        self.made = False
        self.attempts = 0
        self.since = self.heard_at = self.pinged_at = now

    def bind(self, peer: Session) -> None:
        """Write the binding."""
        assert self.peer is None, f"{self!r} is bound already"
        self.peer = peer

    def standing_to(self, other: Session | None) -> Standing:
        """What this endpoint is to the session ``other``; to its own peer, and to us, if that is None."""
        if self.peer is None:
            return Standing.UNBOUND
        if other is not None and self.peer != other:
            return Standing.ELSEWHERE
        return Standing.READY if self.state is State.R else Standing.BOUND

    def __repr__(self) -> str:
        return f"<End {self.session} {self.state.value}{f' to {self.peer}' if self.peer else ''}>"


class Pair:
    """All that is between us and one peer.

    Args:
        mint: gives a session that has never been given.
        timing: the timers.
        rules: the table; another one only to show that exploring finds what is wrong with it.
    """

    __slots__ = ("_events", "_mint", "_rules", "candidate", "draining", "failures", "primary", "timing", "waiters")

    def __init__(self, mint: Callable[[], Session], timing: Timing, rules: Rules = TRANSITIONS) -> None:
        self.primary: End | None = None
        self.candidate: End | None = None
        self.draining: set[Session] = set()
        self.waiters: set[int] = set()
        self.failures = 0  # endpoints lost since one last outlived a keep-alive
        self.timing = timing
        self._mint = mint
        self._rules = rules
        self._events: deque[Event] = deque(maxlen=_REMEMBERED_EVENTS)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return what is to be done, in order.

        Raises:
            IllegalTransition: the table has no entry; nothing changed.
        """
        if isinstance(event, Arrived):
            standing, endpoint = self._addressee(event.message)
            what: Kind | type[Event] = event.message.kind
        else:
            standing, endpoint = self._concerned(event)
            what = type(event)
        rule = self._rules.get((standing, what))
        if rule is None:
            raise IllegalTransition(
                f"{self!r} cannot take {event!r} ({standing})", history=list(map(repr, self._events))
            )
        self._events.append(event)
        if endpoint is not None and isinstance(event, Arrived) and standing is not Standing.ELSEWHERE:
            endpoint.heard_at = now
        return self.STEPS[rule.step](self, endpoint, event, rule, now)

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost if this object were forgotten."""
        return self.primary is None and not self.draining and not self.waiters

    def endpoint(self, session: Session | None) -> End | None:
        """Return the endpoint of ``session``, unless it is draining or dead."""
        for endpoint in (self.primary, self.candidate):
            if endpoint is not None and endpoint.session == session:
                return endpoint
        return None

    # -- whom an event concerns -----------------------------------------------------------------------------------

    def _addressee(self, message: Message) -> tuple[Standing, End | None]:
        if message.kind is not Kind.REQ:
            found = self.endpoint(message.dst)
            return (found.standing_to(message.src), found) if found else (Standing.GONE, None)
        for endpoint in (self.primary, self.candidate):
            if endpoint is not None and endpoint.peer == message.src:
                return endpoint.standing_to(message.src), endpoint
        return (self.primary.standing_to(message.src), self.primary) if self.primary else (Standing.GONE, None)

    def _concerned(self, event: Event) -> tuple[Standing, End | None]:
        if isinstance(event, Open | GiveUp):
            found = self.primary
        else:
            assert isinstance(event, Timer | Broken | Post | Finished | Drained)
            found = self.endpoint(event.session)
        return (found.standing_to(None), found) if found else (Standing.GONE, None)

    # -- steps: endpoints begin -----------------------------------------------------------------------------------

    def _make(self, _endpoint: End | None, event: Event, _rule: Rule, now: float) -> list[Effect]:
        assert isinstance(event, Open)
        self.waiters.add(event.waiter)
        return self._ask(now, failures=0)

    def _ask(self, now: float, failures: int) -> list[Effect]:
        """Begin a primary of our own: at once, unless one after the other is lost; then when its timer goes off."""
        assert self.primary is None
        self.primary = endpoint = End(self._mint(), State.Q, None, now)
        if failures > 1:
            endpoint.attempts = failures - 2
            return [self._resend_timer(endpoint, now)]
        return [*self._making(endpoint), self._say(Kind.REQ, endpoint), self._resend_timer(endpoint, now)]

    def _making(self, endpoint: End) -> list[Effect]:
        """Have its resources made, if they are not."""
        effects = [] if endpoint.made else [Make(endpoint.session, asked=endpoint.state is State.Q)]
        endpoint.made = True
        return [*effects]

    def _make_bound(self, _endpoint: End | None, event: Event, _rule: Rule, now: float) -> list[Effect]:
        self.primary = endpoint = End(self._mint(), State.B, _sender(event), now)
        return self._answer_request(endpoint, now)

    def _make_candidate(self, primary: End | None, event: Event, _rule: Rule, now: float) -> list[Effect]:
        """Prepare for a peer that may have restarted, and ask whether it has; the connection that is there stays."""
        assert primary is not None
        replaced = self._retire_candidate("replaced by a newer request of the peer")
        self.candidate = endpoint = End(self._mint(), State.B, _sender(event), now)
        return [*replaced, *self._answer_request(endpoint, now), self._say(Kind.PING, primary)]

    def _answer_request(self, endpoint: End, now: float) -> list[Effect]:
        assert endpoint.peer is not None
        return [
            *self._making(endpoint),
            Bind(endpoint.session, endpoint.peer),
            self._say(Kind.REP, endpoint),
            self._resend_timer(endpoint, now),
        ]

    # -- steps: they are bound, they become ready -----------------------------------------------------------------

    def _bind(self, endpoint: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        assert rule.after is State.B
        bound = self._bound(endpoint, event, now)
        endpoint.state = State.B
        return [*bound, self._say(Kind.REP, endpoint), self._resend_timer(endpoint, now)]

    def _bind_ready(self, endpoint: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        bound = self._bound(endpoint, event, now)
        return [*bound, self._say(Kind.ACK, endpoint), *self._become_ready(endpoint, event, rule, now)]

    def _bound(self, endpoint: End, event: Event, now: float) -> list[Effect]:
        peer = _sender(event)
        made = self._making(endpoint)
        endpoint.bind(peer)
        endpoint.since, endpoint.attempts = now, 0
        return [*made, Bind(endpoint.session, peer)]

    def _become_ready(self, endpoint: End | None, _event: Event, rule: Rule, now: float) -> list[Effect]:
        """A candidate that is ready takes the primary's place; every waiter has what it wanted."""
        assert endpoint is not None
        assert rule.after is State.R
        effects: list[Effect] = []
        if endpoint is self.candidate:
            assert self.primary is not None
            old, self.primary, self.candidate = self.primary, endpoint, None
            effects = self._let_go(old, f"the peer has begun session {endpoint.peer}")
        endpoint.state, endpoint.pinged_at = State.R, now
        session = endpoint.session
        effects += [SetTimer(session, *self.timing.ping_s()), Ready(session)]
        effects += [Answer(waiter, session) for waiter in sorted(self.waiters)]
        self.waiters.clear()
        return effects

    def _become_ready_ack(self, endpoint: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        return [self._say(Kind.ACK, endpoint), *self._become_ready(endpoint, event, rule, now)]

    # -- steps: something is said ---------------------------------------------------------------------------------

    def _reply(self, endpoint: End | None, _event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert endpoint is not None
        return [self._say(Kind.REP, endpoint)]

    def _acknowledge(self, endpoint: End | None, _event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert endpoint is not None
        return [self._say(Kind.ACK, endpoint)]

    def _reset(self, _endpoint: End | None, event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert isinstance(event, Arrived)
        addressee = event.message.dst
        assert addressee is not None
        return [Send(Message(Kind.RST, addressee, event.message.src))]

    def _reset_and_ping(self, endpoint: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        return [*self._reset(endpoint, event, rule, now), self._say(Kind.PING, endpoint)]

    def _say(self, kind: Kind, endpoint: End) -> Effect:
        return Send(Message(kind, endpoint.session, endpoint.peer))

    # -- steps: time passes ---------------------------------------------------------------------------------------

    def _resend_req(self, endpoint: End | None, _event: Event, _rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        endpoint.attempts += 1
        return [*self._making(endpoint), self._say(Kind.REQ, endpoint), self._resend_timer(endpoint, now)]

    def _resend_rep(self, endpoint: End | None, _event: Event, _rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        if now - endpoint.since >= self.timing.handshake_limit_s:
            limit = self.timing.handshake_limit_s
            return self._lose(endpoint, f"the peer has not confirmed the connection within {limit:g} s", now)
        endpoint.attempts += 1
        return [self._say(Kind.REP, endpoint), self._resend_timer(endpoint, now)]

    def _keep_alive(self, endpoint: End | None, _event: Event, _rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        if now - endpoint.pinged_at > 2 * self.timing.keepalive_s:
            endpoint.heard_at = now  # this timer is far too late: it was us who stopped, do not bury the living
        endpoint.pinged_at = now
        silent_s = now - endpoint.heard_at
        if silent_s >= self.timing.silence_s:
            return self._lose(endpoint, f"the peer has been silent for {silent_s:.1f} s", now)
        if now - endpoint.since >= self.timing.keepalive_s / 2:
            self.failures = 0
        return [self._say(Kind.PING, endpoint), SetTimer(endpoint.session, *self.timing.ping_s())]

    def _resend_timer(self, endpoint: End, now: float) -> Effect:
        at_least, at_most = self.timing.resend_s(endpoint.attempts)
        if endpoint.state is State.B:
            left = max(0.0, endpoint.since + self.timing.handshake_limit_s - now)
            at_least, at_most = min(at_least, left), min(at_most, left)
        return SetTimer(endpoint.session, at_least, at_most)

    # -- steps: somebody waits ------------------------------------------------------------------------------------

    def _join(self, _endpoint: End | None, event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert isinstance(event, Open)
        self.waiters.add(event.waiter)
        return []

    def _answer(self, endpoint: End | None, event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert endpoint is not None
        assert isinstance(event, Open)
        return [Answer(event.waiter, endpoint.session)]

    def _leave(self, endpoint: End | None, event: Event, _rule: Rule, now: float) -> list[Effect]:
        """Who gives up resets nothing, unless nobody else wants what it has asked for and nobody has answered."""
        assert isinstance(event, GiveUp)
        self.waiters.discard(event.waiter)
        if self.waiters or endpoint is None or endpoint.state is not State.Q:
            return []
        return self._lose(endpoint, "nobody waits for it any more", now)

    # -- steps: it is used ----------------------------------------------------------------------------------------

    def _carry(self, endpoint: End | None, event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert endpoint is not None
        assert isinstance(event, Post)
        assert event.work not in endpoint.work, f"work {event.work} is posted twice"
        endpoint.work.add(event.work)
        return [Carry(event.session, event.work)]

    def _refuse_work(self, endpoint: End | None, event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert isinstance(event, Post)
        return [Settle(event.work, f"the endpoint is {endpoint.state.value if endpoint else 'retired'}, not ready")]

    def _settle(self, endpoint: End | None, event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert endpoint is not None
        assert isinstance(event, Finished)
        assert event.work in endpoint.work, f"work {event.work} was not posted"
        endpoint.work.remove(event.work)
        return [Settle(event.work, event.why)]

    # -- steps: endpoints end -------------------------------------------------------------------------------------

    def _retire(self, endpoint: End | None, event: Event, rule: Rule, now: float) -> list[Effect]:
        assert endpoint is not None
        assert rule.after is State.DRAIN
        why = event.why if isinstance(event, Broken) else "the peer's end does not exist any more"
        return self._lose(endpoint, why, now)

    def _lose(self, endpoint: End, why: str, now: float) -> list[Effect]:
        """Retire it; if it was the primary the candidate takes over, or a new one is asked for if somebody waits."""
        if endpoint is self.candidate:
            return self._retire_candidate(why)
        assert endpoint is self.primary
        effects = self._let_go(endpoint, why)
        self.failures += 1
        self.primary, self.candidate = self.candidate, None
        return [*effects, *self._ask(now, self.failures)] if self.primary is None and self.waiters else effects

    def _retire_candidate(self, why: str) -> list[Effect]:
        old, self.candidate = self.candidate, None
        return self._let_go(old, why) if old else []

    def _let_go(self, endpoint: End, why: str) -> list[Effect]:
        endpoint.state = State.DRAIN
        if not endpoint.made:
            return []
        self.draining.add(endpoint.session)
        failed = [Settle(work, why) for work in sorted(endpoint.work)]
        endpoint.work.clear()
        return [*failed, Retire(endpoint.session, why)]

    def _bury(self, _endpoint: End | None, event: Event, _rule: Rule, _now: float) -> list[Effect]:
        assert isinstance(event, Drained)
        self.draining.discard(event.session)
        return []

    def _ignore(self, _endpoint: End | None, _event: Event, _rule: Rule, _now: float) -> list[Effect]:
        return []

    # Public for those who exchange a step to show that its absence is found.
    STEPS: ClassVar[dict[Step, _Step]] = {
        Step.IGNORE: _ignore,
        Step.MAKE: _make,
        Step.MAKE_BOUND: _make_bound,
        Step.MAKE_CANDIDATE: _make_candidate,
        Step.BIND: _bind,
        Step.BIND_READY: _bind_ready,
        Step.REPLY: _reply,
        Step.BECOME_READY: _become_ready,
        Step.BECOME_READY_ACK: _become_ready_ack,
        Step.ACKNOWLEDGE: _acknowledge,
        Step.NOTE: _ignore,  # ``heard_at`` is noted of whatever an endpoint's own peer says
        Step.RESET: _reset,
        Step.RESET_AND_PING: _reset_and_ping,
        Step.RETIRE: _retire,
        Step.RESEND_REQ: _resend_req,
        Step.RESEND_REP: _resend_rep,
        Step.KEEP_ALIVE: _keep_alive,
        Step.JOIN: _join,
        Step.ANSWER: _answer,
        Step.LEAVE: _leave,
        Step.CARRY: _carry,
        Step.REFUSE_WORK: _refuse_work,
        Step.SETTLE: _settle,
        Step.BURY: _bury,
    }

    # -- for those who watch --------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        primary, candidate = self.primary, self.candidate
        assert candidate is None or primary is not None, "a candidate without a primary"
        assert candidate is None or candidate.state is State.B, f"the candidate is {candidate!r}"
        assert primary is None or primary.state in (State.Q, State.B, State.R), f"the primary is {primary!r}"
        assert not self.waiters or (primary is not None and primary.state is not State.R), "somebody waits for nothing"
        for endpoint in (primary, candidate):
            if endpoint is not None:
                assert (endpoint.peer is None) == (endpoint.state is State.Q), f"{endpoint!r} contradicts itself"
                assert not endpoint.work or endpoint.state is State.R, f"{endpoint!r} carries work"
                assert endpoint.session not in self.draining, f"{endpoint!r} is draining"

    def __repr__(self) -> str:
        return f"<Pair primary={self.primary!r} candidate={self.candidate!r} waiters={len(self.waiters)}>"


_Step: TypeAlias = Callable[[Pair, End | None, Event, Rule, float], list[Effect]]


def _sender(event: Event) -> Session:
    assert isinstance(event, Arrived)
    return event.message.src
