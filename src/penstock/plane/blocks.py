"""How the blocks of a read are opened, wherever they lie; here, those in the plane's own memory on this machine.

Invariants: every block of a read is open or has an error that says why not; what is open has passed its checks and
stays readable until the read's stack is unwound; nothing of a block is handed out after the client has ended.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from penstock.errors import CorruptPayload, DataPlaneError, DataPlaneReadError
from penstock.payload.block import BlockHeader, Bytes
from penstock.payload.decode import OpenBlock
from penstock.plane.arenas import Arenas
from penstock.requests import ArenaPlace, Damaged, Located
from penstock.retry import Deadline

__all__ = ["ArenaBlocks", "Blocks", "FetchedBlock", "Opened", "Opening"]


@dataclass(slots=True)
class Opened:
    """The blocks of one ``Located``.

    Attributes:
        blocks: position in ``Located.blocks`` -> the block.
        bad: position -> why it could not be opened. ``CorruptPayload`` and ``StaleSlotError``: locate it again;
            ``DataPlaneUnavailable``: it may come back; any other is final.
    """

    blocks: dict[int, OpenBlock] = field(default_factory=dict)
    bad: dict[int, DataPlaneError] = field(default_factory=dict)


class FetchedBlock:
    """A block that was brought here; its bytes are this process's own."""

    def __init__(self, header: BlockHeader, data: Bytes) -> None:
        self.header = header
        self.shared = data

    def private(self) -> Bytes:
        return self.shared

    def check_still(self) -> None:
        """Nobody else has it: it stays what it is."""

    def __repr__(self) -> str:
        return f"FetchedBlock({self.header.block_id}, {self.header.nbytes} bytes)"


class Opening(Protocol):
    """One read, which may locate its blocks several times. ``damage``: what was found damaged, to be told the plane."""

    damage: list[Damaged]

    @property
    def ended(self) -> bool:
        """The client is closed: nothing is to be given out."""

    def open(self, located: Located, stack: ExitStack, deadline: Deadline) -> Opened:
        """Open what can be opened; ``stack`` lets go of it.

        Raises:
            StaleSlotError, ArenaGone: locate the blocks again.
            DataPlaneUnavailable: the client is closed.
        """

    def lost(self) -> bool:
        """Whether memory in which blocks were opened has been let go of since: they lie elsewhere."""


class Blocks(Protocol):
    """Where a client's blocks come from."""

    def begin(self) -> Opening:
        """Begin a read."""


class ArenaBlocks:
    """Blocks in the arenas of the plane of this machine."""

    def __init__(self, arenas: Arenas) -> None:
        self._arenas = arenas

    def begin(self) -> Opening:
        return _ArenaOpening(self._arenas)


class _ArenaOpening:
    def __init__(self, arenas: Arenas) -> None:
        self.damage: list[Damaged] = []
        self._arenas = arenas
        self._named: list[ArenaPlace] = []

    @property
    def ended(self) -> bool:
        return self._arenas.ended

    def open(self, located: Located, stack: ExitStack, deadline: Deadline) -> Opened:
        del deadline  # it is all here
        self._named = located.arenas
        arenas = {arena.arena_id: arena for arena in located.arenas}
        opened = Opened()
        for at, place in enumerate(located.blocks):
            if place.arena_id not in arenas:
                opened.bad[at] = _elsewhere(located, place.host)
                continue
            try:
                opened.blocks[at] = stack.enter_context(self._arenas.reader(place, arenas[place.arena_id]))
            except CorruptPayload as damaged:
                opened.bad[at] = damaged
                self.damage.append(Damaged(place.block_id, place.host))
        return opened

    def lost(self) -> bool:
        return self._arenas.lost(self._named)


def _elsewhere(located: Located, host_id: int) -> DataPlaneReadError:
    name = next((host.name for host in located.hosts if host.host_id == host_id), f"{host_id:x}")
    return DataPlaneReadError(
        f"they lie on host {name}, whose memory is out of reach for a client of the plane's own directory: "
        'read them through penstock.connect("penstock://HOST:PORT", token_file=...)'
    )
