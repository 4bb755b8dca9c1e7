"""The slot machine: every short history of two owners and two slots, and what each event may and may not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.payload.slots import (
    TRANSITIONS,
    Abandon,
    Admitted,
    BeginRead,
    Event,
    Fill,
    Freed,
    Grant,
    Granted,
    Ignored,
    MarkConsumed,
    Mode,
    OwnerGone,
    Pin,
    ReleaseReading,
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
    "event",
    [
        Grant(0, B),
        Fill(0, 1),
        Abandon(0, 1),
        Pin(0, 1, A),
        Unpin(0, 1, A),
        BeginRead(0, 1, Mode.RETAIN, B),
        ReleaseReading(0, 1, 1),
        MarkConsumed(0, 1, 1),
        RowsGone(0, 1),
    ],
)
def test_what_the_table_does_not_know_is_counted_and_ignored(state: State, event: Event) -> None:
    """Each (state, event) either has an entry or leaves the state as it was."""
    slots = Slots() if state is State.FREE else ready()
    if state is State.WRITING:
        slots = Slots()
        slots.handle(Grant(0, A))
    if state in (State.READY, State.READING, State.CONDEMNED):
        slots.handle(Pin(0, 1, A))
    mode = Mode.CONSUME if isinstance(event, MarkConsumed) else Mode.RETAIN
    if state in (State.READING, State.CONDEMNED):
        slots.handle(BeginRead(0, 1, mode, A))
    if state is State.CONDEMNED:
        slots.handle(RowsGone(0, 1))
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


# -- reading ----------------------------------------------------------------------------------------------------------


def begun(slots: Slots, mode: Mode, reader: int = A, generation: int = 1) -> int:
    """Begin to read slot 0; return the token."""
    (admitted,) = slots.handle(BeginRead(0, generation, mode, reader))
    assert isinstance(admitted, Admitted)
    return admitted.token


def is_ignored(slots: Slots, event: Event, why: str) -> bool:
    """Whether the event changes nothing but the count of such events, and says why."""
    before, seen = slots.statistics(), slots.state_of(0)
    (answer,) = slots.handle(event)
    after = slots.statistics()
    assert isinstance(answer, Ignored)
    assert why in answer.why
    slots.check_invariants()
    return slots.state_of(0) is seen and replace(after, ignored=before.ignored) == before


def test_consuming_frees_the_slot_and_releasing_makes_it_ready_again() -> None:
    """READY, READING, and then one of the two, by the attempt's own word."""
    slots = ready()
    token = begun(slots, Mode.CONSUME)
    assert (slots.state_of(0), slots.get_ready_count()) == (State.READING, 0)
    assert slots.handle(ReleaseReading(0, 1, token)) == []
    assert (slots.state_of(0), slots.get_ready_count()) == (State.READY, 1)
    assert slots.handle(MarkConsumed(0, 1, begun(slots, Mode.CONSUME))) == [Freed(0, 1)]
    assert slots.state_of(0) is State.FREE


def test_beginning_again_supersedes_and_the_orphan_only_warns() -> None:
    """In consume mode one token is valid: the newest."""
    slots = ready()
    orphan = begun(slots, Mode.CONSUME, A)
    (admitted,) = slots.handle(BeginRead(0, 1, Mode.CONSUME, B))
    assert admitted == Admitted(0, 1, orphan + 1, superseded=orphan)
    assert slots.tokens_of(0) == {orphan + 1}
    assert is_ignored(slots, ReleaseReading(0, 1, orphan), "token 1 is not valid")
    assert is_ignored(slots, MarkConsumed(0, 1, orphan), "token 1 is not valid")
    assert slots.handle(MarkConsumed(0, 1, orphan + 1)) == [Freed(0, 1)]
    assert is_ignored(slots, ReleaseReading(0, 1, orphan), "is free")
    assert slots.statistics().superseded == 1


def test_a_late_end_cannot_undo_a_writers_use_of_the_slot() -> None:
    """The orphan's slot has been consumed, granted, filled and is being read anew: its end is another generation's."""
    slots = ready()
    orphan = begun(slots, Mode.CONSUME)
    slots.handle(MarkConsumed(0, 1, begun(slots, Mode.CONSUME)))
    slots.handle(Grant(0, B))
    for event in (ReleaseReading(0, 1, orphan), MarkConsumed(0, 1, orphan)):
        assert is_ignored(slots, event, "generation 2, not 1")
        assert is_ignored(slots, replace(event, generation=2), "is writing")
    slots.handle(Fill(0, 2))
    begun(slots, Mode.CONSUME, generation=2)
    for event in (ReleaseReading(0, 1, orphan), MarkConsumed(0, 1, orphan)):
        assert is_ignored(slots, event, "generation 2, not 1")
        assert is_ignored(slots, replace(event, generation=2), "token 1 is not valid")


def test_a_token_ends_once() -> None:
    """The second end of one attempt changes nothing, be the slot ready, read by another or free."""
    slots = ready()
    token = begun(slots, Mode.CONSUME)
    slots.handle(ReleaseReading(0, 1, token))
    assert is_ignored(slots, ReleaseReading(0, 1, token), "is ready")
    assert is_ignored(slots, MarkConsumed(0, 1, token), "is ready")
    begun(slots, Mode.CONSUME)
    assert is_ignored(slots, MarkConsumed(0, 1, token), "not valid")


