"""The client's side of a session: repeats, verdicts, abandoned replies, pins."""

from __future__ import annotations

from typing import TypeVar

import pytest

from penstock.errors import IllegalTransition
from penstock.plane import events as ev
from penstock.plane.courier import MAX_ERRANDS, Courier, Identity, Phase
from penstock.plane.events import Effect, Ended, Settled, Transmit, Verdict
from penstock.requests import (
    Ack,
    ArenaPlace,
    BlockPlace,
    Call,
    Claim,
    Claimed,
    Clear,
    Commit,
    Depth,
    Done,
    Failed,
    Goodbye,
    Grant,
    GrantAgain,
    Granted,
    Heartbeat,
    Locate,
    Located,
    Number,
    OpenSession,
    Ping,
    Reply,
    ReplyBody,
    ResumeSession,
    Tokens,
    Welcome,
)

T = TypeVar("T")
LIFE = 7
SESSION = 99


def courier() -> Courier:
    return Courier(Identity(client_id=5, owner="me", role="trainer", host="here", pid=1))


def one(effects: list[Effect], kind: type[T]) -> T:
    (found,) = [effect for effect in effects if isinstance(effect, kind)]
    return found


def calls(effects: list[Effect]) -> list[Call]:
    return [effect.call for effect in effects if isinstance(effect, Transmit)]


def welcome(*, resumed: bool = False, session: int = SESSION) -> Welcome:
    return Welcome(1, session, "secret", resumed, 2.0, 10.0, 1 << 20)


def answer(client: Courier, call: Call, body: ReplyBody, life: int = LIFE) -> list[Effect]:
    return client.handle(ev.Received(Reply(call.id, life, body)), 0.0)


def connect(client: Courier, *, resumed: bool = False, session: int = SESSION, life: int = LIFE) -> list[Effect]:
    (first,) = calls(client.handle(ev.Connected(), 0.0))
    return answer(client, first, welcome(resumed=resumed, session=session), life)


def up() -> Courier:
    client = courier()
    connect(client)
    return client


def submit(client: Courier, errand: int, body: object, *, once: bool = False) -> Call:
    (call,) = calls(client.handle(ev.Submit(errand, body, 100.0, once), 0.0))  # type: ignore[arg-type]
    return call


def clear(key: str = "a") -> Clear:
    return Clear("p", [key])


def claim() -> Claim:
    return Claim("p", "train", ["x"], 1)


def located(*pins: int) -> Located:
    blocks = [
        BlockPlace(block_id=i, arena_id=1, offset=0, nbytes=64, generation=1, pin=pin) for i, pin in enumerate(pins)
    ]
    return Located(blocks, [], [], [])


def grant(key: str) -> Grant:
    return Grant("p", [key], [], [], 64, [8])


def granted(number: int) -> Granted:
    return Granted(number, BlockPlace(number, 1, 0, 64, 1), ArenaPlace(1, 4096, True))


def heartbeat(client: Courier) -> Heartbeat:
    (call,) = calls(client.handle(ev.Beat(), 0.0))
    assert isinstance(call.body, Heartbeat)
    return call.body


# -- opening --------------------------------------------------------------------------------------------------------


def test_the_first_call_opens_a_session_and_a_later_connection_resumes_it() -> None:
    """Who the client is, is said once; afterwards session and secret say it."""
    client = courier()
    (first,) = calls(client.handle(ev.Connected(), 0.0))
    assert isinstance(first.body, OpenSession)
    opened = one(answer(client, first, welcome()), ev.Opened)
    assert (opened.session_id, opened.resumed) == (SESSION, False)
    client.handle(ev.Lost("cut"), 0.0)
    (second,) = calls(client.handle(ev.Connected(), 0.0))
    assert second.body == ResumeSession(1, 5, SESSION, "secret")


def test_calls_wait_for_the_session_and_go_in_order() -> None:
    """What is submitted before the session stands is sent when it does, mutations numbered from 1."""
    client = courier()
    assert client.handle(ev.Submit(1, clear("a"), 100.0), 0.0) == []
    assert client.handle(ev.Submit(2, Depth("p"), 100.0), 0.0) == []
    assert client.handle(ev.Submit(3, clear("b"), 100.0), 0.0) == []
    sent = calls(connect(client))
    assert [(c.seq, c.body) for c in sent] == [(1, clear("a")), (0, Depth("p")), (2, clear("b"))]


