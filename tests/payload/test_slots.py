"""The slot machine: every short history of two owners and two slots, and what each event may and may not do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.payload.slots import (
    TRANSITIONS,
    Abandon,
    BeginRead,
    Event,
    Fill,
    Freed,
    Grant,
    Granted,
    Ignored,
    Mode,
    OwnerGone,
    Pin,
    RowsGone,
    Slots,
    State,
    Unpin,
)

A, B = 1, 2


def ready(owner: int = A) -> Slots:
    slots = Slots()
    assert slots.handle(Grant(0, owner)) == [Granted(0, 1)]
    assert slots.handle(Fill(0, 1)) == []
    return slots


def test_a_slot_goes_round() -> None:
    """FREE, WRITING, READY, FREE; the next grant has a new generation."""
    slots = ready()
    assert slots.state_of(0) is State.READY
    assert slots.handle(RowsGone(0, 1)) == [Freed(0, 1)]
    assert slots.state_of(0) is State.FREE
    assert slots.handle(Grant(0, B)) == [Granted(0, 2)]


def test_a_pinned_slot_outlives_its_rows_until_the_last_pin_goes() -> None:
    """CONDEMNED: not ready, not free, and not to be pinned again."""
    slots = ready()
    for owner in (A, B, B):
        assert slots.handle(Pin(0, 1, owner)) == []
    assert slots.handle(RowsGone(0, 1)) == []
    assert (slots.state_of(0), slots.get_ready_count(), slots.pins_of(0)) == (State.CONDEMNED, 0, 3)
    assert isinstance(slots.handle(Pin(0, 1, A))[0], Ignored)
    assert slots.handle(Unpin(0, 1, B)) == []
    assert slots.handle(Unpin(0, 1, A)) == []
    assert slots.handle(Unpin(0, 1, B)) == [Freed(0, 1)]


def test_only_the_owners_death_takes_a_slot_from_its_writer() -> None:
    """A slot being written is not freed by rows, pins or others' deaths."""
    slots = Slots()
    slots.handle(Grant(0, A))
    for event in (RowsGone(0, 1), Unpin(0, 1, A), Pin(0, 1, A), OwnerGone(B), Grant(0, B)):
        assert not any(isinstance(effect, Freed | Granted) for effect in slots.handle(event))
    assert slots.state_of(0) is State.WRITING
    assert slots.handle(OwnerGone(A)) == [Freed(0, 1)]


def test_a_dead_process_loses_its_pins_and_grants_and_nothing_else() -> None:
    """What it wrote stays; what only it had pinned goes; what others pinned stays."""
    slots = Slots()
    for slot in range(4):
        slots.handle(Grant(slot, A))
    for slot in (0, 1, 2):
        slots.handle(Fill(slot, slot + 1))
    for slot, owner in ((1, A), (1, A), (2, A), (2, B)):
        slots.handle(Pin(slot, slot + 1, owner))
    for slot in (1, 2):
        slots.handle(RowsGone(slot, slot + 1))
    assert slots.handle(OwnerGone(A)) == [Freed(1, 2), Freed(3, 4)]
    assert [slots.state_of(n) for n in range(4)] == [State.READY, State.FREE, State.CONDEMNED, State.FREE]
    assert slots.pins_of(2) == 1


@pytest.mark.parametrize("event", [Fill(0, 1), Abandon(0, 1), Pin(0, 1, A), Unpin(0, 1, A), RowsGone(0, 1)])
def test_a_stale_generation_changes_nothing(event: Event) -> None:
    """A late event of an earlier life of the slot cannot undo the next writer's."""
    slots = ready()
    slots.handle(RowsGone(0, 1))
    slots.handle(Grant(0, B))
    (answer,) = slots.handle(event)
    assert isinstance(answer, Ignored)
    assert "generation 2, not 1" in answer.why
    assert (slots.state_of(0), slots.statistics().ignored) == (State.WRITING, 1)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize(
    "event", [Grant(0, B), Fill(0, 1), Abandon(0, 1), Pin(0, 1, A), Unpin(0, 1, A), RowsGone(0, 1)]
)
def test_what_the_table_does_not_know_is_counted_and_ignored(state: State, event: Event) -> None:
    """Each (state, event) either has an entry or leaves the state as it was."""
    slots = Slots() if state is State.FREE else ready()
    if state is State.WRITING:
        slots = Slots()
        slots.handle(Grant(0, A))
    if state is State.CONDEMNED:
        slots.handle(Pin(0, 1, A))
        slots.handle(RowsGone(0, 1))
    if state in (State.READY, State.READING):
        slots.handle(Pin(0, 1, A))
    if state is State.READING:
        slots.handle(BeginRead(0, 1, Mode.RETAIN, A))
    assert slots.state_of(0) is state
    effects = slots.handle(event)
    if (state, type(event)) in TRANSITIONS:
        assert not any(isinstance(effect, Ignored) for effect in effects)
    else:
        assert (slots.state_of(0), slots.statistics().ignored) == (state, 1)
        assert isinstance(effects[0], Ignored)


def moves(slots: Slots) -> list[Event]:
    """Every event that two owners can send about two slots, the current and the first generation of each."""
    events: list[Event] = [OwnerGone(A), OwnerGone(B)]
    for slot in (0, 1):
        events += [Grant(slot, A), Grant(slot, B)]
        known = slots._slots.get(slot)
        for generation in {1, known.generation if known else 1}:
            events += [Fill(slot, generation), Abandon(slot, generation), RowsGone(slot, generation)]
            for owner in (A, B):
                events += [Pin(slot, generation, owner), Unpin(slot, generation, owner)]
    return events


def summary(slots: Slots) -> object:
    """What decides a machine's future: generations matter by whether they are the first."""
    return tuple(
        (n, s.state, s.generation == 1, s.owner if s.state is State.WRITING else 0, tuple(sorted(s.pins.items())))
        for n, s in sorted(slots._slots.items())
    )


def test_no_history_of_two_owners_and_two_slots_breaks_an_invariant() -> None:
    """Exhaustive to depth 8 over distinct states: invariants hold and nothing is freed with a pin or a writer in it."""
    import copy

    seen: set[object] = set()
    frontier = [Slots()]
    for _ in range(8):
        following = []
        for slots in frontier:
            for event in moves(slots):
                after = copy.deepcopy(slots)
                held = {n: (s.state, dict(s.pins)) for n, s in slots._slots.items()}
                for effect in after.handle(event):
                    if isinstance(effect, Freed):
                        state, pins = held[effect.slot]
                        gone = event.owner if isinstance(event, Unpin | OwnerGone) else 0
                        assert set(pins) <= {gone}, (event, held)
                        assert state is not State.WRITING or isinstance(event, Abandon | OwnerGone)
                after.check_invariants()
                if (key := summary(after)) not in seen and after.statistics().pins <= 3:
                    seen.add(key)
                    following.append(after)
        frontier = following
    assert len(seen) > 500


@given(st.lists(st.integers(0, 10**6), max_size=200))
def test_any_history_keeps_the_books(choices: list[int]) -> None:
    """Ready slots are counted one by one; generations only grow."""
    slots = Slots()
    newest = 0
    for choice in choices:
        options = moves(slots)
        for effect in slots.handle(options[choice % len(options)], float(choice)):
            if isinstance(effect, Granted):
                assert effect.generation > newest
                newest = effect.generation
        slots.check_invariants()
        assert slots.get_ready_count() == sum(slots.state_of(n) is State.READY for n in (0, 1))
