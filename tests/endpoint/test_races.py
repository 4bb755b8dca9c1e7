"""Every known race between two peers, by name, message by message. Those that need a shell are in ``test_peering``."""

from __future__ import annotations

from penstock.endpoint.events import Broken, Kind, Post, Settle
from penstock.endpoint.table import State
from tests.endpoint.duo import Duo


def test_crossed_delete() -> None:
    """Both open, both requests cross: each passive side binds what is there. Nothing is deleted, nothing is left."""
    duo = Duo()
    duo.open(duo.a)
    duo.open(duo.b)
    duo.hand(Kind.REQ, duo.a)
    duo.hand(Kind.REQ, duo.b)
    duo.settle()
    assert duo.connected
    assert (duo.a.retired, duo.b.retired) == ({}, {})
    assert duo.a.answers == {1: duo.a.session}
    assert duo.b.answers == {1: duo.b.session}


def test_lock_held_across_the_call() -> None:
    """Both requests are handled while both sides wait for their own reply: a handler never waits for anything."""
    duo = Duo()
    duo.open(duo.a)
    duo.open(duo.b)
    first, second = duo.take(Kind.REQ), duo.take(Kind.REQ)
    assert duo.deliver(duo.b, first)
    assert duo.deliver(duo.a, second)
    assert (duo.a.primary.state, duo.b.primary.state) == (State.B, State.B)
    duo.settle()
    assert duo.connected


def test_two_workers_of_one_process_open_at_once() -> None:
    """One request leaves; both have the same endpoint."""
    duo = Duo()
    duo.open(duo.a, waiter=1)
    duo.open(duo.a, waiter=2)
    assert len(duo.under_way) == 1
    duo.settle()
    assert duo.a.answers == {1: duo.a.session, 2: duo.a.session}


def test_peer_restarts_while_its_request_is_answered() -> None:
    """The reply finds nobody; the answering side lets go, and the restarted one is connected with fresh sessions."""
    duo = Duo()
    duo.open(duo.a)
    duo.hand(Kind.REQ, duo.b)
    stale = duo.b.session
    duo.a.restart()
    duo.hand(Kind.REP, duo.a)
    duo.hand(Kind.RST, duo.b)
    assert stale in duo.b.retired
    duo.open(duo.a)
    duo.settle()
    assert duo.connected


def test_peer_restarts_and_asks_before_its_old_endpoint_is_known_to_be_dead() -> None:
    """Make before break: a candidate is made, the old primary is asked after, and the candidate takes over."""
    duo = Duo().connect()
    old = duo.b.session
    duo.a.restart()
    duo.open(duo.a)
    duo.hand(Kind.REQ, duo.b)
    assert duo.b.session == old
    assert duo.b.pair.candidate is not None
    duo.settle()
    assert duo.connected
    assert old in duo.b.retired


def test_call_times_out_though_the_peer_has_connected_us() -> None:
    """A's own REQ is lost, B's opening has connected A: A's caller gives up late and breaks nothing."""
    duo = Duo()
    duo.open(duo.a)
    duo.take(Kind.REQ)
    duo.open(duo.b)
    duo.hand(Kind.REQ, duo.a)
    duo.give_up(duo.a)
    duo.settle()
    assert duo.connected
    assert duo.a.retired == {}


def test_passive_side_sends_before_the_active_side_is_ready() -> None:
    """Bound is not ready: it may receive, and is refused when it wants to send."""
    duo = Duo()
    duo.open(duo.a)
    duo.hand(Kind.REQ, duo.b)
    refused = duo.tell(duo.b, Post(duo.b.session, 1))
    assert refused == [Settle(1, "the endpoint is bound, not ready")]
    duo.settle()
    assert duo.tell(duo.b, Post(duo.b.session, 2)) != refused


