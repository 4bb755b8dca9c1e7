"""What the shell needs of the pure machine that it carries: the plane's ledger, or the keeper of a host.

A machine decides and does nothing else; what it wants done are effects. Those of ``ledger.events`` the shell carries
out itself; others it hands to whoever made it (``Plane``'s ``others``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from penstock.ledger.facts import Entry
from penstock.requests import BlockPlace

__all__ = ["Machine"]


class Machine(Protocol):
    """See the module. ``now`` is the shell's monotonic clock and does not go backwards."""

    @property
    def incarnation(self) -> int:
        """The number of this life."""

    @property
    def sessions(self) -> int:
        """Sessions that have not ended."""

    @property
    def live_bytes(self) -> int:
        """Bytes that are needed, of those that lie in the arenas."""

    def handle(self, event: Any, now: float) -> list[Any]:
        """Decide; return the effects, to be carried out in order."""

    def next_timer(self) -> float | None:
        """When the next tick has something to judge; None = nothing has a time."""

    def live_blocks(self) -> list[BlockPlace]:
        """Where the blocks lie that are still needed."""

    def sparse_blocks(self) -> list[tuple[BlockPlace, list[int], list[int]]]:
        """Blocks that are worth making small: place, and the rows to keep, as first put and as they lie now."""

    def checkpoint(self, rows_per_slice: int, /) -> Iterator[Entry]:
        """Restate what is alive, slice by slice."""

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant; for tests."""
