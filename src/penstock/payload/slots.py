"""The slot machine: when a piece of the arena may be written, read and used again.

    FREE --Grant--> WRITING --Fill--> READY --RowsGone--> FREE, or CONDEMNED while tokens or pins are out
    READY --BeginRead--> READING --last ReleaseReading--> READY
                         READING --MarkConsumed--> FREE, or CONDEMNED while pins are out

A read attempt has a token, and ends with exactly one of ``MarkConsumed`` and ``ReleaseReading``. Consume mode has one
valid token: beginning again supersedes it. Retain mode has many.

Invariants: a slot is FREE only when no writer, token or pin is out; a generation is 64 bits and never given twice, nor
is a token; an event with a stale generation or token, or one that the table does not know, changes nothing, is answered
by ``Ignored`` and counted. ``Abandon`` is the writer's own word that it will not write any more; ``OwnerGone`` the
kernel's that it is dead; silence is neither. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, TypeAlias


class State(Enum):
    FREE = "free"
    WRITING = "writing"
    READY = "ready"
    READING = "reading"
    CONDEMNED = "condemned"  # its rows are gone, or it was consumed; its tokens or pins are not


class Mode(Enum):
    """``CONSUME``: one reader, whose success frees the slot. ``RETAIN``: many readers, and the rows' end frees it."""

    CONSUME = "consume"
    RETAIN = "retain"


@dataclass(frozen=True, slots=True)
class Grant:
    """Give the free slot to ``owner`` to write."""

    slot: int
    owner: int


@dataclass(frozen=True, slots=True)
class Fill:
    """The writer is done; the slot holds rows."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """The writer gives the slot back unfilled."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Pin:
    """``owner`` reads the slot, once more."""

    slot: int
    generation: int
    owner: int


@dataclass(frozen=True, slots=True)
class Unpin:
    """One of ``owner``'s pins goes."""

    slot: int
    generation: int
    owner: int


@dataclass(frozen=True, slots=True)
class BeginRead:
    """``reader`` wants the slot's bytes. Answered by ``Admitted``, with the token of this attempt."""

    slot: int
    generation: int
    mode: Mode
    reader: int


@dataclass(frozen=True, slots=True)
class MarkConsumed:
    """The attempt under ``token`` has succeeded, in consume mode: the bytes are not needed any more."""

    slot: int
    generation: int
    token: int


@dataclass(frozen=True, slots=True)
class ReleaseReading:
    """The attempt under ``token`` has failed, or was in retain mode: the bytes stay."""

    slot: int
    generation: int
    token: int


@dataclass(frozen=True, slots=True)
class RowsGone:
    """No row refers to the slot any more."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class OwnerGone:
    """The kernel says that ``owner``'s process is dead: its grants, pins and tokens end."""

    owner: int


SlotEvent: TypeAlias = Fill | Abandon | Pin | Unpin | BeginRead | MarkConsumed | ReleaseReading | RowsGone
Event: TypeAlias = Grant | SlotEvent | OwnerGone


@dataclass(frozen=True, slots=True)
class Granted:
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """The read attempt may go on under ``token``. ``superseded``: the token that is an orphan's now; 0 = none."""

    slot: int
    generation: int
    token: int
    superseded: int = 0


@dataclass(frozen=True, slots=True)
class Freed:
    """The slot's bytes may be used again."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing changed; the shell warns, at a bounded rate."""

    event: Event
    why: str


Effect: TypeAlias = Granted | Admitted | Freed | Ignored


class After(NamedTuple):
    """The state that follows an event, by what is still out once it has been applied."""

    read: State  # a token
    pinned: State  # no token, but a pin
    unheld: State  # neither


def _always(state: State) -> After:
    return After(state, state, state)


_BACK = After(State.READING, State.READY, State.READY)  # an attempt is over, and the bytes stay
_ENDING = After(State.CONDEMNED, State.CONDEMNED, State.FREE)  # nobody needs the bytes but who holds them still

# (state, event) -> the state that follows. What is missing is ignored.
TRANSITIONS: dict[tuple[State, type[Event]], After] = {
    (State.FREE, Grant): _always(State.WRITING),
    (State.WRITING, Fill): _always(State.READY),
    (State.WRITING, Abandon): _always(State.FREE),
    (State.WRITING, OwnerGone): _always(State.FREE),
    (State.READY, Pin): _always(State.READY),
    (State.READY, Unpin): _always(State.READY),
    (State.READY, OwnerGone): _always(State.READY),
    (State.READY, BeginRead): _always(State.READING),
    (State.READY, RowsGone): _ENDING,
    (State.READING, Pin): _always(State.READING),
    (State.READING, Unpin): _always(State.READING),
    (State.READING, BeginRead): _always(State.READING),
    (State.READING, ReleaseReading): _BACK,
    (State.READING, OwnerGone): _BACK,
    (State.READING, MarkConsumed): _ENDING,
    (State.READING, RowsGone): _always(State.CONDEMNED),
    (State.CONDEMNED, Unpin): _ENDING,
    (State.CONDEMNED, ReleaseReading): _ENDING,
    (State.CONDEMNED, MarkConsumed): _ENDING,
    (State.CONDEMNED, OwnerGone): _ENDING,
}