def test_a_refusal_that_waiting_cannot_mend_reaches_every_caller() -> None:
    """A plane of another version answers each caller with its refusal and loses the connection."""
    client = courier()
    client.handle(ev.Submit(1, clear(), 100.0), 0.0)
    (first,) = calls(client.handle(ev.Connected(), 0.0))
    refusal = Failed("DataPlaneBadRequest", "version 2 speaks to version 1")
    effects = answer(client, first, refusal)
    assert one(effects, Settled).body == refusal
    one(effects, ev.Disconnect)


def test_a_plane_that_is_busy_is_asked_again() -> None:
    """A refusal for now (too many connections) drops the connection and keeps the callers waiting."""
    client = courier()
    client.handle(ev.Submit(1, clear(), 100.0), 0.0)
    (first,) = calls(client.handle(ev.Connected(), 0.0))
    assert answer(client, first, Failed("DataPlaneUnavailable", "full")) == [ev.Disconnect("full")]
    assert client.pending == 1


def test_the_plane_is_told_less_than_the_callers_time() -> None:
    """What the plane says at its deadline must arrive before the caller's."""
    client = up()
    call = submit(client, 1, claim())
    assert 0 < call.deadline_s < 100.0
    (short,) = calls(client.handle(ev.Submit(2, claim(), 0.0), 5.0))
    assert short.deadline_s == 0.0


# -- replies and repeats ----------------------------------------------------------------------------------------------


def test_a_mutation_cut_off_is_repeated_under_its_number_after_resuming() -> None:
    """Cut after it was sent: the same sequence goes again, and its old reply settles the caller."""
    client = up()
    before = submit(client, 1, clear())
    assert client.handle(ev.Lost("cut"), 0.0) == []
    (again,) = calls(connect(client, resumed=True))
    assert (again.seq, again.body) == (before.seq, before.body)
    assert again.id != before.id
    assert one(answer(client, again, Done()), Settled) == Settled(1, Done(), LIFE)


def test_a_sent_mutation_never_goes_under_another_session() -> None:
    """When the session cannot resume, its sent mutations end in doubt; unsent ones and reads go under the new one."""
    client = up()
    submit(client, 1, clear("sent"))
    submit(client, 2, clear("kept"))
    submit(client, 3, Depth("p"))
    client.handle(ev.Lost("cut", frozenset({2})), 0.0)
    (resume,) = calls(client.handle(ev.Connected(), 0.0))
    effects = answer(client, resume, Failed("DataPlaneUnavailable", "unknown session"))
    ended = one(effects, Ended)
    assert (ended.errand, ended.verdict) == (1, Verdict.UNKNOWN)
    (opening,) = calls(effects)
    assert isinstance(opening.body, OpenSession)
    sent = calls(answer(client, opening, welcome(session=100)))
    assert [(c.seq, c.body) for c in sent] == [(1, clear("kept")), (0, Depth("p"))]


def test_sent_once_is_sent_for_good() -> None:
    """Bytes that left on an earlier connection count, even if the repeat never left."""
    client = up()
    submit(client, 1, clear())
    client.handle(ev.Lost("cut"), 0.0)
    connect(client, resumed=True)
    ended = one(client.handle(ev.Leave(1, kept=True), 0.0), Ended)
    assert ended.verdict is Verdict.UNKNOWN


def test_nothing_happened_is_said_only_of_what_never_left() -> None:
    """A caller whose request never left the process hears that nothing happened, any other that it is not known."""
    client = up()
    submit(client, 1, clear("a"))
    submit(client, 2, clear("b"))
    assert one(client.handle(ev.Leave(1, kept=True), 0.0), Ended).verdict is Verdict.NOTHING
    assert one(client.handle(ev.Leave(2), 0.0), Ended).verdict is Verdict.UNKNOWN


def test_a_caller_who_waited_for_a_connection_hears_that_nothing_happened() -> None:
    """Not connected at all: provably nothing was sent."""
    client = courier()
    client.handle(ev.Submit(1, clear(), 1.0), 0.0)
    assert one(client.handle(ev.Leave(1), 1.0), Ended).verdict is Verdict.NOTHING


def test_a_read_that_waits_for_a_connection_did_not_happen() -> None:
    """A read that was cut off leaves no doubt: while nobody is there the plane is unavailable, not slow."""
    client = up()
    submit(client, 1, Depth("p"))
    client.handle(ev.Lost("killed"), 0.0)
    assert one(client.handle(ev.Leave(1), 0.0), Ended).verdict is Verdict.NOTHING


