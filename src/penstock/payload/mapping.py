"""The client's side of an arena: one shared mapping for writing and checking, one private mapping per view.

torch has no read-only tensor, and a write through one over a read-only page kills the process; so a view is a private
copy-on-write mapping, made per read: a user who writes changes his own copy only. The pin hangs on the mapping, which
lives as long as any tensor or slice over it, and is reported once, when the last is gone (or the view is privatised).

Invariants: a reader holds its block's pin until it is closed or has handed it to a view; every pin is released exactly
once; bytes are served only after the checks of the reader's integrity level.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np

from penstock.config import Integrity
from penstock.errors import CorruptPayload, DataPlaneUnavailable, StaleSlotError
from penstock.payload import block
from penstock.payload.block import BlockHeader, Bytes
from penstock.payload.files import checked_size
from penstock.payload.memory import PAGE, Mapped, map_file, populate
from penstock.requests import BlockPlace

_log = logging.getLogger(__name__)

COPY_BELOW = (
    64 * 1024
)  # bytes; below it a copy costs less than a mapping and its page faults, and frees the pin at once
_MAX_VERIFIED = 65_536  # blocks remembered as verified


class Pin:
    """Releases a pin once, whoever asks first."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = [release]

    def __call__(self) -> None:
        try:
            release = self._release.pop()
        except IndexError:
            return
        release()