@dataclass(slots=True)
class Slot:
    """A slot that is not free.

    Attributes:
        owner: who was granted it.
        since: when its state last changed, by the caller's clock.
        pins: reader -> how many.
        tokens: token -> reader, of the attempts that are under way; an orphan's is not among them.
        mode: how those attempts read.
    """

    state: State
    generation: int
    owner: int
    since: float
    pins: Counter[int] = field(default_factory=Counter)
    tokens: dict[int, int] = field(default_factory=dict)
    mode: Mode = Mode.RETAIN

    def holders(self) -> set[int]:
        """Whose process must live, or be heard of, before the slot can be free."""
        return {*self.pins, *self.tokens.values(), *([self.owner] if self.state is State.WRITING else [])}


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    """Counts of slots by state; of pins and tokens that are out; of events that changed nothing."""

    writing: int
    ready: int
    reading: int
    condemned: int
    pins: int
    tokens: int
    superseded: int
    ignored: int


class Slots:
    """The slots of one arena. A slot is named by a number of the caller's; one never heard of is FREE."""

    def __init__(self, first_generation: int = 1) -> None:
        self._slots: dict[int, Slot] = {}
        self._held: dict[int, set[int]] = {}  # owner -> the slots it writes, pins or reads
        self._next_generation = first_generation
        self._next_token = 1
        self._states: Counter[State] = Counter()
        self._pins = 0
        self._tokens = 0
        self._superseded = 0
        self._ignored = 0

    def __repr__(self) -> str:
        return f"<Slots {self.statistics()}>"

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        """Apply one event; the effects say what the shell has to do."""
        if isinstance(event, OwnerGone):
            return self._owner_gone(event, now)
        slot = self._slots.get(event.slot)
        if isinstance(event, Grant):
            return self._grant(event, slot, now)
        why = self._objection(event, slot)
        if why or slot is None:
            self._ignored += 1
            return [Ignored(event, why)]
        admitted = self._book(event, slot)
        return [*admitted, *self._move(event.slot, slot, type(event), now)]

    def get_ready_count(self) -> int:
        """Return the number of READY slots, and of nothing else."""
        return self._states[State.READY]

    def state_of(self, slot: int) -> State:
        """Return the state of a slot."""
        found = self._slots.get(slot)
        return found.state if found else State.FREE

    def pins_of(self, slot: int) -> int:
        """Return how many pins are out on a slot."""
        found = self._slots.get(slot)
        return found.pins.total() if found else 0

    def tokens_of(self, slot: int) -> frozenset[int]:
        """Return the valid tokens of a slot."""
        found = self._slots.get(slot)
        return frozenset(found.tokens) if found else frozenset()

    def statistics(self) -> SlotStatistics:
        states = self._states
        return SlotStatistics(
            writing=states[State.WRITING],
            ready=states[State.READY],
            reading=states[State.READING],
            condemned=states[State.CONDEMNED],
            pins=self._pins,
            tokens=self._tokens,
            superseded=self._superseded,
            ignored=self._ignored,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant."""
        slots = self._slots.values()
        assert +Counter(s.state for s in slots) == +self._states, "states are miscounted"
        assert sum(s.pins.total() for s in slots) == self._pins, "pins are miscounted"
        assert sum(len(s.tokens) for s in slots) == self._tokens, "tokens are miscounted"
        generations = [s.generation for s in slots]
        assert len(set(generations)) == len(generations), "a generation was given twice"
        assert all(g < self._next_generation for g in generations), "a generation from the future"
        tokens = [token for s in slots for token in s.tokens]
        assert len(set(tokens)) == len(tokens), "a token was given twice"
        assert all(token < self._next_token for token in tokens), "a token from the future"
        for slot in slots:
            self._check_slot(slot)
        held = {(o, n) for n, s in self._slots.items() for o in s.holders()}
        assert held == {(o, n) for o, numbers in self._held.items() for n in numbers}, "holdings are out of step"

    @staticmethod
    def _check_slot(slot: Slot) -> None:
        assert slot.state is not State.FREE, "a free slot is kept"
        assert min(slot.pins.values(), default=1) > 0, "a pin is counted below one"
        assert slot.state is not State.WRITING or not (slot.pins or slot.tokens), "a slot being written is held"
        assert slot.state is not State.READY or not slot.tokens, "a ready slot is being read"
        assert slot.state is not State.READING or slot.tokens, "a slot is being read by nobody"
        assert slot.state is not State.CONDEMNED or slot.pins or slot.tokens, "a condemned slot waits for nothing"
        assert slot.mode is Mode.RETAIN or len(slot.tokens) <= 1, "two may consume one slot"

    def _grant(self, event: Grant, slot: Slot | None, now: float) -> list[Effect]:
        if slot is not None:
            self._ignored += 1
            return [Ignored(event, f"slot {event.slot} is {slot.state.value}, not free")]
        generation = self._next_generation
        self._next_generation += 1
        state = TRANSITIONS[State.FREE, Grant].unheld
        self._slots[event.slot] = Slot(state, generation, event.owner, now)
        self._states[state] += 1
        self._hold(event.owner, event.slot)
        return [Granted(event.slot, generation)]

    def _objection(self, event: SlotEvent, slot: Slot | None) -> str:
        """Return why the event must change nothing; empty when it may."""
        if slot is None:
            return f"slot {event.slot} is free"
        if slot.generation != event.generation:
            return f"slot {event.slot} is in generation {slot.generation}, not {event.generation}"
        if (slot.state, type(event)) not in TRANSITIONS:
            return f"slot {event.slot} is {slot.state.value}"
        if isinstance(event, Unpin) and not slot.pins[event.owner]:
            return f"owner {event.owner} has no pin on slot {event.slot}"
        if isinstance(event, BeginRead) and slot.tokens and event.mode is not slot.mode:
            return f"slot {event.slot} is being read to {slot.mode.value}, not to {event.mode.value}"
        if isinstance(event, MarkConsumed | ReleaseReading):
            return self._objection_to_end(event, slot)
        return ""

    @staticmethod
    def _objection_to_end(event: MarkConsumed | ReleaseReading, slot: Slot) -> str:
        if event.token not in slot.tokens:
            return f"token {event.token} is not valid for slot {event.slot}"
        if isinstance(event, MarkConsumed) and slot.mode is not Mode.CONSUME:
            return f"slot {event.slot} is read to retain, not to consume"
        return ""

    def _book(self, event: SlotEvent, slot: Slot) -> list[Effect]:
        """Enter a pin or a token that comes or goes."""
        if isinstance(event, Pin):
            self._pin(event.slot, slot, event.owner)
        elif isinstance(event, Unpin):
            self._unpin(event.slot, slot, event.owner, 1)
        elif isinstance(event, BeginRead):
            return [self._admit(event, slot)]
        elif isinstance(event, MarkConsumed | ReleaseReading):
            self._end_token(event.slot, slot, event.token)
        return []

    def _admit(self, event: BeginRead, slot: Slot) -> Admitted:
        superseded = next(iter(slot.tokens), 0) if event.mode is Mode.CONSUME else 0
        if superseded:
            self._superseded += 1
            self._end_token(event.slot, slot, superseded)
        token = self._next_token
        self._next_token += 1
        slot.mode = event.mode
        slot.tokens[token] = event.reader
        self._tokens += 1
        self._hold(event.reader, event.slot)
        return Admitted(event.slot, slot.generation, token, superseded)

    def _end_token(self, number: int, slot: Slot, token: int) -> None:
        reader = slot.tokens.pop(token)
        self._tokens -= 1
        self._let_go(reader, number, slot)

    def _move(self, number: int, slot: Slot, kind: type[Event], now: float) -> list[Effect]:
        read, pinned, unheld = TRANSITIONS[slot.state, kind]
        after = read if slot.tokens else pinned if slot.pins else unheld
        if after is slot.state:
            return []
        before, slot.state, slot.since = slot.state, after, now
        self._states[before] -= 1
        if before is State.WRITING:
            self._let_go(slot.owner, number, slot)
        if after is not State.FREE:
            self._states[after] += 1
            return []
        del self._slots[number]
        return [Freed(number, slot.generation)]

    def _pin(self, number: int, slot: Slot, owner: int) -> None:
        slot.pins[owner] += 1
        self._pins += 1
        self._hold(owner, number)

    def _unpin(self, number: int, slot: Slot, owner: int, count: int) -> None:
        self._pins -= count
        slot.pins[owner] -= count
        if not slot.pins[owner]:
            del slot.pins[owner]
            self._let_go(owner, number, slot)

    def _hold(self, owner: int, number: int) -> None:
        self._held.setdefault(owner, set()).add(number)

    def _let_go(self, owner: int, number: int, slot: Slot) -> None:
        """``owner`` has one hold less on the slot; if it was the last, nothing of the slot is its own any more."""
        if owner in slot.holders():
            return
        held = self._held[owner]
        held.discard(number)
        if not held:
            del self._held[owner]

    def _owner_gone(self, event: OwnerGone, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for number in sorted(self._held.get(event.owner, ())):
            slot = self._slots[number]
            if slot.pins[event.owner]:
                self._unpin(number, slot, event.owner, slot.pins[event.owner])
            for token in [t for t, reader in slot.tokens.items() if reader == event.owner]:
                self._end_token(number, slot, token)
            effects += self._move(number, slot, OwnerGone, now)
        return effects
