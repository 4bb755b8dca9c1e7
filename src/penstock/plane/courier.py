"""The client's side of a session, as a pure machine: what is sent, what is sent again, and what a caller is told.

Invariants:
- A mutation keeps its sequence number for the life of its session, however often it is sent; what was sent under a
  session that is gone is never sent under another (a repeated clear would wipe new rows).
- ``Verdict.NOTHING`` is said of a mutation only if no byte of it ever reached the kernel; otherwise it is ``UNKNOWN``.
- A reply counts as taken when its caller took it; one that nobody took is named abandoned until the plane has read so,
  and ``done_below`` does not pass it.
- Pins and grants belong to one life of the plane: those of an earlier one are never named to a later one.
``Courier.TABLE`` says which event is legal in which phase, and what then happens; a missing entry is a bug.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeAlias

import msgspec

from penstock import requests
from penstock.errors import DataPlaneUnavailable, IllegalTransition
from penstock.plane import events as ev
from penstock.plane.errand import Errand, Holdings, News
from penstock.plane.events import Effect, Ended, Event, Settled, Transmit, Verdict
from penstock.plane.tokens import LeaseBook
from penstock.requests import Call, Claimed, Failed, ReplyBody, Request, Welcome

__all__ = ["Courier", "Identity", "Phase"]

# Of a caller's time this share, and at most so many seconds, is kept for the way back: what the plane says at its
# deadline ("3 of 8 rows are ready") has to arrive before the caller's.
_RETURN_SHARE = 0.1
_RETURN_S = 0.1
MAX_ERRANDS = 240  # the plane reads no further calls, heartbeats included, from a connection with 256 unanswered ones
_HISTORY = 16  # events that an illegal transition's error tells

_ANSWERS: dict[type[Request], tuple[type[ReplyBody], ...]] = {
    requests.Commit: (requests.Done, requests.GrantAgain),
    requests.Claim: (requests.Claimed,),
    requests.Grant: (requests.Granted,),
    requests.Locate: (requests.Located,),
    requests.Enlist: (requests.Enlisted,),
    requests.HostReport: (requests.Orders,),
    requests.Reserve: (requests.Granted,),
    requests.Seal: (requests.Sealed, requests.GrantAgain),
    requests.Hold: (requests.Located,),
    requests.ListMetadata: (requests.Groups,),
    requests.ListRows: (requests.Rows,),
    requests.Depth: (requests.Number,),
    requests.CheckConsumption: (requests.Flag,),
    requests.Capabilities: (requests.CapabilitiesAre,),
    requests.Audit: (requests.AuditReport,),
    requests.Why: (requests.WhyReport,),
    requests.Status: (requests.StatusReport,),
}  # besides Failed; whatever is not named here is answered Done


class Phase(enum.Enum):
    DOWN = "not connected"
    OPENING = "opening a session"
    RESUMING = "resuming its session"
    UP = "in session"
    CLOSED = "closed"


class Identity(msgspec.Struct, frozen=True):
    """Who the client is, across its sessions. ``client_id``: 63 random bits."""

    client_id: int
    owner: str
    role: str
    host: str
    pid: int


_Move: TypeAlias = Callable[["Courier", Any, float], list[Effect]]
_CONNECTED = (Phase.OPENING, Phase.RESUMING, Phase.UP)


def _in(phases: Iterable[Phase], event: type[Event], move: _Move) -> dict[tuple[Phase, type[Event]], _Move]:
    return {(phase, event): move for phase in phases}


class Courier:
    """One client's session.

    Attributes:
        book: the leases it has, for requests that must name them.
        parted: the plane has read its goodbye.
    """

    def __init__(self, identity: Identity, book: LeaseBook | None = None) -> None:
        self.identity = identity
        self.phase = Phase.DOWN
        self.session_id = 0
        self.incarnation = 0
        self.book = book if book is not None else LeaseBook()
        self._secret = ""
        self._next_seq = 1
        self._last_call = 0
        self._opening_call = 0
        self._goodbye_call = 0
        self.parted = False
        self._pending: dict[int, Errand] = {}  # by errand, in order of submission; ends with Take, Leave or Ended
        self._flying: dict[int, Errand] = {}  # by call id, on this connection
        self._abandoned = News()  # sequences
        self._unpins = News()  # pins
        self._grants = Holdings()
        self._pins = Holdings()
        self._history: deque[str] = deque(maxlen=_HISTORY)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; return what is to be done, in order.

        Raises:
            IllegalTransition: the event is not legal in this phase: the shell's bug.
        """
        move = self.TABLE.get((self.phase, type(event)))
        if move is None:
            raise IllegalTransition(f"{event!r} while {self.phase.value}: {self!r}", history=list(self._history))
        self._history.append(f"{type(event).__name__} while {self.phase.value}")
        return move(self, event, now)

    @property
    def pending(self) -> int:
        """Errands that wait for a reply."""
        return sum(errand.answer is None for errand in list(self._pending.values()))

    @property
    def calls(self) -> int:
        """Calls made so far, on all connections."""
        return self._last_call

    # -- callers ------------------------------------------------------------------------------------------------------

    def _enqueue(self, event: ev.Submit, _now: float) -> list[Effect]:
        if len(self._pending) >= MAX_ERRANDS:
            why = (
                f"{MAX_ERRANDS} calls of this client are under way, which is the most it may have: make another client"
            )
            return [Ended(event.errand, Verdict.NOTHING, why)]
        body = self._with_tokens(event.body) if event.remembered else event.body
        self._pending[event.errand] = Errand(event.errand, body, event.deadline, event.once)
        return []

    def _submit(self, event: ev.Submit, now: float) -> list[Effect]:
        refused = self._enqueue(event, now)
        return refused or [self._send(self._pending[event.errand], now)]

    def _refuse(self, event: ev.Submit, _now: float) -> list[Effect]:
        return [Ended(event.errand, Verdict.NOTHING, "the client is closed")]

    def _with_tokens(self, body: Request) -> Request:
        """Name the leases under which this client got the keys."""
        if isinstance(body, requests.Pop):
            return msgspec.structs.replace(body, tokens=self.book.pop_tokens(body.partition, body.keys))
        assert isinstance(body, requests.Ack | requests.Release | requests.Renew), body
        return msgspec.structs.replace(body, tokens=self.book.tokens(body.partition, body.task, body.keys))

    def _take(self, event: ev.Take, _now: float) -> list[Effect]:
        errand = self._pending.pop(event.errand, None)
        if errand is None:
            return []
        if isinstance(errand.body, requests.Claim) and isinstance(errand.answer, Claimed) and errand.answer.token:
            self.book.hold(errand.body.partition, errand.body.task, errand.answer.token, errand.answer.keys)
        return []

    def _leave(self, event: ev.Leave, _now: float) -> list[Effect]:
        errand = self._pending.pop(event.errand, None)
        if errand is None:  # it has ended meanwhile
            return []
        if event.kept:
            self._never_left(errand)
        under_way = errand.call_id != 0
        errand.departed |= under_way
        if errand.answer is not None:
            self._drop_held(errand.answer)
        ended = self._ended(errand, errand.departed if errand.is_mutation else under_way, "its caller left")
        if errand.departed and errand.seq:
            self._abandoned.add(errand.seq)
            return [*ended, *self._heartbeat_if_up()]
        if errand.departed and isinstance(errand.body, requests.Grant | requests.Reserve):  # others wait for this room
            return [*ended, *self._heartbeat_if_up([errand.call_id] if under_way else [])]
        return ended

    def _unpinned(self, event: ev.Unpinned, _now: float) -> list[Effect]:
        self._drop_pins(event.pins)
        return []

    def _learned(self, event: ev.Learned, _now: float) -> list[Effect]:
        self.book.learn(event.partition, event.final_task)
        return []

    def _grant_over(self, event: ev.GrantOver, _now: float) -> list[Effect]:
        self._grants.held.discard(event.grant)
        return []

    # -- the connection -----------------------------------------------------------------------------------------------

    def _connected(self, _event: ev.Connected, _now: float) -> list[Effect]:
        if not self.session_id:
            return self._open()
        self.phase = Phase.RESUMING
        who = self.identity.client_id
        return [self._say(requests.ResumeSession(requests.WIRE_VERSION, who, self.session_id, self._secret))]

    def _open(self) -> list[Effect]:
        self.phase = Phase.OPENING
        me = self.identity
        opening = requests.OpenSession(requests.WIRE_VERSION, me.client_id, me.owner, me.role, me.host, me.pid)
        return [self._say(opening)]

    def _not_connected(self, event: ev.NotConnected, _now: float) -> list[Effect]:
        return self._end_all([e for e in self._pending.values() if e.once and e.answer is None], event.why)

    def _refused(self, event: ev.Refused, _now: float) -> list[Effect]:
        return self._end_all([e for e in self._pending.values() if e.answer is None], event.why)

    def _lost(self, event: ev.Lost, _now: float) -> list[Effect]:
        self.phase = Phase.DOWN
        for errand in list(self._flying.values()):
            if errand.number in event.kept:
                self._never_left(errand)
            else:
                errand.departed = True
                errand.call_id = 0
        self._flying.clear()
        self._abandoned.unread()
        self._unpins.unread()
        return self._end_all([e for e in self._pending.values() if e.once and e.answer is None], event.why)

    def _beat(self, _event: ev.Beat, _now: float) -> list[Effect]:
        return self._heartbeat_if_up()

    def _nothing(self, _event: Event, _now: float) -> list[Effect]:
        return []

    # -- what the plane says ------------------------------------------------------------------------------------------

    def _welcome(self, event: ev.Received, now: float) -> list[Effect]:
        """The answer to the first call of a connection."""
        reply = event.reply
        if reply.id != self._opening_call or not isinstance(reply.body, Welcome | Failed):
            return [ev.Disconnect(f"{type(reply.body).__name__} (call {reply.id}) instead of a welcome")]
        if isinstance(reply.body, Failed):
            return self._not_welcome(reply.body)
        self._enter_life(reply.incarnation)
        effects: list[Effect] = []
        if self.phase is Phase.OPENING or not reply.body.resumed:
            effects += self._forget_session("its session could not be resumed")
        self.phase = Phase.UP
        self.session_id, self._secret = reply.body.session_id, reply.body.secret
        welcome = reply.body
        effects.append(ev.Opened(welcome.session_id, welcome.resumed, welcome.heartbeat_s, welcome.max_frame_bytes))
        waiting = [e for e in self._pending.values() if e.answer is None and e.deadline > now]
        return [*effects, *(self._send(errand, now) for errand in waiting)]

    def _not_welcome(self, refusal: Failed) -> list[Effect]:
        if self.phase is Phase.RESUMING:
            return [*self._forget_session(f"its session could not be resumed: {refusal.message}"), *self._open()]
        effects: list[Effect] = []
        if refusal.code != DataPlaneUnavailable.__name__:  # waiting would not help: another version, for one
            effects += [self._settle(e, refusal) for e in self._pending.values() if e.answer is None]
        return [*effects, ev.Disconnect(refusal.message)]

    def _forget_session(self, why: str) -> list[Effect]:
        """What was sent under the old session is never sent again; what was not, and reads, go under the next."""
        self.session_id, self._secret, self._next_seq = 0, "", 1
        self._abandoned = News()
        sent = [e for e in self._pending.values() if e.answer is None and e.departed and e.is_mutation]
        for errand in self._pending.values():
            errand.seq = 0
        return self._end_all(sent, why)

    def _enter_life(self, incarnation: int) -> None:
        if incarnation == self.incarnation:
            return
        self.incarnation = incarnation
        self._unpins = News()
        self._grants = Holdings()
        self._pins = Holdings()

    def _reply(self, event: ev.Received, _now: float) -> list[Effect]:
        reply = event.reply
        if not 0 < reply.id <= self._last_call:
            return [ev.Disconnect(f"a reply to call {reply.id}, which was never made")]
        self._abandoned.read_up_to(reply.id)
        self._unpins.read_up_to(reply.id)
        errand = self._flying.pop(reply.id, None)
        if errand is None or errand.number not in self._pending:
            self._note(reply.body)
            self._drop_held(reply.body)
            return self._heartbeat_if_up() if isinstance(reply.body, requests.Granted) else []
        errand.departed, errand.call_id = True, 0
        if not isinstance(reply.body, (Failed, *_ANSWERS.get(type(errand.body), (requests.Done,)))):
            return [ev.Disconnect(f"{type(errand.body).__name__} was answered with {type(reply.body).__name__}")]
        self._note(reply.body)
        self._note_done(errand.body, reply.body)
        return [self._settle(errand, reply.body)]

    def _settle(self, errand: Errand, body: ReplyBody) -> Settled:
        errand.answer = body
        return Settled(errand.number, body, self.incarnation)

    def _note(self, body: ReplyBody) -> None:
        """Remember what the client now holds."""
        if isinstance(body, requests.Granted):
            self._grants.add([body.grant])
        elif isinstance(body, requests.Located):
            self._pins.add([block.pin for block in body.blocks if block.pin])

    def _note_done(self, asked: Request, body: ReplyBody) -> None:
        """Keep the lease book true to what happened."""
        if isinstance(body, Failed):
            return
        if isinstance(asked, requests.Ack | requests.Release):
            self.book.end(asked.partition, asked.task, asked.keys)
        elif isinstance(asked, requests.Pop):
            self.book.end(asked.partition, None, asked.keys)
        elif isinstance(asked, requests.RegisterPartition):
            self.book.learn(asked.partition, asked.tasks[-1])
        elif isinstance(asked, requests.Evict | requests.Clear):
            self.book.forget(asked.partition, asked.keys)

    def _drop_held(self, body: ReplyBody) -> None:
        """Nobody will use what this reply gave."""
        if isinstance(body, requests.Granted):
            self._grants.held.discard(body.grant)
        elif isinstance(body, requests.Located):
            self._drop_pins([block.pin for block in body.blocks if block.pin])

    def _drop_pins(self, pins: Sequence[int]) -> None:
        for pin in pins:
            if pin in self._pins.held:
                self._pins.held.discard(pin)
                self._unpins.add(pin)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _close_up(self, event: ev.Close, now: float) -> list[Effect]:
        goodbye = self._say(requests.Goodbye(), news=True)
        self._goodbye_call = goodbye.call.id
        return [*self._close(event, now), goodbye]

    def _last_words(self, event: ev.Received, _now: float) -> list[Effect]:
        self.parted |= 0 < self._goodbye_call == event.reply.id
        return []

    def _close(self, _event: ev.Close, _now: float) -> list[Effect]:
        self.phase = Phase.CLOSED
        for errand in self._flying.values():
            errand.departed = True
        return self._end_all([e for e in self._pending.values() if e.answer is None], "the client was closed")

    def _end_all(self, errands: Sequence[Errand], why: str) -> list[Effect]:
        effects: list[Effect] = []
        for errand in errands:
            del self._pending[errand.number]
            effects += self._ended(errand, errand.departed and errand.is_mutation, why)
        return effects

    def _ended(self, errand: Errand, unknown: bool, why: str) -> list[Effect]:
        return [Ended(errand.number, Verdict.UNKNOWN if unknown else Verdict.NOTHING, why)]

    # -- sending ------------------------------------------------------------------------------------------------------

    def _send(self, errand: Errand, now: float) -> Transmit:
        if errand.seq == 0 and isinstance(errand.body, requests.MUTATIONS):
            errand.seq, self._next_seq = self._next_seq, self._next_seq + 1
        left = max(0.0, errand.deadline - now)
        errand.call_id = self._last_call + 1
        self._flying[errand.call_id] = errand
        told = left - min(_RETURN_S, left * _RETURN_SHARE)
        return self._say(errand.body, seq=errand.seq, deadline_s=told, errand=errand.number, news=True)

    def _say(
        self, body: Request, *, seq: int = 0, deadline_s: float = 0.0, errand: int = 0, news: bool = False
    ) -> Transmit:
        """Make a call. ``news``: the session stands, so that what rides along is read as its."""
        self._last_call += 1
        if not news:
            self._opening_call = self._last_call
        call = Call(
            id=self._last_call,
            seq=seq,
            done_below=self._done_below() if news else 0,
            deadline_s=deadline_s,
            abandoned=self._abandoned.carry(self._last_call) if news else [],
            unpins=self._unpins.carry(self._last_call) if news else [],
            body=body,
        )
        return Transmit(call, errand)

    def _heartbeat_if_up(self, withdrawn: Sequence[int] = ()) -> list[Effect]:
        if self.phase is not Phase.UP:
            return []
        grants, pins = self._grants, self._pins
        body = requests.Heartbeat(grants.last, pins.last, sorted(grants.held), sorted(pins.held), list(withdrawn))
        return [self._say(body, news=True)]

    def _done_below(self) -> int:
        untaken = [e.seq for e in self._pending.values() if e.seq]
        return min([*untaken, *self._abandoned.items, self._next_seq])

    def _never_left(self, errand: Errand) -> None:
        """No byte of its latest call has left: neither did the news that rode along."""
        self._abandoned.not_sent(errand.call_id)
        self._unpins.not_sent(errand.call_id)
        self._flying.pop(errand.call_id, None)
        errand.call_id = 0

    TABLE: ClassVar[dict[tuple[Phase, type[Event]], _Move]] = {
        **_in((Phase.DOWN, Phase.OPENING, Phase.RESUMING), ev.Submit, _enqueue),
        **_in((Phase.UP,), ev.Submit, _submit),
        **_in((Phase.CLOSED,), ev.Submit, _refuse),
        **_in(Phase, ev.Take, _take),
        **_in(Phase, ev.Leave, _leave),
        **_in(Phase, ev.Unpinned, _unpinned),
        **_in(Phase, ev.Learned, _learned),
        **_in(Phase, ev.GrantOver, _grant_over),
        **_in((Phase.DOWN,), ev.Connected, _connected),
        **_in((Phase.DOWN,), ev.NotConnected, _not_connected),
        **_in((Phase.DOWN,), ev.Refused, _refused),
        **_in(_CONNECTED, ev.Lost, _lost),
        **_in((Phase.OPENING, Phase.RESUMING), ev.Received, _welcome),
        **_in((Phase.UP,), ev.Received, _reply),
        **_in((*_CONNECTED, Phase.DOWN), ev.Beat, _beat),
        **_in((Phase.UP,), ev.Close, _close_up),
        **_in((Phase.DOWN, Phase.OPENING, Phase.RESUMING, Phase.CLOSED), ev.Close, _close),
        **_in((Phase.CLOSED,), ev.Received, _last_words),
        **_in((Phase.CLOSED,), ev.Lost, _nothing),
        **_in((Phase.CLOSED,), ev.NotConnected, _nothing),
        **_in((Phase.CLOSED,), ev.Refused, _nothing),
        **_in((Phase.CLOSED,), ev.Beat, _nothing),
    }

    def __repr__(self) -> str:
        return (
            f"Courier({self.phase.value}, session {self.session_id:x}, {len(self._pending)} errands, "
            f"{len(self._grants.held)} grants, {len(self._pins.held)} pins, {self.book!r})"
        )
