"""What the simulated plane does besides serving: checkpoints, compaction, giving up damaged blocks; as the server does.

Invariants: a checkpoint's opening is the first entry of its segment; slices go between the plane's other work; a
block's old place is freed only once its move is durable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penstock.ledger import events as ev
from penstock.ledger.facts import Entry

if TYPE_CHECKING:
    from penstock.testing.sim.plane import SimPlane

__all__ = ["Upkeep"]

_ROWS_PER_SLICE = 3


class Upkeep:
    """Of one life of the plane."""

    def __init__(self, plane: SimPlane) -> None:
        self._plane = plane
        self._checkpoint: Iterator[Entry] | None = None

    def begin_checkpoint(self) -> None:
        """Begin to restate what is alive; nothing if that is under way."""
        if self._checkpoint is None:
            self._plane.step_unless_torn()
            self._plane.journal.begin_checkpoint()
            self._checkpoint = self._plane.ledger.checkpoint(_ROWS_PER_SLICE)
            self.go_on()

    def go_on(self) -> None:
        """Write a slice or two of the checkpoint that is under way, if any."""
        if self._checkpoint is None:
            return
        plane = self._plane
        for _ in range(plane.world.rng.randint(1, 2)):
            entry = next(self._checkpoint, None)
            if entry is None:
                plane.settle()
                self._checkpoint = None
                plane.journal.end_checkpoint()
                plane.world.counts["checkpoints"] += 1
                return
            plane.append(entry)

    def compact(self) -> None:
        """Move the rows that are alive out of blocks that are mostly dead."""
        plane = self._plane
        for place, kept, positions in plane.ledger.sparse_blocks():
            plane.step()
            moved = plane.arena.compact(place, positions)
            plane.feed(ev.BlockMoved(moved, kept))
            plane.settle()
            plane.arena.free_slot((place.block_id, place.generation))
            plane.world.counts["compactions"] += 1

    def lose_block(self) -> None:
        """A block's bytes are damaged, and the plane has seen it."""
        plane = self._plane
        live = plane.ledger.live_blocks()
        if live:
            lost = plane.world.rng.choice(live).block_id
            plane.world.fault("block_lost", lost)
            plane.feed(ev.BlocksLost([lost], "checksum mismatch"))
