"""Peers of one process: connected on demand by either side, and anew when one of them has restarted. On one loop.

The shell of ``machine.Pair``, one for each peer and channel. An event is handled and its effects are begun without an
``await`` between; what takes time (dialling, making, binding, closing) runs in tasks that are owned here, in order for
each endpoint. No lock is held across I/O, and a handler of a message makes no request: it says something, at most.

Invariants: ``open`` ends by its deadline; an endpoint that is handed out is ready, and ``serve`` is called once for it;
a peer that is malformed or gone costs its own connections; after ``close`` no task, timer or resource is left.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Self

from penstock.endpoint.connection import Address, Connection, Listener, Wire
from penstock.endpoint.endpoints import Endpoint, PeeringStatistics, ServeEndpoint
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
from penstock.endpoint.fitting import Fitting
from penstock.endpoint.links import Link, greet
from penstock.endpoint.machine import Pair
from penstock.endpoint.messages import MAX_CHANNEL_BYTES, VERSION, Hello, Params, Said, message_of, said_of
from penstock.endpoint.posted import PostedConnection
from penstock.endpoint.resources import Resources
from penstock.endpoint.timing import Timing
from penstock.errors import BadArgument, TransportError
from penstock.retry import Clock, Deadline
from penstock.retry.backoff import RandomSource, full_jitter
from penstock.wire import WireError

__all__ = ["Peering"]

_AT_ONCE = 16  # endpoints that make or bind at a time, and peers that are dialled; the others wait their turn
_MAX_PAIRS = 4096
_MAX_CONNECTIONS = 1024
_HELLO_S = 5.0
_AGAIN_S = (0.02, 1.0)  # base and cap of the wait after an endpoint that was ready broke before it could be used

log = logging.getLogger("penstock.endpoint")


@dataclass(slots=True, eq=False)
class _Pair:
    """One peer and channel. ``why``: the last failure, for whoever waits in vain."""

    link: Link
    channel: str
    machine: Pair
    why: str = ""


@dataclass(slots=True, eq=False)
class _Waiter:
    """One caller of ``open``. ``session``: the endpoint that it is answered with, as soon as that is bound."""

    pair: _Pair
    patient: bool
    future: asyncio.Future[Endpoint]
    session: Session | None = None

    def fail(self, error: TransportError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Peering:
    """This process among its peers.

    Args:
        resources: what endpoints are made of, by kind of wire, the preferred first. They are closed with the peering.
        carrier: carries the handshake's messages: a wire with authentication, of a purpose of its own.
        serve: run once, in its own task, for every endpoint that becomes ready, whoever asked for it. When it returns
            or raises, an endpoint that was not opened here is closed.
        timing: the timers.
        rng: draws the jitter.
        boot: 64 random bits, of this process's start.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        resources: Mapping[str, Resources],
        carrier: Wire,
        *,
        serve: ServeEndpoint | None = None,
        timing: Timing | None = None,
        rng: RandomSource | None = None,
        boot: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if not resources:
            raise BadArgument("a peering needs at least one kind of wire")
        self._resources = dict(resources)
        self._carrier = carrier
        self._serve = serve
        self._timing = timing or Timing()
        self._rng = rng or random.Random()
        self._boot = secrets.randbits(64) if boot is None else boot
        self._clock = clock
        self._numbers = itertools.count(1)
        self._dialling = asyncio.Semaphore(_AT_ONCE)
        self._fitting_out = asyncio.Semaphore(_AT_ONCE)
        self._me = Hello(VERSION, f"~{self._boot:x}")
        self._listener: Listener | None = None
        self._links: dict[str, Link] = {}
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self._of: dict[Session, _Pair] = {}  # our sessions that are not dead
        self._fittings: dict[Session, Fitting] = {}
        self._endpoints: dict[Session, Endpoint] = {}
        self._timers: dict[Session, asyncio.TimerHandle] = {}
        self._waiters: dict[int, _Waiter] = {}
        self._settled: dict[int, str] = {}  # work -> how the machine settled it, until its call has ended
        self._heard: Params = {}  # came with the message that is being handled
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._closed = False
        self._made = self._retired = self._messages = self._refused = self._dropped = 0

    # -- for users ----------------------------------------------------------------------------------------------------

    async def start(self, host: str, port: int = 0, *, advertise: str | None = None) -> Address:
        """Listen for peers. Return the address by which they open this one, and by which it is known to them.

        Without ``start``, connections can be opened from this side only.

        Raises:
            TransportError: the address cannot be bound.
        """
        self._listener = await self._carrier.listen(host, port, self._attend, max_connections=_MAX_CONNECTIONS)
        bound = self._listener.address
        address = Address(advertise or bound.host, bound.port)
        self._me = Hello(VERSION, str(address), address)
        return address

    @property
    def address(self) -> Address | None:
        """By which peers open this one; None = they cannot."""
        return self._me.address

    async def open(self, peer: Address, deadline: Deadline, *, channel: str = "", patient: bool = True) -> Endpoint:
        """Return the endpoint with ``peer``, a new one if none is ready; the same for all who ask, on both sides.

        Args:
            peer: the address that it advertises.
            deadline: of this caller alone; whoever else waits goes on.
            channel: endpoints of different channels have nothing to do with each other.
            patient: try until the deadline though nobody answers there (yet). Who does not know the token never waits.

        Raises:
            TransportError: it is not ready by the deadline; or nobody answers there, and that was not to be waited for.
            BadArgument: ``peer`` is this peering itself, or the channel's name is too long.
        """
        self._check(peer, channel)
        attempt, why = 0, ""
        while not deadline.expired():
            if self._closed:
                raise _closed()
            pair = self._pair(self._link(str(peer), peer), channel)
            endpoint = await self._wait(pair, deadline, patient=patient)
            if endpoint is not None:
                return endpoint
            await asyncio.sleep(min(deadline.remaining(), full_jitter(attempt, *_AGAIN_S, self._rng)))
            attempt, why = attempt + 1, pair.why or why
        raise _late(peer, why, deadline)

    async def close(self) -> None:
        """Retire all endpoints; end all tasks, and what the resources share. Idempotent."""
        self._closed = True
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()
        for waiter in self._waiters.values():
            waiter.fail(_closed())
        for pair in list(self._pairs.values()):
            pair.machine.waiters.clear()
        for session, pair in list(self._of.items()):
            self._tell(pair, Broken(session, "the peering is closed"))
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*(link.close() for link in self._links.values()))
        while self._tasks or self._serving:
            await asyncio.gather(*self._tasks, *self._serving, return_exceptions=True)
        for resources in self._resources.values():
            await resources.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def statistics(self) -> PeeringStatistics:
        """Return what there is now, and the counts so far."""
        return PeeringStatistics(
            pairs=len(self._pairs),
            ready=len(self._endpoints),
            asking=len(self._of) - len(self._endpoints),
            waiting=len(self._waiters),
            links=len(self._links),
            made=self._made,
            retired=self._retired,
            messages=self._messages,
            refused=self._refused,
            dropped=self._dropped + sum(link.dropped for link in self._links.values()),
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._endpoints)} ready"
        return f"<Peering {self._me.name}, {len(self._pairs)} pairs, {state}>"

    # -- for endpoints in use (``posted.Desk``) -----------------------------------------------------------------------

    def post(self, session: Session) -> int:
        """See ``Desk``."""
        work, pair = next(self._numbers), self._of.get(session)
        if pair is None:
            raise TransportError("the endpoint is retired", code="closed")
        self._tell(pair, Post(session, work))
        refused = self._settled.pop(work, None)
        if refused is not None:
            raise TransportError(refused, code="closed")
        return work

    def finish(self, session: Session, work: int, why: str) -> str:
        """See ``Desk``."""
        pair = self._of.get(session)
        if pair is not None:
            self._tell(pair, Finished(session, work, why))
        return self._settled.pop(work, why)

    def give_up(self, session: Session, why: str) -> None:
        """See ``Desk``."""
        pair = self._of.get(session)
        if pair is not None:
            self._tell(pair, Broken(session, why))

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _check(self, peer: Address, channel: str) -> None:
        if str(peer) == self._me.name:
            raise BadArgument(f"{peer} is this peering itself")
        if len(channel) > MAX_CHANNEL_BYTES:
            raise BadArgument(f"a channel's name has at most {MAX_CHANNEL_BYTES} characters")

    async def _wait(self, pair: _Pair, deadline: Deadline, *, patient: bool) -> Endpoint | None:
        """Wait for a ready endpoint; None = not in time, or it has broken before it could be used."""
        number = next(self._numbers)
        waiter = self._waiters[number] = _Waiter(pair, patient, asyncio.get_running_loop().create_future())
        self._tell(pair, Open(number))
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await waiter.future
        except TimeoutError:
            return None
        except TransportError as broken:
            if self._closed or not patient or broken.code == "unauthorised":
                raise
            pair.why = broken.message
            return None
        finally:
            del self._waiters[number]
            self._tell(pair, GiveUp(number))

    def _parted(self, link: Link) -> None:
        """Ask at once whether the peer lives: a wire that does not tell of deaths would wait for the silence."""
        for session in self._ready_with(link):
            self._tell(self._of[session], Timer(session))
        self._forget(link)  # nothing may be left that was to be said to this peer

    def _ready_with(self, link: Link) -> list[Session]:
        return [session for session in self._endpoints if self._of[session].link is link]

    def _unreachable(self, link: Link, error: TransportError) -> None:
        """Nobody answers there: who does not want to wait is told; and if nobody listens, what was ready is dead."""
        for session in self._ready_with(link):
            if error.code == "refused":
                self.give_up(session, error.message)
            elif error.code != "timeout":  # it may be dying: ask again before long
                self._set_timer(self._of[session], session, self._timing.resend_s(1)[1])
        for waiter in self._waiters.values():
            if waiter.pair.link is link:
                waiter.pair.why = error.message
                if not waiter.patient or error.code == "unauthorised":
                    waiter.fail(error)

    # -- messages -----------------------------------------------------------------------------------------------------

    async def _attend(self, connection: Connection) -> None:
        """One connection that a peer has dialled."""
        try:
            hello = await greet(connection, self._me, Deadline(_HELLO_S))
        except WireError as stranger:
            self._refused += 1
            raise TransportError(str(stranger), code="protocol") from stranger
        link = self._link(hello.name, hello.address)
        await link.read(connection)
        self._forget(link)

    def _hear(self, link: Link, said: Said) -> None:
        """A message concerns the pair of the session that it is for, by whatever name its peer goes."""
        self._messages += 1
        message, params = message_of(said)
        pair = self._of.get(message.dst) if message.dst is not None else None
        if pair is None:
            if len(self._pairs) >= _MAX_PAIRS and (link.name, said.channel) not in self._pairs:
                self._refused += 1
                return
            pair = self._pair(link, said.channel)
        self._heard = params
        self._tell(pair, Arrived(message))
        self._heard = {}

    def _link(self, name: str, address: Address | None) -> Link:
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = Link(
                name,
                address,
                me=lambda: self._me,
                wire=self._carrier,
                hear=self._hear,
                unreachable=self._unreachable,
                parted=self._parted,
                gate=self._dialling,
            )
        return link

    def _pair(self, link: Link, channel: str) -> _Pair:
        key = (link.name, channel)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = _Pair(link, channel, Pair(self._mint, self._timing))
        return pair

    def _mint(self) -> Session:
        return Session(self._boot, next(self._numbers))

    def _forget(self, link: Link) -> None:
        if link.quiet and not any(pair.link is link for pair in self._pairs.values()):
            self._links.pop(link.name, None)

    # -- the machines -------------------------------------------------------------------------------------------------

    def _tell(self, pair: _Pair, event: Event) -> None:
        """Handle one event and begin its effects."""
        for effect in pair.machine.handle(event, self._clock()):
            self._begin(pair, effect)
        if pair.machine.idle and self._pairs.pop((pair.link.name, pair.channel), None) is not None:
            self._forget(pair.link)

    def _begin(self, pair: _Pair, effect: Effect) -> None:
        match effect:
            case Make(session, asked):
                self._make(pair, session, asked=asked)
            case Bind(session, peer):
                self._fittings[session].bind(peer, self._heard)
            case Send(message):
                self._send(pair, message)
            case SetTimer(session, at_least_s, at_most_s):
                self._set_timer(pair, session, self._rng.uniform(at_least_s, at_most_s))
            case Ready(session):
                fitting = self._fittings[session]
                fitting.then(lambda: self._ready(pair, fitting))
            case Answer(waiter, session):
                self._answer(waiter, session)
            case Retire(session, why):
                self._retire(pair, session, why)
            case Settle(work, why):
                self._settled[work] = why
            case Carry():
                pass  # the caller of ``post`` does it

    def _make(self, pair: _Pair, session: Session, *, asked: bool) -> None:
        def failed(why: str) -> None:
            pair.why = why
            log.info("endpoint %s with %s: %s", session, pair.link.name, why)
            self._tell(pair, Broken(session, why))

        self._of[session] = pair
        self._fittings[session] = Fitting(session, self._resources, self._fitting_out, failed, asked=asked)

    def _send(self, pair: _Pair, message: Message) -> None:
        """Say it when what was to be done before is done; ``RST`` speaks of a session that has nothing left to do."""
        fitting = self._fittings.get(message.src)
        if message.kind is Kind.RST:
            pair.link.say(said_of(message, pair.channel, {}))
        elif fitting is not None:
            fitting.then(lambda: pair.link.say(said_of(message, pair.channel, fitting.params())))

    def _set_timer(self, pair: _Pair, session: Session, delay_s: float) -> None:
        earlier = self._timers.pop(session, None)
        if earlier is not None:
            earlier.cancel()
        loop = asyncio.get_running_loop()
        self._timers[session] = loop.call_later(delay_s, self._tell, pair, Timer(session))

    def _ready(self, pair: _Pair, fitting: Fitting) -> None:
        """Both ends are bound: hand the endpoint out."""
        assert fitting.peer is not None
        session = fitting.session
        self._made += 1
        endpoint = self._endpoints[session] = Endpoint(
            session,
            fitting.peer,
            PostedConnection(self, session, fitting.connection()),
            kind=fitting.kind,
            peer=pair.link.address,
            name=pair.link.name,
            channel=pair.channel,
            opened=fitting.asked,
        )
        log.info("%r", endpoint)
        if self._serve is not None:
            self._spawn(self._run(endpoint), self._serving)

    async def _run(self, endpoint: Endpoint) -> None:
        assert self._serve is not None
        why = "whoever served it is done"
        try:
            await self._serve(endpoint)
        except TransportError as broken:
            why = broken.message
        except Exception as bug:  # top frame: a handler's bug ends its endpoint, and no other
            log.exception("serving %r", endpoint)
            why = f"whoever served it failed: {bug}"
        if not endpoint.opened:
            self.give_up(endpoint.session, why)

    def _answer(self, number: int, session: Session) -> None:
        waiter = self._waiters[number]
        waiter.session = session

        def hand_over() -> None:
            endpoint = self._endpoints.get(session)
            if endpoint is not None and not waiter.future.done():
                waiter.future.set_result(endpoint)

        self._fittings[session].then(hand_over)

    def _retire(self, pair: _Pair, session: Session, why: str) -> None:
        self._retired += 1
        timer = self._timers.pop(session, None)
        if timer is not None:
            timer.cancel()
        endpoint = self._endpoints.pop(session, None)
        if endpoint is not None:
            endpoint.retire(why)
            log.info("%r", endpoint)
        for waiter in self._waiters.values():
            if waiter.session == session:
                waiter.fail(TransportError(why, code="closed"))
        self._spawn(self._drain(pair, session, self._fittings.pop(session)), self._tasks)

    async def _drain(self, pair: _Pair, session: Session, fitting: Fitting) -> None:
        try:
            await fitting.close()
        finally:
            del self._of[session]
            self._tell(pair, Drained(session))

    def _spawn(self, work: Coroutine[Any, Any, None], owned: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        owned.add(task)
        task.add_done_callback(owned.discard)


def _late(peer: Address, why: str, deadline: Deadline) -> TransportError:
    words = f"no connection with peer {peer} within {deadline.timeout_s:g} s{': ' if why else ''}{why}"
    return TransportError(words, code="timeout", elapsed_s=deadline.elapsed())


def _closed() -> TransportError:
    return TransportError("the peering is closed", code="closed")
