"""Which faults hit a world, and when: drawn from its seed. A fault is counted when it fires, not when it is planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from penstock.testing.sim.client import SimClient
from penstock.testing.sim.host import SimHost
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.world import World

__all__ = ["HOST_KINDS", "KINDS", "Faults", "HostFaults"]

KINDS = (
    "plane_crash",
    "plane_torn",
    "plane_stop",
    "client_crash",
    "client_stop",
    "cut",
    "flap",
    "stall",
    "duplicate",
    "checkpoint",
    "checkpoint_crash",
    "disk_full",
    "compaction",
    "block_lost",
)
HOST_KINDS = ("agent_crash", "agent_stop", "agent_cut", "agent_stall", "block_damaged", "machine_lost")
_MAX_FAULTS = 12
_MEAN_S = 2.5  # seconds into the world at which a fault comes, on average: while most happens
_FLAPS, _FLAP_S = 8, 0.08
_MAX_FUSE = 40  # steps of the plane


class Faults:
    """Hits ``plane`` and ``clients``; ``start`` starts the successor of a role."""

    kinds: ClassVar[tuple[str, ...]] = KINDS  # to draw from

    def __init__(
        self, world: World, plane: SimPlane, clients: dict[str, SimClient], start: Callable[[str], None]
    ) -> None:
        self._world = world
        self._plane = plane
        self._clients = clients
        self._start = start
        self.over = False

    def plan(self, until_s: float) -> None:
        """Draw the world's faults; most of them early, where most happens."""
        rng = self._world.rng
        for _ in range(rng.randint(0, _MAX_FAULTS)):
            when = min(rng.expovariate(1 / _MEAN_S), until_s)
            self._world.at(when, self._fire, rng.choice(self.kinds))

    def _fire(self, kind: str) -> None:
        if not self.over:
            getattr(self, f"_{kind}")()

    def _client(self) -> SimClient:
        return self._clients[self._world.rng.choice(sorted(self._clients))]

    def _plane_crash(self) -> None:
        if self._plane.up:
            self._plane.fuse = self._world.rng.randint(1, _MAX_FUSE)
            self._world.fault("plane_crash")

    def _plane_torn(self) -> None:
        plane = self._plane
        if plane.up:
            plane.files.crash_at = plane.files.steps + self._world.rng.randint(1, 4)
            plane.files.torn = self._world.rng.randint(-1, 300)
            self._world.fault("plane_torn")

    def _plane_stop(self) -> None:
        if self._plane.up:
            seconds = self._world.rng.choice((0.3, 2.0, 15.0))
            self._plane.stop(seconds)
            self._world.fault("plane_stop", seconds)

    def _client_crash(self) -> None:
        client = self._client()
        if client.alive:
            self._world.fault("client_crash", client.name)
            client.kill(self._world.rng.choice((0.005, 0.1, 4.0, 14.0)))
            self._world.after(self._world.rng.choice((0.01, 0.5, 3.0)), self._start, client.name)

    def _client_stop(self) -> None:
        client = self._client()
        seconds = self._world.rng.choice((0.3, 3.0, 12.0))
        client.stop(seconds)
        self._world.fault("client_stop", f"{client.name} {seconds}")

    def _cut(self) -> None:
        client, rng = self._client(), self._world.rng
        if client.connection is not None and not client.connection.broken:
            client.connection.cut("reset", rng.uniform(0, 0.02), rng.choice((0.0, 0.01, 2.0)))
            self._world.fault("cut", client.name)

    def _flap(self) -> None:
        """A connection that is reset again and again, mostly with replies under way."""
        client = self._client()
        self._world.fault("flap", client.name)
        for number in range(_FLAPS):
            self._world.after(number * self._world.rng.uniform(0, _FLAP_S), self._reset, client.name)

    def _reset(self, name: str) -> None:
        connection = self._clients[name].connection
        if connection is not None:
            connection.cut("flapping", 0.0, self._world.rng.choice((0.0, 0.01)))

    def _stall(self) -> None:
        client = self._client()
        if client.connection is not None:
            seconds = self._world.rng.choice((0.1, 1.0, 6.0))
            client.connection.stall(seconds)
            self._world.fault("stall", f"{client.name} {seconds}")

    def _duplicate(self) -> None:
        client = self._client()
        if client.connection is not None and client.connection.replay():
            self._world.fault("duplicate", client.name)

    def _checkpoint(self) -> None:
        if self._plane.up:
            self._plane.work(self._plane.upkeep.begin_checkpoint)
            self._world.fault("checkpoint")

    def _checkpoint_crash(self) -> None:
        if self._plane.up:
            self._plane.work(self._plane.upkeep.begin_checkpoint)
            self._plane.fuse = self._world.rng.randint(1, _MAX_FUSE)
            self._world.fault("checkpoint_crash")

    def _disk_full(self) -> None:
        plane = self._plane
        if plane.up:
            plane.files.max_bytes = plane.files.size_bytes + self._world.rng.randint(0, 500)
            self._world.fault("disk_full")

    def _compaction(self) -> None:
        if self._plane.up:
            self._world.fault("compaction")
            self._plane.work(self._plane.upkeep.compact)
            if self._world.chance(0.3):
                self._plane.fuse = self._world.rng.randint(1, 6)

    def _block_lost(self) -> None:
        self._plane.work(self._plane.upkeep.lose_block)


