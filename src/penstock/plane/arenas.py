"""The plane's shared memory as one client sees it: its arenas, mapped when they are first named.

Invariants: an arena that the plane has unlinked is let go of, so that its memory returns; before a fork, and before
the client ends, every live view is made independent of its arena (``privatise``): nothing of this process depends on
memory that it does not pin.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.config import Integrity
from penstock.errors import DataPlaneUnavailable, DataPlaneWriteError
from penstock.payload.block import Bytes
from penstock.payload.mapping import ArenaMap, BlockReader
from penstock.plane.link import Link
from penstock.requests import ArenaPlace, BlockPlace
from penstock.wire import paths

__all__ = ["ArenaGone", "Arenas", "Unpins"]

log = logging.getLogger(__name__)

_COPY_S = 30.0  # at a bad 100 MB/s this is 3 GB
_LOOK_S = 5.0  # how often arenas of earlier lives are looked for on disk


class Unpins:
    """Where the pins of views go: to the link in whose session they are held, which comes after the arenas."""

    link: Link | None = None

    def __call__(self, pin: int) -> None:
        if self.link is not None and pin:
            self.link.unpin(pin)


class ArenaGone(DataPlaneUnavailable):
    """The arena is not there any more: its plane has restarted, and what lay in it lies elsewhere."""


class Arenas:
    """The arenas of the plane of ``data_dir``. Thread-safe.

    Args:
        unpin: told each pin that is no longer needed, from any thread, finalizers included.
        integrity: what a reader verifies.
    """

    def __init__(self, data_dir: str | os.PathLike[str], unpin: Callable[[int], None], integrity: Integrity) -> None:
        self._data_dir = data_dir
        self._unpin = unpin
        self._integrity: Integrity = integrity
        self._maps: dict[int, ArenaMap] = {}
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._home = _identity(data_dir)  # of the directory whose plane this is; None: it was not there yet
        self._writing = 0
        self._written = threading.Condition()  # guards ``_writing``, and ``ended`` towards writers
        self.ended = False
        _all[id(self)] = self

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Copy into a grant within this context: the client's session does not end meanwhile.

        Raises:
            DataPlaneUnavailable: the client is closed.
        """
        with self._written:
            if self.ended:
                raise DataPlaneUnavailable("the client is closed")
            self._writing += 1
        try:
            yield
        finally:
            with self._written:
                self._writing -= 1
                self._written.notify_all()

    def writer(self, place: BlockPlace, arena: ArenaPlace) -> Bytes:
        """Return the place of a grant, to copy a block into.

        Raises:
            ArenaGone: ask for another grant.
            DataPlaneWriteError: its memory cannot be had.
        """
        try:
            return self._map(arena).writer(place)
        except OSError as failed:
            raise DataPlaneWriteError(f"{place.nbytes} bytes of {arena} cannot be written: {failed}") from failed

    def read_back(self, place: BlockPlace, arena: ArenaPlace) -> None:
        """Verify what was just written; raises ``CorruptPayload``."""
        self._map(arena).read_back(place)

    def reader(self, place: BlockPlace, arena: ArenaPlace) -> BlockReader:
        """Open a located block.

        Raises:
            StaleSlotError, CorruptPayload: see ``ArenaMap.reader``.
            ArenaGone: locate the block again.
        """
        return self._map(arena).reader(place, self._integrity, self._unpin)

    def lost(self, arenas: Iterable[ArenaPlace]) -> bool:
        """Whether one of these has been let go of because its plane unlinked it: what lay there lies elsewhere."""
        return not self.ended and any(arena.arena_id not in self._maps for arena in arenas)

    @property
    def live_views(self) -> int:
        """Views that still depend on an arena."""
        return sum(arena.live_views for arena in list(self._maps.values()))

    def privatise(self) -> None:
        """Make every live view independent of its arena."""
        for arena in list(self._maps.values()):
            arena.privatise()

    def end_writing(self) -> None:
        """Let nobody begin to write, and wait for those who do, at most ``_COPY_S``.

        After its goodbye the client's grants are given to others.
        """
        with self._written:
            self.ended = True
            if not self._written.wait_for(lambda: not self._writing, _COPY_S):
                log.warning("%d copies into shared memory did not end within %g s", self._writing, _COPY_S)

    def end(self) -> None:
        """Let go of everything. Idempotent. A read that is under way finds ``ended`` set and gives nothing out."""
        self.end_writing()
        with self._lock:
            maps = list(self._maps.values())
        for arena in maps:
            arena.close()
            arena.privatise()

    def _map(self, arena: ArenaPlace) -> ArenaMap:
        found = self._maps.get(arena.arena_id)
        if found is None or (len(self._maps) > 1 and time.monotonic() >= self._look_at):
            with self._lock:
                self._drop_unlinked()
                found = self._maps.get(arena.arena_id) or self._open(arena)
        return found

    def _open(self, arena: ArenaPlace) -> ArenaMap:
        if self.ended:
            raise DataPlaneUnavailable("the client is closed")
        try:
            opened = ArenaMap.open(paths.arena_path(self._data_dir, arena), arena.nbytes)
        except (DataPlaneUnavailable, OSError) as missing:
            if self._home is not None and _identity(self._data_dir) != self._home:
                raise DataPlaneUnavailable(
                    f"the data directory {self._data_dir} was removed or replaced under its plane: "
                    "what the plane holds cannot be reached; make a new client"
                ) from missing
            raise ArenaGone(f"arena {arena.arena_id} cannot be mapped: {missing}") from missing
        self._maps[arena.arena_id] = opened
        self._home = _identity(self._data_dir)
        return opened

    def _drop_unlinked(self) -> None:
        self._look_at = time.monotonic() + _LOOK_S
        for arena_id, arena in list(self._maps.items()):
            if not arena.path.exists():
                arena.close()
                del self._maps[arena_id]

    def __repr__(self) -> str:
        return f"Arenas({len(self._maps)} mapped, {self.live_views} live views)"


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what tells a directory from another of its name; None if it is not there."""
    try:
        found = Path(folder).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


_all: weakref.WeakValueDictionary[int, Arenas] = weakref.WeakValueDictionary()


def _before_fork() -> None:
    for ref in _all.valuerefs():  # a copy: other threads make clients meanwhile
        arenas = ref()
        if arenas is not None:
            arenas.privatise()


os.register_at_fork(before=_before_fork)