def test_reply_to_an_attempt_that_was_meanwhile_rebuilt() -> None:
    """A's caller gave up and asked again: the reply to the first attempt resets that, and not the second."""
    duo = Duo()
    duo.open(duo.a)
    duo.hand(Kind.REQ, duo.b)
    late = duo.take(Kind.REP)
    duo.give_up(duo.a)
    duo.open(duo.a, waiter=2)
    second = duo.a.session
    duo.deliver(duo.a, late)
    assert duo.a.session == second
    duo.settle()
    assert duo.connected
    assert duo.a.session == second


def test_restarted_peer_with_identical_resource_ids() -> None:
    """No guard sees a resource: the machine is told sessions alone, and those never come again."""
    duo = Duo().connect()
    old = duo.b.session
    duo.a.restart()  # its resources may be numbered as before; there is nothing here that could compare them
    duo.open(duo.a)
    duo.settle()
    assert duo.connected
    assert duo.b.session != old
    assert not any(hasattr(effect, "params") for effect in [*duo.a.effects, *duo.b.effects])


def test_stale_request_does_not_kill_a_healthy_pair() -> None:
    """A delayed REQ of a session that is gone, in the middle of a working connection: a candidate comes and goes."""
    duo = Duo()
    duo.open(duo.a)
    stale = duo.take(Kind.REQ)
    duo.give_up(duo.a)
    duo.connect()
    pair = duo.a.session, duo.b.session
    duo.deliver(duo.b, stale)
    duo.settle()
    assert duo.connected
    assert (duo.a.session, duo.b.session) == pair
    assert duo.b.pair.candidate is None


def test_stale_requests_of_both_sides_chase_each_other() -> None:
    """Each side binds a request of a session that has gone, again and again: by the second time it takes its time."""
    duo = Duo()
    duo.open(duo.a)
    duo.open(duo.b)
    stale = [duo.take(Kind.REQ), duo.take(Kind.REQ)]
    duo.breaks(duo.a)
    duo.breaks(duo.b)
    duo.deliver(duo.b, stale[0])
    duo.deliver(duo.a, stale[1])
    duo.settle()
    while not duo.connected:
        for peer in (duo.a, duo.b):
            if peer.pair.primary is not None:
                duo.timer(peer)
        duo.settle()
        duo.now += 1.0
        assert duo.now < 10, "they still chase each other"


def test_endpoint_evicted_while_a_passive_handshake_holds_it() -> None:
    """B's half-made endpoint goes; A's confirmation is answered with a reset, and A, who waits, asks again."""
    duo = Duo()
    duo.open(duo.a)
    duo.hand(Kind.REQ, duo.b)
    evicted = duo.b.session
    duo.tell(duo.b, Broken(evicted, "evicted: too many endpoints"))
    duo.drain(duo.b)
    duo.settle()
    assert duo.b.pair.primary is None
    duo.open(duo.a, waiter=2)
    duo.settle()
    assert duo.connected
    assert evicted in duo.b.retired


def test_late_and_repeated_resets_are_harmless() -> None:
    """What a RST says is true for ever, so that it can do no harm at any later time."""
    duo = Duo().connect()
    old = duo.b.session
    duo.a.restart()
    duo.timer(duo.b)
    duo.hand(Kind.PING, duo.a)
    reset = duo.take(Kind.RST)
    duo.open(duo.a)
    duo.settle()
    assert duo.connected
    for _ in range(3):
        duo.deliver(duo.b, reset)
    assert duo.connected
    assert old in duo.b.retired


def test_every_message_of_an_opening_is_lost_once() -> None:
    """The timers say it again; both end connected."""
    for kind in (Kind.REQ, Kind.REP, Kind.ACK):
        duo = Duo()
        duo.open(duo.a)
        while kind not in {m.kind for m in duo.under_way}:
            message = duo.under_way[0]
            duo.hand(message.kind, duo.b if message.src.boot % 2 else duo.a)
        duo.take(kind)
        duo.timer(duo.a if kind is Kind.REQ else duo.b)
        duo.settle()
        assert duo.connected, kind
