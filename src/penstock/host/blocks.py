"""One block of a host, and what may become of it: the table. Pure.

    WAITING -> GRANTED -> SEALED -> ADOPTED -> gone             a put that is committed, and its rows' end
    WAITING -> GRANTED -> SEALED -> ASKED -> ADOPTED, or gone   its writer let go before it was known what became of it
    WAITING -> GRANTED -> gone                                  its writer let go, or has died, before it was written

Invariants: a block that is SEALED or later goes by the plane's word, or because it is damaged, and by nothing else; one
that is not yet SEALED goes by its writer's word, or the kernel's that he is dead, and by nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from penstock.errors import IllegalTransition
from penstock.parts import BlockPlace
from penstock.requests import Sealed

__all__ = ["OWN", "Block", "State", "What"]

OWN = (0, 0)  # the client that the agent itself is: it holds blocks that it pulled for another host


class State(Enum):
    WAITING = "waiting for room"
    GRANTED = "being written"
    SEALED = "written, and held by its writer"
    ASKED = "written, its writer has let go: is it anybody's?"
    ADOPTED = "needed by rows"
    GONE = "gone"


class What(Enum):
    """What happens to a block."""

    PLACED = "a slot was found"
    SEALED = "its writer says that it is written"
    LET_GO = "its writer does not hold it any more"
    ADOPTED = "the plane says that rows need it"
    UNNEEDED = "the plane says that nothing needs it"
    DAMAGED = "its bytes are not what they were"
    MOVED = "it lies elsewhere now"


_S, _W = State, What
_READABLE = (State.SEALED, State.ASKED, State.ADOPTED)

TABLE: dict[tuple[State, What], State] = {
    (_S.WAITING, _W.PLACED): _S.GRANTED,
    (_S.WAITING, _W.LET_GO): _S.GONE,
    (_S.GRANTED, _W.PLACED): _S.GRANTED,  # told again: the first answer was lost with its connection
    (_S.GRANTED, _W.LET_GO): _S.GONE,
    (_S.GRANTED, _W.SEALED): _S.SEALED,
    (_S.SEALED, _W.LET_GO): _S.ASKED,
    (_S.ADOPTED, _W.LET_GO): _S.ADOPTED,
    **{(state, _W.ADOPTED): _S.ADOPTED for state in _READABLE},
    **{(state, _W.UNNEEDED): _S.GONE for state in _READABLE},
    **{(state, _W.DAMAGED): _S.GONE for state in _READABLE},
    **{(state, _W.MOVED): state for state in _READABLE},
}


@dataclass(slots=True)
class Block:
    """A block that lies here, or waits for room.

    Attributes:
        writer: the client that reserved it; ``OWN`` = this agent, for another host's.
        place: where it lies, from GRANTED on.
        content: what its writer said it holds.
        seal: the call that waits for its second place.
        sealed: what that was answered.
        asked_at: when the plane was last asked about it; None = not yet.
        ask_at: when it is to be asked about, of ``OWN`` blocks: whoever ordered it has had its answer long before.
    """

    block_id: int
    nbytes: int
    writer: tuple[int, int]
    state: State = State.WAITING
    place: BlockPlace | None = None
    content: int = 0
    seal: int = 0
    sealed: Sealed | None = None
    asked_at: float | None = None
    ask_at: float | None = None

    @property
    def readable(self) -> bool:
        return self.state in _READABLE

    def may(self, what: What) -> bool:
        return (self.state, what) in TABLE

    def move(self, what: What) -> State:
        """Let it happen; return the state before.

        Raises:
            IllegalTransition: the table has no entry: the shell's bug.
        """
        after = TABLE.get((self.state, what))
        if after is None:
            raise IllegalTransition(f"{what.value!r} happens to {self!r}")
        before, self.state = self.state, after
        return before

    def where(self) -> BlockPlace:
        """Where it lies."""
        assert self.place is not None, self
        return self.place

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant."""
        assert self.state is not State.GONE, "a block that is gone is kept"
        assert (self.place is None) == (self.state is State.WAITING), "a place without a slot, or the reverse"
        assert self.place is None or self.place.block_id == self.block_id, "another block's place"
        assert not self.seal or self.readable, "an unsealed block's seal waits for an answer"
        assert self.asked_at is None or self.state is State.ASKED, "asked about what is not in question"
