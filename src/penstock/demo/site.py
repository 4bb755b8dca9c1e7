"""Where the processes of a run stand: all on one machine, or on two hosts with a cable between them.

Plane, controller and workers stand on the first host, scorer and trainer on the second, so that every rollout crosses
the cable. A host is a network namespace where the system lets us make some; else both are this machine, each with its
own agent and arena, and there is no cable to cut.

Invariant: after ``close`` no namespace and no cable is left.
"""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

from penstock.demo.processes import SPARES, Spawn, kind_of, role_command, slot_of
from penstock.demo.spec import RunFiles
from penstock.errors import DataPlaneUnavailable
from penstock.testing.network import Host, Network

__all__ = ["ON_SECOND", "Cutter", "Site", "host_of"]

_NAMES = ("a", "b")
ON_SECOND = frozenset({"trainer", "scorer"})
_LOOPBACK = "127.0.0.1"
_PORT = 7777  # of the plane, in a namespace of its own nobody else has it
_CUT_S = (0.5, 3.0)  # shortest and longest
_CUT_EVERY = 2.0  # strikes


def host_of(peer: str) -> int:
    """Return which host a role stands on, 0 or 1: that of its rows."""
    if kind_of(peer) == "host":
        return int(slot_of(peer).partition("-")[2])
    return int(kind_of(peer) in ON_SECOND or slot_of(peer) in SPARES)


class Site:
    """Args: count: of hosts, 1 or 2; folder: for what the hosts' network needs.

    Attributes:
        hosts: their addresses; none if there is one machine only.
        port: of the plane.
        why: in words, why hosts are no namespaces; empty when they are, or when there are none.
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.hosts: tuple[str, ...] = ()
        self.port = 0
        self.why = ""
        self._seats: list[Host] = []
        self._network: Network | None = None
        if count > 1:
            self._settle(folder)

    def _settle(self, folder: Path) -> None:
        try:
            self._network = Network(folder / "network")
            self._seats = [self._network.host(name) for name in _NAMES]
        except DataPlaneUnavailable as denied:
            self.why = str(denied)
            self.hosts, self.port = (_LOOPBACK, _LOOPBACK), _free_port()
            return
        self.hosts, self.port = tuple(seat.address for seat in self._seats), _PORT

    @property
    def has_cable(self) -> bool:
        """Whether there is a cable that can be cut."""
        return self._network is not None

    def command(self, root: Path, peer: str) -> list[str]:
        """Return the command line of a role, on its host."""
        command = role_command(root, peer)
        return self._seats[host_of(peer)].command(command) if self._seats else command

    @property
    def spawn(self) -> Spawn | None:
        """How a peer's process is started; None = as ``command`` says, on this machine."""
        return None

    def folders(self, files: RunFiles) -> list[Path]:
        """Return the directories of plane and agents: what they hold in shared memory is named after these."""
        return [files.plane, *(files.host(number) for number in range(len(self.hosts)))]

    def cut(self) -> None:
        """Cut the cable, in silence."""
        if self._network is not None:
            self._network.partition(*_NAMES)

    def mend(self) -> None:
        """Put it together again."""
        if self._network is not None:
            self._network.heal()

    def swallowed(self) -> int:
        """Packets that went into cuts so far."""
        return 0 if self._network is None else self._network.swallowed

    def close(self) -> None:
        """Take everything down. Idempotent."""
        network, self._network = self._network, None
        if network is not None:
            network.close()


class Cutter:
    """Cuts a site's cable now and then: a seeded schedule.

    A cut has fired when packets went into it; ``due`` returns those that are over, as (from, until).
    """

    def __init__(self, site: Site, seed: int, period_s: float, now: float) -> None:
        self._site = site
        self._random = random.Random(f"cuts {seed}")
        self._period_s = period_s * _CUT_EVERY
        self._next_at = now + self._random.uniform(0.5, 1.0) * self._period_s
        self._since: float | None = None
        self._until = 0.0
        self._before = 0

    @property
    def is_cut(self) -> bool:
        return self._since is not None

    def due(self, now: float) -> tuple[float, float] | None:
        """Cut or mend what is to be by now; return the cut that has just ended, if it was felt."""
        if self._since is None:
            if now >= self._next_at:
                self._before = self._site.swallowed()
                self._site.cut()
                self._since, self._until = now, now + self._random.uniform(*_CUT_S)
            return None
        if now < self._until:
            return None
        return self.mend()

    def mend(self) -> tuple[float, float] | None:
        """End a cut that is under way."""
        since, self._since = self._since, None
        if since is None:
            return None
        self._site.mend()
        now = time.monotonic()
        self._next_at = now + self._random.uniform(0.75, 1.25) * self._period_s
        return (since, now) if self._site.swallowed() > self._before else None


def _free_port() -> int:
    with socket.socket() as asked:
        asked.bind((_LOOPBACK, 0))
        return int(asked.getsockname()[1])
