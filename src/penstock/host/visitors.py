"""Who is in session with a host's agent: its machine's clients. Pure.

Memory follows the process (``server.holdings``), so that nothing hangs on a session: it ends with a goodbye, with its
process, or, of those without a connection, when there are too many. Invariant: one session for each client object.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneUnavailable
from penstock.ledger.events import SessionOpens, SessionResumes
from penstock.reports import SessionStatus
from penstock.requests import WIRE_VERSION, Welcome

__all__ = ["Visitor", "Visitors"]

_MAX_ABSENT = 1024  # sessions without a connection; the one that left first makes room
_MAX_NAME = 256  # characters kept of what a client calls itself


@dataclass(slots=True)
class Visitor:
    """One session. ``heard``: when it last said something."""

    session_id: int
    secret: str
    client_id: int
    pid: int
    owner: str
    role: str
    heard: float
    connected: bool = True

    @property
    def client(self) -> tuple[int, int]:
        """The client object behind it, across its sessions."""
        return self.pid, self.client_id


class Visitors:
    """The open sessions. Args: config: of which heartbeats and limits are told to clients."""

    def __init__(self, config: PlaneConfig) -> None:
        self._config = config
        self._by_id: dict[int, Visitor] = {}
        self._of_client: dict[tuple[int, int], Visitor] = {}
        self._absent: dict[int, None] = {}  # sessions without a connection, in the order in which they left

    def opens(self, event: SessionOpens, now: float) -> tuple[Welcome, list[int]]:
        """Begin a session; return its welcome, and the sessions that it ends."""
        asked = event.request
        visitor = Visitor(
            event.session_id, event.secret, asked.client_id, asked.pid, asked.owner[:_MAX_NAME],
            asked.role[:_MAX_NAME], now,
        )  # fmt: skip
        before = self._of_client.get(visitor.client)
        over = [] if before is None else [before.session_id]
        for session_id in over:
            self.end(session_id)
        self._by_id[visitor.session_id] = self._of_client[visitor.client] = visitor
        return self._welcome(visitor, resumed=False), over

    def resumes(self, event: SessionResumes, now: float) -> Welcome:
        """Let a client come back.

        Raises:
            DataPlaneUnavailable: no such session, or not with that secret.
        """
        visitor = self._by_id.get(event.session_id)
        if visitor is None or not hmac.compare_digest(visitor.secret.encode(), event.secret.encode()):
            raise DataPlaneUnavailable(f"session {event.session_id} has ended; open a new one")
        visitor.connected, visitor.heard = True, now
        self._absent.pop(visitor.session_id, None)
        return self._welcome(visitor, resumed=True)

    def heard(self, session_id: int, now: float) -> None:
        visitor = self._by_id.get(session_id)
        if visitor is not None:
            visitor.heard = now

    def left(self, session_id: int) -> list[int]:
        """Its connection is gone; return the sessions that end because too many are absent."""
        visitor = self._by_id.get(session_id)
        if visitor is None:
            return []
        visitor.connected = False
        self._absent[session_id] = None
        over = [next(iter(self._absent))] if len(self._absent) > _MAX_ABSENT else []
        for session_id in over:
            self.end(session_id)
        return over

    def end(self, session_id: int) -> Visitor | None:
        """Forget the session, and return it."""
        visitor = self._by_id.pop(session_id, None)
        self._absent.pop(session_id, None)
        if visitor is not None and self._of_client.get(visitor.client) is visitor:
            del self._of_client[visitor.client]
        return visitor

    def get(self, session_id: int) -> Visitor | None:
        return self._by_id.get(session_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def statuses(self, now: float) -> list[SessionStatus]:
        return [
            SessionStatus(
                session_id=v.session_id, owner=v.owner, role=v.role, pid=v.pid, silent_s=now - v.heard, leases=0,
                connected=v.connected,
            )
            for v in self._by_id.values()
        ]  # fmt: skip

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant."""
        assert {v.session_id for v in self._of_client.values()} == set(self._by_id), "a client has not one session"
        absent = {v.session_id for v in self._by_id.values() if not v.connected}
        assert absent == set(self._absent), "who is absent is miscounted"
        assert len(absent) <= _MAX_ABSENT, "too many are absent"

    def _welcome(self, visitor: Visitor, *, resumed: bool) -> Welcome:
        c = self._config
        return Welcome(
            WIRE_VERSION, visitor.session_id, visitor.secret, resumed, c.heartbeat_s, c.dead_after_s, c.max_frame_bytes
        )