class HostFaults(Faults):
    """Hits ``hosts`` too: agents die or stop, lose the plane for a while, machines lose their memory or parts of it."""

    kinds: ClassVar[tuple[str, ...]] = (*KINDS, *HOST_KINDS, *HOST_KINDS)

    def __init__(
        self,
        world: World,
        plane: SimPlane,
        clients: dict[str, SimClient],
        start: Callable[[str], None],
        hosts: dict[int, SimHost],
    ) -> None:
        super().__init__(world, plane, clients, start)
        self._hosts = hosts

    def _host(self) -> SimHost:
        return self._hosts[self._world.rng.choice(sorted(self._hosts))]

    def _agent_crash(self) -> None:
        host = self._host()
        if host.up:
            down_s = self._world.rng.choice((0.02, 0.5, 5.0, 25.0))
            self._world.fault("agent_crash", f"{host.name} {down_s}")
            host.kill()
            self._world.after(down_s, host.start)

    def _agent_stop(self) -> None:
        host = self._host()
        seconds = self._world.rng.choice((0.3, 3.0, 12.0, 20.0))
        if host.up:
            host.stop(seconds)
            self._world.fault("agent_stop", f"{host.name} {seconds}")

    def _agent_cut(self) -> None:
        host, rng = self._host(), self._world.rng
        connection = host.agent.connection
        if host.up and connection is not None and not connection.broken:
            connection.cut("reset", rng.uniform(0, 0.02), rng.choice((0.0, 0.01, 2.0)))
            self._world.fault("agent_cut", host.name)

    def _agent_stall(self) -> None:
        """A partition, in one direction or in both, that heals: what was under way arrives late."""
        host = self._host()
        if host.up and host.agent.connection is not None:
            seconds = self._world.rng.choice((0.5, 4.0, 20.0))
            host.agent.connection.stall(seconds)
            self._world.fault("agent_stall", f"{host.name} {seconds}")

    def _block_damaged(self) -> None:
        host = self._host()
        blocks = sorted({block for block, _ in host.memory.slots})
        if blocks:
            block = self._world.rng.choice(blocks)
            host.memory.damage(block)
            self._world.fault("block_damaged", f"{host.name} {block}")

    def _machine_lost(self) -> None:
        """Its power fails: the agent and all clients die, nobody says so, and nothing is left of its memory."""
        host = self._host()
        if not host.up:
            return
        self._world.fault("machine_lost", host.name)
        host.kill()
        host.memory.wipe()
        for name in [name for name, client in self._clients.items() if client.home is host and client.alive]:
            self._clients[name].kill(0.0)
            self._world.after(self._world.rng.choice((0.5, 3.0)), self._start, name)
        self._world.after(self._world.rng.choice((1.0, 8.0, 25.0)), host.start)
