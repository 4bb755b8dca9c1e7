"""Who takes part in a world of a run, how they write to each other, and how they die.

Invariants: what a process is told arrives in its own time (a stopped one reads it later); where a message is lost or
late, or a process dies at a point of its own, a fault said so before, and is counted when it happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from penstock.controller.config import Role
from penstock.controller.news import Left, News, ReplicaJoined
from penstock.testing.sim.client import SimClient
from penstock.testing.sim.habits import Surprises
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.steering.book import Book
from penstock.testing.sim.steering.scenario import RunScenario
from penstock.testing.sim.world import World

__all__ = ["NOTICE", "Cast", "Member", "Reply"]

_MIN_S, _MAX_S = 0.0003, 0.004  # on the way
_LATE_S = (0.5, 3.0, 9.0)
_NOTICED_S = (0.005, 0.1, 4.0, 14.0)  # until the plane hears of a death
_RESTART_S = (0.01, 0.5, 3.0)
_BEAT_S = 1.0
NOTICE = 0.7  # how often a death is seen by whoever waits, before its deadline


class Hearer(Protocol):
    """The controller of the moment, as the others know it."""

    alive: bool

    def hear(self, news: News) -> None: ...


class Cast(Surprises, kw_only=True):
    """All of one world.

    Attributes:
        start: starts the process of that name.
        clients: the processes, by name; dead ones too.
        traps: role -> the point of it at which it dies next.
        version: of the newest weights that were spread.
        losses, delays: messages that are to be lost, or late; ``late_orders``: of a step, by a life that dies then.
        is_over: nobody is started any more.
    """

    world: World
    plane: SimPlane
    scenario: RunScenario
    book: Book
    start: Callable[[str], None]
    clients: dict[str, SimClient] = msgspec.field(default_factory=dict)
    traps: dict[str, str] = msgspec.field(default_factory=dict)
    controller: Any = None
    version: int = 0
    losses: int = 0
    delays: int = 0
    late_orders: int = 0
    is_over: bool = False

    def post(self, to: SimClient, do: Callable[..., None], *args: Any) -> None:
        """Let ``to`` do something, as soon as the message is there and it is awake."""
        rng = self.world.rng
        delay = rng.uniform(_MIN_S, _MAX_S)
        if self.late_orders and do.__name__ == "train":
            self.late_orders -= 1
            self.traps["controller"] = "after Train"
            self.world.fault("order_late")
            self.world.after(rng.choice(_LATE_S), to.awake, do, *args)
            return
        if self.losses:
            self.losses -= 1
            self.world.fault("message_lost", f"{to.name} {do.__name__}")
            return
        if self.delays:
            self.delays -= 1
            delay = rng.choice(_LATE_S)
            self.world.fault("message_late", f"{to.name} {do.__name__} {delay}")
        self.world.after(delay, to.awake, do, *args)

    def member(self, role: str) -> list[Any]:
        """The living of a role."""
        return [one for name, one in self.clients.items() if one.alive and name.rstrip("0123456789") == role]

    def dies(self, one: SimClient, point: str) -> bool:
        """A process has come to a point of its own; return whether it dies there."""
        role = one.name.rstrip("0123456789")
        if self.traps.get(role) != point:
            return False
        del self.traps[role]
        self.world.fault(f"{role}_point", point)
        self.crash(one)
        return True

    def crash(self, one: SimClient) -> None:
        """Kill -9; somebody starts it again."""
        if one.alive:
            self.world.say(one.name, "dies")
            one.kill(self.world.rng.choice(_NOTICED_S))
            self.world.after(self.world.rng.choice(_RESTART_S), self.start, one.name)


class Member(SimClient):
    """A process of a run.

    Attributes:
        born_at: when it began.
    """

    def __init__(self, cast: Cast, name: str) -> None:
        self.cast = cast
        self.born_at = cast.world.now
        super().__init__(cast.world, cast.plane, name, cast.world.rng.getrandbits(62) + 1)

    def beat_as(self, role: Role) -> None:
        """Tell the controller that it lives; register each time, for it may be another one by now."""
        if self.alive and not self.cast.is_over:
            self._tell_controller(ReplicaJoined(self.name, role))
            self.world.after(_BEAT_S, self.awake, self.beat_as, role)

    def tell_death(self, replies: Iterable[tuple[Reply, News]]) -> None:
        """Most of those who wait for it see that its connection is gone."""
        for reply, news in replies:
            if self.world.chance(NOTICE):
                reply.send(news)
        self._tell_controller(Left(self.name), NOTICE)

    def _tell_controller(self, news: News, probability: float = 1.0) -> None:
        controller = self.cast.controller
        if controller is not None and controller.alive and (probability == 1.0 or self.world.chance(probability)):
            self.cast.post(controller, controller.hear, news)


class Reply:
    """What a controller awaits of another process: one piece of news, by a deadline; the first to come counts.

    Args:
        controller: who waits.
        late: what it believes when nothing has come within ``timeout_s``.
    """

    __slots__ = ("_controller", "_done")

    def __init__(self, controller: Any, late: News, timeout_s: float) -> None:
        self._controller = controller
        self._done = False
        controller.world.after(timeout_s, controller.awake, self._arrive, late)

    def send(self, news: News) -> None:
        """Answer, over the network."""
        if not self._done:
            self._controller.cast.post(self._controller, self._arrive, news)

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._done = True

    def _arrive(self, news: News) -> None:
        if not self._done:
            self._done = True
            self._controller.hear(news)
