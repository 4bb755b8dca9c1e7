"""The slot machine: when a piece of the arena may be written, read and used again.

    FREE --Grant--> WRITING --Fill--> READY --RowsGone--> FREE, or CONDEMNED while pins are out --last Unpin--> FREE

Invariants: a slot is FREE only when no writer and no pin is out; a generation is 64 bits and never given twice; an
event with a stale generation, or one that the table does not know, changes nothing and is answered by ``Ignored`` and
counted. ``Abandon`` is the writer's own word that it will not write any more; ``OwnerGone`` the kernel's that it is
dead; silence is neither. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias


class State(Enum):
    FREE = "free"
    WRITING = "writing"
    READY = "ready"
    CONDEMNED = "condemned"  # its rows are gone, its pins are not


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
class RowsGone:
    """No row refers to the slot any more."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class OwnerGone:
    """The kernel says that ``owner``'s process is dead: its grants and pins end."""

    owner: int


SlotEvent: TypeAlias = Fill | Abandon | Pin | Unpin | RowsGone
Event: TypeAlias = Grant | SlotEvent | OwnerGone


@dataclass(frozen=True, slots=True)
class Granted:
    slot: int
    generation: int


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


Effect: TypeAlias = Granted | Freed | Ignored

# (state, event) -> the state that follows while pins are out, and the one without. What is missing is ignored.
TRANSITIONS: dict[tuple[State, type[Event]], tuple[State, State]] = {
    (State.FREE, Grant): (State.WRITING, State.WRITING),
    (State.WRITING, Fill): (State.READY, State.READY),
    (State.WRITING, Abandon): (State.FREE, State.FREE),
    (State.WRITING, OwnerGone): (State.FREE, State.FREE),
    (State.READY, Pin): (State.READY, State.READY),
    (State.READY, Unpin): (State.READY, State.READY),
    (State.READY, OwnerGone): (State.READY, State.READY),
    (State.READY, RowsGone): (State.CONDEMNED, State.FREE),
    (State.CONDEMNED, Unpin): (State.CONDEMNED, State.FREE),
    (State.CONDEMNED, OwnerGone): (State.CONDEMNED, State.FREE),
}


@dataclass(slots=True)
class Slot:
    """A slot that is not free. ``since``: when its state last changed, by the caller's clock."""

    state: State
    generation: int
    owner: int
    since: float
    pins: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    writing: int
    ready: int
    condemned: int
    pins: int
    ignored: int


class Slots:
    """The slots of one arena. A slot is named by a number of the caller's; one never heard of is FREE."""

    def __init__(self, first_generation: int = 1) -> None:
        self._slots: dict[int, Slot] = {}
        self._held: dict[int, set[int]] = {}  # owner -> the slots it writes or pins
        self._next_generation = first_generation
        self._states: Counter[State] = Counter()
        self._pins = 0
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
        if isinstance(event, Pin):
            self._pin(event.slot, slot, event.owner)
        elif isinstance(event, Unpin):
            self._unpin(event.slot, slot, event.owner, 1)
        return self._move(event.slot, slot, type(event), now)

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

    def statistics(self) -> SlotStatistics:
        states = self._states
        return SlotStatistics(
            states[State.WRITING], states[State.READY], states[State.CONDEMNED], self._pins, self._ignored
        )

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant."""
        assert +Counter(s.state for s in self._slots.values()) == +self._states, "states are miscounted"
        assert sum(s.pins.total() for s in self._slots.values()) == self._pins, "pins are miscounted"
        generations = [s.generation for s in self._slots.values()]
        assert len(set(generations)) == len(generations), "a generation was given twice"
        assert all(g < self._next_generation for g in generations), "a generation from the future"
        for slot in self._slots.values():
            assert slot.state is not State.FREE, "a free slot is kept"
            assert min(slot.pins.values(), default=1) > 0, "a pin is counted below one"
            assert slot.state is not State.WRITING or not slot.pins, "a slot being written is pinned"
            assert slot.state is not State.CONDEMNED or slot.pins, "a condemned slot has no pin to wait for"
        held = {(o, n) for n, s in self._slots.items() for o in [*s.pins, *self._writer(s)]}
        assert held == {(o, n) for o, slots in self._held.items() for n in slots}, "holdings are out of step"

    @staticmethod
    def _writer(slot: Slot) -> list[int]:
        return [slot.owner] if slot.state is State.WRITING else []

    def _grant(self, event: Grant, slot: Slot | None, now: float) -> list[Effect]:
        if slot is not None:
            self._ignored += 1
            return [Ignored(event, f"slot {event.slot} is {slot.state.value}, not free")]
        generation = self._next_generation
        self._next_generation += 1
        state = TRANSITIONS[State.FREE, Grant][1]
        self._slots[event.slot] = Slot(state, generation, event.owner, now)
        self._states[state] += 1
        self._held.setdefault(event.owner, set()).add(event.slot)
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
        return ""

    def _move(self, number: int, slot: Slot, kind: type[Event], now: float) -> list[Effect]:
        pinned, unpinned = TRANSITIONS[slot.state, kind]
        after = pinned if slot.pins else unpinned
        if after is slot.state:
            return []
        if slot.state is State.WRITING:
            self._let_go(slot.owner, number)
        self._states[slot.state] -= 1
        slot.state, slot.since = after, now
        if after is not State.FREE:
            self._states[after] += 1
            return []
        del self._slots[number]
        return [Freed(number, slot.generation)]

    def _pin(self, number: int, slot: Slot, owner: int) -> None:
        slot.pins[owner] += 1
        self._pins += 1
        self._held.setdefault(owner, set()).add(number)

    def _unpin(self, number: int, slot: Slot, owner: int, count: int) -> None:
        self._pins -= count
        slot.pins[owner] -= count
        if not slot.pins[owner]:
            del slot.pins[owner]
            self._let_go(owner, number)

    def _let_go(self, owner: int, number: int) -> None:
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
            effects += self._move(number, slot, OwnerGone, now)
        return effects