def test_an_expired_call_is_not_repeated() -> None:
    """After a reconnection only callers who still wait are served."""
    client = up()
    client.handle(ev.Submit(1, clear(), 1.0), 0.0)
    client.handle(ev.Lost("cut"), 0.0)
    (resume,) = calls(client.handle(ev.Connected(), 2.0))
    assert calls(client.handle(ev.Received(Reply(resume.id, LIFE, welcome(resumed=True))), 2.0)) == []


def test_once_means_on_this_connection_or_not_at_all() -> None:
    """A ping waits for no reconnection."""
    client = up()
    submit(client, 1, Ping(), once=True)
    assert one(client.handle(ev.Lost("cut"), 0.0), Ended) == Ended(1, Verdict.NOTHING, "cut")
    client.handle(ev.Submit(2, Ping(), 100.0, True), 0.0)
    assert one(client.handle(ev.NotConnected("refused"), 0.0), Ended) == Ended(2, Verdict.NOTHING, "refused")


def test_replies_are_paired_by_number() -> None:
    """Answers may overtake one another; each goes to its own caller."""
    client = up()
    first, second = submit(client, 1, Depth("p")), submit(client, 2, Depth("q"))
    assert one(answer(client, second, Number(2)), Settled).errand == 2
    assert one(answer(client, first, Number(1)), Settled).errand == 1


def test_an_answer_of_the_wrong_kind_costs_the_connection_and_never_reaches_a_caller() -> None:
    """Somebody else's reply is not believed; the call goes again on the next connection."""
    client = up()
    call = submit(client, 1, Depth("p"))
    one(answer(client, call, Done()), ev.Disconnect)
    client.handle(ev.Lost("broken"), 0.0)
    (again,) = calls(connect(client, resumed=True))
    assert again.body == Depth("p")


def test_a_reply_to_a_call_never_made_costs_the_connection() -> None:
    """An unknown number means that the plane has lost count."""
    client = up()
    one(client.handle(ev.Received(Reply(1000, LIFE, Done())), 0.0), ev.Disconnect)


def test_a_late_reply_of_an_earlier_connection_cannot_settle_a_newer_call() -> None:
    """Call numbers are never used twice."""
    client = up()
    old = submit(client, 1, Depth("p"))
    client.handle(ev.Lost("cut"), 0.0)
    connect(client, resumed=True)
    assert answer(client, old, Number(1)) == []


# -- abandoned replies ------------------------------------------------------------------------------------------------


def test_a_reply_that_nobody_took_is_named_abandoned() -> None:
    """A claim whose caller left in the meantime is named at once, so that its rows return."""
    client = up()
    call = submit(client, 1, claim())
    (beat,) = calls(client.handle(ev.Leave(1), 0.0))
    assert isinstance(beat.body, Heartbeat)
    assert (beat.abandoned, beat.done_below) == ([call.seq], call.seq)


def test_a_reply_that_came_and_was_not_taken_is_abandoned_too() -> None:
    """A signal between the reply's arrival and its handing over loses no row."""
    client = up()
    call = submit(client, 1, claim())
    answer(client, call, Claimed("token", ["a"], [{}], None))
    (beat,) = calls(client.handle(ev.Leave(1), 0.0))
    assert beat.abandoned == [call.seq]
    assert client.book.tokens("p", "train", ["a"]) == Tokens([], [])


def test_abandoned_is_said_until_the_plane_has_read_it() -> None:
    """Said once per connection, again on the next one, and ``done_below`` waits for it."""
    client = up()
    call = submit(client, 1, claim())
    client.handle(ev.Leave(1), 0.0)
    assert submit(client, 2, clear()).abandoned == []  # the heartbeat has said it
    client.handle(ev.Lost("cut"), 0.0)
    (again,) = calls(connect(client, resumed=True))
    assert (again.abandoned, again.done_below) == ([call.seq], call.seq)
    answer(client, again, Done())
    client.handle(ev.Take(2), 0.0)
    later = submit(client, 3, clear())
    assert (later.abandoned, later.done_below) == ([], later.seq)


def test_done_below_waits_for_the_reply_to_be_taken() -> None:
    """The plane may forget a reply only when the caller has it."""
    client = up()
    first = submit(client, 1, clear("a"))
    answer(client, first, Done())
    assert submit(client, 2, clear("b")).done_below == first.seq
    client.handle(ev.Take(1), 0.0)
    assert submit(client, 3, clear("c")).done_below == first.seq + 1


