"""A host's agent of a few lines, with real memory, and a plane that knows of it: for faults that real ones do not show.

Both are ``FakePlane``: ``handler`` decides what each call meets; what is not decided there is done as it should be.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from penstock.parts import HostPlace
from penstock.payload.block import Bytes
from penstock.payload.memory import map_file
from penstock.reports import HostStatus
from penstock.requests import (
    ArenaPlace,
    BlockPlace,
    Call,
    Commit,
    Done,
    Grant,
    GrantAgain,
    Granted,
    Heartbeat,
    Hold,
    Located,
    Reserve,
    RowIssue,
    Seal,
    Sealed,
    Status,
    StatusReport,
)
from penstock.wire import paths

from .fake_plane import FakePlane, Move, TcpPlane

B = TypeVar("B")

TOKEN = b"a token of tests"
SLOT = 1 << 20
SLOTS = 16


def host_place(host_id: int, name: str = "", life: int = 1) -> HostPlace:
    return HostPlace(host_id, life, name or f"host{host_id}", "127.0.0.1", [1000 + host_id])


def report_of(*hosts: HostStatus) -> StatusReport:
    return StatusReport(1, 0, 0.0, "memory", True, 0, 0, 0, 0, 0, [], [], {}, list(hosts))


def status_of(host_id: int, state: str = "up", silent_s: float = 0.0) -> HostStatus:
    return HostStatus(place=host_place(host_id), state=state, silent_s=silent_s, blocks=0, nbytes=0)


LIFE = 5  # of the agent for which the site grants


class FakeAgent(FakePlane):
    """The agent of host ``host_id`` in ``folder``. ``wrong``: what a call meets instead; None = what it should."""

    def __init__(self, folder: Path, host_id: int = 7) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.host_id = folder, host_id
        self.arena = ArenaPlace(5, SLOT * SLOTS, in_shm=False)
        path = paths.arena_path(folder, self.arena)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, self.arena.nbytes)
        self.memory: Bytes = map_file(fd, 0, self.arena.nbytes, private=False).array()
        os.close(fd)
        self.slots: dict[int, BlockPlace] = {}
        self.wrong: Callable[[Call], Move | None] = lambda _: None
        self._pins = itertools.count(100)
        super().__init__(paths.socket_path(folder), self.serve)

    def serve(self, call: Call) -> Move:
        return self.wrong(call) or self.right(call)

    def right(self, call: Call) -> Move:
        body = call.body
        if isinstance(body, Status):
            here = host_place(self.host_id, life=self.incarnation)
            return report_of(msgspec.structs.replace(status_of(self.host_id), place=here))
        if isinstance(body, Reserve):
            place = self.slots.setdefault(body.grant, self.place(body.grant, len(self.slots), body.nbytes))
            return Granted(body.grant, place, self.arena)
        if isinstance(body, Seal):
            return Sealed([self.slots[body.grant]]) if body.grant in self.slots else GrantAgain()
        if isinstance(body, Hold):
            return self.held(body.blocks)
        return Done()

    def place(self, block_id: int, slot: int, nbytes: int) -> BlockPlace:
        return BlockPlace(block_id, self.arena.arena_id, slot * SLOT, nbytes, 1, host=self.host_id)

    def held(self, blocks: list[int]) -> Located:
        pinned = [self.pinned(self.slots[b]) for b in blocks if b in self.slots]
        gone = [RowIssue(str(b), "StaleSlotError", f"block {b} is not here") for b in blocks if b not in self.slots]
        return Located(pinned, [self.arena], [], gone)

    def pinned(self, place: BlockPlace) -> BlockPlace:
        return msgspec.structs.replace(place, pin=next(self._pins))

    def bytes_of(self, block_id: int) -> Bytes:
        place = self.slots[block_id]
        return self.memory[place.offset : place.offset + place.nbytes]


class FakeSite(TcpPlane):
    """A plane that grants puts on hosts. ``wrong`` as in ``FakeAgent``; ``replica``: the second host of a put."""

    def __init__(self) -> None:
        self.wrong: Callable[[Call], Move | None] = lambda _: None
        self.replica: HostPlace | None = None
        self.hosts: list[HostStatus] = []
        self.grants = itertools.count(1)
        super().__init__(TOKEN, self.serve)

    def serve(self, call: Call) -> Move:
        return self.wrong(call) or self.right(call)

    def right(self, call: Call) -> Move:
        body = call.body
        if isinstance(body, Grant):
            grant = next(self.grants)
            place = BlockPlace(grant, 0, 0, body.nbytes, 0, host=body.host)
            return Granted(
                grant, place, ArenaPlace(0, 0, in_shm=False), self.replica if body.replicas > 1 else None, LIFE
            )
        if isinstance(body, Status):
            return report_of(*self.hosts)
        return Done()

    def commits(self) -> list[Commit]:
        return bodies(self, Commit)


def listed_grants(plane: FakePlane) -> list[list[int]]:
    """The grants that each heartbeat said are still held."""
    return [call.body.grants for call in plane.beats if isinstance(call.body, Heartbeat)]


def bodies(plane: FakePlane, kind: type[B]) -> list[B]:
    """The requests of that kind that came."""
    return [call.body for call in plane.calls if isinstance(call.body, kind)]


def asked(plane: FakePlane) -> list[str]:
    """What came, by name."""
    return [type(call.body).__name__ for call in plane.calls]


__all__ = [
    "SLOT",
    "TOKEN",
    "FakeAgent",
    "FakeSite",
    "asked",
    "bodies",
    "host_place",
    "listed_grants",
    "report_of",
    "status_of",
]
