"""The table of a block's life: what is legal, what is not, and that nothing in it frees what it must not."""

from __future__ import annotations

import pytest

from penstock.errors import IllegalTransition
from penstock.host.blocks import TABLE, Block, State, What

NEVER_BY_THE_PLANE = (State.WAITING, State.GRANTED)
NEVER_BY_THE_WRITER = (State.SEALED, State.ADOPTED)


def test_what_is_being_written_goes_by_its_writers_word_alone() -> None:
    """The plane cannot free, lose or adopt a block into which somebody may be copying."""
    assert [key for key in TABLE if key[0] in NEVER_BY_THE_PLANE and key[1] in (What.UNNEEDED, What.DAMAGED)] == []
    assert [key for key in TABLE if key[0] in NEVER_BY_THE_PLANE and key[1] is What.ADOPTED] == []
    assert {TABLE[state, What.LET_GO] for state in NEVER_BY_THE_PLANE} == {State.GONE}


def test_what_is_written_never_goes_by_its_writers_word() -> None:
    """A writer that lets go of a sealed block leaves a question, not a free slot."""
    assert {TABLE[state, What.LET_GO] for state in NEVER_BY_THE_WRITER} == {State.ASKED, State.ADOPTED}


def test_every_state_has_a_way_in_and_a_way_out() -> None:
    """No state is unreachable, and none is for ever; GONE has no way out."""
    reached = {State.WAITING}
    for _ in State:
        reached |= {after for (before, _), after in TABLE.items() if before in reached}
    assert reached == set(State)
    assert {before for before, _ in TABLE} == set(State) - {State.GONE}


def test_a_missing_entry_is_an_error_that_names_block_and_event() -> None:
    """What the shell may never do is told, with the block in its state."""
    block = Block(7, 100, (1, 1))
    with pytest.raises(IllegalTransition, match=r"says that it is written.*block_id=7"):
        block.move(What.SEALED)
    assert block.state is State.WAITING


def test_invariants_of_a_block_are_watched() -> None:
    """A place without a slot, or an answer that is waited for too early, is found."""
    block = Block(7, 100, (1, 1), State.GRANTED)
    with pytest.raises(AssertionError, match="place without a slot"):
        block.check_invariants()
