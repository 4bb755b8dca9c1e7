"""The arena's owner: it alone says which bytes of the shared file hold which block, and when they may be used again.

Clients are granted a place, copy a block into it through their own mapping and report; nothing is locked between
processes and no copy happens here.

Invariants: a place is backed by memory before it is granted (ENOSPC is an answer, never a SIGBUS); its bytes are given
to nobody else until the slot machine says Freed; resident <= live + pinned + warm limit, to the page. An earlier life's
file is only ever read: a stopped writer or an old view may still be in it.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

from penstock.errors import BadArgument, CorruptPayload, DataPlaneNotReady, StaleSlotError
from penstock.payload import slots
from penstock.payload.block import Bytes
from penstock.payload.extents import Extents, Range
from penstock.payload.files import SHM, checked_size
from penstock.payload.memory import PAGE, Mapped, allocate, available_memory, map_file, punch
from penstock.payload.slots import Admitted, Freed, Granted, Ignored, Mode, Slots, State
from penstock.requests import BlockPlace

_log = logging.getLogger(__name__)
SLICE_BYTES = 8 * 1024 * 1024  # allocated at once: 2 ms of the loop (measured: 0.25 ms a MiB)
_CHECK_EVERY = 4 * 1024 * 1024  # bytes; reading /proc/meminfo costs as much as allocating 1 MiB
_KEEP_AVAILABLE = 256 * 1024 * 1024  # bytes that an arena leaves to everybody else
_NO_MEMORY = {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class ArenaStatistics:
    """The arena at a glance, in bytes unless named otherwise.

    Attributes:
        used: bytes in slots of every state but FREE.
        pins, tokens: of views and of reads under way.
        superseded: reads in consume mode that another has taken the place of.
        full, no_memory: grants refused for want of arena space, and of the machine's memory.
        ignored: slot events that came too late or were wrong.
        punched: bytes returned to the kernel so far.
    """

    capacity: int
    used: int
    warm: int
    resident: int
    writing_slots: int
    ready_slots: int
    reading_slots: int
    condemned_slots: int
    pins: int
    tokens: int
    superseded: int
    ignored: int
    full: int
    no_memory: int
    punched: int


class Reading(NamedTuple):
    """One read attempt: end it with exactly one of ``mark_consumed`` and ``release_reading``.

    Attributes:
        block_id: by the arena's own number for it.
        token: of this attempt; 0 in an earlier life's file, where nothing is ever freed.
        data: the block's bytes where they lie, readable from any thread; they stay what they are until the attempt
            ends or another one in consume mode supersedes it.
    """

    block_id: int
    generation: int
    token: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class _Slot:
    extent: Range
    nbytes: int
    generation: int


class Arena:
    """One file of shared memory and the slots in it. Made by ``create``; not thread-safe: its owner is one loop."""

    def __init__(
        self, path: Path, fd: int, arena_id: int, capacity: int, warm_bytes: int, clock: Callable[[], float]
    ) -> None:
        self.path = path
        self.arena_id = arena_id
        self.capacity = capacity
        self._fd = fd
        self._warm_bytes = warm_bytes
        self._in_memory = path.is_relative_to(SHM)  # a file elsewhere is cache, which the kernel can drop
        self._clock = clock
        self._map: Mapped | None = map_file(fd, 0, capacity, private=False)
        self._bytes = self._map.array()
        self._extents = Extents(capacity)
        self._slots = Slots()
        self._blocks: dict[int, _Slot] = {}
        self._block_at: dict[int, int] = {}  # slot (its offset) -> block id
        self._backing: dict[int, list[Range]] = {}  # block -> what of its room is still to be allocated
        self._full = 0
        self._no_memory = 0
        self._punched = 0
        self._not_punched = 0
        self._unknown = 0
        self._unchecked = 0  # bytes allocated since the machine's memory was last looked at

    @classmethod
    def create(
        cls,
        path: Path,
        arena_id: int,
        capacity_bytes: int,
        warm_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> Arena:
        """Make a new arena file, exclusively, mode 0600, of ``capacity_bytes`` of which none is allocated yet.

        Raises:
            BadArgument: no capacity.
            OSError: the file exists or cannot be made.
        """
        if capacity_bytes <= 0 or warm_bytes < 0:
            raise BadArgument(f"an arena of {capacity_bytes} bytes with {warm_bytes} warm makes no sense")
        capacity = -(-capacity_bytes // PAGE) * PAGE
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, capacity)
            return cls(path, fd, arena_id, capacity, warm_bytes, clock)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise

    def __repr__(self) -> str:
        return f"<Arena {self.arena_id} at {self.path}: {len(self._blocks)} blocks, {self._extents.used} bytes>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(unlink=True)

    # -- writing ----------------------------------------------------------------------------------------------------

    def grant(self, block_id: int, nbytes: int, owner: int) -> BlockPlace | None:
        """Give ``owner`` room to write block ``block_id``; None when there is none (``statistics`` says of what).

        Raises:
            BadArgument: the block has a place already, or no size.
        """
        if not self.begin(block_id, nbytes, owner):
            return None
        while block_id in self._backing:
            self.back(block_id)
        return self.place_of(block_id) if block_id in self._blocks else None

    def begin(self, block_id: int, nbytes: int, owner: int) -> bool:
        """Keep room for the block; whether there is any. Its place may be told once ``back`` says so, not before.

        Raises:
            BadArgument: the block has a place already, or no size.
        """
        if block_id in self._blocks or nbytes <= 0:
            raise BadArgument(f"block {block_id} of {nbytes} bytes cannot be granted room: it has a place or no size")
        taken = self._take(nbytes)
        if taken is None:
            return False
        extent, cold = taken
        (granted,) = self._slots.handle(slots.Grant(extent.offset, owner), self._clock())
        if not isinstance(granted, Granted):
            raise RuntimeError(  # noqa: TRY004 - our own bug, not a caller's type
                f"free bytes at {extent.offset} were a slot in use: {granted}"
            )
        self._blocks[block_id] = _Slot(extent, nbytes, granted.generation)
        self._block_at[extent.offset] = block_id
        if cold:
            self._backing[block_id] = cold
        return True

    def back(self, block_id: int) -> bool:
        """Allocate the next slice of what ``begin`` kept; whether all of it is there.

        False and no more to back: the machine has no memory for it, and the room was given up.
        """
        cold = self._backing.get(block_id)
        if cold is not None:
            part = Range(cold[0].offset, min(cold[0].nbytes, SLICE_BYTES))
            if not self._allocate(part):
                self.abandon(block_id)
                self._punch(self._extents.trim(0))  # the machine is short: warm memory goes back too
                return False
            cold[:1] = [Range(part.offset + part.nbytes, rest)] if (rest := cold[0].nbytes - part.nbytes) else []
            if not cold:
                del self._backing[block_id]
        return block_id in self._blocks and block_id not in self._backing

    def begun(self) -> list[int]:
        """Return the blocks that have room which is not all allocated yet, in the order in which they began."""
        return list(self._backing)

    def fill(self, block_id: int, generation: int | None = None) -> bool:
        """The writer reports that the block is there. False = too late or wrong; nothing changed."""
        return self._apply(block_id, generation, lambda slot: slots.Fill(slot.extent.offset, slot.generation))

    def abandon(self, block_id: int, generation: int | None = None) -> bool:
        """The writer gives its grant back."""
        return self._apply(block_id, generation, lambda slot: slots.Abandon(slot.extent.offset, slot.generation))

    def release(self, block_id: int, generation: int | None = None) -> bool:
        """The block's last row is gone: free its slot now, or with its last pin or token."""
        return self._apply(block_id, generation, lambda slot: slots.RowsGone(slot.extent.offset, slot.generation))

    def writer(self, place: BlockPlace) -> Bytes:
        """Return a granted place for the owner itself to write (a block that it moves or compacts).

        Raises:
            StaleSlotError: it is not granted, or no longer.
        """
        slot = self._slot(place.block_id)
        if place != self.place_of(place.block_id) or self._slots.state_of(slot.extent.offset) is not State.WRITING:
            raise StaleSlotError(f"block {place.block_id} is not being written at {place}")
        return self._bytes[place.offset : place.offset + place.nbytes]

    # -- reading ----------------------------------------------------------------------------------------------------

    def pin(self, block_id: int, owner: int, generation: int | None = None) -> bool:
        """Keep the block's bytes for ``owner``, once more."""
        return self._apply(block_id, generation, lambda slot: slots.Pin(slot.extent.offset, slot.generation, owner))

    def unpin(self, block_id: int, owner: int, generation: int | None = None) -> bool:
        """Take one of ``owner``'s pins back."""
        return self._apply(block_id, generation, lambda slot: slots.Unpin(slot.extent.offset, slot.generation, owner))

    def place_of(self, block_id: int, pin: int = 0) -> BlockPlace:
        """Return where the block lies.

        Raises:
            StaleSlotError: it has no place here.
        """
        slot = self._slot(block_id)
        return BlockPlace(block_id, self.arena_id, slot.extent.offset, slot.nbytes, slot.generation, pin)

    def read(self, block_id: int) -> memoryview:
        """Return the block's bytes where they lie: valid until the block is released.

        Raises:
            StaleSlotError: it has no place here.
        """
        slot = self._slot(block_id)
        return self._bytes[slot.extent.offset : slot.extent.offset + slot.nbytes].data.toreadonly()

    def begin_read(self, block_id: int, generation: int, mode: Mode, reader: int) -> Reading:
        """Begin to read the block, whose slot must be in ``generation``.

        Raises:
            StaleSlotError: the block has no place here, another generation of it, or its rows are gone.
            DataPlaneNotReady: it is being written, or read in the other mode.
        """
        slot = self._slot(block_id)
        begin = slots.BeginRead(slot.extent.offset, generation, mode, reader)
        effects = self._slots.handle(begin, self._clock())
        self._carry_out(effects)
        (answer,) = effects
        if isinstance(answer, Admitted):
            return Reading(block_id, generation, answer.token, self.read(block_id))
        why = answer.why if isinstance(answer, Ignored) else "refused"
        condemned = self._slots.state_of(slot.extent.offset) is State.CONDEMNED
        if condemned or slot.generation != generation:
            raise StaleSlotError(f"block {block_id} is not what it was: {why}")
        raise DataPlaneNotReady(f"block {block_id} cannot be read now: {why}")

    def mark_consumed(self, reading: Reading) -> bool:
        """The attempt has succeeded, in consume mode: the block is needed no more. False = too late or wrong."""
        return self._apply(
            reading.block_id,
            reading.generation,
            lambda slot: slots.MarkConsumed(slot.extent.offset, slot.generation, reading.token),
        )

    def release_reading(self, reading: Reading) -> bool:
        """The attempt has failed, or was in retain mode. False = too late or wrong; nothing changed."""
        return self._apply(
            reading.block_id,
            reading.generation,
            lambda slot: slots.ReleaseReading(slot.extent.offset, slot.generation, reading.token),
        )

    # -- ends -------------------------------------------------------------------------------------------------------

    def owner_gone(self, owner: int) -> list[int]:
        """The owner's process is dead: its grants, pins and tokens end; return the blocks whose slots that freed."""
        return self._carry_out(self._slots.handle(slots.OwnerGone(owner), self._clock()))

    def close(self, *, unlink: bool) -> None:
        """Let go of the file; with ``unlink`` nothing is left of it but the mappings of clients. Idempotent."""
        if self._map is None:
            return
        self._map = None
        self._bytes = self._bytes[:0].copy()
        if unlink:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)

    def blocks(self) -> list[int]:
        """Return the ids of all blocks that have a place, in order of id."""
        return sorted(self._blocks)

    def statistics(self) -> ArenaStatistics:
        """Return the arena at a glance; costs one fstat."""
        counts = self._slots.statistics()
        return ArenaStatistics(
            capacity=self.capacity,
            used=self._extents.used,
            warm=self._extents.warm,
            resident=0 if self._map is None else os.fstat(self._fd).st_blocks * 512,
            writing_slots=counts.writing,
            ready_slots=self._slots.get_ready_count(),
            reading_slots=counts.reading,
            condemned_slots=counts.condemned,
            pins=counts.pins,
            tokens=counts.tokens,
            superseded=counts.superseded,
            ignored=counts.ignored + self._unknown,
            full=self._full,
            no_memory=self._no_memory,
            punched=self._punched,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant."""
        self._slots.check_invariants()
        self._extents.check_invariants()
        assert {s.extent.offset for s in self._blocks.values()} == set(self._block_at), "blocks and slots disagree"
        assert sum(s.extent.nbytes for s in self._blocks.values()) == self._extents.used, "bytes in use are miscounted"
        for slot in self._blocks.values():
            assert self._slots.state_of(slot.extent.offset) is not slots.State.FREE, "a block lies in a free slot"
        for block_id in self._backing:
            state = self._slots.state_of(self._blocks[block_id].extent.offset)
            assert state is State.WRITING, "a block that is not backed is being read"

    # -- inside -----------------------------------------------------------------------------------------------------

    def _slot(self, block_id: int) -> _Slot:
        if block_id not in self._blocks:
            raise StaleSlotError(f"block {block_id} has no place in arena {self.arena_id}")
        return self._blocks[block_id]

    def _take(self, nbytes: int) -> tuple[Range, list[Range]] | None:
        """Take room; return it with the ranges of it that are still to be allocated.

        A page that the room shares with free bytes behind it is allocated at once: those may be granted next.
        """
        found = self._extents.take(nbytes)
        if found is None:
            self._full += 1
            return None
        extent, cold = found
        if not self._may_allocate(sum(part.nbytes for part in cold)):
            self._extents.give(extent)
            self._punch(self._extents.trim(0))
            return None
        if cold and cold[-1].offset + cold[-1].nbytes > extent.offset + extent.nbytes:
            kept = Range(cold[-1].offset, cold[-1].nbytes - PAGE)
            if not self._allocate(Range(kept.offset + kept.nbytes, PAGE)):
                self._extents.give(extent)
                self._punch(self._extents.trim(0))  # all of it is cold again; the machine is short
                return None
            cold[-1:] = [kept] if kept.nbytes else []
        return extent, cold

    def _may_allocate(self, nbytes: int) -> bool:
        """Whether it is worth beginning with more than a slice; each slice is looked at again."""
        if nbytes <= SLICE_BYTES or not self._in_memory:
            return True
        available = available_memory()
        if available is None or available - nbytes >= _KEEP_AVAILABLE:
            return True
        self._refused(nbytes, f"the machine has {available >> 20} MiB of memory left")
        return False

    def _allocate(self, cold: Range) -> bool:
        try:
            self._check_memory(cold.nbytes)
            allocate(self._fd, cold.offset, cold.nbytes)
        except OSError as error:
            if error.errno not in _NO_MEMORY:
                raise
            self._refused(cold.nbytes, str(error))
            return False
        return True

    def _refused(self, nbytes: int, why: str) -> None:
        self._no_memory += 1
        _warn(self._no_memory, "arena %d: no memory for %d more bytes: %s", self.arena_id, nbytes, why)

    def _check_memory(self, nbytes: int) -> None:
        """Refuse what would wake the OOM killer: a tmpfs larger than the memory promises what the machine has not."""
        self._unchecked += nbytes if self._in_memory else 0
        if self._unchecked < _CHECK_EVERY:
            return
        available = available_memory()
        if available is not None and available - self._unchecked < _KEEP_AVAILABLE:
            self._unchecked -= nbytes
            raise OSError(errno.ENOMEM, f"the machine has {available >> 20} MiB of memory left")
        self._unchecked = 0

    def _apply(self, block_id: int, generation: int | None, event: Callable[[_Slot], slots.SlotEvent]) -> bool:
        slot = self._blocks.get(block_id)
        if slot is None:
            self._unknown += 1
            _warn(self._unknown, "arena %d: an event for block %d, which has no place here", self.arena_id, block_id)
            return False
        if generation is not None:
            slot = replace(slot, generation=generation)
        effects = self._slots.handle(event(slot), self._clock())
        self._carry_out(effects)
        return not any(isinstance(effect, Ignored) for effect in effects)

    def _carry_out(self, effects: Iterable[slots.Effect]) -> list[int]:
        freed = []
        for effect in effects:
            if isinstance(effect, Freed):
                block_id = self._block_at.pop(effect.slot)
                self._extents.give(self._blocks.pop(block_id).extent, self._backing.pop(block_id, ()))
                freed.append(block_id)
            elif isinstance(effect, Ignored):
                count = self._slots.statistics().ignored
                _warn(count, "arena %d: ignored %r: %s", self.arena_id, effect.event, effect.why)
        self._punch(self._extents.trim(self._warm_bytes))
        return freed

    def _punch(self, cold: Iterable[Range]) -> None:
        for extent in cold:
            try:
                punch(self._fd, extent.offset, extent.nbytes)
            except OSError as error:  # the memory stays ours, unused: not worth failing a put for
                self._not_punched += 1
                _warn(self._not_punched, "arena %d: cannot return %d bytes: %s", self.arena_id, extent.nbytes, error)
            else:
                self._punched += extent.nbytes


class OldArena:
    """The arena file of an earlier life: served until its blocks have moved, never granted from, then unlinked."""

    def __init__(self, path: Path, arena_id: int, mapped: Mapped, places: dict[int, BlockPlace]) -> None:
        self.path = path
        self.arena_id = arena_id
        self.capacity = mapped.nbytes
        self._bytes: Bytes = mapped.array()
        self._places = places

    @classmethod
    def open(cls, path: Path, places: Iterable[BlockPlace]) -> OldArena:
        """Open the file at ``path``, whose READY blocks are at ``places`` (all of one arena, by the journal).

        Raises:
            CorruptPayload: a place lies outside the file, or belongs to another arena.
            OSError: there is no such file, or it is not this user's.
        """
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = checked_size(fd, path)
            by_id = {place.block_id: place for place in places}
            arenas = {place.arena_id for place in by_id.values()}
            if len(arenas) > 1 or any(p.offset < 0 or p.offset + p.nbytes > size for p in by_id.values()):
                raise CorruptPayload(f"{path} of {size} bytes does not hold the blocks that the journal places there")
            mapped = map_file(fd, 0, size, private=False, writable=False)
            return cls(path, arenas.pop() if arenas else -1, mapped, by_id)
        finally:
            os.close(fd)

    def __repr__(self) -> str:
        return f"<OldArena {self.arena_id} at {self.path}: {len(self._places)} blocks left>"

    def blocks(self) -> list[int]:
        """Return the ids of the blocks that have not moved yet."""
        return sorted(self._places)

    @property
    def empty(self) -> bool:
        """Whether every block has moved or gone."""
        return not self._places

    def place_of(self, block_id: int, pin: int = 0) -> BlockPlace:
        """Return where the block lies in the old file.

        Raises:
            StaleSlotError: it is not (or no longer) here.
        """
        place = self._place(block_id)
        return BlockPlace(block_id, place.arena_id, place.offset, place.nbytes, place.generation, pin)

    def read(self, block_id: int) -> memoryview:
        """Return the block's bytes.

        Raises:
            StaleSlotError: it is not (or no longer) here.
        """
        place = self._place(block_id)
        return self._bytes[place.offset : place.offset + place.nbytes].data.toreadonly()

    def drop(self, block_id: int) -> None:
        """Forget a block whose rows are gone."""
        self._places.pop(block_id, None)

    def close(self, *, unlink: bool) -> None:
        """Let go of the file. Old views keep what they have mapped. Idempotent."""
        self._bytes = self._bytes[:0].copy()
        if unlink:
            self.path.unlink(missing_ok=True)

    def _place(self, block_id: int) -> BlockPlace:
        if block_id not in self._places:
            raise StaleSlotError(f"block {block_id} has no place in the old arena {self.arena_id}")
        return self._places[block_id]


def _warn(count: int, message: str, *args: object) -> None:
    """Warn at the 1st, 2nd, 4th, 8th... time: a bounded rate without a clock; ``statistics`` has the count."""
    if count & (count - 1) == 0:
        _log.warning(f"{message} (%d times so far)", *args, count)
