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
import secrets
import socket
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneError, DataPlaneWriteError, code_of
from penstock.ledger.events import (
    Allot,
    Answer,
    AnyEffect,
    AnyEvent,
    Asked,
    Disconnected,
    DropGrant,
    EndSession,
    Fill,
    FreeBlock,
    Heard,
    Persist,
    Resolve,
    SessionGone,
    SessionOpens,
    SessionResumes,
)
from penstock.ledger.journal import AnyJournal
from penstock.ledger.machine import Ledger
from penstock.requests import (
    WIRE_VERSION,
    Audit,
    Call,
    Capabilities,
    CheckConsumption,
    Commit,
    Damaged,
    Depth,
    Done,
    Failed,
    Goodbye,
    Heartbeat,
    ListMetadata,
    Locate,
    OpenSession,
    Ping,
    ReplyBody,
    ResumeSession,
    Shutdown,
    Status,
    StatusReport,
    Welcome,
    Why,
)
from penstock.server.connections import Connection
from penstock.server.custody import Custody
from penstock.server.holdings import Holder
from penstock.server.processes import Process, Processes
from penstock.server.sessions import Sessions
from penstock.server.storage import Storage
from penstock.server.warnings import Warnings
from penstock.wire import WireError

__all__ = ["EX_IOERR", "EX_SOFTWARE", "Clock", "Plane"]

Clock: TypeAlias = Callable[[], float]

EX_IOERR = 74  # sysexits.h: the journal could not be written
EX_SOFTWARE = 70  # sysexits.h: a bug of ours
_LAST_WORDS_S = 0.05  # between a process's end and its burial, for what it had sent already
_READ_ONLY = (Locate, ListMetadata, Depth, CheckConsumption, Capabilities, Audit, Why, Status)

log = logging.getLogger("penstock.server")


