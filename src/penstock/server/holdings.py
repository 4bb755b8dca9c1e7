"""Who holds which memory: the grants and pins of each client of each process.

Memory follows the process, not the session: what a client holds is taken back when it says so (unpins, heartbeat lists,
goodbye) or when the kernel says that its process is gone, never because it is silent.

Invariants: pin numbers grow and are never reused, by later lives neither (they start at the incarnation, a wall clock
in nanoseconds); a grant is dropped by a heartbeat only if that client had been answered it before the newest grant it
says it received.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from penstock.server.processes import Process
from penstock.server.storage import Hold

__all__ = ["Holder", "Holdings"]

_MAX_ANSWERED = 4096


class Holder:
    """One client object of one process, across its sessions.

    Attributes:
        name: what the arena knows it by.
        grants: those it may still be writing to; the value is the order in which they were answered.
        pins: pin number -> what the arena knows of it.
        written: grants that it has asked to commit: it does not touch them any more.
        sessions: its sessions that are open.
    """

    __slots__ = (
        "_answered",
        "_order",
        "_seen_order",
        "_seen_pin",
        "client_id",
        "grants",
        "name",
        "pins",
        "process",
        "sessions",
        "written",
    )

    def __init__(self, process: Process, client_id: int, name: int) -> None:
        self.process = process
        self.client_id = client_id
        self.name = name
        self.grants: dict[int, int] = {}
        self.pins: dict[int, Hold] = {}
        self.written: set[int] = set()
        self.sessions: set[int] = set()
        self._answered: dict[int, int] = {}  # grants answered since the newest one the client is known to have
        self._order = 0
        self._seen_order = 0
        self._seen_pin = 0

    @property
    def idle(self) -> bool:
        """It holds nothing and has no session."""
        return not (self.grants or self.pins or self.sessions)

    def granted(self, grant: int) -> None:
        """The grant is on its way to the client."""
        self._order += 1
        self.grants[grant] = self._answered[grant] = self._order
        if len(self._answered) > _MAX_ANSWERED:  # a client that sends no heartbeats; nothing is given up for want of it
            del self._answered[next(iter(self._answered))]

    def done_with(self, grant: int) -> None:
        """The grant is not the client's any more: its block is visible, or it was dropped."""
        self.grants.pop(grant, None)
        self.written.discard(grant)

    def pinned(self, pin: int, hold: Hold) -> None:
        self.pins[pin] = hold

    def unpinned(self, pins: Iterable[int]) -> list[Hold]:
        """Forget ``pins``; return those that were held."""
        return [hold for pin in pins if (hold := self.pins.pop(pin, None)) is not None]

    def settle(self) -> None:
        """It has begun a new connection: what was answered on an older one it has by now, or never gets."""
        self._seen_order = self._order
        self._seen_pin = max(self.pins, default=0)

    def unlisted_grants(self, high: int, listed: Iterable[int]) -> list[int]:
        """Return the grants that a heartbeat gives up: answered no later than ``high``, and not ``listed``."""
        self._seen_order = max(self._seen_order, self._answered.get(high, 0))
        self._answered = {g: order for g, order in self._answered.items() if order >= self._seen_order}
        kept = set(listed)
        return [g for g, order in self.grants.items() if order <= self._seen_order and g not in kept]

    def unlisted_pins(self, high: int, listed: Iterable[int]) -> list[int]:
        """Return the pins that a heartbeat gives up: not above ``high``, and not ``listed``."""
        kept = set(listed)
        high = max(high, self._seen_pin)
        return [pin for pin in self.pins if pin <= high and pin not in kept]

    def __repr__(self) -> str:
        return f"Holder({self.process}, client {self.client_id}, {len(self.grants)} grants, {len(self.pins)} pins)"


class Holdings:
    """All holders. Args: incarnation: the plane's life, from which pin numbers start."""

    def __init__(self, incarnation: int) -> None:
        self._holders: dict[tuple[Process, int], Holder] = {}
        self._next_pin = incarnation
        self._next_name = 1

    def of(self, process: Process, client_id: int) -> Holder:
        """Return the holder of this client, which may be new."""
        holder = self._holders.get((process, client_id))
        if holder is None:
            holder = self._holders[process, client_id] = Holder(process, client_id, self._next_name)
            self._next_name += 1
        return holder

    def next_pin(self) -> int:
        """Return a number that no pin has had."""
        self._next_pin += 1
        return self._next_pin

    def of_process(self, process: Process) -> list[Holder]:
        return [h for h in self._holders.values() if h.process is process]

    def forget(self, holder: Holder) -> None:
        """The holder holds nothing any more and will not come back under this name."""
        self._holders.pop((holder.process, holder.client_id), None)

    def __iter__(self) -> Iterator[Holder]:
        return iter(list(self._holders.values()))

    def __len__(self) -> int:
        return len(self._holders)
