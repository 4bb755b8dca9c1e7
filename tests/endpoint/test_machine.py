"""The handshake's machine, event by event."""

from __future__ import annotations

import itertools

import pytest

from penstock.endpoint.events import (
    Answer,
    Arrived,
    Bind,
    Broken,
    Carry,
    Drained,
    Effect,
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
    Settle,
    Timer,
)
from penstock.endpoint.machine import Pair
from penstock.endpoint.table import TRANSITIONS, Standing, State, Step
from penstock.endpoint.timing import Timing
from penstock.errors import IllegalTransition
from tests.endpoint.duo import TIMING, Duo, timers

THEIRS = Session(7, 1)
OTHERS = Session(7, 2)


def pair(timing: Timing = TIMING) -> Pair:
    numbers = itertools.count(1)
    return Pair(lambda: Session(1, next(numbers)), timing)


def ours(number: int) -> Session:
    return Session(1, number)


def said(effects: list[Effect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def heard(p: Pair, kind: Kind, src: Session = THEIRS, dst: Session | None = None, now: float = 0.0) -> list[Effect]:
    effects = p.handle(Arrived(Message(kind, src, dst)), now)
    p.check_invariants()
    return effects


def ready(p: Pair) -> Pair:
    p.handle(Open(1), 0.0)
    heard(p, Kind.REP, THEIRS, ours(1))
    assert p.primary is not None
    assert p.primary.state is State.R
    return p


# -- opening ----------------------------------------------------------------------------------------------------------


def test_opening_makes_an_endpoint_and_asks() -> None:
    """Fresh resources, a REQ, and a timer in case it is lost."""
    effects = pair().handle(Open(1), 0.0)
    assert effects[:2] == [Make(ours(1), asked=True), Send(Message(Kind.REQ, ours(1), None))]
    assert timers(effects) == [TIMING.resend_s(0)]


def test_a_second_caller_waits_on_the_same_endpoint() -> None:
    """It begins nothing, and is answered with the first."""
    p = pair()
    p.handle(Open(1), 0.0)
    assert p.handle(Open(2), 0.0) == []
    effects = heard(p, Kind.REP, THEIRS, ours(1))
    assert [e for e in effects if isinstance(e, Answer)] == [Answer(1, ours(1)), Answer(2, ours(1))]


def test_a_caller_of_a_ready_endpoint_is_answered_at_once() -> None:
    """Nothing is sent."""
    assert ready(pair()).handle(Open(2), 0.0) == [Answer(2, ours(1))]


def test_a_caller_that_gives_up_resets_nothing_while_another_waits() -> None:
    """Its own deadline is its own; the last one who gives up retires what nobody has answered."""
    p = pair()
    p.handle(Open(1), 0.0)
    p.handle(Open(2), 0.0)
    assert p.handle(GiveUp(1), 1.0) == []
    assert p.handle(GiveUp(2), 2.0) == [Retire(ours(1), "nobody waits for it any more")]
    assert not p.idle
    p.handle(Drained(ours(1)), 2.0)
    assert p.idle


def test_a_caller_that_gives_up_leaves_what_the_peer_has_bound() -> None:
    """B has connected A already, though A's own call has not come back: reuse, do not reset."""
    p = pair()
    p.handle(Open(1), 0.0)
    heard(p, Kind.REQ)
    assert p.handle(GiveUp(1), 1.0) == []
    effects = heard(p, Kind.ACK, THEIRS, ours(1))
    assert Ready(ours(1)) in effects


# -- being asked ------------------------------------------------------------------------------------------------------


def test_a_request_makes_a_bound_endpoint() -> None:
    """Made, bound and only then confirmed; it is not ready before the peer is known to be bound."""
    effects = heard(pair(), Kind.REQ)
    assert effects[:3] == [
        Make(ours(1), asked=False),
        Bind(ours(1), THEIRS),
        Send(Message(Kind.REP, ours(1), THEIRS)),
    ]
    assert not any(isinstance(effect, Ready) for effect in effects)


def test_a_repeated_request_is_answered_again() -> None:
    """Messages are idempotent: nothing is made twice."""
    p = pair()
    heard(p, Kind.REQ)
    for _ in range(3):
        assert heard(p, Kind.REQ) == [Send(Message(Kind.REP, ours(1), THEIRS))]


def test_simultaneous_opening_binds_the_endpoint_that_is_there() -> None:
    """No second endpoint is made."""
    p = pair()
    p.handle(Open(1), 0.0)
    effects = heard(p, Kind.REQ)
    assert effects[:2] == [Bind(ours(1), THEIRS), Send(Message(Kind.REP, ours(1), THEIRS))]
    assert not any(isinstance(effect, Make) for effect in effects)


def test_a_request_of_another_session_touches_nothing_that_works() -> None:
    """A candidate beside it, and a question to the peer of what is there."""
    p = ready(pair())
    effects = heard(p, Kind.REQ, OTHERS)
    assert said(effects) == [Message(Kind.REP, ours(2), OTHERS), Message(Kind.PING, ours(1), THEIRS)]
    assert not any(isinstance(effect, Retire) for effect in effects)
    assert p.primary is not None
    assert p.primary.session == ours(1)


def test_there_is_one_candidate_at_most() -> None:
    """A newer request replaces an older candidate."""
    p = ready(pair())
    heard(p, Kind.REQ, OTHERS)
    effects = heard(p, Kind.REQ, Session(7, 3))
    assert [e.session for e in effects if isinstance(e, Retire)] == [ours(2)]
    assert p.candidate is not None
    assert p.candidate.session == ours(3)


def test_a_repeated_request_of_a_candidate_is_answered_by_it() -> None:
    """A resend or a duplicate makes no other candidate."""
    p = ready(pair())
    heard(p, Kind.REQ, OTHERS)
    assert heard(p, Kind.REQ, OTHERS) == [Send(Message(Kind.REP, ours(2), OTHERS))]
    assert p.candidate is not None
    assert p.candidate.session == ours(2)


def test_a_candidate_that_is_confirmed_takes_over() -> None:
    """Make before break: the old primary drains only now, and its work fails upward."""
    p = ready(pair())
    p.handle(Post(ours(1), 5), 0.0)
    heard(p, Kind.REQ, OTHERS)
    effects = heard(p, Kind.ACK, OTHERS, ours(2))
    assert [e for e in effects if isinstance(e, Settle)] == [Settle(5, "the peer has begun session 7.2")]
    assert [e.session for e in effects if isinstance(e, Retire)] == [ours(1)]
    assert Ready(ours(2)) in effects
    assert p.primary is not None
    assert (p.primary.session, p.candidate) == (ours(2), None)


def test_a_candidate_takes_over_when_the_primary_breaks() -> None:
    """And who waits, waits for it; nothing else is asked for."""
    p = ready(pair())
    heard(p, Kind.REQ, OTHERS)
    effects = p.handle(Broken(ours(1), "reset"), 1.0)
    assert said(effects) == []
    assert p.primary is not None
    assert p.primary.session == ours(2)


# -- who may reset whom -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.REP, Kind.ACK, Kind.PING])
def test_a_claim_on_a_session_that_is_gone_draws_a_reset(kind: Kind) -> None:
    """It will never be there again."""
    assert said(heard(pair(), kind, THEIRS, ours(9))) == [Message(Kind.RST, ours(9), THEIRS)]


@pytest.mark.parametrize("kind", [Kind.REP, Kind.ACK, Kind.PING])
def test_a_claim_on_a_session_that_is_bound_elsewhere_draws_a_reset(kind: Kind) -> None:
    """A binding is written once; a REP also makes us ask whether our own peer is still there."""
    p = ready(pair())
    answers = said(heard(p, kind, OTHERS, ours(1)))
    assert answers[0] == Message(Kind.RST, ours(1), OTHERS)
    assert answers[1:] == ([Message(Kind.PING, ours(1), THEIRS)] if kind is Kind.REP else [])


def test_a_ping_binds_an_endpoint_that_still_asks() -> None:
    """It carries the claim of a REP; a RST would be a lie."""
    p = pair()
    p.handle(Open(1), 0.0)
    effects = heard(p, Kind.PING, THEIRS, ours(1))
    assert effects[0] == Bind(ours(1), THEIRS)
    assert said(effects) == [Message(Kind.ACK, ours(1), THEIRS)]
    assert Ready(ours(1)) in effects


def test_a_reset_is_believed_of_ones_own_peer_only() -> None:
    """Late, repeated and foreign ones change nothing."""
    p = ready(pair())
    assert heard(p, Kind.RST, OTHERS, ours(1)) == []
    assert heard(p, Kind.RST, THEIRS, ours(9)) == []
    assert [type(e) for e in heard(p, Kind.RST, THEIRS, ours(1))] == [Retire]
    assert heard(p, Kind.RST, THEIRS, ours(1)) == []


def test_draining_and_dead_never_come_back() -> None:
    """Whatever arrives for a retired session is answered as for one that never was."""
    p = ready(pair())
    p.handle(Broken(ours(1), "reset"), 0.0)
    for kind in (Kind.REP, Kind.ACK, Kind.PING):
        assert said(heard(p, kind, THEIRS, ours(1))) == [Message(Kind.RST, ours(1), THEIRS)]
    assert p.handle(Timer(ours(1)), 0.0) == []
    assert p.handle(Broken(ours(1), "again"), 0.0) == []
    p.handle(Drained(ours(1)), 0.0)
    assert p.primary is None


def test_who_waits_is_not_forgotten_when_the_endpoint_is_reset() -> None:
    """A stale request bound what was asked for; its reset asks again at once, with a fresh session."""
    p = pair()
    p.handle(Open(1), 0.0)
    heard(p, Kind.REQ)
    effects = heard(p, Kind.RST, THEIRS, ours(1))
    assert Make(ours(2), asked=True) in effects
    assert said(effects) == [Message(Kind.REQ, ours(2), None)]


def test_one_loss_after_the_other_is_not_hurried() -> None:
    """The second time the request leaves by the timer: two sides cannot chase each other with stale requests."""
    p = pair()
    p.handle(Open(1), 0.0)
    heard(p, Kind.REQ)
    heard(p, Kind.RST, THEIRS, ours(1))
    heard(p, Kind.REQ, OTHERS)
    effects = heard(p, Kind.RST, OTHERS, ours(2))
    assert said(effects) == []
    assert timers(effects) == [TIMING.resend_s(0)]
    assert p.handle(Timer(ours(3)), 0.1)[:2] == [Make(ours(3), asked=True), Send(Message(Kind.REQ, ours(3), None))]


def test_resources_that_cannot_be_had_are_not_asked_for_in_a_frenzy() -> None:
    """Somebody waits, and making fails at once, again and again: each time it is tried later, up to the cap."""
    p = pair()
    effects = p.handle(Open(1), 0.0)
    waits = []
    for n in range(1, 12):
        effects = p.handle(Broken(ours(n), "no memory"), 0.0)
        p.check_invariants()
        if not any(isinstance(effect, Make) for effect in effects):
            waits += timers(effects)
            effects = p.handle(Timer(ours(n + 1)), 0.0)
        assert [e for e in effects if isinstance(e, Make)] == [Make(ours(n + 1), asked=True)]
    assert waits == [TIMING.resend_s(n) for n in range(len(waits))]
    assert len(waits) == 10
    assert waits[-1][1] == TIMING.resend_cap_s


def test_an_endpoint_whose_turn_has_not_come_is_made_when_the_peer_asks() -> None:
    """Made, then bound; and if nobody waits any more it goes without a trace, for there is nothing to let go of."""
    for gives_up in (False, True):
        p = pair()
        p.handle(Open(1), 0.0)
        for n in (1, 2):
            p.handle(Broken(ours(n), "no memory"), 0.0)
            p.handle(Drained(ours(n)), 0.0)
        if gives_up:
            assert p.handle(GiveUp(1), 0.0) == []
            assert p.idle
        else:
            assert heard(p, Kind.REQ)[:2] == [Make(ours(3), asked=True), Bind(ours(3), THEIRS)]


# -- time -------------------------------------------------------------------------------------------------------------


def test_a_request_is_sent_again_later_and_later() -> None:
    """Exponential, capped, and never for nobody."""
    p = pair()
    p.handle(Open(1), 0.0)
    waits = [timers(p.handle(Timer(ours(1)), float(n)))[0][1] for n in range(8)]
    assert waits == sorted(waits)
    assert waits[0] == 2 * TIMING.resend_base_s
    assert waits[-1] == TIMING.resend_cap_s
    assert p.handle(GiveUp(1), 9.0) == [Retire(ours(1), "nobody waits for it any more")]


def test_a_reply_is_sent_again_until_the_limit() -> None:
    """Then the endpoint retires and says why; no timer goes off later than that."""
    p = pair()
    heard(p, Kind.REQ, now=100.0)
    assert said(p.handle(Timer(ours(1)), 101.0)) == [Message(Kind.REP, ours(1), THEIRS)]
    late = 100.0 + TIMING.handshake_limit_s
    (last,) = timers(p.handle(Timer(ours(1)), late - 0.05))
    assert last == pytest.approx((0.05, 0.05))
    (retired,) = p.handle(Timer(ours(1)), late)
    assert isinstance(retired, Retire)
    assert "has not confirmed the connection within 15 s" in retired.why


def test_a_ready_endpoint_pings_and_retires_in_silence() -> None:
    """Any word of its own peer counts; words of others do not."""
    p = ready(pair())
    now = 0.0
    while now + TIMING.keepalive_s < TIMING.silence_s:
        now += TIMING.keepalive_s
        assert said(p.handle(Timer(ours(1)), now)) == [Message(Kind.PING, ours(1), THEIRS)]
    heard(p, Kind.ACK, THEIRS, ours(1), now=now)
    last = now + TIMING.silence_s
    while now + TIMING.keepalive_s < last:
        now += TIMING.keepalive_s
        heard(p, Kind.REP, OTHERS, ours(1), now=now)
        assert said(p.handle(Timer(ours(1)), now))
    (retired,) = p.handle(Timer(ours(1)), last)
    assert isinstance(retired, Retire)
    assert "silent for 20.0 s" in retired.why


def test_who_was_stopped_itself_does_not_bury_the_living() -> None:
    """A timer that goes off a minute too late: it asks, and counts the silence from now."""
    p = ready(pair())
    assert said(p.handle(Timer(ours(1)), 5.0)) == [Message(Kind.PING, ours(1), THEIRS)]
    assert said(p.handle(Timer(ours(1)), 65.0)) == [Message(Kind.PING, ours(1), THEIRS)]
    now = 65.0
    while now + TIMING.keepalive_s < 65.0 + TIMING.silence_s:
        now += TIMING.keepalive_s
        assert said(p.handle(Timer(ours(1)), now))
    assert [type(e) for e in p.handle(Timer(ours(1)), 65.0 + TIMING.silence_s)] == [Retire]


def test_who_outlives_a_keep_alive_starts_afresh() -> None:
    """Failures of long ago do not slow down the next healing."""
    p = ready(pair())
    p.failures = 5
    p.handle(Timer(ours(1)), 1.0)
    assert p.failures == 5
    p.handle(Timer(ours(1)), TIMING.keepalive_s)
    assert p.failures == 0


# -- work -------------------------------------------------------------------------------------------------------------


def test_work_is_carried_by_a_ready_endpoint_and_settled_once() -> None:
    """With its own outcome."""
    p = ready(pair())
    assert p.handle(Post(ours(1), 5), 0.0) == [Carry(ours(1), 5)]
    assert p.handle(Finished(ours(1), 5, "timed out"), 0.0) == [Settle(5, "timed out")]


def test_nothing_is_posted_to_an_endpoint_that_is_not_ready() -> None:
    """Passive side sends before the active side is ready: it must not, and is told so at once."""
    p = pair()
    assert p.handle(Post(ours(1), 4), 0.0) == [Settle(4, "the endpoint is retired, not ready")]
    heard(p, Kind.REQ)
    assert p.handle(Post(ours(1), 5), 0.0) == [Settle(5, "the endpoint is bound, not ready")]
    heard(p, Kind.ACK, THEIRS, ours(1))
    assert p.handle(Post(ours(1), 6), 0.0) == [Carry(ours(1), 6)]


def test_a_retirement_settles_all_work_and_its_late_end_is_ignored() -> None:
    """Completed or failed, exactly once."""
    p = ready(pair())
    for work in (5, 6):
        p.handle(Post(ours(1), work), 0.0)
    effects = p.handle(Broken(ours(1), "reset"), 0.0)
    assert [e for e in effects if isinstance(e, Settle)] == [Settle(5, "reset"), Settle(6, "reset")]
    assert p.handle(Finished(ours(1), 5), 0.0) == []


# -- the table --------------------------------------------------------------------------------------------------------


def test_every_message_has_an_entry_in_every_standing() -> None:
    """No peer can make the machine raise."""
    for standing, kind in itertools.product(Standing, Kind):
        assert (standing, kind) in TRANSITIONS


def test_every_step_of_the_table_is_known_and_every_known_step_is_used() -> None:
    """The table and the steps are the same set."""
    assert {rule.step for rule in TRANSITIONS.values()} == set(Pair.STEPS) == set(Step)


def test_the_table_says_where_an_endpoint_ends_up() -> None:
    """Each entry, driven once from its standing, leaves its endpoint in the state that it names."""
    for (standing, what), rule in TRANSITIONS.items():
        if rule.after is None or not isinstance(what, Kind):
            continue
        p, dst = pair(), ours(1)
        if standing is Standing.UNBOUND:
            p.handle(Open(1), 0.0)
        elif standing is Standing.BOUND:
            heard(p, Kind.REQ)
        elif standing is not Standing.GONE:
            ready(p)
        sender = OTHERS if standing is Standing.ELSEWHERE else THEIRS
        before = p.primary
        heard(p, what, sender, None if what is Kind.REQ else dst)
        concerned = p.candidate or before or p.primary
        assert concerned is not None
        assert concerned.state is rule.after, (standing, what)


def test_an_event_that_the_table_does_not_know_is_our_own_bug() -> None:
    """It says what had happened before, and changes nothing."""
    p = ready(pair())
    with pytest.raises(IllegalTransition, match=r"Drained.*last events: .*Open\(waiter=1\)"):
        p.handle(Drained(ours(1)), 0.0)
    assert p.primary is not None
    assert p.primary.state is State.R


def test_two_machines_meet() -> None:
    """One opens: REQ, REP, ACK, and both are ready with each other."""
    duo = Duo()
    duo.open(duo.a)
    assert [m.kind for m in duo.under_way] == [Kind.REQ]
    duo.hand(Kind.REQ, duo.b)
    duo.hand(Kind.REP, duo.a)
    duo.hand(Kind.ACK, duo.b)
    assert duo.connected
    assert duo.under_way == []
