"""A simulated client process: the real courier, and programs that ask it for things as threads would.

A program is a generator: it yields ``Ask`` or ``Pause`` and is sent the answer. It is dropped where it stands when its
process dies; what it wrote to its ``Journals`` survives. Invariant: an errand ends exactly once, by its deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeAlias

import msgspec

from penstock.plane import events as ev
from penstock.plane.courier import Courier, Identity
from penstock.requests import Reply, ReplyBody, Request
from penstock.testing.sim.network import Connection
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.world import Process, World

__all__ = ["Answer", "Ask", "AskAgent", "Machine", "Pause", "Program", "SimClient", "Sub"]

_RETRY_S = (0.02, 0.1, 0.4)
_LATE_S = 0.5  # how much later than its deadline an errand may end before it is a violation


class Ask(msgspec.Struct, frozen=True):
    """Send ``body`` and wait. The answer is a reply's body, or the ``Verdict`` of an errand that had none.

    ``leaves_s``: the caller goes after so long, before his deadline, as on Ctrl-C.
    """

    body: Request
    timeout_s: float = 5.0
    leaves_s: float | None = None


class Pause(msgspec.Struct, frozen=True):
    seconds: float


class AskAgent(msgspec.Struct, frozen=True):
    """Call the agent of the own machine. The answer is None if nobody answered."""

    body: Request
    timeout_s: float = 3.0


class Machine(Protocol):
    """Where a client runs, if not on the plane's own machine."""

    @property
    def number(self) -> int: ...
    def ask(self, client: SimClient, body: Request, timeout_s: float, done: Callable[[Answer], None]) -> None: ...
    def client_dies(self, client: SimClient, noticed_s: float, *, killed: bool) -> None: ...


Answer: TypeAlias = ReplyBody | ev.Verdict | None
Program: TypeAlias = Generator[Ask | Pause | AskAgent, Answer, None]
Sub: TypeAlias = Generator[Ask | Pause | AskAgent, Answer, Any]  # of a program


class _Waiting(msgspec.Struct):
    program: Program
    deadline: float
    over: bool = False  # its end is on its way to the program