def test_many_may_read_what_is_retained() -> None:
    """The slot is ready again with the last of them, in whatever order they end; none of them consumes."""
    slots = ready()
    first, second, third = (begun(slots, Mode.RETAIN, reader) for reader in (A, A, B))
    assert is_ignored(slots, MarkConsumed(0, 1, first), "to retain, not to consume")
    for token in (second, third):
        assert slots.handle(ReleaseReading(0, 1, token)) == []
        assert slots.state_of(0) is State.READING
    assert slots.handle(ReleaseReading(0, 1, first)) == []
    assert slots.state_of(0) is State.READY


@pytest.mark.parametrize("mode", list(Mode))
def test_one_mode_at_a_time(mode: Mode) -> None:
    """While a slot is read in one mode it cannot be read in the other; afterwards it can."""
    other = Mode.RETAIN if mode is Mode.CONSUME else Mode.CONSUME
    slots = ready()
    token = begun(slots, mode)
    assert is_ignored(slots, BeginRead(0, 1, other, B), f"to {mode.value}, not to {other.value}")
    slots.handle(ReleaseReading(0, 1, token))
    begun(slots, other)


def test_a_slot_that_is_read_or_pinned_is_not_free() -> None:
    """Rows go, pins go, tokens go: only the last of them frees the slot, whichever it is."""
    for last in ("token", "pin"):
        slots = ready()
        token = begun(slots, Mode.RETAIN)
        slots.handle(Pin(0, 1, B))
        assert slots.handle(RowsGone(0, 1)) == []
        assert slots.state_of(0) is State.CONDEMNED
        assert is_ignored(slots, BeginRead(0, 1, Mode.RETAIN, B), "is condemned")
        ends: list[Event] = [Unpin(0, 1, B), ReleaseReading(0, 1, token)]
        if last == "pin":
            ends.reverse()
        assert slots.handle(ends[0]) == []
        assert slots.handle(ends[1]) == [Freed(0, 1)]


def test_what_is_consumed_under_a_pin_stays_until_the_pin_goes() -> None:
    """A view of this host outlives the reader that consumed its block."""
    slots = ready()
    slots.handle(Pin(0, 1, B))
    assert slots.handle(MarkConsumed(0, 1, begun(slots, Mode.CONSUME))) == []
    assert slots.state_of(0) is State.CONDEMNED
    assert slots.handle(Unpin(0, 1, B)) == [Freed(0, 1)]


def test_consuming_what_has_lost_its_rows_meanwhile_frees_it() -> None:
    """The reader was not the only one who is done with it."""
    slots = ready()
    token = begun(slots, Mode.CONSUME)
    slots.handle(RowsGone(0, 1))
    assert slots.handle(MarkConsumed(0, 1, token)) == [Freed(0, 1)]


def test_the_tokens_of_a_dead_process_leave_the_set() -> None:
    """Of a slot that others read too nothing else changes; one that only it read is ready, or free if condemned."""
    slots = Slots()
    for number in range(3):
        slots.handle(Grant(number, B))
        slots.handle(Fill(number, number + 1))
        slots.handle(BeginRead(number, number + 1, Mode.RETAIN, A))
    slots.handle(BeginRead(0, 1, Mode.RETAIN, B))
    slots.handle(RowsGone(2, 3))
    assert slots.handle(OwnerGone(A)) == [Freed(2, 3)]
    assert [slots.state_of(number) for number in range(3)] == [State.READING, State.READY, State.FREE]
    slots.check_invariants()
    assert is_ignored(slots, ReleaseReading(0, 1, 1), "token 1 is not valid")


def test_the_ready_count_is_right_after_slots_were_used_again() -> None:
    """It counts READY slots alone, through wraps, reads and consumption."""
    slots = Slots()
    for life in range(3):
        for number in range(4):
            slots.handle(Grant(number, A))
        assert slots.get_ready_count() == 0
        for number in range(4):
            slots.handle(Fill(number, 4 * life + number + 1))
        slots.handle(BeginRead(0, 4 * life + 1, Mode.CONSUME, B))
        slots.handle(BeginRead(1, 4 * life + 2, Mode.CONSUME, B))
        assert slots.get_ready_count() == 2, "those being read are not ready"
        slots.handle(MarkConsumed(0, 4 * life + 1, 2 * life + 1))
        slots.handle(ReleaseReading(1, 4 * life + 2, 2 * life + 2))
        assert slots.get_ready_count() == 3
        for number in range(1, 4):
            slots.handle(RowsGone(number, 4 * life + number + 1))
        assert slots.get_ready_count() == 0
        slots.check_invariants()


def reads(slots: Slots) -> list[Event]:
    """Every way in which two readers can begin and end, now and late."""
    events: list[Event] = []
    for slot in (0, 1):
        known = slots._slots.get(slot)
        for generation in {1, known.generation if known else 1}:
            events += [BeginRead(slot, generation, mode, reader) for mode in Mode for reader in (A, B)]
            for token in {1, slots._next_token - 1, *slots.tokens_of(slot)}:
                events += [ReleaseReading(slot, generation, token), MarkConsumed(slot, generation, token)]
    return events


@given(st.lists(st.integers(0, 10**6), max_size=200))
def test_any_history_keeps_the_books(choices: list[int]) -> None:
    """Ready slots are counted one by one; generations only grow."""
    slots = Slots()
    newest = 0
    for choice in choices:
        options = [*moves(slots), *reads(slots)]
        for effect in slots.handle(options[choice % len(options)], float(choice)):
            if isinstance(effect, Granted):
                assert effect.generation > newest
                newest = effect.generation
        slots.check_invariants()
        assert slots.get_ready_count() == sum(slots.state_of(n) is State.READY for n in (0, 1))
