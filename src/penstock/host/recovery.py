"""What earlier lives of a host's agent left, and what a clean end leaves: arena files, and lists of what lies in them.

The plane says which blocks rows need, and where it was told that they lie. A clean end copies blocks out of shared
memory into a file of the directory, of which the plane need not have heard: beside such a file lies a list.

Invariants: nothing is unlinked before the plane has said what is needed; a block whose header does not hold is lost, by
name; shared memory goes at a clean end only after everything that may be needed lies in a file, list included.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from penstock.errors import DataPlaneError
from penstock.parts import ArenaPlace, BlockPlace
from penstock.payload.arena import OldArena
from penstock.payload.memory import PAGE
from penstock.server.ending import copy_out
from penstock.server.plane import Plane
from penstock.server.recovery import make_arena, old_arenas
from penstock.wire import paths

__all__ = ["Left", "leave", "next_arena_id", "recover"]

log = logging.getLogger("penstock.host")


@dataclass
class Left:
    """What is still there. ``old``: files; ``lost``: why -> blocks, in them or not."""

    old: list[tuple[OldArena, ArenaPlace]]
    lost: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


def recover(data_dir: Path, live: list[BlockPlace]) -> Left:
    """Open the files in which the blocks lie that rows need, and unlink the others.

    ``live`` is what the plane says, with the places that it knows.

    Raises:
        OSError: the directory cannot be used.
    """
    files = paths.arena_files(data_dir)
    there = {arena.arena_id for _, arena in files}
    listed = {place.block_id: place for _, arena in files for place in _listed(data_dir, arena)}
    places = [p if p.arena_id in there else listed.get(p.block_id, p) for p in live]
    lost: dict[str, list[int]] = defaultdict(list)
    left = Left(old_arenas(data_dir, places, lost), lost)
    _unlink_lists(data_dir)
    return left


def next_arena_id(data_dir: Path, life: int) -> int:
    """Return an id that no arena of this host has had."""
    return max([life, *(arena.arena_id + 1 for _, arena in paths.arena_files(data_dir))])


def leave(plane: Plane, data_dir: Path) -> None:
    """Let go of the arenas at a clean end; whatever may be needed lies in files of the directory then."""
    storage = plane.storage
    in_shm = [p for p in plane.ledger.live_blocks() if storage.arena_of(p).in_shm]
    try:
        if in_shm:
            _write_down(plane, data_dir, in_shm)
    except (OSError, DataPlaneError) as error:
        log.error("blocks stay in shared memory, which a reboot clears: %s", error)  # noqa: TRY400 - told whole
        storage.close(unlink=False)
        return
    storage.unlink_shared()
    storage.close(unlink=False)


def _write_down(plane: Plane, data_dir: Path, places: list[BlockPlace]) -> None:
    """Copy blocks into a file, and beside it write which they are. All or none."""
    capacity = sum(-(-place.nbytes // PAGE) * PAGE for place in places)
    arena_id = next_arena_id(data_dir, 0)
    file, where = make_arena(data_dir, arena_id, capacity, plane.config, in_shm=False, clock=plane.clock)
    try:
        copies = [copy_out(plane, file, place) for place in places]
        fresh = _list_path(data_dir, where).with_suffix(".new")
        fresh.write_bytes(msgspec.msgpack.encode(copies))
        fresh.replace(_list_path(data_dir, where))
    except BaseException:
        file.close(unlink=True)
        raise
    file.close(unlink=False)
    log.info("%d blocks written to arena %d in %s", len(places), arena_id, data_dir)


def _list_path(data_dir: Path, arena: ArenaPlace) -> Path:
    return data_dir / f"blocks-{arena.arena_id}.list"


def _listed(data_dir: Path, arena: ArenaPlace) -> list[BlockPlace]:
    """What a clean end wrote into this file; nothing if it was not made by one."""
    try:
        return msgspec.msgpack.decode(_list_path(data_dir, arena).read_bytes(), type=list[BlockPlace])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as damaged:
        log.error("the list of what lies in arena %d cannot be read: %s", arena.arena_id, damaged)  # noqa: TRY400
        return []


def _unlink_lists(data_dir: Path) -> None:
    """Lists whose files are gone."""
    kept = {_list_path(data_dir, arena) for _, arena in paths.arena_files(data_dir)}
    for path in data_dir.glob("blocks-*"):
        if path not in kept:
            path.unlink(missing_ok=True)
