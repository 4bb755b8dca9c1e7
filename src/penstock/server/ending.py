"""A clean end: what a plane that stops leaves behind.

Invariants: shared memory is unlinked only after every live block in it lies in a file of the data directory and the
journal says so; if that cannot be done the shared memory stays, and the next life finds its blocks there.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from penstock.errors import DataPlaneError
from penstock.ledger.events import BlockMoved
from penstock.payload.arena import Arena
from penstock.payload.memory import PAGE
from penstock.points import reached
from penstock.requests import BlockPlace
from penstock.server.plane import Plane
from penstock.server.recovery import make_arena
from penstock.server.storage import PLANE
from penstock.wire import paths

__all__ = ["copy_out", "leave"]

log = logging.getLogger("penstock.server")


def leave(plane: Plane, data_dir: Path, *, keep: bool) -> None:
    """Let go of the arenas. With ``keep`` what lives is written down first; without, nothing of it is left."""
    storage = plane.storage
    if not keep:
        storage.close(unlink=True)
        return
    in_shm = [p for p in plane.ledger.live_blocks() if storage.arena_of(p).in_shm]
    try:
        if in_shm:
            _write_down(plane, data_dir, in_shm)
    except (OSError, DataPlaneError) as error:
        log.error("live blocks stay in shared memory, which a reboot clears: %s", error)  # noqa: TRY400 - told whole
        storage.close(unlink=False)
        return
    reached("server.rescued")
    storage.unlink_shared()
    storage.close(unlink=False)


def _write_down(plane: Plane, data_dir: Path, places: list[BlockPlace]) -> None:
    """Copy blocks into a file of the data directory, and journal where they lie now."""
    taken = [arena.arena_id for _, arena in paths.arena_files(data_dir)]
    capacity = sum(-(-place.nbytes // PAGE) * PAGE for place in places)
    file, where = make_arena(data_dir, max(taken) + 1, capacity, plane.config, in_shm=False, clock=plane.clock)
    try:
        moved = [copy_out(plane, file, place) for place in places]  # all or none: a record outlives a failure
        for place in moved:
            plane.take(plane.ledger.handle(BlockMoved(place), plane.clock()))
        plane.write(plane.journal.flush)
    except BaseException:
        file.close(unlink=True)
        raise
    file.close(unlink=False)
    if plane.failed:
        raise DataPlaneError(plane.reason)
    log.info("%d live blocks written to arena %d in %s", len(places), where.arena_id, data_dir)


def copy_out(plane: Plane, file: Arena, place: BlockPlace) -> BlockPlace:
    """Copy a block into a file of the data directory; return where it lies there.

    Raises:
        DataPlaneError: there is no room.
    """
    data = plane.storage.view(place.block_id)
    copy = file.grant(place.block_id, len(data), PLANE)
    if copy is None:
        raise DataPlaneError(f"no room for {len(data)} bytes in {file.path}: {file.statistics()}")
    file.writer(copy)[:] = np.frombuffer(data, np.uint8)
    file.fill(place.block_id)
    return copy
