"""The table of the handshake: what an endpoint does with what it hears, and with what happens here.

    Q (asking) -> B (bound: may receive, must not send) -> R (ready: the peer is known to be bound to it) -> DRAIN

A message is judged by what its addressee is *to its sender* (``Standing``), never by a resource's id. What is not in
the table is our own bug. ``RST`` answers only what can never become true again: sessions are not reused and bindings
are written once. A ``REQ`` from an unknown session never touches what works: it makes a candidate beside it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from penstock.endpoint.events import Broken, Drained, Event, Finished, GiveUp, Kind, Open, Post, Timer

__all__ = ["TRANSITIONS", "Rule", "Rules", "Standing", "State", "Step"]


class State(enum.Enum):
    """An endpoint's state. DEAD is nowhere kept: a session that is not known is dead."""

    Q = "asking"
    B = "bound"
    R = "ready"
    DRAIN = "draining"
    DEAD = "dead"


class Standing(enum.Enum):
    """What an endpoint is to whoever concerns it."""

    GONE = "gone"  # dead or draining, or never was
    UNBOUND = "asking"  # Q
    BOUND = "bound"  # B, to the sender
    READY = "ready"  # R, to the sender
    ELSEWHERE = "bound elsewhere"  # B or R, to another session


class Step(enum.Enum):
    """What is done about it, in words."""

    IGNORE = "nothing"
    MAKE = "make an endpoint, ask"
    MAKE_BOUND = "make an endpoint bound to the sender, REP"
    MAKE_CANDIDATE = "make a candidate bound to the sender, REP; PING the primary's peer"
    BIND = "bind to the sender, REP"
    BIND_READY = "bind to the sender, ACK"
    REPLY = "REP again"
    BECOME_READY = "ready"
    BECOME_READY_ACK = "ready, ACK"
    ACKNOWLEDGE = "ACK"
    NOTE = "note that it lives"
    RESET = "RST"
    RESET_AND_PING = "RST; PING the own peer"
    RETIRE = "fail its work, let go of its resources; the candidate takes over, or ask again if somebody waits"
    RESEND_REQ = "REQ again, later and later"
    RESEND_REP = "REP again, later and later; retire at the limit"
    KEEP_ALIVE = "PING; retire after too long a silence"
    JOIN = "wait with the others"
    ANSWER = "answer at once"
    LEAVE = "wait no more; if nobody else does, what has only been asked for retires"
    CARRY = "carry the work"
    REFUSE_WORK = "fail the work"
    SETTLE = "settle the work"
    BURY = "forget it"


class Rule(NamedTuple):
    """``after``: the state of the endpoint that is concerned, or made; None = as it was."""

    step: Step
    after: State | None = None


Rules: TypeAlias = Mapping[tuple[Standing, Kind | type[Event]], Rule]

# Of ``REQ`` the endpoint concerned is the one that is bound to the sender, if there is one, else the primary; of
# ``Open`` and ``GiveUp`` it is the primary; of all else it is the addressee.
TRANSITIONS: Rules = MappingProxyType(
    {
        # somebody here wants it
        (Standing.GONE, Open): Rule(Step.MAKE, State.Q),
        (Standing.UNBOUND, Open): Rule(Step.JOIN),
        (Standing.BOUND, Open): Rule(Step.JOIN),
        (Standing.READY, Open): Rule(Step.ANSWER),
        (Standing.GONE, GiveUp): Rule(Step.LEAVE),
        (Standing.UNBOUND, GiveUp): Rule(Step.LEAVE),
        (Standing.BOUND, GiveUp): Rule(Step.LEAVE),
        (Standing.READY, GiveUp): Rule(Step.LEAVE),
        # the peer wants it
        (Standing.GONE, Kind.REQ): Rule(Step.MAKE_BOUND, State.B),
        (Standing.UNBOUND, Kind.REQ): Rule(Step.BIND, State.B),  # simultaneous opening
        (Standing.BOUND, Kind.REQ): Rule(Step.REPLY),
        (Standing.READY, Kind.REQ): Rule(Step.REPLY),
        (Standing.ELSEWHERE, Kind.REQ): Rule(Step.MAKE_CANDIDATE, State.B),
        # the peer is bound to it
        (Standing.GONE, Kind.REP): Rule(Step.RESET),
        (Standing.UNBOUND, Kind.REP): Rule(Step.BIND_READY, State.R),
        (Standing.BOUND, Kind.REP): Rule(Step.BECOME_READY_ACK, State.R),
        (Standing.READY, Kind.REP): Rule(Step.ACKNOWLEDGE),
        (Standing.ELSEWHERE, Kind.REP): Rule(Step.RESET_AND_PING),
        (Standing.GONE, Kind.PING): Rule(Step.RESET),
        (Standing.UNBOUND, Kind.PING): Rule(
            Step.BIND_READY, State.R
        ),  # a RST would be a lie: it is not bound elsewhere
        (Standing.BOUND, Kind.PING): Rule(Step.BECOME_READY_ACK, State.R),
        (Standing.READY, Kind.PING): Rule(Step.ACKNOWLEDGE),
        (Standing.ELSEWHERE, Kind.PING): Rule(Step.RESET),
        (Standing.GONE, Kind.ACK): Rule(Step.RESET),
        (Standing.UNBOUND, Kind.ACK): Rule(Step.IGNORE),  # it never said that it was bound: no peer of ours sends this
        (Standing.BOUND, Kind.ACK): Rule(Step.BECOME_READY, State.R),
        (Standing.READY, Kind.ACK): Rule(Step.NOTE),
        (Standing.ELSEWHERE, Kind.ACK): Rule(Step.RESET),
        # the peer's end is dead, or bound to another
        (Standing.GONE, Kind.RST): Rule(Step.IGNORE),
        (Standing.UNBOUND, Kind.RST): Rule(Step.IGNORE),
        (Standing.BOUND, Kind.RST): Rule(Step.RETIRE, State.DRAIN),
        (Standing.READY, Kind.RST): Rule(Step.RETIRE, State.DRAIN),
        (Standing.ELSEWHERE, Kind.RST): Rule(Step.IGNORE),
        # time passes
        (Standing.GONE, Timer): Rule(Step.IGNORE),
        (Standing.UNBOUND, Timer): Rule(Step.RESEND_REQ),
        (Standing.BOUND, Timer): Rule(Step.RESEND_REP),
        (Standing.READY, Timer): Rule(Step.KEEP_ALIVE),
        # it is used
        (Standing.GONE, Post): Rule(Step.REFUSE_WORK),
        (Standing.UNBOUND, Post): Rule(Step.REFUSE_WORK),
        (Standing.BOUND, Post): Rule(Step.REFUSE_WORK),
        (Standing.READY, Post): Rule(Step.CARRY),
        (Standing.GONE, Finished): Rule(Step.IGNORE),  # its work has failed with it, once
        (Standing.READY, Finished): Rule(Step.SETTLE),
        # it breaks, or is closed
        (Standing.GONE, Broken): Rule(Step.IGNORE),
        (Standing.UNBOUND, Broken): Rule(Step.RETIRE, State.DRAIN),
        (Standing.BOUND, Broken): Rule(Step.RETIRE, State.DRAIN),
        (Standing.READY, Broken): Rule(Step.RETIRE, State.DRAIN),
        (Standing.GONE, Drained): Rule(Step.BURY, State.DEAD),
    }
)