class SimClient(Process):
    """One process with one client object.

    Attributes:
        courier: of the session.
        running: programs that have not ended.
        alive: the process has not died.
        home: where it runs; None = where the plane does, whose kernel tells of its end; unless it is ``remote``.
    """

    def __init__(
        self,
        world: World,
        plane: SimPlane,
        name: str,
        client_id: int,
        host: str = "h",
        *,
        home: Machine | None = None,
        remote: bool = False,
    ) -> None:
        super().__init__(world)
        self.home = home
        self._remote = remote or home is not None
        self.name = name
        self.plane = plane
        self.client_id = client_id
        self.courier = Courier(Identity(client_id, name, "sim", host, client_id & 0xFFFF))
        self.alive = True
        self.running = 0
        self.late = 0
        self._connection: Connection | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._last_errand = 0
        self._attempts = 0
        self._beat_s = 0.0
        self._connect()

    # -- programs -----------------------------------------------------------------------------------------------------

    def run(self, program: Program) -> None:
        """Start a program in this process."""
        self.running += 1
        self._advance(program, None)

    def _advance(self, program: Program, answer: Answer) -> None:
        if not self.alive:
            return
        try:
            wish = program.send(answer)
        except StopIteration:
            self.running -= 1
            return
        if isinstance(wish, Pause):
            self.world.after(wish.seconds, self.awake, self._advance, program, None)
        elif isinstance(wish, AskAgent):
            assert self.home is not None, "a client without an agent"
            self.home.ask(self, wish.body, wish.timeout_s, lambda a: self.awake(self._advance, program, a))
        else:
            self._ask(program, wish)

    def _ask(self, program: Program, ask: Ask) -> None:
        self.world.counts["operations"] += 1
        self._last_errand += 1
        errand = self._last_errand
        deadline = self.world.now + ask.timeout_s
        self._waiting[errand] = _Waiting(program, deadline)
        self.world.say(self.name, "asks", errand, ask.body)
        self._handle(ev.Submit(errand, ask.body, deadline))
        self.world.at(deadline, self.awake, self._overdue, errand)
        if ask.leaves_s is not None:
            self.world.after(ask.leaves_s, self.awake, self._overdue, errand)

    def _overdue(self, errand: int) -> None:
        waiting = self._waiting.get(errand)
        if self.alive and waiting is not None and not waiting.over:
            self._handle(ev.Leave(errand))

    def _finish(self, errand: int, answer: Answer) -> None:
        waiting = self._waiting.pop(errand)
        self.late += self.world.now > max(waiting.deadline, self.frozen_until) + _LATE_S
        self.world.say(self.name, "got  ", errand, answer)
        self._advance(waiting.program, answer)

    # -- the courier's shell ------------------------------------------------------------------------------------------

    def tell(self, event: ev.Event) -> None:
        """Let a program tell the courier something that needs no answer."""
        self._handle(event)

    def _handle(self, event: ev.Event) -> None:
        for effect in self.courier.handle(event, self.world.now):
            if isinstance(effect, ev.Transmit):
                if self._connection is not None:
                    self._connection.call(effect.call, effect.errand)
            elif isinstance(effect, ev.Settled | ev.Ended):
                self._waiting[effect.errand].over = True
                self.world.after(0.0, self.awake, self._end_errand, effect)
            elif isinstance(effect, ev.Opened):
                self._opened(effect)
            elif isinstance(effect, ev.Disconnect):
                self._disconnect(effect.why)

    def _end_errand(self, end: ev.Settled | ev.Ended) -> None:
        if not self.alive:
            return
        if isinstance(end, ev.Settled):
            self._handle(ev.Take(end.errand))
            self._finish(end.errand, end.body)
        else:
            self._finish(end.errand, end.verdict)

    def _opened(self, opened: ev.Opened) -> None:
        self._attempts = 0
        if not self._beat_s:
            self._beat_s = opened.heartbeat_s
            self.world.after(self._beat_s, self.awake, self._beat)
        self._beat_s = opened.heartbeat_s

    def _beat(self) -> None:
        if self.alive:
            self._handle(ev.Beat())
            self.world.after(self._beat_s, self.awake, self._beat)

    # -- the connection -----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self.alive or self._connection is not None:
            return
        connection = Connection(self.world, self, self.plane)
        if self.plane.connect(connection):
            self._connection = connection
            self._handle(ev.Connected())
            return
        self._handle(ev.NotConnected("nobody listens"))
        self._connect_later()

    def _connect_later(self) -> None:
        delay = _RETRY_S[min(self._attempts, len(_RETRY_S) - 1)]
        self._attempts += 1
        self.world.after(delay, self.awake, self._connect)

    def _disconnect(self, why: str) -> None:
        if self._connection is not None:
            self._connection.cut(why, 0.0, 0.001)

    def received(self, connection: Connection, reply: Reply) -> None:
        self.awake(self._received, connection, reply)

    def _received(self, connection: Connection, reply: Reply) -> None:
        if self.alive and connection is self._connection:
            self._handle(ev.Received(reply))

    def lost(self, connection: Connection, kept: frozenset[int], why: str) -> None:
        self.awake(self._lost, connection, kept, why)

    def _lost(self, connection: Connection, kept: frozenset[int], why: str) -> None:
        if self.alive and connection is self._connection:
            self._connection = None
            self._handle(ev.Lost(why, kept))
            self._connect_later()

    @property
    def connection(self) -> Connection | None:
        return self._connection

    # -- its end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Say goodbye and go."""
        if self.alive:
            self._handle(ev.Close())
            self.alive = False
            self._tell_kernel(0.1, killed=False)

    def kill(self, noticed_s: float) -> None:
        """Kill -9; the plane's kernel says so after a while, the socket closes before."""
        self.alive = False
        self._waiting.clear()
        if self._connection is not None:
            self._connection.cut("its process died", 0.0, min(noticed_s, 0.01))
        self._tell_kernel(noticed_s, killed=True)

    def _tell_kernel(self, noticed_s: float, *, killed: bool) -> None:
        """The kernel of the machine tells whoever looks after its processes there."""
        if self.home is not None:
            self.home.client_dies(self, noticed_s, killed=killed)
        elif not self._remote:
            self.plane.client_dies(self.client_id, noticed_s)