def test_news_that_rode_on_a_call_that_never_left_rides_again() -> None:
    """What was to be carried by a call taken out of the outbox goes with the next."""
    client = up()
    call = submit(client, 1, Locate("p", ["a"], ["x"]))
    answer(client, call, located(3))
    client.handle(ev.Take(1), 0.0)
    client.handle(ev.Unpinned((3,)), 0.0)
    assert submit(client, 2, Depth("p")).unpins == [3]
    client.handle(ev.Leave(2, kept=True), 0.0)
    assert submit(client, 3, Depth("p")).unpins == [3]


# -- leases, pins, grants ---------------------------------------------------------------------------------------------


def test_the_token_of_a_claim_is_remembered_when_it_is_taken() -> None:
    """Later acks and pops carry it, also from a new session."""
    client = up()
    call = submit(client, 1, claim())
    answer(client, call, Claimed("token", ["a"], [{}], None))
    client.handle(ev.Take(1), 0.0)
    client.handle(ev.Lost("cut"), 0.0)
    (resume,) = calls(client.handle(ev.Connected(), 0.0))
    (opening,) = calls(answer(client, resume, Failed("DataPlaneUnavailable", "unknown session")))
    answer(client, opening, welcome(session=100), life=8)
    tokens = client.book.tokens("p", "train", ["a"])
    assert tokens == Tokens(["token"], [])
    ack = Ack("p", "train", ["a"], Tokens([], []))
    (call,) = calls(client.handle(ev.Submit(2, ack, 100.0, remembered=True), 0.0))
    assert call.body == Ack("p", "train", ["a"], tokens)
    answer(client, call, Done(), life=8)
    assert client.book.tokens("p", "train", ["a"]) == Tokens(["token"], [])  # a repeat names it too


def test_pins_of_a_reply_that_nobody_reads_are_given_back() -> None:
    """A caller who left before his locate was answered leaves no pin behind."""
    client = up()
    call = submit(client, 1, Locate("p", ["a"], ["x"]))
    client.handle(ev.Leave(1), 0.0)
    assert answer(client, call, located(3, 4)) == []
    assert submit(client, 2, Depth("p")).unpins == [3, 4]


def test_pins_answered_and_not_taken_are_given_back() -> None:
    """The same when the reply had come."""
    client = up()
    call = submit(client, 1, Locate("p", ["a"], ["x"]))
    answer(client, call, located(3))
    client.handle(ev.Leave(1), 0.0)
    assert heartbeat(client).pins == []


def test_a_heartbeat_lists_what_is_held() -> None:
    """Pins and grants in use are stated, with the newest that came."""
    client = up()
    answer(client, submit(client, 1, Locate("p", ["a"], ["x"])), located(3, 5))
    client.handle(ev.Take(1), 0.0)
    answer(client, submit(client, 2, grant("a")), granted(9))
    client.handle(ev.Take(2), 0.0)
    assert heartbeat(client) == Heartbeat(9, 5, [9], [3, 5])
    client.handle(ev.Unpinned((3,)), 0.0)
    client.handle(ev.GrantOver(9), 0.0)
    assert heartbeat(client) == Heartbeat(9, 5, [], [5])


def test_a_heartbeat_names_the_grant_that_came_last() -> None:
    """Not the highest: the plane goes by the order of its answers, and one that waited for room came after newer ones.

    One that is still on its way is answered later than any that came, so it is never given up.
    """
    client = up()
    older, newer, waiting = (submit(client, number, grant("a")) for number in (1, 2, 3))
    answer(client, newer, granted(8))
    assert heartbeat(client) == Heartbeat(8, 0, [8], [])
    answer(client, older, granted(7))
    client.handle(ev.GrantOver(7), 0.0)
    assert heartbeat(client) == Heartbeat(7, 0, [8], [])
    answer(client, waiting, granted(6))
    assert heartbeat(client) == Heartbeat(6, 0, [6, 8], [])


def test_a_put_that_leaves_while_it_waits_for_room_is_withdrawn_at_once() -> None:
    """Its call is named, once, so that the plane keeps no place in the queue for it."""
    client = up()
    call = submit(client, 1, grant("a"))
    (beat,) = calls(client.handle(ev.Leave(1), 0.0))
    assert beat.body == Heartbeat(0, 0, [], [], [call.id])
    assert heartbeat(client) == Heartbeat(0, 0, [], [])


def test_room_that_comes_for_a_put_that_has_left_is_given_back_at_once() -> None:
    """Also while another put of this client waits: it may be waiting for just this room."""
    client = up()
    left, _waiting = submit(client, 1, grant("a")), submit(client, 2, grant("b"))
    client.handle(ev.Leave(1), 0.0)
    (beat,) = calls(answer(client, left, granted(9)))
    assert beat.body == Heartbeat(9, 0, [], [])


