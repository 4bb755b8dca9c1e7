"""What befalls a run: all that befalls a plane and its clients, and what only a run knows. Drawn from the seed."""

from __future__ import annotations

from typing import ClassVar

from penstock.controller import news as nw
from penstock.testing.sim.client import SimClient
from penstock.testing.sim.faults import KINDS as PLANE_KINDS
from penstock.testing.sim.faults import Faults
from penstock.testing.sim.steering import controller, trainer, workers
from penstock.testing.sim.steering.cast import Cast

__all__ = ["KINDS", "RunFaults"]

_OWN = (
    "controller_crash",
    "controller_point",
    "controller_stop",
    "trainer_crash",
    "trainer_point",
    "worker_point",
    "plane_away",
    "pair",
    "everything",
    "message_lost",
    "message_late",
    "order_late",
    "step_unreadable",
    "stop_in_step",
    "publish_fails",
    "stop_asked",
    "gate",
)
_BY_ITSELF = ("generator_fails", "generator_hangs", "row_left_out", "step_fails")  # fire without being planned
KINDS = (*PLANE_KINDS, *_OWN, *_BY_ITSELF)
_STOP_S = (0.3, 2.0, 8.0)
_AWAY_S = 40.0  # longer than a run waits for its plane


class RunFaults(Faults):
    """Hits the plane and the cast."""

    kinds: ClassVar[tuple[str, ...]] = (*PLANE_KINDS, *_OWN, *_OWN)

    def __init__(self, cast: Cast) -> None:
        super().__init__(cast.world, cast.plane, cast.clients, cast.start)
        self._cast = cast

    def _crash_role(self, role: str) -> None:
        for one in self._cast.member(role)[:1]:
            self._world.fault(f"{role}_crash")
            self._cast.crash(one)

    def _controller_crash(self) -> None:
        self._crash_role("controller")

    def _trainer_crash(self) -> None:
        self._crash_role("trainer")

    def _client_crash(self) -> None:
        client = self._client()
        if client.alive:
            self._world.fault("client_crash", client.name)
            self._cast.crash(client)

    def _controller_stop(self) -> None:
        seconds = self._world.rng.choice(_STOP_S)
        self._clients["controller"].stop(seconds)
        self._world.fault("controller_stop", seconds)

    def _controller_point(self) -> None:
        self._cast.traps["controller"] = self._world.rng.choice(controller.POINTS)

    def _trainer_point(self) -> None:
        self._cast.traps["trainer"] = self._world.rng.choice(trainer.POINTS)

    def _worker_point(self) -> None:
        self._cast.traps["worker"] = self._world.rng.choice(workers.POINTS)

    def _plane_away(self) -> None:
        if self._plane.up and self._world.chance(0.3):
            self._plane.stop(_AWAY_S)
            self._world.fault("plane_away")

    def _pair(self) -> None:
        names = self._world.rng.sample(["plane", *sorted(self._clients)], 2)
        self._world.fault("pair", names)
        self._crash_all(names)

    def _everything(self) -> None:
        self._world.fault("everything")
        self._crash_all(["plane", *sorted(self._clients)])

    def _crash_all(self, names: list[str]) -> None:
        for name in names:
            if name == "plane":
                self._plane.crash()
            else:
                self._cast.crash(self._clients[name])

    def _message_lost(self) -> None:
        self._cast.losses += 1

    def _message_late(self) -> None:
        self._cast.delays += 1

    def _order_late(self) -> None:
        self._cast.late_orders += 1

    def _stop_in_step(self) -> None:
        self._cast.traps["stop"] = "before save"

    def _step_unreadable(self) -> None:
        self._cast.traps["rows"] = "before read"

    def _publish_fails(self) -> None:
        self._cast.traps["weights"] = self._world.rng.choice(("before", "after"))

    def _stop_asked(self) -> None:
        for one in self._cast.member("controller"):
            self._world.fault("stop_asked")
            self._tell(one, nw.StopAsked("the user wants it so"))

    def _gate(self) -> None:
        for one in self._cast.member("controller"):
            self._world.fault("gate")
            self._tell(one, nw.GateClosed("the user looks at something"))
            self._world.after(self._world.rng.choice((0.1, 2.0)), self._tell, one, nw.GateOpened())

    def _tell(self, one: SimClient, news: nw.News) -> None:
        assert isinstance(one, controller.Controller)
        one.awake(one.hear, news)
