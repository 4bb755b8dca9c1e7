"""From what a dead plane left behind to a living one: journal, then ledger, then the blocks that it names.

Invariants: the journal is the truth: a block that it does not name is nobody's, and one that it names and that is not
there, or whose header does not hold, makes its rows lost, by name; this life's arena is a new file, with an id that no
earlier one had; files of this plane that no block needs are unlinked.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from penstock.config import GIB, PlaneConfig
from penstock.errors import BadArgument, CorruptPayload, DataPlaneWriteError
from penstock.ledger.events import AnyEffect
from penstock.ledger.journal import AnyJournal, Journal, MemoryJournal
from penstock.ledger.machine import Ledger
from penstock.payload import block
from penstock.payload.arena import Arena, OldArena
from penstock.payload.files import fits_in_shm
from penstock.points import reached
from penstock.requests import ArenaPlace, BlockPlace
from penstock.server.plane import Clock
from penstock.server.processes import has_ended
from penstock.server.storage import Storage
from penstock.wire import paths

__all__ = ["Recovered", "arena_capacity", "make_arena", "old_arenas", "recover"]

_SPARSE_SHARE = 2  # blocks may be half dead before they are compacted, so that live bytes may need twice their room

log = logging.getLogger("penstock.server")


@dataclass
class Recovered:
    """What ``recover`` found and made.

    Attributes:
        effects: what the ledger wants done first.
        departed: sessions that nobody will come back to, for their processes have ended: session -> process.
        lost: why -> blocks.
    """

    ledger: Ledger
    journal: AnyJournal
    storage: Storage
    effects: list[AnyEffect]
    had_sessions: bool
    departed: dict[int, int] = field(default_factory=dict)
    lost: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))


def recover(data_dir: Path, config: PlaneConfig, *, clock: Clock, wall: Clock, repair: bool = False) -> Recovered:
    """Bring the plane of ``data_dir`` back, or make a new one.

    Raises:
        JournalCorrupt: the journal is damaged and ``repair`` was not asked for.
        BadArgument: the directory holds a journal and the configuration would ignore it.
        DataPlaneWriteError: the journal cannot be written.
        OSError: the directory or its files cannot be used.
    """
    journal = _open_journal(data_dir, config, repair)
    ledger = Ledger(config)
    entries = 0
    for entry in journal.entries():
        ledger.replay(entry, clock())
        entries += 1
    reached("server.replayed")
    effects = ledger.begin_life(max(ledger.incarnation + 1, int(wall() * 1e9)), clock(), wall())
    if entries:
        log.info("life %d begins: %d journal entries replayed", ledger.incarnation, entries)
    lost: dict[str, list[int]] = defaultdict(list)
    old = old_arenas(data_dir, ledger.live_blocks(), lost)
    arena, place = _new_arena(data_dir, config, ledger.incarnation, clock)
    departed = {session.id: session.pid for session in ledger.desk.state.sessions.values() if has_ended(session.pid)}
    return Recovered(ledger, journal, Storage(arena, place, old), effects, bool(entries), departed, lost)


def arena_capacity(config: PlaneConfig) -> int:
    """Bytes of address space an arena needs for all that the ledger may admit; memory is taken as it is used."""
    admitted = int(config.max_bytes * (1 + config.reserve_fraction))
    return _SPARSE_SHARE * admitted + config.warm_bytes


def _open_journal(data_dir: Path, config: PlaneConfig, repair: bool) -> AnyJournal:
    folder = paths.journal_dir(data_dir)
    if config.durability != "memory":
        folder.mkdir(mode=0o700, exist_ok=True)
        journal = Journal.open(folder, config.segment_bytes, repair)
        for damage in journal.damage:
            log.error("journal repaired: %s", damage)
        return journal
    if folder.exists() and any(folder.iterdir()):
        raise BadArgument(f"{folder} holds a journal, which a plane of durability 'memory' would ignore")
    return MemoryJournal()


def old_arenas(data_dir: Path, live: list[BlockPlace], lost: dict[str, list[int]]) -> list[tuple[OldArena, ArenaPlace]]:
    """Open the files in which live blocks lie, and unlink the others."""
    wanted: dict[int, list[BlockPlace]] = defaultdict(list)
    for place in live:
        wanted[place.arena_id].append(place)
    opened = []
    for path, arena in paths.arena_files(data_dir):
        places = wanted.pop(arena.arena_id, [])
        if not places:
            log.info("unlinking %s: no live block lies in it", path)
            path.unlink(missing_ok=True)
            continue
        old = _open_old(path, places, lost)
        if old is not None:
            opened.append((old, arena))
    for arena_id, places in wanted.items():
        lost[f"arena {arena_id} is missing"] += [place.block_id for place in places]
    return opened


def _open_old(path: Path, places: list[BlockPlace], lost: dict[str, list[int]]) -> OldArena | None:
    size = path.stat().st_size
    inside = []
    for place in places:
        if place.offset >= 0 and place.offset + place.nbytes <= size:
            inside.append(place)
        else:
            lost[f"{path.name} ends before it"].append(place.block_id)
    try:
        old = OldArena.open(path, inside)
    except (CorruptPayload, OSError) as error:
        lost[f"{path.name} cannot be read: {error}"] += [place.block_id for place in inside]
        return None
    for place in inside:
        try:
            block.parse(old.read(place.block_id), place.block_id)
        except CorruptPayload as damage:
            lost[str(damage)].append(place.block_id)
    return old


def _new_arena(data_dir: Path, config: PlaneConfig, incarnation: int, clock: Clock) -> tuple[Arena, ArenaPlace]:
    in_shm = fits_in_shm(int(config.max_bytes * (1 + config.reserve_fraction)))
    taken = [arena.arena_id for _, arena in paths.arena_files(data_dir)]
    return make_arena(
        data_dir, max([incarnation, *(n + 1 for n in taken)]), arena_capacity(config), config, in_shm, clock
    )


def make_arena(
    data_dir: Path, arena_id: int, capacity: int, config: PlaneConfig, in_shm: bool, clock: Clock
) -> tuple[Arena, ArenaPlace]:
    """Make an arena file of this plane and say what clients must know of it.

    Raises:
        DataPlaneWriteError: the system does not give a file of that size; names file and option.
    """
    path = paths.arena_path(data_dir, ArenaPlace(arena_id=arena_id, nbytes=0, in_shm=in_shm))
    try:
        arena = Arena.create(path, arena_id, capacity, config.warm_bytes, clock=clock)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataPlaneWriteError(
            f"an arena of {capacity / GIB:.1f} GiB cannot be made at {path} ({why}): lower max_bytes"
        ) from error
    return arena, ArenaPlace(arena_id=arena_id, nbytes=arena.capacity, in_shm=in_shm)
