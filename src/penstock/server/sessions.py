"""Which connection a session speaks on, and which call an answer belongs to.

Every call gets a number of the plane's own, never used again: ids that clients choose are unique on their connection
only, and an answer that comes after its session moved to another connection must not meet a stranger's call there.

Invariants: an answer goes to the connection its call came on, or nowhere; a session has one connection at most. A call
of the process's own has no connection: its answer is handed to whoever made it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import count

from penstock.requests import Failed, Reply, ReplyBody
from penstock.server.connections import Connection
from penstock.server.holdings import Holder
from penstock.server.processes import Process
from penstock.wire import WireError, encode_reply

__all__ = ["Session", "Sessions"]


class Session:
    """An open session: its client's holder, and its connection while it has one."""

    __slots__ = ("connection", "holder", "session_id")

    def __init__(self, session_id: int, holder: Holder, connection: Connection) -> None:
        self.session_id = session_id
        self.holder = holder
        self.connection: Connection | None = connection

    def __repr__(self) -> str:
        return f"Session({self.session_id}, {self.holder}, {'connected' if self.connection else 'not connected'})"


class Sessions:
    """The open sessions of this life, and the calls that wait for an answer."""

    def __init__(self, incarnation: int, max_frame_bytes: int) -> None:
        self.connections: set[Connection] = set()  # all that are admitted, with a session or without
        self._incarnation = incarnation
        self._max_frame_bytes = max_frame_bytes
        self._sessions: dict[int, Session] = {}
        self._calls: dict[int, tuple[Connection, int]] = {}  # number -> where it came from, and its id there
        self._own: dict[int, Callable[[ReplyBody], None]] = {}  # the process's own calls
        self._numbers = count(1)
        self._answered: set[Connection] = set()  # connections with replies to send

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: int) -> Session | None:
        return self._sessions.get(session_id)

    def processes(self) -> list[Process]:
        """The processes of the open sessions, one for each."""
        return [session.holder.process for session in self._sessions.values()]

    def number(self, connection: Connection, wire_id: int) -> int:
        """Return the plane's own number for a call."""
        number = next(self._numbers)
        self._calls[number] = (connection, wire_id)
        connection.open_calls.add(number)
        return number

    def expect(self, answered: Callable[[ReplyBody], None]) -> int:
        """Return a number for a call of the process's own; ``answered`` is given its answer."""
        number = next(self._numbers)
        self._own[number] = answered
        return number

    def forsake(self, number: int) -> None:
        """The process does not wait for this answer any more."""
        self._own.pop(number, None)

    def numbers(self, connection: Connection, wire_ids: Collection[int]) -> frozenset[int]:
        """Return the plane's own numbers for those of the connection's unanswered calls that have these ids there."""
        wanted = frozenset(wire_ids)
        return frozenset(number for number in connection.open_calls if self._calls[number][1] in wanted)

    def waits(self, number: int) -> bool:
        """Whether somebody still waits for the answer to this call."""
        if number in self._own:
            return True
        connection, _ = self._calls.get(number, (None, 0))
        return connection is not None and not connection.closed

    def answer(self, number: int, body: ReplyBody) -> None:
        """Queue the reply to a call; nobody may be waiting for it any more."""
        answered = self._own.pop(number, None)
        if answered is not None:
            answered(body)
            return
        connection, wire_id = self._calls.pop(number, (None, 0))
        if connection is None:
            return
        connection.open_calls.discard(number)
        connection.queue(self._frame(wire_id, body))
        self._answered.add(connection)

    def send(self) -> None:
        """Write the queued replies, one write a connection; then let those read on that were held up."""
        answered, self._answered = self._answered, set()
        for connection in answered:
            connection.send()
        for connection in answered:
            connection.carry_on()

    def bind(self, session_id: int, holder: Holder, connection: Connection) -> None:
        """The session speaks on ``connection`` from now on; an older one is discarded unread."""
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = Session(session_id, holder, connection)
        elif session.connection is not None and session.connection is not connection:
            session.connection.discard()
        session.holder.sessions.discard(session_id)  # it may have been another process's
        session.connection, session.holder = connection, holder
        holder.sessions.add(session_id)
        connection.session_id, connection.holder = session_id, holder

    def unbind(self, connection: Connection) -> int:
        """The connection is gone: nobody waits for its answers. Return the session that spoke on it, or 0."""
        for number in connection.open_calls:
            del self._calls[number]
        connection.open_calls.clear()
        self._answered.discard(connection)
        session = self._sessions.get(connection.session_id)
        if session is None or session.connection is not connection:
            return 0
        session.connection = None
        return session.session_id

    def end(self, session_id: int) -> Session | None:
        """Forget the session and return it."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.holder.sessions.discard(session_id)
        return session

    def _frame(self, wire_id: int, body: ReplyBody) -> bytes:
        try:
            return encode_reply(Reply(wire_id, self._incarnation, body), self._max_frame_bytes)
        except WireError as too_large:
            refusal = Failed(
                code="DataPlaneBadRequest", message=f"the answer cannot be sent, ask for less: {too_large}"
            )
            return encode_reply(Reply(wire_id, self._incarnation, refusal))