def test_room_that_came_and_was_not_taken_is_given_back_at_once() -> None:
    """A signal between the reply's arrival and its handing over holds up nobody."""
    client = up()
    answer(client, submit(client, 1, grant("a")), granted(9))
    (beat,) = calls(client.handle(ev.Leave(1), 0.0))
    assert beat.body == Heartbeat(9, 0, [], [])


def test_a_put_that_was_never_sent_is_not_withdrawn() -> None:
    """No byte of it has left, or there is no connection: the plane knows nothing of it."""
    client = up()
    submit(client, 1, grant("a"))
    submit(client, 2, grant("b"))
    assert calls(client.handle(ev.Leave(1, kept=True), 0.0)) == []
    client.handle(ev.Lost("cut"), 0.0)
    assert calls(client.handle(ev.Leave(2), 0.0)) == []


def test_pins_of_an_earlier_life_are_never_named_to_a_later_one() -> None:
    """A restarted plane numbers its pins anew: an old number would free a view in use."""
    client = up()
    answer(client, submit(client, 1, Locate("p", ["a"], ["x"])), located(3))
    client.handle(ev.Take(1), 0.0)
    client.handle(ev.Lost("killed"), 0.0)
    connect(client, resumed=True, life=LIFE + 1)
    client.handle(ev.Unpinned((3,)), 0.0)
    assert submit(client, 2, Depth("p")).unpins == []
    assert heartbeat(client) == Heartbeat(0, 0, [], [])


# -- the end ----------------------------------------------------------------------------------------------------------


def test_closing_wakes_every_caller_and_says_goodbye() -> None:
    """Those whose mutation was sent hear that its outcome is not known, all others that nothing happened."""
    client = up()
    submit(client, 1, clear())
    submit(client, 2, Depth("p"))
    effects = client.handle(ev.Close(), 0.0)
    assert {e.errand: e.verdict for e in effects if isinstance(e, Ended)} == {1: Verdict.UNKNOWN, 2: Verdict.NOTHING}
    assert isinstance(one(effects, Transmit).call.body, Goodbye)
    assert one(client.handle(ev.Submit(3, Depth("p"), 9.0), 0.0), Ended).verdict is Verdict.NOTHING
    assert client.handle(ev.Close(), 0.0) == []


def test_calls_are_limited_below_what_the_plane_reads() -> None:
    """A crowd of blocked claims must not keep the heartbeat from being read: one too many is refused, not sent."""
    client = up()
    for errand in range(1, MAX_ERRANDS + 1):
        submit(client, errand, claim())
    (refused,) = client.handle(ev.Submit(MAX_ERRANDS + 1, claim(), 100.0), 0.0)
    assert isinstance(refused, Ended)
    assert refused.verdict is Verdict.NOTHING
    client.handle(ev.Leave(1), 0.0)
    submit(client, MAX_ERRANDS + 2, claim())


def test_a_plane_that_cannot_start_ends_every_wait() -> None:
    """Waiting does not mend a damaged journal: callers hear the reason at once, with the right verdict."""
    client = up()
    submit(client, 1, clear())
    client.handle(ev.Lost("killed"), 0.0)
    client.handle(ev.Submit(2, clear(), 100.0), 0.0)
    effects = client.handle(ev.Refused("journal is corrupt"), 0.0)
    assert effects == [Ended(1, Verdict.UNKNOWN, "journal is corrupt"), Ended(2, Verdict.NOTHING, "journal is corrupt")]


def test_what_is_not_in_the_table_is_a_bug() -> None:
    """A connection cannot be made twice."""
    client = up()
    with pytest.raises(IllegalTransition):
        client.handle(ev.Connected(), 0.0)


@pytest.mark.parametrize("phase", list(Phase))
def test_a_caller_can_come_and_go_in_every_phase(phase: Phase) -> None:
    """Submitting and leaving are legal whatever the connection does."""
    for event in (ev.Submit, ev.Leave, ev.Take, ev.Close, ev.Unpinned, ev.GrantOver):
        assert (phase, event) in Courier.TABLE


def test_a_commit_is_settled_by_grant_again() -> None:
    """The plane that gave the grant has died: the caller is told to ask for another."""
    client = up()
    call = submit(client, 1, Commit(9, 1))
    assert one(answer(client, call, GrantAgain()), Settled).body == GrantAgain()
