"""Whose memory is whose: carries out what the ledger wants done with slots, and what clients say of what they hold.

Invariants: a slot is given back to the arena only when the ledger has dropped it (its record written) and its holder
has let go of it: by its word (commit, heartbeat, goodbye) or by the kernel's (its process is gone). Silence is neither.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from penstock.ledger.events import Allot, Allotted, AnyEvent, Assign, NotAllotted, Resolve
from penstock.points import reached
from penstock.requests import BlockPlace, Failed, Granted, Heartbeat, Located, ReplyBody
from penstock.server.allotment import Allotment, Request
from penstock.server.holdings import Holder, Holdings
from penstock.server.processes import ELSEWHERE
from penstock.server.storage import Storage

__all__ = ["Custody"]


_OUT_OF_REACH = Failed(
    code="DataPlaneReadError",
    message="these rows were put on the plane's own machine, into its own memory, which other machines cannot read: "
    "put them through a host's agent (`penstock host`, connect by penstock://)",
)


class Custody:
    """Args: storage: the arenas; tell: give the ledger an event; answer: reply to a call; waits: is it still open."""

    def __init__(
        self,
        storage: Storage,
        incarnation: int,
        tell: Callable[[AnyEvent], None],
        answer: Callable[[int, ReplyBody], None],
        waits: Callable[[int], bool],
    ) -> None:
        self.holdings = Holdings(incarnation)
        self.allotment = Allotment(storage.grant)
        self._storage = storage
        self._tell = tell
        self._answer = answer
        self._waits = waits
        self._writers: dict[int, Holder] = {}  # grant -> who may be writing to it, or holds it though it is written
        self._kept: set[int] = set()  # grants that are written and still held
        self._on_hosts: set[int] = set()  # grants whose memory is not ours: of these only the holders are watched

    # -- what the ledger wants ------------------------------------------------------------------------------------

    def allot(self, effect: Allot, holder: Holder | None, now: float) -> None:
        """Find a slot for a grant, or let it wait for one. ``holder`` None: its session has ended."""
        if holder is None or not self._waits(effect.call_id):
            self._tell(NotAllotted(effect.grant))
            return
        request = Request(
            effect.grant, effect.nbytes, holder.name, effect.session_id, effect.call_id, now, effect.deadline
        )
        if effect.grant in holder.grants:  # it asks again: the first answer was lost with its connection
            self._granted(request, self._storage.place_of(effect.grant))
            return
        self._writers[effect.grant] = holder
        place = self.allotment.ask(request)
        if place is not None:
            self._granted(request, place)

    def assign(self, effect: Assign, holder: Holder | None) -> None:
        """Answer a grant on a host, unless nobody waits for it any more."""
        grant = effect.granted.grant
        if holder is None or not self._waits(effect.call_id):
            self._tell(NotAllotted(grant))
            return
        self._on_hosts.add(grant)
        self._writers[grant] = holder
        holder.granted(grant)
        self._answer(effect.call_id, effect.granted)

    def unassign(self, grant: int) -> None:
        """A grant on a host is over: its holder has nothing to give back."""
        self._on_hosts.discard(grant)
        self._let_go(grant)

    def fill(self, block_id: int) -> None:
        """The slot holds a visible block."""
        self._storage.fill(block_id)
        reached("server.filled")
        self._let_go(block_id)

    def keep(self, grant: int) -> None:
        """The slot can be read, and its writer holds it until he lets go: what becomes of it is not known here."""
        self._storage.fill(grant)
        if grant in self._writers:
            self._kept.add(grant)

    def drop(self, grant: int) -> None:
        """The ledger has given the grant up; the slot is free once its writer cannot touch it."""
        holder = self._writers.get(grant)
        if self.allotment.cancel(grant):
            self._storage.withdraw(grant)
            self._writers.pop(grant, None)
        elif holder is not None and grant in holder.written:
            self._let_go(grant)
            self._storage.abandon(grant)

    def free(self, block_id: int) -> None:
        self._let_go(block_id)
        self._storage.release(block_id)
        reached("server.freed")

    def resolve(self, effect: Resolve, holder: Holder | None) -> None:
        """Pin the blocks of a read that are ours for its reader, and say where all of them lie."""
        if holder is None or not self._waits(effect.call_id):
            return
        if holder.process is ELSEWHERE and any(p.host == self._storage.host for p in effect.blocks):
            self._answer(effect.call_id, _OUT_OF_REACH)  # nothing here would ever know that its reader is gone
            return
        blocks = [self._pin(p, holder) if p.host == self._storage.host else p for p in effect.blocks]
        located = Located(
            blocks=blocks,
            arenas=self._storage.arenas_of(p for p in blocks if p.host == self._storage.host),
            sources=effect.sources,
            issues=effect.issues,
            others=effect.others,
            hosts=effect.hosts,
        )
        self._answer(effect.call_id, located)

    # -- what clients say -----------------------------------------------------------------------------------------

    def committing(self, holder: Holder, grant: int) -> None:
        """The client has written the block, and will not touch it again."""
        if grant in holder.grants:
            holder.written.add(grant)

    def unpin(self, holder: Holder, pins: list[int]) -> None:
        for hold in holder.unpinned(pins):
            self._storage.unpin(hold, holder.name)

    def lists(self, holder: Holder, heard: Heartbeat) -> None:
        """A heartbeat says what the client still holds: the rest is given back."""
        self.unpin(holder, holder.unlisted_pins(heard.pin_high, heard.pins))
        for grant in holder.unlisted_grants(heard.grant_high, heard.grants):
            self.give_back(grant)

    def forsake(self, calls: frozenset[int]) -> None:
        """The callers have left, or their connection is gone: no slot is wanted for the grants among these calls."""
        for request in self.allotment.forsake(calls):
            self._give_up(request, Failed(code="DataPlaneUnavailable", message="the caller of this put has left"))

    def leaves(self, holder: Holder) -> None:
        """The client says that it has finished with everything."""
        self.unpin(holder, list(holder.pins))
        for grant in list(holder.grants):
            self.give_back(grant)

    def gone(self, holder: Holder) -> None:
        """The kernel says that the client's process is gone."""
        for grant in [g for g, writer in self._writers.items() if writer is holder]:
            self.allotment.cancel(grant)
            self._let_go(grant)
            self._tell(NotAllotted(grant))
        holder.pins.clear()
        self._storage.owner_gone(holder.name)
        self.holdings.forget(holder)

    # -- room and time --------------------------------------------------------------------------------------------

    def retry(self, now: float) -> None:
        """Room may have come: let waiting grants have it."""
        for request, place in self.allotment.retry(now):
            self._granted(request, place)

    def back(self, now: float) -> None:
        """Allocate the next slice of a large grant's room."""
        grant = self._storage.backing()
        placed = None if grant is None else self.allotment.ask_again(grant, now)
        if placed is not None:
            self._granted(*placed)

    def expire(self, now: float) -> None:
        """Answer the waiting grants whose deadline has come."""
        for request in self.allotment.expired(now):
            waited = now - request.asked
            text = f"no room for a block of {request.nbytes} bytes in {waited:.1f} s: {self._storage.summary()}"
            self._give_up(request, Failed(code="DataPlaneFull", message=text, elapsed_s=waited))

    def _give_up(self, request: Request, why: Failed) -> None:
        """A grant that had no slot yet gets none."""
        self._storage.withdraw(request.grant)
        self._writers.pop(request.grant, None)
        self._tell(NotAllotted(request.grant))
        self._answer(request.call_id, why)

    def _granted(self, request: Request, place: BlockPlace) -> None:
        if not self._waits(request.call_id):  # nobody would ever copy into it
            self._writers.pop(request.grant, None)
            self._storage.abandon(request.grant)
            self._tell(NotAllotted(request.grant))
            return
        reached("server.granted")
        self._writers[request.grant].granted(request.grant)
        self._tell(Allotted(request.grant, place))
        self._answer(request.call_id, Granted(request.grant, place, self._storage.arena_of(place)))

    def give_back(self, grant: int) -> None:
        """Its holder will not write to it any more, and holds it no longer."""
        kept = grant in self._kept
        self._let_go(grant)
        if not kept and grant not in self._on_hosts:
            self._storage.abandon(grant)
        self._tell(NotAllotted(grant))

    def _let_go(self, grant: int) -> None:
        self._kept.discard(grant)
        holder = self._writers.pop(grant, None)
        if holder is not None:
            holder.done_with(grant)

    def _pin(self, place: BlockPlace, holder: Holder) -> BlockPlace:
        found, hold = self._storage.pin(place.block_id, holder.name)
        assert found == place, f"the ledger reads {place}, the block lies at {found}"
        pin = self.holdings.next_pin()
        holder.pinned(pin, hold)
        return msgspec.structs.replace(found, pin=pin)
