"""The machine of one host's memory: ``handle(event, now) -> effects``. It knows blocks, not rows.

A block is reserved, sealed and held by clients, and adopted or freed by the plane, whose ledger knows what rows need.
What becomes of a block is ``blocks.TABLE``; what the plane has to be told is ``report``.

Invariants: no effect frees a block that a row may need or a writer may touch; a written block whose writer has let go
and that the plane has neither adopted nor freed is asked about, again and again; what the plane orders may come twice,
late or for blocks that are not here, and changes nothing then, but what rows need and is not here is reported lost.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, takewhile
from typing import Any

from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneBadRequest, DataPlaneError, DataPlaneUnavailable, code_of
from penstock.host import events as ev
from penstock.host.blocks import OWN, Block, State, What
from penstock.host.events import AnyEffect, AnyEvent
from penstock.host.news import MAX_NEWS, News
from penstock.host.visitors import Visitors
from penstock.hosting import HostReport
from penstock.ledger.events import (
    GOODBYE,
    Allot,
    Allotted,
    Answer,
    Asked,
    BlockMoved,
    BlocksLost,
    Disconnected,
    DropGrant,
    EndSession,
    Fill,
    FreeBlock,
    Heard,
    NotAllotted,
    Resolve,
    SessionGone,
    SessionOpens,
    SessionResumes,
    Tick,
    Withdrawn,
)
from penstock.parts import BlockPlace, HostPlace, RowIssue
from penstock.reports import HostStatus
from penstock.requests import Damaged, Done, Failed, GrantAgain, Hold, Reserve, Seal, Sealed, Status, StatusReport

__all__ = ["OWN_SESSION", "Keeper", "Who"]

OWN_SESSION = 0  # the agent's own calls come in this session: it reserves and seals what it pulls for other hosts
REASK_S = 5.0  # between two askings about one block
ORDERED_S = 5.0  # beyond the deadline of whoever ordered a copy, before the plane is asked about it
LONGEST_S = 60.0  # that such a deadline counts for: to ask too early does no harm, never to ask is a leak


@dataclass(frozen=True)
class Who:
    """This host, as its machine has to know it. ``capacity``: bytes of its arena; ``plane``: where rows are known."""

    host_id: int
    name: str
    plane: str
    capacity: int


class Keeper:
    """See the module.

    Args:
        who: this host.
        config: limits and heartbeats that clients are told.
        incarnation: the number of this life, beyond every earlier one.
    """

    def __init__(self, who: Who, config: PlaneConfig, incarnation: int) -> None:
        self.incarnation = incarnation
        self.counters: Counter[str] = Counter()
        self._who = who
        self._config = config
        self._visitors = Visitors(config)
        self._blocks: dict[int, Block] = {}
        self._bytes = 0  # in slots
        self._to_ask: dict[int, Block] = {}  # those that are ASKED, of which the plane does not know yet
        self._asked_before: dict[int, Block] = {}  # the others, in the order in which it was asked
        self._own_sealed: dict[int, Block] = {}  # pulled for other hosts and not yet asked about
        self._own_due: list[tuple[float, int]] = []  # a heap: when they are to be, those that need not be included
        self._news = News()
        self._after = 0
        self._now = 0.0
        self._out: list[AnyEffect] = []
        self._events: dict[type[Any], Callable[[Any], None]] = {
            SessionOpens: self._opens,
            SessionResumes: self._resumes,
            SessionGone: self._gone,
            Disconnected: lambda e: self._end_sessions(
                self._visitors.left(e.session_id), "too many without connection"
            ),
            Heard: lambda e: self._visitors.heard(e.session_id, self._now),
            Withdrawn: lambda _: None,  # what waits for room is custody's, and a copy is not stopped
            Tick: self._tick,
            Asked: self._asked,
            Allotted: self._allotted,
            NotAllotted: self._let_go,
            BlocksLost: lambda e: self._lost(e.block_ids, e.why),
            BlockMoved: self._moved,
            ev.Found: self._found,
            ev.Enlisting: self._enlisting,
            ev.Ordered: self._ordered,
            ev.Copied: lambda e: self._copied(e.grant, e.place, ""),
            ev.NotCopied: lambda e: self._copied(e.grant, None, e.why),
        }
        self._calls: dict[type[Any], Callable[[Asked, Any], None]] = {
            Reserve: self._reserve,
            Seal: self._seal,
            Hold: self._hold,
            Damaged: self._damaged,
            Status: lambda asked, _: self._answer(asked.call_id, self._status()),
        }

    def handle(self, event: AnyEvent, now: float) -> list[AnyEffect]:
        """Decide. The effects are to be carried out in order."""
        self._now = max(now, self._now)
        self._events[type(event)](event)
        out, self._out = self._out, []
        return out

    # -- what the plane is told -----------------------------------------------------------------------------------

    def report(self) -> HostReport:
        """Return what the plane is to be told; it is told again until ``Ordered`` says that it was."""
        return self._news.report(self._after, [block.block_id for block in self._due()])

    @property
    def has_news(self) -> bool:
        """Whether there is something to report that does not wait."""
        return bool(self._news or self._to_ask) or next(self._due(), None) is not None

    @property
    def moves_known(self) -> bool:
        """Whether the plane knows where every block lies."""
        return self._news.moves == 0

    def _due(self) -> Iterator[Block]:
        """Blocks that are to be asked about now, those that the plane does not know of first."""
        before = takewhile(lambda b: self._now >= (b.asked_at or 0.0) + REASK_S, self._asked_before.values())
        return islice(chain(self._to_ask.values(), before), MAX_NEWS)

    def next_timer(self) -> float | None:
        """When the next ``Tick`` has something to do that nothing else will bring about; None = nothing."""
        while self._own_due and self._own_due[0][1] not in self._own_sealed:
            heapq.heappop(self._own_due)
        return self._own_due[0][0] if self._own_due else None

    def _tick(self, _event: Tick) -> None:
        while (due := self.next_timer()) is not None and due <= self._now:
            self._happens(self._own_sealed[self._own_due[0][1]], What.LET_GO)

    def _enlisting(self, event: ev.Enlisting) -> None:
        """What the plane does not name is not needed; what it names and is not here, or elsewhere, is told."""
        self._after = event.after
        live = {place.block_id: place for place in event.live}
        for block in [b for b in self._blocks.values() if b.state is State.ADOPTED and b.block_id not in live]:
            self._free(block)
        for block in self._asked_before.values():
            block.asked_at = None
        self._to_ask |= self._asked_before
        self._asked_before = {}
        for block_id, place in live.items():
            self._adopt(block_id)
            ours = self._blocks.get(block_id)
            if ours is not None and ours.readable and ours.place != place:
                self._news.moved(ours.where())

    def _ordered(self, event: ev.Ordered) -> None:
        self._news.heard(event.said)
        orders = event.orders
        self._after = max(self._after, orders.number)
        for block_id in orders.adopt:
            self._adopt(block_id)
        for block_id in orders.free:
            self._order_free(block_id)
        for block_id in orders.verify:
            self._order_verify(block_id)
        for block_id in event.said.done_with:
            asked = self._to_ask.pop(block_id, None) or self._asked_before.pop(block_id, None)
            if asked is not None:
                asked.asked_at = self._now
                self._asked_before[block_id] = asked

    def _adopt(self, block_id: int) -> None:
        block = self._blocks.get(block_id)
        if block is None:
            self._news.lost([block_id], f"host {self._who.name} does not have it")
        elif block.may(What.ADOPTED):
            self._happens(block, What.ADOPTED)
        else:
            self._news.lost([block_id], f"it was never sealed on host {self._who.name}")

    def _order_free(self, block_id: int) -> None:
        block = self._blocks.get(block_id)
        if block is not None and block.may(What.UNNEEDED):
            self._free(block)
        else:  # freed before; or its writer may still be writing, and is asked about if he ever seals it
            self.counters["orders.ignored"] += 1

    def _order_verify(self, block_id: int) -> None:
        block = self._blocks.get(block_id)
        if block is None:
            self._news.lost([block_id], f"host {self._who.name} does not have it")
        elif block.readable:
            self._out.append(ev.Verify(block_id))

    # -- what happens to blocks -----------------------------------------------------------------------------------

    def _happens(self, block: Block, what: What) -> None:
        """Let it happen, and keep what is counted in step."""
        block.move(what)
        self.counters[f"blocks.{what.name.lower()}"] += 1
        if block.state is not State.ASKED:
            self._to_ask.pop(block.block_id, None)
            self._asked_before.pop(block.block_id, None)
            block.asked_at = None
        elif what is What.LET_GO:
            self._to_ask[block.block_id] = block
        if block.state is not State.SEALED:
            self._own_sealed.pop(block.block_id, None)
        if block.state is State.GONE:
            del self._blocks[block.block_id]
            self._bytes -= block.nbytes if block.place is not None else 0
            self._news.freed(block.block_id)
            self._over(block)

    def _over(self, block: Block) -> None:
        """Whoever waits for the block's second place waits in vain."""
        call, block.seal = block.seal, 0
        if call:
            self._answer(call, GrantAgain())

    def _free(self, block: Block) -> None:
        self._happens(block, What.UNNEEDED)
        self._out.append(FreeBlock(block.block_id))

    def _allotted(self, event: Allotted) -> None:
        block = self._blocks.get(event.grant)
        if block is not None:  # else its caller withdrew in this very moment: his heartbeat gives the slot back
            self._happens(block, What.PLACED)
            self._bytes += block.nbytes if block.place is None else 0
            block.place = self._ours(event.place)

    def _let_go(self, event: NotAllotted) -> None:
        block = self._blocks.get(event.grant)
        if block is not None:
            self._happens(block, What.LET_GO)

    def _lost(self, block_ids: Iterable[int], why: str) -> None:
        gone = list(block_ids)
        for block_id in gone:
            block = self._blocks.get(block_id)
            if block is not None and block.may(What.DAMAGED):
                self._happens(block, What.DAMAGED)
                self._out.append(FreeBlock(block_id))
        self._news.lost(gone, why)

    def _moved(self, event: BlockMoved) -> None:
        block = self._blocks.get(event.place.block_id)
        if block is not None:
            self._happens(block, What.MOVED)
            block.place = self._ours(event.place)
            self._news.moved(event.place)

    def _found(self, event: ev.Found) -> None:
        for place in event.places:
            block = Block(place.block_id, place.nbytes, OWN, State.ADOPTED, self._ours(place))
            self._blocks[place.block_id] = block
            self._bytes += block.nbytes

    def _ours(self, place: BlockPlace) -> BlockPlace:
        assert place.host == self._who.host_id, f"{place} is not on this host"
        return place

    # -- calls ----------------------------------------------------------------------------------------------------

    def _asked(self, event: Asked) -> None:
        visitor = self._visitors.get(event.session_id)
        if visitor is not None:
            visitor.heard = self._now
        try:
            if visitor is None and event.session_id != OWN_SESSION:
                raise DataPlaneUnavailable(f"session {event.session_id} has ended")
            handler = self._calls.get(type(event.body))
            if handler is None:
                raise DataPlaneBadRequest(
                    f"this is the agent of host {self._who.name}, which knows memory and no rows: "
                    f"ask the plane at {self._who.plane} for {type(event.body).__name__}"
                )
            handler(event, event.body)
        except DataPlaneError as error:
            self.counters[f"refused.{type(error).__name__}"] += 1
            self._answer(event.call_id, Failed(code_of(error), error.message))

    def _writer(self, asked: Asked) -> tuple[int, int]:
        visitor = self._visitors.get(asked.session_id)
        return OWN if visitor is None else visitor.client

    def _answer(self, call_id: int, body: Any) -> None:
        self._out.append(Answer(0, call_id, body))

    def _reserve(self, asked: Asked, body: Reserve) -> None:
        """Give a slot, or the same slot again to who asks again, for his answer may have been lost."""
        if body.life not in (0, self.incarnation):
            raise DataPlaneUnavailable(
                f"granted for life {body.life} of host {self._who.name}, which is in life {self.incarnation}: ask for "
                "another grant. If that goes on, its directory is a copy of another's: remove host.json from the copy"
            )
        if body.grant <= 0 or not 0 < body.nbytes <= self._who.capacity:
            raise BadArgument(
                f"block {body.grant} of {body.nbytes} bytes can never lie on host {self._who.name}, "
                f"whose arena has {self._who.capacity} (max_bytes)"
            )
        block = self._blocks.get(body.grant)
        if block is None:
            self._blocks[body.grant] = Block(body.grant, body.nbytes, self._writer(asked))
        elif block.writer != self._writer(asked) or block.nbytes != body.nbytes or block.readable:
            raise BadArgument(f"block {body.grant} is on host {self._who.name} already: {block.state.value}")
        elif block.state is State.WAITING:
            self._out.append(DropGrant(body.grant))
        self._out.append(Allot(asked.session_id, asked.call_id, body.grant, body.nbytes, asked.deadline))

    def _seal(self, asked: Asked, body: Seal) -> None:
        block = self._blocks.get(body.grant)
        if block is None or block.writer != self._writer(asked):
            self._answer(asked.call_id, GrantAgain())  # an earlier life's, or it was given back
            return
        if body.replica is not None and body.replica.host_id == self._who.host_id:
            raise BadArgument(f"host {self._who.name} cannot hold both copies of block {body.grant}")
        if not block.readable:
            self._seal_first(block, asked, body)
        elif block.content != body.content:
            raise BadArgument(f"block {body.grant} is sealed already, with other content")
        self._conclude(block, asked, body)

    def _seal_first(self, block: Block, asked: Asked, body: Seal) -> None:
        if block.state is State.WAITING:
            raise BadArgument(f"block {body.grant} has no slot yet that could be sealed")
        self._happens(block, What.SEALED)
        block.content = body.content
        if block.writer == OWN:
            block.ask_at = min(asked.deadline, self._now + LONGEST_S) + ORDERED_S
            self._own_sealed[block.block_id] = block
            heapq.heappush(self._own_due, (block.ask_at, block.block_id))
            self._out.append(Fill(block.block_id))
        else:
            self._out.append(ev.Keep(block.block_id))

    def _conclude(self, block: Block, asked: Asked, body: Seal) -> None:
        """Answer, or first have the second host pull the block. A repeated call takes the place of the first."""
        if body.replica is None:
            self._answer(asked.call_id, Sealed([block.where()]))
        elif block.sealed is not None and body.replica.host_id in {place.host for place in block.sealed.places}:
            self._answer(asked.call_id, block.sealed)
        elif block.seal:
            self._answer(block.seal, Failed("DataPlaneUnavailable", "this call was made again"))
            block.seal = asked.call_id
        else:
            block.seal = asked.call_id
            self._out.append(ev.Replicate(block.block_id, block.content, block.where(), body.replica, asked.deadline))

    def _copied(self, grant: int, place: BlockPlace | None, why: str) -> None:
        block = self._blocks.get(grant)
        if block is None:  # freed meanwhile; the second host asks the plane about its copy
            return
        block.sealed = Sealed([block.where()] if place is None else [block.where(), place], why)
        call, block.seal = block.seal, 0
        if call:
            self._answer(call, block.sealed)

    def _hold(self, asked: Asked, body: Hold) -> None:
        places, issues = [], []
        for block_id in dict.fromkeys(body.blocks):
            block = self._blocks.get(block_id)
            if block is not None and block.readable:
                places.append(block.where())
            else:
                why = f"block {block_id} does not lie on host {self._who.name} (any more)"
                issues.append(RowIssue(str(block_id), "StaleSlotError", why))
        self._out.append(Resolve(asked.session_id, asked.call_id, places, [], issues))

    def _damaged(self, asked: Asked, body: Damaged) -> None:
        self._order_verify(body.block_id)
        self._answer(asked.call_id, Done())

    # -- sessions -------------------------------------------------------------------------------------------------

    def _opens(self, event: SessionOpens) -> None:
        welcome, over = self._visitors.opens(event, self._now)
        self._end_sessions(over, "its client has opened another")
        self._answer(event.call_id, welcome)

    def _resumes(self, event: SessionResumes) -> None:
        try:
            self._answer(event.call_id, self._visitors.resumes(event, self._now))
        except DataPlaneUnavailable as error:
            self._answer(event.call_id, Failed(code_of(error), error.message))

    def _gone(self, event: SessionGone) -> None:
        visitor = self._visitors.end(event.session_id)
        if visitor is None:
            return
        if event.why != GOODBYE:  # a client says goodbye to the plane itself
            self._news.ended(visitor.client_id)
        self._end_sessions([event.session_id], event.why)

    def _end_sessions(self, session_ids: list[int], why: str) -> None:
        self._out += [EndSession(session_id, why) for session_id in session_ids]

    # -- facts ----------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        return len(self._visitors)

    @property
    def live_bytes(self) -> int:
        """Bytes of all blocks that have a place: on a host nothing is compacted."""
        return self._bytes

    def live_blocks(self) -> list[BlockPlace]:
        """Where the blocks lie that an end of this life must not lose: sealed, and perhaps somebody's."""
        return [block.where() for block in self._blocks.values() if block.readable]

    def sparse_blocks(self) -> list[tuple[BlockPlace, list[int], list[int]]]:
        """None: which of a block's rows live is not known here."""
        return []

    def checkpoint(self, _rows_per_slice: int) -> Iterator[Any]:
        """Nothing: a keeper has no journal."""
        return iter(())

    def state_of(self, block_id: int) -> State:
        """What is known of a block."""
        block = self._blocks.get(block_id)
        return State.GONE if block is None else block.state

    def _status(self) -> StatusReport:
        """About memory and sessions; of rows an agent knows nothing."""
        states = Counter(f"blocks.now_{block.state.name.lower()}" for block in self._blocks.values())
        here = HostPlace(self._who.host_id, self.incarnation, self._who.name, "", [])  # clients learn where they are
        host = HostStatus(place=here, state="up", silent_s=0.0, blocks=len(self._blocks), nbytes=self.live_bytes)
        return StatusReport(
            incarnation=self.incarnation, pid=0, uptime_s=0.0, durability="memory", served=True, rows=0,
            live_bytes=self.live_bytes, arena_bytes=0, max_bytes=self._config.max_bytes, max_rows=0,
            sessions=self._visitors.statuses(self._now), partitions=[],
            counters={**self.counters, **states}, hosts=[host],
        )  # fmt: skip

    def check_invariants(self) -> None:
        """Recount what is kept in step by events; for tests."""
        self._visitors.check_invariants()
        for block_id, block in self._blocks.items():
            assert block.block_id == block_id, "a block under another's name"
            block.check_invariants()
        asked = {b.block_id for b in self._blocks.values() if b.state is State.ASKED}
        assert asked == self._to_ask.keys() | self._asked_before.keys(), "what is in question is not asked about"
        assert not self._to_ask.keys() & self._asked_before.keys(), "asked about before, and not"
        moments = [b.asked_at for b in self._asked_before.values()]
        assert moments == sorted(m for m in moments if m is not None), "asked again in the wrong order"
        assert all(b.asked_at is None for b in self._to_ask.values()), "asked about already"
        assert self._bytes == sum(b.nbytes for b in self._blocks.values() if b.place is not None), (
            "bytes are miscounted"
        )
        own = {b.block_id for b in self._blocks.values() if b.writer == OWN and b.state is State.SEALED}
        assert own == set(self._own_sealed), "a pulled block will not be asked about"
        assert own <= {block_id for _, block_id in self._own_due}, "a pulled block has no moment"

    def __repr__(self) -> str:
        states = Counter(block.state.name for block in self._blocks.values())
        return f"<Keeper of host {self._who.name}: {dict(states)}, {self.sessions} sessions>"
