"""The simulated plane: the real ledger, the real journal on a memory disk, and a shell round them as the server's is.

Invariants, the server's: what follows a ``Persist`` leaves only after the flush that holds it; a session's newer
connection discards the older unread; memory follows the process, not the session; after a stop the plane reads what
lies there before it looks at the clock, or the other way round. It may die between any two of its steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneWriteError
from penstock.ledger import events as ev
from penstock.ledger.facts import AnyFact, Entry, Put, Removed
from penstock.ledger.journal import Journal
from penstock.ledger.machine import Ledger
from penstock.requests import (
    ArenaPlace,
    BlockPlace,
    Call,
    Done,
    Goodbye,
    Granted,
    Heartbeat,
    Located,
    OpenSession,
    Ping,
    Reply,
    ReplyBody,
    ResumeSession,
    Welcome,
)
from penstock.testing.sim.arena import Arena
from penstock.testing.sim.disk import Crashed, MemoryFiles
from penstock.testing.sim.network import Connection
from penstock.testing.sim.upkeep import Upkeep
from penstock.testing.sim.world import Process, World

__all__ = ["LedgerFactory", "SimPlane"]

LedgerFactory: TypeAlias = Callable[[PlaneConfig], Ledger]

_TICK_S = 0.5
_SEGMENT_BYTES = 4000
_LAST_WORDS_S = 0.05  # between a client's end and its burial, for what it had sent already; the server's
_MAX_TURN = 8  # calls that one turn of the loop may take
_WALL = 1.8e9  # seconds since the epoch when the world begins
_PLACE = Path("simulated")


_DONE = Done()


def _pinned(place: BlockPlace, pin: int) -> BlockPlace:
    return BlockPlace(place.block_id, place.arena_id, place.offset, place.nbytes, place.generation, pin)


class _Holder:
    """What the plane knows of one client process: its sessions, grants and pins."""

    __slots__ = ("grants", "pins", "sessions", "settled_grant", "settled_pin")

    def __init__(self) -> None:
        self.settled_grant = self.settled_pin = 0  # answered on an older connection: it has them by now, or never will
        self.sessions: set[int] = set()
        self.grants: set[int] = set()
        self.pins: dict[int, tuple[int, int]] = {}  # pin -> (block, generation)


class SimPlane(Process):
    """The plane.

    Attributes:
        up: it runs.
        ledger, journal: of this life.
        removed: key -> (reason, detail), as durably decided.
        forgotten: rows that were there when a plane died whose durability is ``memory``.
    """

    def __init__(
        self, world: World, config: PlaneConfig, *, make_ledger: LedgerFactory = Ledger, checked: bool = False
    ) -> None:
        super().__init__(world)
        self.config = config
        self.files = MemoryFiles()
        self.arena = Arena()
        self.up = False
        self.fuse: int | None = None  # steps until it dies
        self.removed: dict[str, list[tuple[str, str]]] = {}
        self.forgotten: set[str] = set()
        self.died_clean = False
        self.began = 0.0  # this life
        self.heard: dict[int, float] = {}  # client -> when it last said something
        self.witness: Callable[[AnyFact], None] = lambda _: None  # sees each fact that is durable
        self.on_recovery: Callable[[Ledger, Ledger], None] | None = None
        self.dying_clients: set[int] = set()  # dead, and the kernel has not said so yet
        self.dead_clients: set[int] = set()
        self._make_ledger = make_ledger
        self._checked = checked
        self._sessions_of: dict[int, set[int]] = {}  # client -> sessions it ever opened; outlives lives
        self._keys: dict[int, str] = {}  # row id -> key
        self._removed_ids: set[int] = set()
        self._unflushed: list[Entry] = []
        self._lives = 0
        self._next_pin = 0
        self._numbers = 0
        self._reset()

    def _reset(self) -> None:
        self._calls: dict[int, tuple[Connection, int]] = {}  # a call's number here -> who asked, and his own for it
        self._inbox: deque[tuple[Connection, Call]] = deque()
        self._outbox: deque[tuple[ev.AnyEffect, Connection | None]] = deque()
        self._bound: dict[int, Connection] = {}
        self._connections: dict[Connection, None] = {}  # in order: a set's would differ from run to run
        self._holders: dict[int, _Holder] = {}
        self.upkeep = Upkeep(self)
        self._turn_due = False
        self._unflushed.clear()

    # -- lives --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process takes the journal over; what only lasted as long as memory is gone."""
        self.files.restart()
        if self.config.durability == "memory":
            self.files.contents.clear()
        self.files.max_bytes = None  # somebody has made room
        self._reset()
        self._lives += 1
        corpse = getattr(self, "ledger", None)
        try:
            self.ledger, self.journal = self._recovered()
            if corpse is not None and self.on_recovery is not None and self.config.durability != "memory":
                self.on_recovery(corpse, self.ledger)
            missing = self.arena.reconcile(self.ledger.live_blocks())
            assert not missing, f"blocks {missing} are promised and not there"
            self.up = True
            self.began = self.world.now
            incarnation = max(self.ledger.incarnation + 1, int((_WALL + self.world.now) * 1e9))
            self._collect(self.ledger.begin_life(incarnation, self.world.now, self._wall()), None)
            self.settle()
        except (Crashed, DataPlaneWriteError) as death:
            self._die(str(death))
            return
        self.world.say("plane", "is up, life", self._lives)
        for client in sorted(self.dead_clients):
            self.client_died(client)
        self.world.after(_TICK_S, self._tick, self._lives)

    def _recovered(self) -> tuple[Ledger, Journal]:
        journal = Journal.open(_PLACE, _SEGMENT_BYTES, files=self.files)
        ledger = self._make_ledger(self.config)
        for entry in journal.entries():
            ledger.replay(entry, self.world.now)
            self._note(entry)  # what a torn write had made durable after all
        return ledger, journal

    def crash(self) -> None:
        """Kill -9, now."""
        if self.up:
            self._die("kill -9")

    def _die(self, why: str) -> None:
        self.up = False
        if self.config.durability == "memory":
            self.forgotten.update(key for row_id, key in self._keys.items() if row_id not in self._removed_ids)
        self.died_clean = not self._unflushed
        self.fuse = None
        self.frozen_until = 0.0
        self.world.say("plane", "died:", why)
        for connection in list(self._connections):
            connection.cut("the plane died", self.world.rng.uniform(0, 0.01), 0.0)
        self.world.after(self.world.rng.choice((0.05, 0.3, 1.0, 3.0)), self.start)

    def replayed(self) -> Ledger:
        """What a new life would begin with; the files are left alone."""
        ledger = self._make_ledger(self.config)
        for entry in Journal.open(_PLACE, _SEGMENT_BYTES, files=self.files.copy()).entries():
            ledger.replay(entry, self.world.now)
        return ledger

    # -- what comes in ------------------------------------------------------------------------------------------------

    def connect(self, connection: Connection) -> bool:
        """A client connects; False: nobody listens."""
        if self.up:
            self._connections[connection] = None
        return self.up

    def received(self, connection: Connection, call: Call) -> None:
        if self.up and connection in self._connections:
            self._inbox.append((connection, call))
            self._wake()

    def disconnected(self, connection: Connection) -> None:
        if self.up and connection in self._connections:
            self.work(self._disconnected, connection)

    def client_died(self, client_id: int) -> None:
        """The kernel says so."""
        self.dying_clients.discard(client_id)
        self.dead_clients.add(client_id)
        self.work(self.world.after, _LAST_WORDS_S, self.work, self._bury, client_id)

    def client_dies(self, client_id: int, noticed_s: float) -> None:
        """A client's process ends; the kernel tells the plane after a while."""
        self.dying_clients.add(client_id)
        self.world.after(noticed_s, self.client_died, client_id)

    def work(self, do: Callable[..., None], *args: Any) -> None:
        """Let this life do a piece of work, as soon as the process is awake; it may be its last."""
        if self.up:
            self.awake(self._guarded, self._lives, do, *args)

    # -- its loop -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._turn_due:
            self._turn_due = True
            self.world.after(0.0001, self.awake, self._guarded, self._lives, self._turn)

    def _guarded(self, life: int, work: Callable[..., None], *args: Any) -> None:
        """Do a piece of work of that life, which may be its last."""
        if not self.up or life != self._lives:
            return
        try:
            work(*args)
            self.settle()
        except (Crashed, DataPlaneWriteError) as death:
            self._die(str(death))

    def _turn(self) -> None:
        self._turn_due = False
        for _ in range(self.world.rng.randint(1, _MAX_TURN)):
            if not self._inbox:
                break
            connection, call = self._inbox.popleft()
            if not connection.discarded:
                self._take(connection, call)
        if self._inbox:
            self._wake()
        self.upkeep.go_on()

    def _tick(self, life: int) -> None:
        if self.up and life == self._lives:
            if self.world.now < self.frozen_until:
                self.world.at(self.frozen_until, self._tick, life)
                return
            self._guarded(life, self.feed, ev.Tick(self._wall()))
            self._guarded(life, self.upkeep.go_on)
            self.world.after(self._next_tick_s(), self._tick, life)

    def _next_tick_s(self) -> float:
        timer = self.ledger.next_timer()
        return _TICK_S if timer is None else min(_TICK_S, max(0.001, timer - self.world.now))

    def step(self) -> None:
        """A point at which the process may be killed."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                raise Crashed("kill -9 between two steps")

    def settle(self) -> None:
        """Make durable what was decided, then let out what depends on it."""
        while self._outbox:
            self._flush()
            for _ in range(len(self._outbox)):
                effect, connection = self._outbox.popleft()
                self.step()
                self._carry_out(effect, connection)
        self._flush()

    def _flush(self) -> None:
        if self.fuse == 1:  # in the middle of the write
            self.files.crash_at = self.files.steps + 1
            self.files.torn = self.world.rng.randint(-1, 200)
        self.step_unless_torn()
        self.journal.flush()
        for entry in self._unflushed:
            self._note(entry)
        self._unflushed.clear()

    def step_unless_torn(self) -> None:
        if self.files.crash_at is None or self.files.crash_at != self.files.steps + 1:
            self.step()

    def _note(self, entry: Entry) -> None:
        """Remember for the judge which rows the plane itself has removed, and why; once, however often replayed."""
        for fact in entry.facts:
            if not isinstance(fact, Removed):
                self.witness(fact)
            if isinstance(fact, Put):
                self._keys.update(zip(fact.ids, fact.keys, strict=True))
            elif isinstance(fact, Removed):
                fresh = [i for i in fact.ids if i not in self._removed_ids]
                self.witness(msgspec.structs.replace(fact, ids=fresh))
                for row_id in fresh:
                    self._removed_ids.add(row_id)
                    self.removed.setdefault(self._keys[row_id], []).append((fact.reason, fact.detail))

    # -- calls --------------------------------------------------------------------------------------------------------

    def _take(self, connection: Connection, call: Call) -> None:
        self.step()
        body = call.body
        if connection.client_id:
            self.heard[connection.client_id] = self.world.now
        if isinstance(body, OpenSession):
            connection.client_id = body.client_id
            session_id, secret = self.world.rng.getrandbits(62) + 1, str(self.world.rng.getrandbits(64))
            number = self._number(connection, call)
            self.feed(ev.SessionOpens(session_id, secret, number, body, self._wall()), connection)
        elif isinstance(body, ResumeSession):
            connection.client_id = body.client_id
            number = self._number(connection, call)
            self.feed(ev.SessionResumes(body.session_id, body.secret, number), connection)
        elif connection.session_id:
            self._take_in_session(connection, call)

    def _take_in_session(self, connection: Connection, call: Call) -> None:
        session_id, body = connection.session_id, call.body
        holder = self._holder(connection.client_id)
        for pin in call.unpins:
            self._unpin(holder, pin)
        if isinstance(body, Heartbeat):
            self.feed(ev.Heard(session_id, call.done_below, call.abandoned), connection)
            self._withdraw(connection, body.withdrawn)
            self._take_back(holder, body)
            self._outbox.append((ev.Answer(session_id, self._number(connection, call), _DONE), connection))
        elif isinstance(body, Ping):
            self.feed(ev.Heard(session_id, call.done_below, call.abandoned), connection)
            self._outbox.append((ev.Answer(session_id, self._number(connection, call), _DONE), connection))
        elif isinstance(body, Goodbye):
            self.feed(ev.SessionGone(session_id, "goodbye"), connection)
            holder.sessions.discard(session_id)
            for grant in sorted(holder.grants):
                self._drop_grant(holder, grant)
            for pin in list(holder.pins):
                self._unpin(holder, pin)
        else:
            deadline, number = self.world.now + call.deadline_s, self._number(connection, call)
            self.feed(
                ev.Asked(session_id, number, call.seq, call.done_below, call.abandoned, deadline, body, self._wall()),
                connection,
            )

    def _number(self, connection: Connection, call: Call) -> int:
        """A call's number on the plane: an answer never meets the call of a newer connection with the same id."""
        self._numbers += 1
        self._calls[self._numbers] = (connection, call.id)
        return self._numbers

    def _withdraw(self, connection: Connection, call_ids: list[int] | None = None) -> None:
        """Nobody waits for the answers to these calls, None = to any on this connection."""
        numbers = [
            number
            for number, (asked_by, call_id) in self._calls.items()
            if asked_by is connection and (call_ids is None or call_id in call_ids)
        ]
        if numbers:
            self.feed(ev.Withdrawn(frozenset(numbers)))

    def _take_back(self, holder: _Holder, beat: Heartbeat) -> None:
        pin_high = max(beat.pin_high, holder.settled_pin)
        for pin in [p for p in holder.pins if p <= pin_high and p not in beat.pins]:
            self._unpin(holder, pin)
        grant_high = max(beat.grant_high, holder.settled_grant)
        for grant in [g for g in sorted(holder.grants) if g <= grant_high and g not in beat.grants]:
            self._drop_grant(holder, grant)

    def _drop_grant(self, holder: _Holder, grant: int) -> None:
        holder.grants.discard(grant)
        self.feed(ev.NotAllotted(grant))

    def _unpin(self, holder: _Holder, pin: int) -> None:
        where = holder.pins.pop(pin, None)
        if where is not None:
            self.arena.unpin(where, pin)

    def _disconnected(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        connection.discarded = True
        self._withdraw(connection)
        if self._bound.get(connection.session_id) is connection:
            del self._bound[connection.session_id]
            self.feed(ev.Disconnected(connection.session_id))

    def _bury(self, client_id: int) -> None:
        for session_id in sorted(self._sessions_of.get(client_id, ())):
            self.feed(ev.SessionGone(session_id, "its process died"))
        holder = self._holders.pop(client_id, _Holder())
        for grant in sorted(holder.grants):
            self._drop_grant(holder, grant)
        for pin in list(holder.pins):
            self._unpin(holder, pin)

    def _holder(self, client_id: int) -> _Holder:
        return self._holders.setdefault(client_id, _Holder())

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def feed(self, event: ev.AnyEvent, connection: Connection | None = None) -> None:
        effects = self.ledger.handle(event, self.world.now)
        if self._checked:
            self.ledger.check_invariants()
        self._collect(effects, connection)

    def _collect(self, effects: list[ev.AnyEffect], connection: Connection | None) -> None:
        decided = [effect.entry for effect in effects if isinstance(effect, ev.Persist)]
        self._unflushed += decided
        for entry in decided:
            self.append(entry)
        for effect in effects:
            if isinstance(effect, ev.Answer | ev.Resolve | ev.Allot | ev.Assign | ev.EndSession):
                self._outbox.append((effect, self._addressee(effect, connection)))
            elif not isinstance(effect, ev.Persist):
                self._outbox.append((effect, connection))

    def append(self, entry: Entry) -> None:
        self.step()
        self.journal.append(entry)

    def _addressee(
        self, effect: ev.Answer | ev.Resolve | ev.Allot | ev.Assign | ev.EndSession, asking: Connection | None
    ) -> Connection | None:
        """The session's connection as it is now; a welcome makes the asking one so."""
        if isinstance(effect, ev.Answer) and asking is not None and not asking.session_id:
            if isinstance(effect.body, Welcome):
                self._bind(asking, effect.session_id)
            return asking
        return self._bound.get(effect.session_id)

    def _bind(self, connection: Connection, session_id: int) -> None:
        older = self._bound.get(session_id)
        if older is not None:
            older.discarded = True
            older.session_id = 0
            self._connections.pop(older, None)
            older.cut("resumed elsewhere", 0.001, 0.001)
        connection.session_id = session_id
        self._bound[session_id] = connection
        holder = self._holder(connection.client_id)
        holder.sessions.add(session_id)
        holder.settled_grant, holder.settled_pin = max(holder.grants, default=0), max(holder.pins, default=0)
        self._sessions_of.setdefault(connection.client_id, set()).add(session_id)

    # -- effects ------------------------------------------------------------------------------------------------------

    def _carry_out(self, effect: ev.AnyEffect, connection: Connection | None) -> None:
        if isinstance(effect, ev.Answer):
            self._say(connection, effect.call_id, effect.body)
        elif isinstance(effect, ev.Allot):
            self._allot(effect, connection)
        elif isinstance(effect, ev.Assign):
            self._assign(effect, connection)
        elif isinstance(effect, ev.Unassign):
            for holder in self._holders.values():
                holder.grants.discard(effect.grant)
        elif isinstance(effect, ev.Resolve):
            self._resolve(effect, connection)
        elif isinstance(effect, ev.Fill):
            self.arena.fill(effect.block_id)
            for holder in self._holders.values():
                holder.grants.discard(effect.block_id)
        elif isinstance(effect, ev.FreeBlock):
            self.arena.free(effect.block_id)
        elif isinstance(effect, ev.DropGrant):
            self.arena.free(effect.grant)
        elif isinstance(effect, ev.EndSession):
            self._end_session(effect, connection)

    def _say(self, connection: Connection | None, number: int, body: ReplyBody) -> None:
        asked_by, call_id = self._calls.pop(number, (None, 0))
        if connection is not None and asked_by is connection and not connection.discarded:
            connection.reply(Reply(call_id, self.ledger.incarnation, body))

    def _allot(self, effect: ev.Allot, connection: Connection | None) -> None:
        place = self.arena.allot(effect.grant, effect.nbytes)
        self.feed(ev.Allotted(effect.grant, place), connection)
        waits = connection is not None and self._calls.get(effect.call_id, (None, 0))[0] is connection
        if connection is None or connection.discarded or not waits:  # nobody waits for it any more
            self.feed(ev.NotAllotted(effect.grant))
            return
        self._holder(connection.client_id).grants.add(effect.grant)
        self._say(connection, effect.call_id, Granted(effect.grant, place, ArenaPlace(0, 1 << 30, True)))

    def _assign(self, effect: ev.Assign, connection: Connection | None) -> None:
        grant = effect.granted.grant
        waits = connection is not None and self._calls.get(effect.call_id, (None, 0))[0] is connection
        if connection is None or connection.discarded or not waits:  # nobody waits for it any more
            self.feed(ev.NotAllotted(grant))
            return
        self._holder(connection.client_id).grants.add(grant)
        self._say(connection, effect.call_id, effect.granted)

    def _resolve(self, effect: ev.Resolve, connection: Connection | None) -> None:
        if connection is None or connection.discarded:
            return
        holder = self._holder(connection.client_id)
        blocks = []
        for place in effect.blocks:
            if place.host:
                blocks.append(place)
                continue
            self._next_pin += 1
            self.arena.pin(place, self._next_pin)
            holder.pins[self._next_pin] = (place.block_id, place.generation)
            blocks.append(_pinned(place, self._next_pin))
        self._say(
            connection, effect.call_id, Located(blocks, [], effect.sources, effect.issues, effect.others, effect.hosts)
        )

    def _end_session(self, effect: ev.EndSession, connection: Connection | None) -> None:
        self._bound.pop(effect.session_id, None)
        if connection is not None:
            connection.discarded = True
            connection.session_id = 0
            connection.cut(effect.why, 0.001, 0.001)

    def _wall(self) -> float:
        return _WALL + self.world.now
