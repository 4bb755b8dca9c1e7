"""A plane without sockets or a process: its batches can be stopped between deciding and settling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from penstock.config import PlaneConfig
from penstock.ledger.facts import Entry
from penstock.ledger.journal import MemoryJournal
from penstock.ledger.machine import Ledger
from penstock.payload.arena import Arena
from penstock.payload.block import Bytes
from penstock.requests import (
    MUTATIONS,
    WIRE_VERSION,
    ArenaPlace,
    Call,
    Commit,
    Done,
    Granted,
    OpenSession,
    RegisterPartition,
    Reply,
    ReplyBody,
    Request,
    Welcome,
)
from penstock.server.connections import Connection
from penstock.server.moving import Mover
from penstock.server.plane import Plane
from penstock.server.processes import Process
from penstock.server.reception import Reception
from penstock.server.storage import Storage
from penstock.wire import FrameReader, decode_reply
from tests.server.harness import batch_of, grant_of

T = TypeVar("T")
CAPACITY = 1 << 20


class SpyJournal(MemoryJournal):
    """Notes what was appended, and what of it had been flushed when."""

    def __init__(self) -> None:
        super().__init__()
        self.appended = 0
        self.flushed = 0
        self.fails: Exception | None = None

    def append(self, entry: Entry) -> None:
        self.appended += 1

    def flush(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.flushed = self.appended


class Wireless(Connection):
    """A connection whose replies are kept, with how much of the journal had been flushed when they left."""

    def __init__(self, reception: Reception, journal: SpyJournal) -> None:
        super().__init__(reception)
        self._reception = reception
        self.process = Process(4242, 1, -1)
        self.sent: list[tuple[Reply, int, int]] = []
        self.ended = ""
        self._journal = journal
        self._ids = 0
        self._seq = 0

    def send(self) -> None:
        frames, self._outbox = self._outbox, []
        for frame in FrameReader(1 << 30).feed(b"".join(frames)):
            self.sent.append((decode_reply(frame), self._journal.flushed, self._journal.appended))

    def close(self) -> None:
        self.send()
        self.ended = "closed"

    def discard(self) -> None:
        self.ended = "discarded"

    def ask(self, body: Request, unpins: list[int] | None = None) -> int:
        """Decide a call and settle nothing; return its id."""
        self._ids += 1
        if isinstance(body, MUTATIONS):
            self._seq += 1
        seq = self._seq if isinstance(body, MUTATIONS) else 0
        call = Call(id=self._ids, seq=seq, done_below=0, deadline_s=30.0, abandoned=[], unpins=unpins or [], body=body)
        self._reception.receive(self, call)
        return self._ids

    def reply(self, call_id: int) -> ReplyBody | None:
        """What was sent in answer to a call; None so far."""
        return next((reply.body for reply, _, _ in self.sent if reply.id == call_id), None)


class Inside:
    """One plane and one client on it."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.now = 100.0
        self.config = PlaneConfig(**config)
        ledger = Ledger(self.config)
        effects = ledger.begin_life(10**18, self.now, 1.0)
        self.arena = Arena.create(folder / "arena-1", 1, CAPACITY, 0)
        storage = Storage(self.arena, ArenaPlace(1, CAPACITY, in_shm=False))
        self.journal = SpyJournal()
        self.plane = Plane(self.config, ledger, self.journal, storage, clock=lambda: self.now, wall=lambda: self.now)
        self.plane.take(effects)
        self.mover = Mover(self.plane, 0)
        self.reception = Reception(self.plane, self.mover)
        self.client = Wireless(self.reception, self.journal)

    def open(self) -> None:
        self.expect(Welcome, OpenSession(WIRE_VERSION, 7, "o", "r", "h", 1))
        self.expect(Done, RegisterPartition("p", ["x"], 8, ["train"]))

    def expect(self, kind: type[T], body: Request) -> T:
        """Ask, settle, and insist on the kind of the reply."""
        call_id = self.client.ask(body)
        self.plane.settle()
        reply = self.client.reply(call_id)
        assert isinstance(reply, kind), reply
        return reply

    def write(self, granted: Granted, rows: int, fill: int = 7) -> Commit:
        """Copy a block into its place; return the commit that is due."""
        data = batch_of(rows, 64, fill)
        out: Bytes = np.empty(data.nbytes, np.uint8)
        content = data.write_into(out, granted.grant)
        self.arena.writer(granted.place)[:] = out
        return Commit(granted.grant, content)

    def put(self, keys: list[str], fill: int = 7) -> Granted:
        granted = self.expect(Granted, grant_of(keys))
        self.expect(Done, self.write(granted, len(keys), fill))
        return granted


def inside(folder: Path, scenario: Callable[[Inside], Coroutine[Any, Any, None]], **config: Any) -> None:
    """Run ``scenario`` with an open plane; its arena's invariants hold after it."""

    async def run() -> None:
        world = Inside(folder, **config)
        try:
            world.open()
            await scenario(world)
            world.arena.check_invariants()
            world.plane.ledger.check_invariants()
        finally:
            world.arena.close(unlink=True)

    asyncio.run(run())
