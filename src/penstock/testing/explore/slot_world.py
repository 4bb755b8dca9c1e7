"""A slot's whole world, small: a writer, readers with handlers that may be late, deaths, and the bytes themselves.

Each action is one event to the real machine, whose answer must be the model's: changed or ignored, the same state,
tokens, pins and ready count, freed exactly when nobody needs or holds it. Besides, whatever the model thinks: a valid
token is ended at most once, and a handler with a valid token never sends bytes of another generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from penstock.payload.slots import (
    Abandon,
    Admitted,
    BeginRead,
    Effect,
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
from penstock.testing.explore.slot_model import ModelSlot

__all__ = ["Action", "MakeSlots", "SlotDisagreement", "SlotShape", "SlotWorld"]

Action: TypeAlias = tuple[Any, ...]
MakeSlots: TypeAlias = Callable[[], Slots]

WRITER = 1
READERS = (2, 3)
_SLOT = 7  # any number
_MODES = {mode.value: mode for mode in Mode}


class SlotDisagreement(AssertionError):
    """The machine and what is expected of it part here."""


@dataclass(frozen=True, slots=True)
class SlotShape:
    """How much may happen. ``deaths``: of the writer and the readers; ``lates``: ends told once more, later."""

    name: str
    grants: int
    attempts: int
    pins: int = 0
    deaths: int = 0
    lates: int = 1
    modes: tuple[str, ...] = ("consume", "retain")


@dataclass(slots=True)
class Attempt:
    """A handler's read attempt. ``sent``: the generation of the bytes that it sent, None = it has not."""

    reader: int
    generation: int
    mode: Mode
    token: int
    sent: int | None = None
    ended: bool = False
    effective: int = 0


