"""The shell round a courier: one thread that owns the session, its socket and its reconnections.

Callers never touch the courier or the socket: they put events into an inbox, wake the thread, and wait for their own
outcome, each with his own deadline. So nobody waits for a lock, a signal cannot tear the state in two, and a fork or a
finalizer finds nothing half done.

Invariants: the thread waits only in ``select``: for its socket, its inbox or its next heartbeat; it knows no client,
so that a client that is dropped can be collected, which ends its session; after the thread has ended every call is
answered that the client is closed.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import random
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.plane import events as ev
from penstock.plane.approach import Approach
from penstock.plane.channel import Channel
from penstock.plane.courier import Courier, Identity, Phase
from penstock.plane.dialing import Awaited, Dialer
from penstock.plane.events import Effect, Ended, Event, Verdict
from penstock.plane.exchange import Exchange, Waiter, method_of
from penstock.plane.tokens import LeaseBook
from penstock.plane.waker import Waker
from penstock.requests import Failed, Record, Request
from penstock.retry import Deadline
from penstock.wire import WireError, decode_reply, encode_call

__all__ = ["Link", "LinkStatistics"]

log = logging.getLogger(__name__)

_MAX_CALL_BYTES = 1 << 28  # until the plane says otherwise
_UNPIN_S = 0.05  # unpins that ride on no call go with a heartbeat of their own after this long
_GOODBYE_S = 0.5  # for the plane to take note of the end
_EXIT_S = 2.0  # at the interpreter's exit, for all its clients together
_HEARTBEAT_S = 2.0  # until the plane says otherwise
_SILENT_BEATS, _SILENT_S = 5, 5.0  # unanswered, and at least so long: a line to another machine that is dead or deaf
_CLOSED = "the client is closed"

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """Counts since the client was made."""

    phase: str
    incarnation: int
    connections: int
    sessions: int
    calls: int
    pending: int
    starts: int


class Link:
    """One client's line to its plane.

    Args:
        identity: who the client is.
        dialer: how the plane is reached.
        before_end: run by the thread before it says goodbye: the client lets go of shared memory.
        before_exit: the same at the end of the interpreter, where views need not outlive anything.
        rng: for the jitter of reconnections.

    Raises:
        DataPlaneUnavailable: this process has no descriptor or no thread left for it.
    """

    def __init__(
        self,
        identity: Identity,
        dialer: Dialer,
        *,
        before_end: Callable[[], None] = lambda: None,
        before_exit: Callable[[], None] = lambda: None,
        rng: random.Random | None = None,
    ) -> None:
        try:
            self._waker, self._selector = _descriptors()
        except OSError as none_left:
            raise DataPlaneUnavailable(f"no client can be made in this process: {none_left}") from none_left
        self._courier = Courier(identity)
        self._dialer = dialer
        self._before_end, self._before_exit = before_end, before_exit
        self._pid = os.getpid()
        self._numbers = itertools.count(1)
        self._max_frame_bytes = _MAX_CALL_BYTES
        self._inbox: deque[tuple[Event, Waiter | None]] = deque()
        self._unpinned: deque[int] = deque()
        self._closing = False
        self._over = False
        self._waiters: dict[int, Waiter] = {}
        self._channel: Channel | None = None
        self._asked = False  # a call has come during a pause
        self._proven = True  # the last connection was of use
        self._beat_s = _HEARTBEAT_S
        self._beat_at = 0.0
        self._heard_at = time.monotonic()
        self._approach = Approach(dialer, self, rng or random.Random())
        self._connections = self._sessions = 0
        self._is_far = False
        self._thread = threading.Thread(target=self._run, name="penstock-link", daemon=True)
        _links[id(self)] = self
        try:
            self._thread.start()
        except RuntimeError as none_left:
            self._let_go()
            raise DataPlaneUnavailable(f"no client can be made in this process: {none_left}") from none_left

    # -- for callers, from any thread ---------------------------------------------------------------------------------

    def call(
        self,
        body: Request,
        kind: type[R],
        deadline: Deadline,
        *,
        once: bool = False,
        remembered: bool = False,
        method: str = "",
    ) -> Exchange[R]:
        """Ask the plane, as a context that gives the reply.

        Args:
            body: the request.
            kind: what it is answered with.
            deadline: the caller's.
            once: on the present connection or one made at once, or not at all.
            remembered: fill in the leases under which this client has the keys.
            method: what the caller called, for messages; "" = the method that makes such requests.

        Raises:
            DataPlaneUnavailable: nothing happened; says what was tried.
            DataPlaneTimeout: no answer in time; the outcome is not known.
            DataPlaneError: the plane refused; as it said it.
        """
        self._require_own_process()
        return Exchange(self, body, kind, deadline, once=once, remembered=remembered, method=method)

    def ask(
        self,
        body: Request,
        kind: type[R],
        deadline: Deadline,
        *,
        once: bool = False,
        remembered: bool = False,
        method: str = "",
    ) -> R:
        """Ask the plane and return its reply; see ``call``."""
        with self.call(body, kind, deadline, once=once, remembered=remembered, method=method) as reply:
            return reply

    def hand_over(self, event: Event, waiter: Waiter | None = None) -> None:
        """Give an event to the thread, and wake it."""
        if not self._over:
            self._inbox.append((event, waiter))
            self._waker.wake()
        if self._over and waiter is not None:  # perhaps only since the line above
            waiter.settle(Ended(0, Verdict.NOTHING, _CLOSED))

    def note(self, event: Event) -> None:
        """Give an event to the thread for when it next wakes."""
        if not self._over:
            self._inbox.append((event, None))

    def unpin(self, pin: int) -> None:
        """Give a pin back; fit for finalizers."""
        if not self._over:
            self._unpinned.append(pin)
            self._waker.wake()

    def number(self) -> int:
        return next(self._numbers)

    def end(self) -> None:
        """Let the thread end the session, without waiting for it; fit for finalizers."""
        self._closing = True
        self._waker.wake()

    def close(self, timeout_s: float) -> None:
        """End the session and wait until the thread has. Idempotent."""
        if os.getpid() != self._pid:
            return
        self.end()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def exit(self) -> None:
        """The interpreter ends: say goodbye, and leave the views to the kernel."""
        self._before_end = self._before_exit
        self.end()

    def drop(self) -> None:
        """This is a forked child, and the session is its parent's: let go of the socket and say nothing."""
        self._approach.drop()
        if self._channel is not None:
            self._channel.drop()

    def require_open(self, method: str) -> None:
        """Raise ``DataPlaneUnavailable`` if the client is closed."""
        self._require_own_process()
        if self._closing:
            raise DataPlaneUnavailable(f"{method}: {_CLOSED}")

    def _require_own_process(self) -> None:
        if os.getpid() != self._pid:
            raise DataPlaneUnavailable("a client does not survive a fork: make a new one in the child process")

    @property
    def book(self) -> LeaseBook:
        """The leases this client has; the thread's to change."""
        return self._courier.book

    @property
    def incarnation(self) -> int:
        """The life of the plane that spoke last, 0 before one has."""
        return self._courier.incarnation

    def state(self) -> str:
        phase = self._courier.phase
        if phase is Phase.UP:
            silent = time.monotonic() - self._heard_at
            return f"connected to {self._dialer.address}, which was last heard {silent:.1f} s ago"
        if phase in (Phase.OPENING, Phase.RESUMING):
            return f"the plane at {self._dialer.address} took the connection and does not answer"
        return _CLOSED if phase is Phase.CLOSED else self._approach.trouble

    def statistics(self) -> LinkStatistics:
        """Return the counts at this moment."""
        return LinkStatistics(
            phase=self._courier.phase.value,
            incarnation=self._courier.incarnation,
            connections=self._connections,
            sessions=self._sessions,
            calls=self._courier.calls,
            pending=self._courier.pending,
            starts=self._approach.starts,
        )

    def __repr__(self) -> str:
        if os.getpid() != self._pid:
            return "Link(of the parent process)"
        return f"Link({self._dialer!r}, {self._courier!r}, {self._connections} connections)"

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                sock = self._approach.connect(proven=self._proven)
                if sock is not None:
                    self._serve(sock)
        except Exception:  # top frame of the thread; what it then does is to answer every caller
            log.exception("the link to %s failed; the client is closed", self._dialer.address)
        finally:
            self._finish()

    def apply(self, event: Event) -> None:
        for effect in self._courier.handle(event, time.monotonic()):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, ev.Transmit):
            self._post(effect)
        elif isinstance(effect, ev.Settled | ev.Ended):
            waiter = self._waiters.pop(effect.errand, None)
            if waiter is not None:
                waiter.settle(effect)
        elif isinstance(effect, ev.Opened):
            self._opened(effect)
        elif self._channel is not None:
            self._channel.disconnect(effect.why)

    def _opened(self, session: ev.Opened) -> None:
        self._beat_s = session.heartbeat_s
        self._beat_at = time.monotonic() + session.heartbeat_s
        self._max_frame_bytes = session.max_frame_bytes
        self._sessions += not session.resumed
        log.debug(
            "%s session %x at %s", "resumed" if session.resumed else "new", session.session_id, self._dialer.address
        )

    def _post(self, transmit: ev.Transmit) -> None:
        try:
            frame = encode_call(transmit.call, self._max_frame_bytes)
        except (WireError, TypeError, ValueError) as bad:  # too large, or a value that no message holds
            self._refuse(transmit.errand, f"{method_of(type(transmit.call.body))}: {bad}")
            return
        assert self._channel is not None, transmit
        self._channel.post(frame, transmit.errand)

    def _refuse(self, errand: int, why: str) -> None:
        """A call that cannot be sent is its caller's mistake, and nobody else's."""
        waiter = self._waiters.pop(errand, None)
        self.apply(ev.Leave(errand, kept=True))
        if waiter is not None:
            waiter.settle(ev.Settled(errand, Failed(BadArgument.__name__, why), self._courier.incarnation))

    def _take_in(self) -> None:
        """Deal with what callers have left in the inbox."""
        self._waker.drain()
        released = self._release_pins()  # first, so that they ride on what follows
        while self._inbox:
            event, waiter = self._inbox.popleft()
            if isinstance(event, ev.Submit):
                self._asked = True
                if waiter is not None:
                    self._waiters[event.errand] = waiter
            elif isinstance(event, ev.Leave) and self._channel is not None and self._channel.recall(event.errand):
                event = ev.Leave(event.errand, kept=True)
            self.apply(event)
        if released:
            self._beat_at = min(self._beat_at, time.monotonic() + _UNPIN_S)

    def _release_pins(self) -> bool:
        pins = []
        while self._unpinned:
            pins.append(self._unpinned.popleft())
        if pins:
            self.apply(ev.Unpinned(tuple(pins)))
        return bool(pins)

    # -- the shell of the approach ------------------------------------------------------------------------------------

    @property
    def closing(self) -> bool:
        return self._closing

    @property
    def wanted(self) -> bool:
        return self._courier.pending > 0

    def pause(self, timeout_s: float | None, *, wakeful: bool = False, watching: Awaited | None = None) -> None:
        if watching is not None:
            self._selector.register(watching, watching.events)
        try:
            self._pause(timeout_s, wakeful=wakeful)
        finally:
            if watching is not None:
                self._selector.unregister(watching)

    def _pause(self, timeout_s: float | None, *, wakeful: bool) -> None:
        self._asked = False
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._closing:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return
            ready = self._selector.select(left)
            self._take_in()
            if any(key.fileobj is not self._waker for key, _ in ready) or (wakeful and self._asked):
                return

    # -- in connection ------------------------------------------------------------------------------------------------

    def _serve(self, sock: socket.socket) -> None:
        channel = self._channel = Channel(sock, self._selector, self._dialer.address)
        self._proven = False
        self._connections += 1
        self._is_far = sock.family != socket.AF_UNIX  # on this machine nothing but the plane itself can be silent
        self._heard_at = time.monotonic()
        self._beat_at = time.monotonic() + self._beat_s
        try:
            self.apply(ev.Connected())
            while channel.cut is None and not self._closing:
                self._turn(channel, self._beat_at - time.monotonic())
                if time.monotonic() >= self._beat_at:
                    self._beat(channel)
            if channel.cut is None:
                self._say_goodbye(channel)
        finally:
            self._hang_up(channel)

    def _turn(self, channel: Channel, timeout_s: float) -> None:
        for key, mask in self._selector.select(max(0.0, timeout_s)):
            if key.fileobj is self._waker:
                self._take_in()
                continue
            if mask & channel.receives_on:
                self._receive(channel)
            if mask & selectors.EVENT_WRITE:
                channel.flush()

    def _beat(self, channel: Channel) -> None:
        """Show a sign of life, unless the plane does not read what was sent before."""
        self._beat_at = time.monotonic() + self._beat_s
        self._take_in()
        if self._is_far and time.monotonic() - self._heard_at > max(_SILENT_S, _SILENT_BEATS * self._beat_s):
            channel.disconnect(f"nothing more is heard of {self._dialer.address}, though its kernel takes what is sent")
        elif not channel.busy:
            self.apply(ev.Beat())

    def _receive(self, channel: Channel) -> None:
        self._heard_at = time.monotonic()
        try:
            for frame in channel.receive():
                self._proven = self._courier.phase is Phase.UP  # it has answered more than our greeting
                self.apply(ev.Received(decode_reply(frame)))
        except WireError as garbage:
            channel.disconnect(f"the plane at {self._dialer.address} sent garbage: {garbage}")

    def _say_goodbye(self, channel: Channel) -> None:
        """End the session and give the plane a moment to take note: leases are back when ``close`` returns."""
        self._before_end()
        self._before_end = lambda: None
        self._take_in()
        in_session = self._courier.phase is Phase.UP
        self.apply(ev.Close())
        until = time.monotonic() + _GOODBYE_S
        while in_session and channel.cut is None and not self._courier.parted and time.monotonic() < until:
            self._turn(channel, until - time.monotonic())

    def _hang_up(self, channel: Channel) -> None:
        self._approach.trouble = channel.cut or _CLOSED
        self._channel = None
        self.apply(ev.Lost(self._approach.trouble, channel.close()))

    def _finish(self) -> None:
        """Nothing more is sent. Answer everybody."""
        self._closing = True
        try:
            self._before_end()
            self.apply(ev.Close())
            self._take_in()
        finally:
            self._over = True
            while self._inbox:  # came meanwhile
                _, waiter = self._inbox.popleft()
                if waiter is not None:
                    waiter.settle(Ended(0, Verdict.NOTHING, _CLOSED))
            for waiter in list(self._waiters.values()):
                waiter.settle(Ended(0, Verdict.UNKNOWN, _CLOSED))
            self._let_go()
            self._dialer.tidy(parted=self._courier.parted)

    def _let_go(self) -> None:
        self._selector.close()
        self._waker.close()
        _links.pop(id(self), None)


def _descriptors() -> tuple[Waker, selectors.BaseSelector]:
    waker = Waker()
    try:
        selector = selectors.DefaultSelector()
        selector.register(waker, selectors.EVENT_READ)
    except BaseException:
        waker.close()
        raise
    return waker, selector


_links: dict[int, Link] = {}  # whose thread runs


def _exit_all() -> None:
    links = list(_links.values())
    for link in links:
        link.exit()
    until = time.monotonic() + _EXIT_S
    for link in links:
        link.close(max(0.0, until - time.monotonic()))


def _drop_all() -> None:
    for link in list(_links.values()):
        link.drop()


atexit.register(_exit_all)
os.register_at_fork(after_in_child=_drop_all)