class Plane:
    """Args: ledger, journal: recovered, the life begun; storage: the arenas; clock, wall: monotonic and real seconds.

    Attributes: stopped (set when the plane must end), exit_code, reason.
    """

    def __init__(
        self,
        config: PlaneConfig,
        ledger: Ledger,
        journal: AnyJournal,
        storage: Storage,
        *,
        clock: Clock,
        wall: Clock,
        served: bool = False,
    ) -> None:
        self.config = config
        self.max_frame_bytes = config.max_frame_bytes
        self.clock = clock
        self.wall = wall
        self.ledger = ledger
        self.journal = journal
        self.storage = storage
        self.warnings = Warnings(log, clock)
        self.sessions = Sessions(ledger.incarnation, config.max_frame_bytes)
        self.custody = Custody(storage, ledger.incarnation, self.tell, self.sessions.answer, self.sessions.waits)
        self.stopped = asyncio.Event()
        self.exit_code = 0
        self.reason = ""
        self.received = 0  # calls
        self.greeted = 0  # sessions opened or resumed
        self.last_client = clock()  # when a client last came or went
        self.after_settle: Callable[[], None] = lambda: None
        self.verify: Callable[[int, int], None] = lambda _block_id, _number: None
        self._served = served
        self._started = clock()
        loop = asyncio.get_running_loop()
        self._processes = Processes(loop.add_reader, loop.remove_reader, self._process_ended)
        self._connections: set[Connection] = set()
        self._due: list[AnyEffect] = []
        self._settle_scheduled = False
        self._failed = False
        self._closed = False

    # -- events in ------------------------------------------------------------------------------------------------

    def tell(self, event: AnyEvent) -> None:
        """Give the ledger an event; what it wants done is done when the batch settles."""
        if not (self._failed or self._closed):
            self.take(self.ledger.handle(event, self.clock()))

    def take(self, effects: list[AnyEffect]) -> None:
        """Write down what must be, and keep the rest for when it is safe."""
        try:
            for effect in effects:
                if isinstance(effect, Persist):
                    self.journal.append(effect.entry)
                else:
                    self._due.append(effect)
        except DataPlaneWriteError as error:
            self.fail(EX_IOERR, str(error))
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
        try:
            self._carry_out_all()
        except DataPlaneWriteError as error:
            self.fail(EX_IOERR, str(error))
        if not self._failed:
            self.sessions.send()
            self.after_settle()

    def _carry_out_all(self) -> None:
        while not self._failed:
            self.journal.flush()
            if not self._due:
                return
            due, self._due = self._due, []
            for effect in due:
                self._carry_out(effect)
            if self.storage.take_freed():
                self.custody.retry(self.clock())

    def _carry_out(self, effect: AnyEffect) -> None:
        match effect:
            case Answer():
                self.sessions.answer(effect.call_id, self._completed(effect.body))
            case Allot():
                self.custody.allot(effect, self._holder(effect.session_id), self.clock())
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

    # -- connections (the desk they come to) -----------------------------------------------------------------------

    def connected(self, connection: Connection, sock: socket.socket) -> None:
        """Admit a connection.

        Raises:
            DataPlaneUnavailable: its process has ended or is another user's.
        """
        self._connections.add(connection)
        self.last_client = self.clock()
        if len(self._connections) > self.config.max_connections:
            self.warnings.warn("connections_refused", f"more than {self.config.max_connections} connections")
            connection.discard()
            return
        connection.process = self._processes.behind(sock)
        self.warnings.counters["connections"] += 1

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.last_client = self.clock()
        session_id = self.sessions.unbind(connection)
        if session_id:
            self.tell(Disconnected(session_id))
        self.settle_soon()

    def misbehaved(self, connection: Connection, error: Exception) -> None:
        """Its connection is about to be ended for it; nobody else notices."""
        self.warnings.warn("connections_misbehaved", f"{connection!r} was ended: {error}")

    def expel(self, now: float) -> None:
        """End the connections that have not said who they are in all this time."""
        for connection in list(self._connections):
            if connection.session_id == 0 and now - connection.since > self.config.dead_after_s:
                self.warnings.warn("connections_silent", f"{connection!r} never opened a session")
                connection.discard()

    def receive(self, connection: Connection, call: Call) -> None:
        """Decide one call."""
        if self._failed or self._closed:
            return
        self.received += 1
        if connection.session_id == 0:
            self._greet(connection, call)
            return
        holder = connection.holder
        assert holder is not None, "a session without a holder"
        if call.unpins:
            self.custody.unpin(holder, call.unpins)
        number = self.sessions.number(connection, call.id)
        match call.body:
            case OpenSession() | ResumeSession():
                raise WireError(f"{type(call.body).__name__} on a connection that has a session")
            case Heartbeat():
                self.custody.lists(holder, call.body)
                self._heard(connection, call)
                self.answer(number, Done())
            case Goodbye():
                self.custody.leaves(holder)
                self.answer(number, Done())
                self.tell(SessionGone(connection.session_id, "goodbye"))
            case Ping():
                self._heard(connection, call)
                self._ping(number)
            case Damaged():
                self._heard(connection, call)
                self.verify(call.body.block_id, number)
            case Shutdown():
                self.answer(number, Done())
                self.stop(f"asked by {connection.process}: {call.body.reason[:200]}")
            case _:
                self._ask(connection, holder, call, number)

    def answer(self, number: int, body: ReplyBody) -> None:
        """Reply to a call, after whatever is due before it."""
        self._due.append(Answer(0, number, body))
        self.settle_soon()

    def _ask(self, connection: Connection, holder: Holder, call: Call, number: int) -> None:
        if isinstance(call.body, Commit):
            self.custody.committing(holder, call.body.grant)
        asked = Asked(
            session_id=connection.session_id,
            call_id=number,
            seq=call.seq,
            done_below=call.done_below,
            abandoned=call.abandoned,
            deadline=self.clock() + call.deadline_s,
            body=call.body,
            wall=self.wall(),
        )
        try:
            self.tell(asked)
        except Exception as bug:  # top frame of one request
            if not isinstance(call.body, _READ_ONLY):
                raise  # what it changed is not known: the plane ends and comes back as its journal says
            log.exception("a bug of ours in %s", type(call.body).__name__)
            raise WireError(f"{type(call.body).__name__} met a bug: {bug!r}") from bug

    def _heard(self, connection: Connection, call: Call) -> None:
        self.tell(Heard(connection.session_id, call.done_below, call.abandoned))

    def _ping(self, number: int) -> None:
        try:
            self.storage.check()
        except DataPlaneError as error:
            self.answer(number, Failed(code=code_of(error), message=str(error)))
        else:
            self.answer(number, Done())

    # -- sessions -------------------------------------------------------------------------------------------------

    def _greet(self, connection: Connection, call: Call) -> None:
        """The first call of a connection begins a session or comes back to one."""
        body = call.body
        if not isinstance(body, OpenSession | ResumeSession):
            raise WireError(f"{type(body).__name__} before a session was opened")
        number = self.sessions.number(connection, call.id)
        if body.version != WIRE_VERSION:
            text = f"this plane speaks version {WIRE_VERSION} of the wire, the client {body.version}"
            self.answer(number, Failed(code="DataPlaneBadRequest", message=text))
            return
        event = (
            self._opening(body, number, connection)
            if isinstance(body, OpenSession)
            else SessionResumes(body.session_id, body.secret, number)
        )
        effects = self.ledger.handle(event, self.clock())
        if any(isinstance(e, Answer) and e.call_id == number and isinstance(e.body, Welcome) for e in effects):
            self._welcome(connection, event.session_id, body.client_id)
        self.take(effects)

    def _opening(self, body: OpenSession, number: int, connection: Connection) -> SessionOpens:
        process = connection.process
        assert process is not None, "a connection without a process"
        body = OpenSession(body.version, body.client_id, body.owner, body.role, body.host, process.pid)
        return SessionOpens(secrets.randbits(62) + 1, secrets.token_hex(16), number, body, self.wall())

    def _welcome(self, connection: Connection, session_id: int, client_id: int) -> None:
        assert connection.process is not None, "a connection without a process"
        holder = self.custody.holdings.of(connection.process, client_id)
        holder.settle()
        self.sessions.bind(session_id, holder, connection)
        self.greeted += 1

    def _end_session(self, effect: EndSession) -> None:
        session = self.sessions.end(effect.session_id)
        if session is None:
            return
        if session.connection is not None:
            if effect.why == "goodbye":
                session.connection.close()
            else:
                session.connection.discard()
        self.last_client = self.clock()
        if session.holder.idle:
            self.custody.holdings.forget(session.holder)
        log.info("session %d ended: %s", effect.session_id, effect.why)

    def _process_ended(self, process: Process) -> None:
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._bury, process)

    def _bury(self, process: Process) -> None:
        """The kernel says that the process is gone: so are its sessions, and what it held is nobody's."""
        for holder in self.custody.holdings.of_process(process):
            for session_id in sorted(holder.sessions):
                self.tell(SessionGone(session_id, f"process {process.pid} has ended"))
            self.custody.gone(holder)
        self.settle_soon()

    def _holder(self, session_id: int) -> Holder | None:
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
            "arena.used_bytes": arena.used,
            "arena.pins": arena.pins,
            "arena.slots_writing": arena.writing_slots,
            "arena.slots_only_pinned": arena.condemned_slots,
            "arena.slot_events_ignored": arena.ignored,
            "grants.waiting_for_room": len(self.custody.allotment),
            "journal.bytes": self.journal.size_bytes,
            "connections.open": self.connections,
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
        for connection in list(self._connections):
            connection.discard()
        self.stopped.set()

    def close(self) -> None:
        """Settle what is due and close every connection. Idempotent."""
        if self._closed:
            return
        if not self._failed:
            self.settle()
        self._closed = True
        for connection in list(self._connections):
            connection.close()
        self._processes.close()

    @property
    def failed(self) -> bool:
        return self._failed

    @property
    def connections(self) -> int:
        return len(self._connections)

    def __repr__(self) -> str:
        counts = f"{len(self.sessions)} sessions, {self.connections} connections"
        return f"Plane(incarnation {self.ledger.incarnation}, {counts})"
