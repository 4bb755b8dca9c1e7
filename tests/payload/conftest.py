"""The room that most tests here use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.payload.room import Room, a_room


@pytest.fixture
def room() -> Iterator[Room]:
    """A small arena with one client."""
    with a_room() as made:
        yield made
