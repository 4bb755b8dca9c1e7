"""What the slot machine's rules say, as facts small enough to be read: the slot explorer's reference.

A slot's state is not stored here: it follows from who writes, who reads, who pins, and whether its rows are needed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from penstock.payload.slots import Mode, State

__all__ = ["ModelSlot"]


@dataclass(slots=True)
class ModelSlot:
    """One slot.

    Attributes:
        generation: of what lies in it, or lay in it last.
        writer: who may write to it; 0 = nobody.
        filled: the writer has said that it is done.
        needed: neither have its rows gone, nor has it been consumed.
        pins: by reader; tokens: of valid attempts, with their readers; mode: how these attempts read.
    """

    generation: int = 0
    writer: int = 0
    filled: bool = False
    needed: bool = False
    pins: Counter[int] = field(default_factory=Counter)
    tokens: dict[int, int] = field(default_factory=dict)
    mode: Mode = Mode.RETAIN

    @property
    def held(self) -> bool:
        """Whether somebody may still look at its bytes."""
        return bool(self.tokens) or self.pins.total() > 0

    @property
    def state(self) -> State:
        """What the machine must call it."""
        if self.writer:
            return State.WRITING
        if self.filled and self.needed:
            return State.READING if self.tokens else State.READY
        return State.CONDEMNED if self.filled and self.held else State.FREE

    # -- whether an event may change anything -------------------------------------------------------------------------

    def may_be_written(self, generation: int) -> bool:
        """By a writer who says that it has, or will not."""
        return self.writer != 0 and generation == self.generation

    def may_be_held(self, generation: int) -> bool:
        """By one more pin, or be given up by its rows."""
        return self.filled and self.needed and generation == self.generation

    def may_be_read(self, generation: int, mode: Mode) -> bool:
        """By one more attempt."""
        return self.may_be_held(generation) and (not self.tokens or mode is self.mode)

    def may_be_let_go(self, generation: int, token: int, *, consumed: bool) -> bool:
        """By the attempt under ``token``."""
        return generation == self.generation and token in self.tokens and (not consumed or self.mode is Mode.CONSUME)

    def may_be_unpinned(self, generation: int, reader: int) -> bool:
        """By one of the reader's pins."""
        return generation == self.generation and self.pins[reader] > 0

    # -- what then follows --------------------------------------------------------------------------------------------

    def grant(self, generation: int, writer: int) -> None:
        self.generation, self.writer, self.filled, self.needed = generation, writer, False, True

    def begin(self, token: int, reader: int, mode: Mode) -> int:
        """Admit the attempt; return the token that it supersedes, 0 = none."""
        superseded = 0
        if mode is Mode.CONSUME and self.tokens:
            ((superseded, _),) = self.tokens.items()
            self.tokens.clear()
        self.tokens[token] = reader
        self.mode = mode
        return superseded

    def end(self, token: int, *, consumed: bool) -> None:
        del self.tokens[token]
        self.needed = self.needed and not consumed

    def bury(self, owner: int) -> None:
        """The owner's process is dead."""
        if self.writer == owner:
            self.writer = 0
        del self.pins[owner]
        self.tokens = {token: reader for token, reader in self.tokens.items() if reader != owner}