class SlotWorld:
    """Args: shape: what may happen; make_slots: the machine, real or with a bug in it."""

    def __init__(self, shape: SlotShape, make_slots: MakeSlots = Slots) -> None:
        self.slots = make_slots()
        self.model = ModelSlot()
        self.attempts: list[Attempt] = []
        self._shape = shape
        self._bytes = 0  # the generation that lies in the slot; -1 = it is being written
        self._grants = self._pins = self._deaths = self._lates = 0
        self._known = 1  # of the readers, which are alike: the second comes after the first

    # -- what may happen next -----------------------------------------------------------------------------------------

    def enabled(self) -> Iterator[Action]:
        """Every action, the late and the wrong ones too."""
        yield from self._writes()
        for generation in range(1, self.model.generation + 1):
            yield ("rows gone", generation)
            yield from self._reads(generation)
        for number, attempt in enumerate(self.attempts):
            yield from self._handles(number, attempt)
        if self._deaths < self._shape.deaths:
            yield from (("dies", owner) for owner in (WRITER, *READERS[: self._known]))

    def _writes(self) -> Iterator[Action]:
        if self._grants < self._shape.grants:
            yield ("grant",)
        for generation in range(1, self.model.generation + 1):
            yield ("fill", generation)
            yield ("abandon", generation)

    def _reads(self, generation: int) -> Iterator[Action]:
        for reader in READERS[: self._known]:
            if self._pins < self._shape.pins:
                yield ("pin", generation, reader)
            if self._shape.pins:
                yield ("unpin", generation, reader)
            if len(self.attempts) < self._shape.attempts:
                yield from (("begin", generation, reader, mode) for mode in self._shape.modes)

    def _handles(self, number: int, attempt: Attempt) -> Iterator[Action]:
        if attempt.ended and self._lates >= self._shape.lates:
            return
        if not attempt.ended and attempt.sent is None:
            yield ("send", number)
        if attempt.ended or attempt.sent == attempt.generation:  # who got the right bytes acknowledges, or does not
            yield ("consumed", number)
        yield ("released", number)

    # -- doing it -----------------------------------------------------------------------------------------------------

    def apply(self, action: Action, *, checked: bool = True) -> None:
        """Take one step; raise ``SlotDisagreement`` if it broke something. Not ``checked``: it is known not to."""
        verb, *rest = action
        getattr(self, "_do_" + verb.replace(" ", "_"))(*rest)
        if checked:
            self._compare(action)

    def _do_grant(self) -> None:
        free = self.model.state is State.FREE
        effects = self._tell(Grant(_SLOT, WRITER), accepted=free)
        if not free:
            return
        self._grants += 1
        granted = _only(effects, Granted)
        _must(granted.generation > self.model.generation, "a new generation", granted)
        self.model.grant(granted.generation, WRITER)
        self._bytes = -1

    def _do_fill(self, generation: int) -> None:
        accepted = self.model.may_be_written(generation)
        self._tell(Fill(_SLOT, generation), accepted=accepted)
        if accepted:
            self.model.writer, self.model.filled = 0, True
            self._bytes = generation

    def _do_abandon(self, generation: int) -> None:
        accepted = self.model.may_be_written(generation)
        self.model.writer = 0 if accepted else self.model.writer
        self._tell(Abandon(_SLOT, generation), accepted=accepted, freed=accepted)

    def _do_rows_gone(self, generation: int) -> None:
        accepted = self.model.may_be_held(generation)
        self.model.needed = self.model.needed and not accepted
        self._tell(RowsGone(_SLOT, generation), accepted=accepted, freed=accepted and not self.model.held)

    def _do_pin(self, generation: int, reader: int) -> None:
        accepted = self.model.may_be_held(generation)
        self._tell(Pin(_SLOT, generation, reader), accepted=accepted)
        self.model.pins[reader] += accepted
        self._pins += accepted
        self._known = len(READERS) if accepted else self._known

    def _do_unpin(self, generation: int, reader: int) -> None:
        accepted = self.model.may_be_unpinned(generation, reader)
        self.model.pins[reader] -= accepted
        self._tell(Unpin(_SLOT, generation, reader), accepted=accepted, freed=accepted and self._is_free())

    def _do_begin(self, generation: int, reader: int, mode_name: str) -> None:
        mode = _MODES[mode_name]
        accepted = self.model.may_be_read(generation, mode)
        effects = self._tell(BeginRead(_SLOT, generation, mode, reader), accepted=accepted)
        if not accepted:
            return
        admitted = _only(effects, Admitted)
        _must(admitted.token not in {a.token for a in self.attempts}, "a token never given before", admitted)
        superseded = self.model.begin(admitted.token, reader, mode)
        _must(admitted.superseded == superseded, f"token {superseded} superseded", admitted)
        self.attempts.append(Attempt(reader, generation, mode, admitted.token))
        self._known = len(READERS)

    def _do_send(self, number: int) -> None:
        """The handler sends what lies in the slot now; the reader checks it."""
        attempt = self.attempts[number]
        attempt.sent = self._bytes
        if attempt.generation == self.model.generation and attempt.token in self.model.tokens:
            _must(self._bytes == attempt.generation, f"bytes of generation {attempt.generation}", self._bytes)

    def _do_consumed(self, number: int) -> None:
        attempt = self.attempts[number]
        self._end(attempt, MarkConsumed(_SLOT, attempt.generation, attempt.token), consumed=True)

    def _do_released(self, number: int) -> None:
        attempt = self.attempts[number]
        self._end(attempt, ReleaseReading(_SLOT, attempt.generation, attempt.token), consumed=False)

    def _end(self, attempt: Attempt, event: Event, *, consumed: bool) -> None:
        self._lates += attempt.ended
        accepted = self.model.may_be_let_go(attempt.generation, attempt.token, consumed=consumed)
        if accepted:
            self.model.end(attempt.token, consumed=consumed)
        effects = self._tell(event, accepted=accepted, freed=accepted and self._is_free())
        attempt.effective += not any(isinstance(effect, Ignored) for effect in effects)
        _must(attempt.effective <= 1, "one end that counts", attempt)
        attempt.ended = attempt.ended or accepted or not (consumed and attempt.mode is Mode.RETAIN)

    def _do_dies(self, owner: int) -> None:
        """The kernel says so. Handlers that served a dead reader find out later."""
        self._deaths += 1
        was_free = self._is_free()
        self.model.bury(owner)
        self._tell(OwnerGone(owner), accepted=True, freed=self._is_free() and not was_free)

    # -- the machine and what is expected of it -----------------------------------------------------------------------

    def _is_free(self) -> bool:
        return self.model.state is State.FREE

    def _tell(self, event: Event, *, accepted: bool, freed: bool = False) -> list[Effect]:
        effects = self.slots.handle(event)
        ignored = any(isinstance(effect, Ignored) for effect in effects)
        _must(ignored != accepted, "a change" if accepted else "no change", effects)
        gone = [effect for effect in effects if isinstance(effect, Freed)]
        wanted = [Freed(_SLOT, self.model.generation)] if freed else []
        _must(gone == wanted, "the slot freed" if freed else "nothing freed", effects)
        return effects

    def _compare(self, action: Action) -> None:
        model, slots = self.model, self.slots
        what = " ".join(map(str, action))
        _must(slots.state_of(_SLOT) is model.state, f"{model.state.value} after {what}", slots.state_of(_SLOT))
        _must(slots.tokens_of(_SLOT) == model.tokens.keys(), f"tokens {[*model.tokens]}", slots.tokens_of(_SLOT))
        _must(slots.pins_of(_SLOT) == model.pins.total(), f"{model.pins.total()} pins", slots.pins_of(_SLOT))
        ready = int(model.state is State.READY)
        _must(slots.get_ready_count() == ready, f"{ready} ready", slots.get_ready_count())
        _must(not (model.state is State.FREE and model.held), "no token and no pin on a free slot", model)
        slots.check_invariants()

    def canonical(self) -> object:
        """What decides all that can follow."""
        model = self.model
        facts = (model.generation, model.writer, model.filled, model.needed, model.mode, self._bytes)
        held = (tuple(sorted((+model.pins).items())), tuple(sorted(model.tokens.items())))
        attempts = tuple((a.reader, a.generation, a.mode, a.token, a.sent, a.ended, a.effective) for a in self.attempts)
        return facts, held, attempts, (self._grants, self._pins, self._deaths, self._lates, self._known)


def _only(effects: list[Effect], kind: type[Any]) -> Any:
    _must(len(effects) == 1 and isinstance(effects[0], kind), f"one {kind.__name__}", effects)
    return effects[0]


def _must(holds: bool, expected: object, got: object) -> None:
    if not holds:
        raise SlotDisagreement(f"expected {expected}, got {got}")
