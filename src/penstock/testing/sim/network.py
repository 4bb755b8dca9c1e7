"""A connection between a simulated client and the simulated plane.

Invariants: messages of one direction arrive in order, each at most once, until the connection is cut; what was under
way at a cut arrives at a side as long as that side has not noticed. Loss is a cut, delay a stall, duplication a call
that a client sends again (or that ``replay`` puts back on the wire), reordering what several clients' delays make.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from penstock.requests import Call, Reply
from penstock.testing.sim.world import World

__all__ = ["Connection", "End"]

_MIN_LATENCY_S, _MAX_LATENCY_S = 0.0002, 0.004
_REMEMBERED = 16  # calls that a duplication may bring back


class ClientEnd(Protocol):
    def received(self, connection: Connection, reply: Reply) -> None: ...
    def lost(self, connection: Connection, kept: frozenset[int], why: str) -> None: ...


class PlaneEnd(Protocol):
    def received(self, connection: Connection, call: Call) -> None: ...
    def disconnected(self, connection: Connection) -> None: ...


End = ClientEnd | PlaneEnd


class Connection:
    """Attributes: session_id, client_id: what the plane knows of the other side; 0 before it said so."""

    __slots__ = (
        "_at_client", "_at_plane", "_client", "_client_sees", "_kept", "_plane", "_plane_sees", "_sent", "broken",
        "client_id", "discarded", "session_id", "world",
    )  # fmt: skip

    def __init__(self, world: World, client: ClientEnd, plane: PlaneEnd) -> None:
        self.world = world
        self._client = client
        self._plane = plane
        self.session_id = 0
        self.client_id = 0
        self.broken = False
        self.discarded = False  # the plane reads it no more
        self._client_sees = self._plane_sees = True
        self._at_client = self._at_plane = 0.0
        self._kept: set[int] = set()
        self._sent: deque[Call] = deque(maxlen=_REMEMBERED)

    def call(self, call: Call, errand: int) -> None:
        """The client sends."""
        if self.broken:  # the kernel may take it, and nobody will ever read it; or it refuses it
            if errand and self.world.chance(0.5):
                self._kept.add(errand)
            return
        self._kept.discard(errand)
        self._sent.append(call)
        self._at_plane = self._later(self._at_plane)
        self.world.at(self._at_plane, self._arrive_at_plane, call)

    def reply(self, reply: Reply) -> None:
        """The plane sends."""
        if not self.broken:
            self._at_client = self._later(self._at_client)
            self.world.at(self._at_client, self._arrive_at_client, reply)

    def replay(self) -> bool:
        """An earlier call comes once more, behind later ones."""
        mutations = [call for call in self._sent if call.seq]
        if self.broken or not mutations:
            return False
        call = self.world.rng.choice(mutations)
        self._at_plane = self._later(self._at_plane)
        self.world.at(self._at_plane, self._arrive_at_plane, call)
        return True

    def stall(self, seconds: float) -> None:
        """Nothing arrives for a while, in one direction or in both; then everything does."""
        until = self.world.now + seconds
        which = self.world.rng.randrange(3)
        if which != 0:
            self._at_plane = max(self._at_plane, until)
        if which != 1:
            self._at_client = max(self._at_client, until)

    def cut(self, why: str, client_s: float, plane_s: float) -> None:
        """The connection is gone; the sides notice after so many seconds."""
        if not self.broken:
            self.broken = True
            self.world.after(client_s, self._client_notices, why)
            self.world.after(plane_s, self._plane_notices)

    def _later(self, last: float) -> float:
        return max(last, self.world.now + self.world.rng.uniform(_MIN_LATENCY_S, _MAX_LATENCY_S))

    def _arrive_at_plane(self, call: Call) -> None:
        if self._plane_sees:
            self._plane.received(self, call)

    def _arrive_at_client(self, reply: Reply) -> None:
        if self._client_sees:
            self._client.received(self, reply)

    def _client_notices(self, why: str) -> None:
        self._client_sees = False
        self._client.lost(self, frozenset(self._kept), why)

    def _plane_notices(self) -> None:
        self._plane_sees = False
        self._plane.disconnected(self)
