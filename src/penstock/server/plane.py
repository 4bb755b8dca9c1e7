"""The plane: gives the ledger its events and carries its effects out, batch by batch.

All calls that are readable in one pass of the loop are decided, then the journal is written once, then what depends on
it happens: replies leave, blocks are freed, slots are found. ``settle`` is that second half; it runs once a pass.

Invariants: nothing that follows a ``Persist`` happens before its entry is in the journal, and no reply, a read's
included, leaves before every record decided until then is; once the journal has failed nothing is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneWriteError
from penstock.ledger.events import (
    Allot,
    Answer,
    Assign,
    DropGrant,
    Effect,
    EndSession,
    Event,
    Fill,
    FreeBlock,
    Persist,
    Resolve,
    Unassign,
)
from penstock.ledger.journal import AnyJournal
from penstock.points import reached
from penstock.requests import ReplyBody, StatusReport
from penstock.server.custody import Custody
from penstock.server.holdings import Holder
from penstock.server.machine import Machine
from penstock.server.processes import Process
from penstock.server.sessions import Sessions
from penstock.server.storage import PLANE, Storage
from penstock.wire.warnings import Warnings

__all__ = ["EX_IOERR", "EX_SOFTWARE", "Clock", "Plane"]

Clock: TypeAlias = Callable[[], float]

EX_IOERR = 74  # sysexits.h: the journal could not be written
EX_SOFTWARE = 70  # sysexits.h: a bug of ours

log = logging.getLogger("penstock.server")


class _Then(Effect, frozen=True):
    """Do this when everything that was decided before it has been carried out."""

    act: Callable[[], None]


def _unknown(effect: Effect) -> None:
    raise AssertionError(f"nobody carries out {effect!r}")


class Plane:
    """One process that serves sessions round a machine.

    Args:
        ledger, journal: recovered, the life begun.
        storage: the arenas.
        clock, wall: monotonic and real seconds.
        others: carries out the machine's own effects, beyond those of ``ledger.events``.

    Attributes: own (holder of what the process itself asks for, in session 0), also_counted (what others of the process
        have counted, for its status), stopped (set when the plane must end), exit_code, reason.
    """

    def __init__(
        self,
        config: PlaneConfig,
        ledger: Machine,
        journal: AnyJournal,
        storage: Storage,
        *,
        clock: Clock,
        wall: Clock,
        served: bool = False,
        others: Callable[[Effect], None] = _unknown,
    ) -> None:
        self.config = config
        self.clock = clock
        self.wall = wall
        self.ledger = ledger
        self.journal = journal
        self.storage = storage
        self.warnings = Warnings(log, clock)
        self.sessions = Sessions(ledger.incarnation, config.max_frame_bytes)
        self.custody = Custody(storage, ledger.incarnation, self.tell, self.sessions.answer, self.sessions.waits)
        self.own = Holder(Process(os.getpid(), 0, -1), 0, PLANE)
        self.stopped = asyncio.Event()
        self.exit_code = 0
        self.reason = ""
        self.also_counted: Callable[[], dict[str, int]] = dict
        self.after_settle: Callable[[], None] = lambda: None
        self._served = served
        self._others = others
        self._started = clock()
        self._due: list[Effect] = []
        self._settle_scheduled = False
        self._backing_scheduled = False
        self._failed = False
        self._closed = False

    # -- events in ------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Give the ledger an event; what it wants done is done when the batch settles."""
        if not self.over:
            self.take(self.ledger.handle(event, self.clock()))

    def take(self, effects: Sequence[Effect]) -> None:
        """Write down what must be, and keep the rest for when it is safe."""
        changed = False
        try:
            for effect in effects:
                if isinstance(effect, Persist):
                    self.journal.append(effect.entry)
                    changed = True
                else:
                    self._due.append(effect)
        except DataPlaneWriteError as error:
            self.fail(EX_IOERR, str(error))
        if changed:
            reached("server.decided")
        self.settle_soon()

    def write(self, act: Callable[[], None]) -> bool:
        """Do something to the journal; False, and the plane ends, if it cannot be written."""
        if self._failed:
            return False
        try:
            act()
        except DataPlaneWriteError as error:
            self.fail(EX_IOERR, str(error))
        return not self._failed

    def settle_soon(self) -> None:
        """Settle when all that is readable in this pass has been decided."""
        if not self._settle_scheduled:
            self._settle_scheduled = True
            asyncio.get_running_loop().call_soon(self.settle)

    def settle(self) -> None:
        """Write the journal, then carry out what waited for it; until nothing is due."""
        self._settle_scheduled = False
        if self._closed:
            return
        idle = not self._due
        try:
            self._carry_out_all()
        except DataPlaneWriteError as error:
            self.fail(EX_IOERR, str(error))
        if not self._failed:
            self.sessions.send()
            if not idle:
                reached("server.replied")
            self.after_settle()
            self._back_soon()

    def _back_soon(self) -> None:
        """Large grants get their memory a slice at a time, others having their turn in between."""
        if not self._backing_scheduled and self.storage.backing() is not None:
            self._backing_scheduled = True
            asyncio.get_running_loop().call_soon(self._back)

    def _back(self) -> None:
        self._backing_scheduled = False
        if not self.over:
            self.custody.back(self.clock())
            self.settle()

    def _carry_out_all(self) -> None:
        while not self._failed:
            self.journal.flush()
            due, self._due = self._due, []
            if due:
                reached("server.journaled")
            for effect in due:
                self._carry_out(effect)
            if self.storage.take_freed():
                self.custody.retry(self.clock())
            elif not self._due:
                return

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case _Then():
                effect.act()
            case Answer():
                self.sessions.answer(effect.call_id, self._completed(effect.body))
            case Allot():
                self.custody.allot(effect, self._holder(effect.session_id), self.clock())
            case Assign():
                self.custody.assign(effect, self._holder(effect.session_id))
            case Unassign():
                self.custody.unassign(effect.grant)
            case Resolve():
                self.custody.resolve(effect, self._holder(effect.session_id))
            case Fill():
                self.custody.fill(effect.block_id)
            case FreeBlock():
                self.custody.free(effect.block_id)
            case DropGrant():
                self.custody.drop(effect.grant)
            case EndSession():
                self._end_session(effect)
            case Persist():
                raise AssertionError("records are written before anything is carried out")
            case _:
                self._others(effect)

    def answer(self, number: int, body: ReplyBody) -> None:
        """Reply to a call, after whatever is due before it."""
        self._due.append(Answer(0, number, body))
        self.settle_soon()

    def then(self, act: Callable[[], None]) -> None:
        """Do ``act`` once all that was decided until now has been carried out."""
        self._due.append(_Then(act))
        self.settle_soon()

    def _end_session(self, effect: EndSession) -> None:
        log.info("session %d ended: %s", effect.session_id, effect.why)
        session = self.sessions.end(effect.session_id)
        if session is None:  # of an earlier life: it never spoke in this one
            return
        if session.connection is not None:
            if effect.why == "goodbye":
                session.connection.close()
            else:
                session.connection.discard()
        if session.holder.idle:
            self.custody.holdings.forget(session.holder)

    def _holder(self, session_id: int) -> Holder | None:
        if session_id == 0:
            return self.own
        session = self.sessions.get(session_id)
        return None if session is None else session.holder

    def _completed(self, body: ReplyBody) -> ReplyBody:
        """Add to a status report what only the process knows."""
        if not isinstance(body, StatusReport):
            return body
        return msgspec.structs.replace(
            body,
            pid=os.getpid(),
            uptime_s=self.clock() - self._started,
            served=self._served,
            arena_bytes=self.storage.statistics().resident,
            counters={**body.counters, **self.counters()},
        )

    def counters(self) -> dict[str, int]:
        """What the process itself has counted."""
        arena = self.storage.statistics()
        return {
            **self.warnings.counters,
            **self.also_counted(),
            "arena.used_bytes": arena.used,
            "arena.pins": arena.pins,
            "arena.slots_writing": arena.writing_slots,
            "arena.slots_only_pinned": arena.condemned_slots,
            "arena.slot_events_ignored": arena.ignored,
            "grants.waiting_for_room": len(self.custody.allotment),
            "journal.bytes": self.journal.size_bytes,
            "connections.open": len(self.sessions.connections),
        }

    # -- ends -----------------------------------------------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """End cleanly, soon."""
        if not self.stopped.is_set():
            self.reason = reason
            log.info("stopping: %s", reason)
            self.stopped.set()

    def fail(self, exit_code: int, reason: str) -> None:
        """End now, and acknowledge nothing more: what was decided is not known to be written."""
        if self._failed:
            return
        self._failed = True
        self.exit_code, self.reason = exit_code, reason
        log.critical("ending at once: %s", reason)
        self._due.clear()
        for connection in list(self.sessions.connections):
            connection.discard()
        self.stopped.set()

    def close(self) -> None:
        """Settle what is due and close every connection. Idempotent."""
        if self._closed:
            return
        if not self._failed:
            self.settle()
        self._closed = True
        for connection in list(self.sessions.connections):
            connection.close()

    @property
    def failed(self) -> bool:
        return self._failed

    @property
    def over(self) -> bool:
        """Nothing is decided any more."""
        return self._failed or self._closed

    def __repr__(self) -> str:
        counts = f"{len(self.sessions)} sessions, {len(self.sessions.connections)} connections"
        return f"Plane(incarnation {self.ledger.incarnation}, {counts})"
