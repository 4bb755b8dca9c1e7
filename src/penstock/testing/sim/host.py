"""A simulated machine with its agent: the real keeper and the real courier, in a shell as the agent's is.

Invariants, the agent's: memory follows the client's process, whose end this machine's kernel tells its agent alone; a
life of the agent serves nobody before the plane has taken it in; what was said counts as heard when it was answered;
orders are heard in the order in which they were given. Memory outlives the agent, readers' pins do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.config import PlaneConfig
from penstock.host import events as hev
from penstock.host.keeper import OWN_SESSION, Keeper, Who
from penstock.ledger import events as ev
from penstock.plane.events import Verdict
from penstock.requests import (
    WIRE_VERSION,
    ArenaPlace,
    BlockPlace,
    Enlist,
    Enlisted,
    Granted,
    HostPlace,
    Located,
    OpenSession,
    Orders,
    ReplyBody,
    Request,
    Reserve,
    Seal,
    Sealed,
)
from penstock.testing.sim.client import Answer, Ask, Pause, Program, SimClient
from penstock.testing.sim.memory import HostMemory
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.world import Process, World

__all__ = ["SimHost"]

_LOCAL_S = (0.0001, 0.002)  # a call of the machine's own socket, one way
_PULL_S = (0.001, 0.05)
_REPORTS_S = (0.5, 1.0, 3.0)  # for which a report waits for orders
_CAPACITY = 1 << 30
_TICK_S = 0.5

Done = Callable[[Answer], None]


class _Guest:
    """What an agent knows of a client of its machine. ``kept``: grants that are sealed, and still held."""

    __slots__ = ("grants", "kept", "pins", "session_id")

    def __init__(self, session_id: int) -> None:
        self.session_id = session_id
        self.grants: dict[int, BlockPlace] = {}
        self.kept: set[int] = set()
        self.pins: dict[int, tuple[int, int]] = {}


class SimHost(Process):
    """One machine.

    Attributes:
        memory: of the machine.
        up: its agent runs; ``enlisted``: the plane has taken this life in.
        agent: the client that speaks with the plane for it.
        others: the other machines, by number.
        replicas: on how many machines puts from here shall lie, and must.
    """

    def __init__(
        self, world: World, plane: SimPlane, number: int, config: PlaneConfig, replicas: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__(world)
        self.replicas = replicas
        self.number = number
        self.name = f"host{number}"
        self.memory = HostMemory(number)
        self.up = self.enlisted = False
        self.life = 0
        self.others: dict[int, SimHost] = {}
        self._plane = plane
        self._config = config
        self._next_pin = 0
        self._agents: list[int] = []  # client ids of its agents

    def __repr__(self) -> str:
        return f"SimHost({self.name}, life {self.life}, {'up' if self.up else 'down'})"

    # -- lives --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process of the agent's begins, and asks the plane to take it in."""
        if self.up:
            return
        self.life += 1
        self.up, self.enlisted = True, False
        who = Who(self.number, self.name, "simulated", _CAPACITY)
        self.keeper = Keeper(who, self._config, self.life)
        self._guests: dict[int, _Guest] = {}
        self._calls: dict[int, tuple[Done, int]] = {}  # call -> who waits for it; the client, 0 = the agent itself
        self._numbers = 0
        self._heard: list[tuple[int, hev.Ordered]] = []
        self.agent = SimClient(self.world, self._plane, self.name, self.world.rng.getrandbits(62) + 1, remote=True)
        self._agents.append(self.agent.client_id)
        self.agent.run(self._serve_plane(self.life))
        self.world.say(self.name, "is up, life", self.life)
        self.world.after(_TICK_S, self.awake, self._tick, self.life)

    def kill(self) -> None:
        """Kill -9 of the agent; the machine stays, and its memory."""
        if self.up:
            self.up = self.enlisted = False
            self.frozen_until = 0.0
            self.agent.frozen_until = 0.0
            self.agent.kill(0.01)
            self.world.say(self.name, "its agent died")

    def stop(self, seconds: float) -> None:
        """SIGSTOP of the agent, for so long."""
        super().stop(seconds)
        self.agent.stop(seconds)

    def close(self) -> None:
        """End cleanly."""
        if self.up:
            self.up = self.enlisted = False
            self.agent.close()

    # -- the plane ----------------------------------------------------------------------------------------------------

    def _serve_plane(self, life: int) -> Program:
        place = HostPlace(self.number, life, self.name, "a", [1])
        while self.up and life == self.life:
            enlisted = yield Ask(Enlist(place))
            if not isinstance(enlisted, Enlisted):
                self._expect(enlisted)
                yield Pause(0.1)
                continue
            self._taken_in(enlisted)
            refused = False
            while not refused:
                said = self.keeper.report()
                answer = yield Ask(said, self.world.rng.choice(_REPORTS_S))
                if isinstance(answer, Orders):
                    self._feed(hev.Ordered(answer, said))
                elif not isinstance(answer, Verdict):
                    self._expect(answer)
                    refused = True

    def _expect(self, answer: Answer) -> None:
        """A plane that has restarted, or has forgotten the session, does not know the host."""
        code = getattr(answer, "code", "")
        assert isinstance(answer, Verdict) or code == "DataPlaneUnavailable", f"{self.name} was answered {answer}"

    def _taken_in(self, enlisted: Enlisted) -> None:
        if not self.enlisted:
            self._feed(hev.Found(self.memory.reconcile(enlisted.live)))
            self.enlisted = True
        self._feed(hev.Enlisting(enlisted.live, enlisted.after))

    # -- the machine's clients ----------------------------------------------------------------------------------------

    def ask(self, client: SimClient, body: Request, timeout_s: float, done: Done) -> None:
        """A client of this machine calls its agent. Nobody may answer: ``done`` is called with None then."""
        answered: list[bool] = []

        def once(answer: Answer) -> None:
            if not answered:
                answered.append(True)
                done(answer)

        self.world.after(timeout_s, once, None)
        deadline = self.world.now + timeout_s
        self._later(self._asked, self.life, client, body, deadline, lambda a: self._later(once, a))

    def let_go(self, client: SimClient, grant: int) -> None:
        """The client does not hold the grant any more: its next heartbeat says so."""
        self._later(self._let_go, self.life, client.client_id, grant)

    def unpin(self, client: SimClient, pins: list[int]) -> None:
        self._later(self._unpin, self.life, client.client_id, pins)

    def client_dies(self, client: SimClient, noticed_s: float, *, killed: bool) -> None:
        """The client's process has ended; the kernel tells the agent after a while."""
        self.world.after(noticed_s, self.awake, self._client_died, self.life, client.client_id, killed)

    def _later(self, do: Callable[..., None], *args: Any) -> None:
        self.world.after(self.world.rng.uniform(*_LOCAL_S), self.awake, do, *args)

    def _is(self, life: int) -> bool:
        return self.up and self.enlisted and life == self.life

    def _asked(self, life: int, client: SimClient, body: Request, deadline: float, done: Done) -> None:
        if not self._is(life) or not client.alive:
            return
        guest = self._guests.get(client.client_id)
        if guest is None:
            guest = self._guests[client.client_id] = _Guest(self.world.rng.getrandbits(62) + 1)
            request = OpenSession(WIRE_VERSION, client.client_id, client.name, "sim", self.name, client.client_id)
            self._feed(ev.SessionOpens(guest.session_id, "", self._number(lambda _: None, 0), request, 0.0))
        self._call(guest.session_id, body, deadline, done, client.client_id)

    def _call(self, session_id: int, body: Request, deadline: float, done: Done, client_id: int) -> None:
        number = self._number(done, client_id)
        self._feed(ev.Asked(session_id, number, 0, 0, [], deadline, body, 0.0))

    def _number(self, done: Done, client_id: int) -> int:
        self._numbers += 1
        self._calls[self._numbers] = (done, client_id)
        return self._numbers

    def _let_go(self, life: int, client_id: int, grant: int) -> None:
        guest = self._guests.get(client_id) if self._is(life) else None
        if guest is not None and grant in guest.grants:
            self._give_back(guest, grant)

    def _give_back(self, guest: _Guest, grant: int) -> None:
        del guest.grants[grant]
        if grant not in guest.kept:
            self.memory.free(grant)
        guest.kept.discard(grant)
        self._feed(ev.NotAllotted(grant))

    def _unpin(self, life: int, client_id: int, pins: list[int]) -> None:
        guest = self._guests.get(client_id) if self._is(life) else None
        if guest is not None:
            for pin, where in [(pin, guest.pins.pop(pin)) for pin in pins if pin in guest.pins]:
                self.memory.unpin(where, pin)

    def _client_died(self, life: int, client_id: int, killed: bool) -> None:
        guest = self._guests.pop(client_id, None) if self._is(life) else None
        if guest is None:
            return
        self._feed(ev.SessionGone(guest.session_id, "its process died" if killed else ev.GOODBYE))
        for grant in sorted(guest.grants):
            self._give_back(guest, grant)
        for pin, where in guest.pins.items():
            self.memory.unpin(where, pin)

    # -- the keeper ---------------------------------------------------------------------------------------------------

    def _tick(self, life: int) -> None:
        if self.up and life == self.life:
            if self.enlisted:
                self._feed(ev.Tick(0.0))
            self.world.after(_TICK_S, self.awake, self._tick, life)

    def _feed(self, event: hev.AnyEvent) -> None:
        for effect in self.keeper.handle(event, self.world.now):
            self._carry_out(effect)
        self.keeper.check_invariants()

    def _carry_out(self, effect: hev.AnyEffect) -> None:
        if isinstance(effect, ev.Answer):
            self._answer(effect.call_id, effect.body)
        elif isinstance(effect, ev.Allot):
            self._allot(effect)
        elif isinstance(effect, ev.Fill):
            self.memory.fill(effect.block_id)
        elif isinstance(effect, hev.Keep):
            self.memory.fill(effect.grant)
            for guest in self._guests.values():
                if effect.grant in guest.grants:
                    guest.kept.add(effect.grant)
        elif isinstance(effect, ev.FreeBlock):
            self.memory.free(effect.block_id)
            for guest in self._guests.values():
                guest.grants.pop(effect.block_id, None)
                guest.kept.discard(effect.block_id)
        elif isinstance(effect, ev.Resolve):
            self._resolve(effect)
        elif isinstance(effect, hev.Replicate):
            self._replicate(effect)
        elif isinstance(effect, hev.Verify) and effect.block_id in self.memory.damaged:
            self._feed(ev.BlocksLost([effect.block_id], "checksum mismatch"))

    def _answer(self, number: int, body: ReplyBody) -> None:
        done, _ = self._calls.pop(number, (None, 0))
        if done is not None:
            done(body)

    def _allot(self, effect: ev.Allot) -> None:
        _, client_id = self._calls[effect.call_id]
        guest = self._guests.get(client_id)
        if effect.session_id != OWN_SESSION and guest is None:
            self._feed(ev.NotAllotted(effect.grant))
            return
        place = guest.grants.get(effect.grant) if guest is not None else None
        if place is None:
            place = self.memory.allot(effect.grant, effect.nbytes)
        if guest is not None:
            guest.grants[effect.grant] = place
        self._feed(ev.Allotted(effect.grant, place))
        self._answer(effect.call_id, Granted(effect.grant, place, ArenaPlace(1, _CAPACITY, in_shm=True)))

    def _resolve(self, effect: ev.Resolve) -> None:
        _, client_id = self._calls[effect.call_id]
        guest = self._guests.get(client_id)
        if guest is None:
            return
        blocks = []
        for place in effect.blocks:
            self._next_pin += 1
            self.memory.pin(place, self._next_pin)
            guest.pins[self._next_pin] = (place.block_id, place.generation)
            blocks.append(_pinned(place, self._next_pin))
        self._answer(effect.call_id, Located(blocks, [], effect.sources, effect.issues))

    # -- copies -------------------------------------------------------------------------------------------------------

    def _replicate(self, effect: hev.Replicate) -> None:
        """Ask the second machine's agent to pull; it may not answer by the deadline, or not in this life of ours."""
        other, life = self.others[effect.replica.host_id], self.life
        told: list[bool] = []

        def copied(place: BlockPlace | None) -> None:
            if told or not self._is(life):
                return
            told.append(True)
            self._feed(hev.NotCopied(effect.grant, "no copy") if place is None else hev.Copied(effect.grant, place))

        self.world.at(effect.deadline - 0.2, self.awake, copied, None)
        delay = self.world.rng.uniform(*_PULL_S)
        self.world.after(delay, other.awake, other.pull, other.life, effect, self, lambda p: self._later(copied, p))

    def pull(
        self, life: int, effect: hev.Replicate, source: SimHost, copied: Callable[[BlockPlace | None], None]
    ) -> None:
        if not self._is(life):
            return
        seal = Seal(effect.grant, effect.content)

        def sealed(answer: Answer) -> None:
            copied(answer.places[0] if isinstance(answer, Sealed) else None)

        def reserved(answer: Answer) -> None:
            if not isinstance(answer, Granted):
                copied(None)
            else:
                self.world.after(self.world.rng.uniform(*_PULL_S), self.awake, arrived, answer.place)

        def arrived(place: BlockPlace) -> None:
            if not self._is(life):
                return
            if source.up and self.memory.copy(place, source.memory, effect.place):
                self._call(OWN_SESSION, seal, effect.deadline, sealed, 0)
            else:
                self.memory.free(effect.grant)
                self._feed(ev.NotAllotted(effect.grant))
                copied(None)

        def before(answer: Answer) -> None:
            if isinstance(answer, Sealed):
                copied(answer.places[0])
            else:
                self._call(OWN_SESSION, Reserve(effect.grant, effect.place.nbytes), effect.deadline, reserved, 0)

        self._call(OWN_SESSION, seal, effect.deadline, before, 0)

    # -- rest ---------------------------------------------------------------------------------------------------------

    @property
    def heard(self) -> float:
        """When the plane heard last of any life of its agent."""
        return max((self._plane.heard.get(client_id, 0.0) for client_id in self._agents), default=0.0)

    @property
    def is_quiet(self) -> bool:
        """Nothing is held but what the plane has said that rows need."""
        return self.up and self.enlisted and not self.keeper.has_news


def _pinned(place: BlockPlace, pin: int) -> BlockPlace:
    return BlockPlace(place.block_id, place.arena_id, place.offset, place.nbytes, place.generation, pin, place.host)
