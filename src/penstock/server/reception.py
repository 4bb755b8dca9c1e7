"""Where clients come in: connections are admitted, sessions begin and end, and each call goes to who answers it.

Most calls are the ledger's. The reception itself answers what is about the process: heartbeats (what a client still
holds), pings, goodbyes, shutdown, and suspicions of damage, which it hands to the mover.

Invariants: the first call of a connection opens or resumes a session, none does later; a bug of ours met by a question
costs that connection, one met by anything else ends the plane, for what it changed is not known.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Collection

from penstock.errors import DataPlaneError, code_of
from penstock.ledger.events import (
    GOODBYE,
    Answer,
    Asked,
    Disconnected,
    Heard,
    SessionGone,
    SessionOpens,
    SessionResumes,
    Withdrawn,
)
from penstock.points import reached
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
    Grant,
    Heartbeat,
    ListMetadata,
    ListRows,
    Locate,
    OpenSession,
    Ping,
    ResumeSession,
    Shutdown,
    Status,
    Welcome,
    Why,
)
from penstock.server.connections import Connection
from penstock.server.holdings import Holder
from penstock.server.moving import Mover
from penstock.server.plane import Plane
from penstock.server.processes import ELSEWHERE, Process, Processes
from penstock.wire import WireError

__all__ = ["Reception"]

_LAST_WORDS_S = 0.05  # between a process's end and its burial, for what it had sent already
_READ_ONLY = (Locate, ListMetadata, ListRows, Depth, CheckConsumption, Capabilities, Audit, Why, Status)

_NO_HOST = Failed(
    code="DataPlaneUnavailable",
    message="a client on another machine puts rows on a host: start an agent there with `penstock host --plane URL`",
)

log = logging.getLogger("penstock.server")


class Longest:
    """The call that held the loop longest since the last ``take``."""

    __slots__ = ("_call", "_seconds")

    def __init__(self) -> None:
        self._call, self._seconds = "none", 0.0

    def note(self, call: str, seconds: float) -> None:
        if seconds > self._seconds:
            self._call, self._seconds = call, seconds

    def take(self) -> str:
        """Return it in words, and forget it."""
        said = f"{self._call}, {self._seconds:.2f} s"
        self._call, self._seconds = "none", 0.0
        return said


class Reception:
    """Where clients come in.

    Attributes:
        received: calls so far.
        greeted: sessions that clients have opened or resumed so far.
        own: processes of the plane's own, which are no clients; None = it never has any.
        longest: see ``Longest``.
    """

    def __init__(self, plane: Plane, mover: Mover) -> None:
        self.max_frame_bytes = plane.config.max_frame_bytes
        self.clock = plane.clock
        self.received = 0
        self.greeted = 0
        self.own: Collection[int] | None = None
        self.longest = Longest()
        self._plane = plane
        self._mover = mover
        self._connections: set[Connection] = plane.sessions.connections
        loop = asyncio.get_running_loop()
        self._processes = Processes(loop.add_reader, loop.remove_reader, self._process_ended)

    def close(self) -> None:
        """Watch nobody any more. Idempotent."""
        self._processes.close()

    @property
    def has_clients(self) -> bool:
        """Whether anybody is connected, or in session, but processes of the plane's own."""
        connections, sessions = self._connections, self._plane.sessions
        if not self.own:
            return bool(connections or len(sessions))
        strangers = any(c.process is None or c.process.pid not in self.own for c in connections)
        return strangers or any(process.pid not in self.own for process in sessions.processes())

    # -- connections ----------------------------------------------------------------------------------------------

    def connected(self, connection: Connection, sock: socket.socket) -> None:
        """Admit a connection.

        Raises:
            DataPlaneUnavailable: its process has ended or is another user's.
        """
        self._connections.add(connection)
        limit = self._plane.config.max_connections
        if len(self._connections) > limit:
            self._plane.warnings.warn("connections_refused", f"more than {limit} connections")
            connection.discard()
            return
        connection.process = self._processes.behind(sock) if sock.family == socket.AF_UNIX else ELSEWHERE
        self._plane.warnings.counters["connections"] += 1

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._withdraw(frozenset(connection.open_calls))
        session_id = self._plane.sessions.unbind(connection)
        if session_id:
            self._plane.tell(Disconnected(session_id))
        self._plane.settle_soon()

    def misbehaved(self, connection: Connection, error: Exception) -> None:
        """Its connection is about to be ended for it; nobody else notices."""
        self._plane.warnings.warn("connections_misbehaved", f"{connection!r} was ended: {error}")

    def expel(self, now: float) -> None:
        """End the connections that have not said who they are in all this time."""
        for connection in list(self._connections):
            if connection.session_id == 0 and now - connection.since > self._plane.config.dead_after_s:
                self._plane.warnings.warn("connections_silent", f"{connection!r} never opened a session")
                connection.discard()

    # -- calls ----------------------------------------------------------------------------------------------------

    def receive(self, connection: Connection, call: Call) -> None:
        """Decide one call.

        Raises:
            WireError: it does not belong here.
        """
        if self._plane.over:
            return
        self.received += 1
        reached("server.received")
        if connection.session_id == 0:
            self._greet(connection, call)
            return
        holder = connection.holder
        assert holder is not None, "a session without a holder"
        if call.unpins:
            self._plane.custody.unpin(holder, call.unpins)
        self._dispatch(connection, holder, call, self._plane.sessions.number(connection, call.id))

    def _dispatch(self, connection: Connection, holder: Holder, call: Call, number: int) -> None:
        plane = self._plane
        match call.body:
            case OpenSession() | ResumeSession():
                raise WireError(f"{type(call.body).__name__} on a connection that has a session")
            case Heartbeat():
                heard = call.body
                if heard.withdrawn:
                    plane.then(lambda: self._withdraw(plane.sessions.numbers(connection, heard.withdrawn)))
                plane.then(lambda: plane.custody.lists(holder, heard))  # a commit before it may not be carried out yet
                self._heard(connection, call)
                plane.answer(number, Done())
            case Goodbye():
                plane.then(lambda: plane.custody.leaves(holder))
                plane.answer(number, Done())
                plane.tell(SessionGone(connection.session_id, GOODBYE))
            case Ping():
                self._heard(connection, call)
                self._ping(number)
            case Damaged() if not call.body.host:
                self._heard(connection, call)
                self._mover.verify(call.body.block_id, number)
            case Shutdown():
                plane.answer(number, Done())
                plane.stop(f"asked by {connection.process}: {call.body.reason[:200]}")
            case _:
                self._ask(connection, holder, call, number)

    def _ask(self, connection: Connection, holder: Holder, call: Call, number: int) -> None:
        """What is not about the process is the ledger's."""
        if isinstance(call.body, Commit):
            self._plane.custody.committing(holder, call.body.grant)
        if isinstance(call.body, Grant) and not call.body.host and connection.process is ELSEWHERE:
            self._plane.answer(number, _NO_HOST)
            return
        asked = Asked(
            session_id=connection.session_id,
            call_id=number,
            seq=call.seq,
            done_below=call.done_below,
            abandoned=call.abandoned,
            deadline=self.clock() + call.deadline_s,
            body=call.body,
            wall=self._plane.wall(),
        )
        began = self.clock()
        try:
            self._plane.tell(asked)
        except Exception as bug:  # top frame of one request
            if not isinstance(call.body, _READ_ONLY):
                raise
            log.exception("a bug of ours in %s", type(call.body).__name__)
            raise WireError(f"{type(call.body).__name__} met a bug: {bug!r}") from bug
        self.longest.note(type(call.body).__name__, self.clock() - began)

    def _withdraw(self, calls: frozenset[int]) -> None:
        """Nobody waits for the answers to these calls: puts among them wait for room no longer."""
        self._plane.custody.forsake(calls)
        self._plane.tell(Withdrawn(calls))

    def _heard(self, connection: Connection, call: Call) -> None:
        self._plane.tell(Heard(connection.session_id, call.done_below, call.abandoned))

    def _ping(self, number: int) -> None:
        try:
            self._plane.storage.check()
        except DataPlaneError as error:
            self._plane.answer(number, Failed(code=code_of(error), message=str(error)))
        else:
            self._plane.answer(number, Done())

    # -- sessions -------------------------------------------------------------------------------------------------

    def _greet(self, connection: Connection, call: Call) -> None:
        """The first call of a connection begins a session or comes back to one."""
        plane, body = self._plane, call.body
        if not isinstance(body, OpenSession | ResumeSession):
            raise WireError(f"{type(body).__name__} before a session was opened")
        number = plane.sessions.number(connection, call.id)
        if body.version != WIRE_VERSION:
            text = f"this plane speaks version {WIRE_VERSION} of the wire, the client {body.version}"
            plane.answer(number, Failed(code="DataPlaneBadRequest", message=text))
            return
        event = self._event_of(body, number, connection)
        effects = plane.ledger.handle(event, self.clock())
        if any(isinstance(e, Answer) and e.call_id == number and isinstance(e.body, Welcome) for e in effects):
            self._welcome(connection, event.session_id, body.client_id)
        plane.take(effects)

    def _event_of(
        self, body: OpenSession | ResumeSession, number: int, connection: Connection
    ) -> SessionOpens | SessionResumes:
        if isinstance(body, ResumeSession):
            return SessionResumes(body.session_id, body.secret, number)
        assert connection.process is not None, "a connection without a process"
        pid = connection.process.pid
        host = body.host if pid else f"process {body.pid} of {body.host}"
        known = OpenSession(body.version, body.client_id, body.owner, body.role, host, pid)
        return SessionOpens(secrets.randbits(62) + 1, secrets.token_hex(16), number, known, self._plane.wall())

    def _welcome(self, connection: Connection, session_id: int, client_id: int) -> None:
        assert connection.process is not None, "a connection without a process"
        holder = self._plane.custody.holdings.of(connection.process, client_id)
        holder.settle()
        self._plane.sessions.bind(session_id, holder, connection)
        self.greeted += connection.process.pid not in (self.own or ())

    def _process_ended(self, process: Process) -> None:
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._bury, process)

    def _bury(self, process: Process) -> None:
        """The kernel says that the process is gone: so are its sessions, and what it held is nobody's."""
        custody = self._plane.custody
        self._plane.settle()  # a commit that was decided is not taken back with its writer's grants
        for holder in custody.holdings.of_process(process):
            for session_id in sorted(holder.sessions):
                self._plane.tell(SessionGone(session_id, f"process {process.pid} has ended"))
            custody.gone(holder)
        self._plane.settle_soon()