class ArenaMap:
    """One arena file as a client sees it. Thread-safe; made by ``open``."""

    def __init__(self, path: Path, fd: int, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self._fd: int | None = fd
        self._shared: Mapped | None = map_file(fd, 0, nbytes, private=False)
        self._bytes = self._shared.array()
        self._populated = np.zeros(-(-nbytes // PAGE), np.bool_)
        self._verified: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._views: dict[int, tuple[weakref.ref[Mapped], Pin]] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, nbytes: int) -> ArenaMap:
        """Map the arena file at ``path``, which the plane says is ``nbytes`` long.

        Raises:
            DataPlaneUnavailable: it is not there, not this user's, or of another size.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise DataPlaneUnavailable(f"the plane's shared memory {path} cannot be opened: {error}") from error
        try:
            size = checked_size(fd, path)
            if size != nbytes or nbytes <= 0:
                raise DataPlaneUnavailable(f"the plane's shared memory {path} has {size} bytes, not {nbytes}")
            return cls(path, fd, nbytes)
        except OSError as error:
            os.close(fd)
            raise DataPlaneUnavailable(f"the plane's shared memory {path} cannot be used: {error}") from error
        except BaseException:
            os.close(fd)
            raise

    def __repr__(self) -> str:
        return f"<ArenaMap {self.path}: {self.nbytes} bytes, {self.live_views} live views>"

    @property
    def live_views(self) -> int:
        """Views that still depend on the arena's file."""
        return len(self._views)

    def writer(self, place: BlockPlace) -> Bytes:
        """Return the granted place for ``Batch.write_into``, its pages faulted in.

        Raises:
            CorruptPayload: the place lies outside the arena.
            DataPlaneUnavailable: the file was truncated, or the map is closed.
        """
        out = self._at(place)
        first, last = place.offset // PAGE, -(-(place.offset + place.nbytes) // PAGE)
        if self._shared is not None and not self._populated[first:last].all():
            try:
                populate(self._shared, place.offset, place.nbytes)
            except OSError as error:
                raise DataPlaneUnavailable(f"{self.path} has no memory at {place}: {error}") from error
            self._populated[first:last] = True
        return out

    def read_back(self, place: BlockPlace) -> None:
        """Verify a block that was just written (level ``paranoid``).

        Raises:
            CorruptPayload: the bytes in place are not those that were meant.
        """
        data = self._at(place)
        block.verify(data, block.parse(data, place.block_id))

    def reader(self, place: BlockPlace, integrity: Integrity, on_release: Callable[[int], None]) -> BlockReader:
        """Open a located block for reading.

        Args:
            place: where it lies; ``place.pin`` is the pin the plane gave for it.
            integrity: what is verified before a byte is served.
            on_release: called with the pin when it is no longer needed, from any thread, at any moment (also by the
                garbage collector): it must not block; appending to a deque is right.

        Raises:
            StaleSlotError: another block lies there.
            CorruptPayload: a checksum or bound does not hold. The pin is released in both cases.
        """
        pin = Pin(lambda: on_release(place.pin))
        try:
            data = self._at(place)
            return BlockReader(self, place, data, self._checked(place, data, integrity), pin)
        except BaseException:
            pin()
            raise

    def forget_verified(self) -> None:
        """Verify every block again at its next reading."""
        with self._lock:
            self._verified.clear()

    def privatise(self) -> int:
        """Make every live view independent of the file and release its pin; return how many there were.

        For the end of a client, and before a fork. A view whose pages cannot be had (no memory) keeps its pin.
        """
        settled = 0
        for key, (ref, pin) in list(self._views.items()):
            mapped = ref()
            if mapped is None:
                continue
            try:
                populate(mapped, 0, mapped.nbytes)
            except OSError as error:
                _log.warning("a view of %d bytes stays pinned: %s", mapped.nbytes, str(error))  # error keeps frames
                continue
            self._views.pop(key, None)
            pin()
            settled += 1
        return settled

    def close(self) -> None:
        """Let go of the file; live views stay valid as long as the plane does not reuse their slots. Idempotent."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
        self._shared = None
        self._bytes = self._bytes[:0].copy()

    def private_view(self, place: BlockPlace, pin: Pin) -> Bytes:
        """Return the block's bytes in a private copy-on-write mapping; ``pin`` runs when nothing refers to it any more.

        Small blocks, and any block for which the kernel gives no further mapping, are copied and ``pin`` runs at once.
        """
        if place.nbytes >= COPY_BELOW and self._fd is not None:
            try:
                return self._map_privately(place, pin)
            except OSError as error:
                _log.debug("a view of block %d is a copy: %s", place.block_id, str(error))
        copied = self._at(place).copy()
        check_still(self._at(place), place)
        pin()
        return copied

    def _map_privately(self, place: BlockPlace, pin: Pin) -> Bytes:
        start = place.offset // PAGE * PAGE
        key = id(pin)
        views = self._views

        def on_unmapped() -> None:
            views.pop(key, None)
            pin()

        self._at(place)  # in bounds
        length = place.offset - start + place.nbytes
        with self._lock:  # a descriptor that is closed meanwhile may be another file's by then
            if self._fd is None:
                raise DataPlaneUnavailable(f"{self.path} is closed")
            mapped = map_file(self._fd, start, length, private=True, on_unmapped=on_unmapped)
        views[key] = (weakref.ref(mapped), pin)
        return mapped.array()[place.offset - start :]

    def _at(self, place: BlockPlace) -> Bytes:
        if place.offset < 0 or place.nbytes <= 0 or place.offset + place.nbytes > self.nbytes:
            raise CorruptPayload(f"block {place.block_id} is placed outside the arena: {place}")
        if self._fd is None:
            raise DataPlaneUnavailable(f"{self.path} is closed")
        return self._bytes[place.offset : place.offset + place.nbytes]

    def _checked(self, place: BlockPlace, data: Bytes, integrity: Integrity) -> BlockHeader:
        if block.has_moved_on(data, place.block_id):
            raise StaleSlotError(f"block {place.block_id} is no longer at its place; another is")
        header = block.parse(data, place.block_id, checked=integrity != "off")
        if integrity in {"full", "paranoid"}:
            self._verify_once(place, data, header)
        return header

    def _verify_once(self, place: BlockPlace, data: Bytes, header: BlockHeader) -> None:
        key = (place.block_id, place.generation)
        if key in self._verified:
            return
        block.verify(data, header)
        with self._lock:
            self._verified[key] = None
            if len(self._verified) > _MAX_VERIFIED:
                self._verified.popitem(last=False)


class BlockReader:
    """A located, checked and pinned block. Close it when the read is done; views that were taken stay valid."""

    def __init__(self, arena: ArenaMap, place: BlockPlace, data: Bytes, header: BlockHeader, pin: Pin) -> None:
        self.header = header
        self.place = place
        self.shared = data
        self._arena = arena
        self._pin = pin
        self._view: Bytes | None = None
        self._handed_over = False

    def __repr__(self) -> str:
        return f"<BlockReader {self.place} rows={self.header.rows}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def private(self) -> Bytes:
        """Return the block's bytes to keep: the pin is theirs from now on."""
        if self._view is None:
            self._view = self._arena.private_view(self.place, self._pin)
            self._handed_over = True
        return self._view

    def check_still(self) -> None:
        """Raise ``StaleSlotError`` if another block has come to lie here since the reader was opened."""
        check_still(self.shared, self.place)

    def close(self) -> None:
        """Release the pin unless a view has it. Idempotent."""
        if not self._handed_over:
            self._pin()
        self._view = None
        self.shared = self.shared[:0]


def check_still(data: Bytes, place: BlockPlace) -> None:
    """Compare the block that lies at ``place`` with the one that should.

    Raises:
        StaleSlotError: it is another, or none.
    """
    found = block.block_id_at(data)
    if found != place.block_id:
        raise StaleSlotError(f"block {place.block_id} is no longer at its place (there is {found})")
