"""Bugs planted in the slot machine, from outside: the slot explorer must find each of them, or it proves nothing.

Each is a machine that is told something else than what was said, or that tells something else than what is.
"""

from __future__ import annotations

from dataclasses import replace

from penstock.payload.slots import (
    Admitted,
    BeginRead,
    Effect,
    Event,
    Grant,
    MarkConsumed,
    Mode,
    OwnerGone,
    ReleaseReading,
    RowsGone,
    Slot,
    Slots,
    State,
    Unpin,
)
from penstock.testing.explore.slot_world import MakeSlots

__all__ = ["PLANTED"]


class StateAlone(Slots):
    """Whether a read may be ended is decided by the slot's state, not by the token."""

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        if isinstance(event, MarkConsumed | ReleaseReading):
            valid = self.tokens_of(event.slot)
            event = event if event.token in valid or not valid else replace(event, token=min(valid))
        return super().handle(event, now)


class AnyGeneration(Slots):
    """An event is taken for the slot's present generation, whatever it says."""

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        if not isinstance(event, Grant | OwnerGone) and event.slot in self._slots:
            event = replace(event, generation=self._slots[event.slot].generation)
        return super().handle(event, now)


class CountsReading(Slots):
    """Slots that are being read are counted as ready."""

    def get_ready_count(self) -> int:
        return super().get_ready_count() + self._states[State.READING]


class OrphanReleases(Slots):
    """The end of a superseded read ends the one that superseded it."""

    def __init__(self) -> None:
        super().__init__()
        self._heirs: dict[int, int] = {}

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        if isinstance(event, MarkConsumed | ReleaseReading):
            event = replace(event, token=self._heirs.get(event.token, event.token))
        effects = super().handle(event, now)
        self._heirs |= {e.superseded: e.token for e in effects if isinstance(e, Admitted) and e.superseded}
        return effects


class FreesUnderReaders(Slots):
    """When its rows go, a slot is freed though it is being read."""

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        if isinstance(event, RowsGone) and event.slot in self._slots:
            for token in self.tokens_of(event.slot):
                super().handle(ReleaseReading(event.slot, event.generation, token), now)
        return super().handle(event, now)


class ConsumesUnderPins(Slots):
    """When it is consumed, a slot is freed though it is pinned."""

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        slot = self._slots.get(event.slot) if isinstance(event, MarkConsumed) else None
        if isinstance(event, MarkConsumed) and slot is not None and event.token in slot.tokens:
            for owner in list(slot.pins.elements()):
                super().handle(Unpin(event.slot, event.generation, owner), now)
        return super().handle(event, now)


class TheDeadRead(Slots):
    """The tokens of a process that has died stay valid."""

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        reads = isinstance(event, OwnerGone) and any(
            event.owner in slot.tokens.values() for slot in self._slots.values()
        )
        return [] if reads else super().handle(event, now)


class TwoConsume(Slots):
    """Beginning again in consume mode leaves the earlier token valid."""

    def _admit(self, event: BeginRead, slot: Slot) -> Admitted:
        admitted = super()._admit(replace(event, mode=Mode.RETAIN), slot)
        slot.mode = event.mode
        return admitted


class TokensAgain(Slots):
    """Each generation of a slot counts its tokens anew."""

    def _admit(self, event: BeginRead, slot: Slot) -> Admitted:
        if slot.state is State.READY:
            self._next_token = 1
        return super()._admit(event, slot)


class RetainedConsumed(Slots):
    """A read in retain mode may consume."""

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        if isinstance(event, MarkConsumed) and event.token in self.tokens_of(event.slot):
            self._slots[event.slot].mode = Mode.CONSUME
        return super().handle(event, now)


PLANTED: dict[str, MakeSlots] = {
    "a read is ended by state, without a token": StateAlone,
    "the generation of an event is not looked at": AnyGeneration,
    "slots being read count as ready": CountsReading,
    "an orphan's end ends its successor": OrphanReleases,
    "rows that go free a slot being read": FreesUnderReaders,
    "consuming frees a pinned slot": ConsumesUnderPins,
    "the tokens of the dead stay": TheDeadRead,
    "two reads may consume one slot": TwoConsume,
    "a token is given twice": TokensAgain,
    "a retained slot is consumed": RetainedConsumed,
}
