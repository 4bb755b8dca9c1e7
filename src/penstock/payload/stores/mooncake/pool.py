"""Memory registered with one client, lent to its calls; and what may not be lent again.

A transfer that failed may not have ended: the library does not say. So memory that a failed transfer named is **held**:
it stays registered and serves nothing but a retry of the same stored value, whose bytes are the same.

Invariants: a lease is given back or held, once; held memory is lent to its own name alone, until the pool is dropped
with its client; lent and free memory never exceed ``limit`` but for one value that is larger; nobody waits past the
deadline, or while he has a lease himself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.payload.block import Bytes
from penstock.payload.extents import Extents, Range
from penstock.payload.memory import PAGE
from penstock.retry import Deadline

__all__ = ["Lease", "Pool"]

_SLAB_BYTES = 32 << 20


@dataclass(eq=False, slots=True)
class _Slab:
    memory: Bytes
    extents: Extents


@dataclass(eq=False, slots=True)
class Lease:
    """A piece of registered memory."""

    memory: Bytes
    address: int
    slab: _Slab
    range: Range

    @property
    def nbytes(self) -> int:
        return len(self.memory)


class Pool:
    """Fit for use from several threads.

    Args:
        register: ``(address, nbytes) -> code`` of the client; anything but 0 is no room.
        unregister: ``(address) -> code``; memory that was not unregistered is kept.
        limit: bytes that are lent or free, at most.
    """

    def __init__(self, register: Callable[[int, int], int], unregister: Callable[[int], int], limit: int) -> None:
        self.limit = limit
        self._register = register
        self._unregister = unregister
        self._slabs: list[_Slab] = []
        self._held: dict[str, Lease] = {}
        self._held_bytes = 0
        self._lent_bytes = 0
        self._refused = False  # the client would not register more
        self._changed = threading.Condition()

    @property
    def memory_bytes(self) -> int:
        """Bytes that are registered."""
        return sum(slab.extents.capacity for slab in tuple(self._slabs))

    @property
    def held_bytes(self) -> int:
        """Bytes in quarantine."""
        return self._held_bytes

    def prepare(self) -> bool:
        """Register the first slab, so that transfers find memory; False = the client refuses."""
        with self._changed:
            return bool(self._slabs) or self._grow(1, alone=True) is not None

    def take(self, sizes: Sequence[int], deadline: Deadline | None) -> list[Lease] | None:
        """Lend memory of these sizes, all of it or none: None at the deadline, or at once without one.

        Also at once when the client would not register more, which waiting does not change.
        """
        with self._changed:
            while (leases := self._find_all(sizes)) is None:
                if self._refused or deadline is None or deadline.expired():
                    return None
                self._changed.wait(deadline.remaining())
            return leases

    def give(self, leases: Sequence[Lease]) -> None:
        """Take memory back that no call can touch any more."""
        with self._changed:
            for lease in leases:
                self._lent_bytes -= lease.range.nbytes
                lease.slab.extents.give(lease.range)
            self._changed.notify_all()

    def hold(self, name: str, lease: Lease) -> None:
        """Keep memory that a late write may land in, for retries of the stored value ``name`` alone."""
        with self._changed:
            self._lent_bytes -= lease.range.nbytes
            self._held_bytes += lease.range.nbytes
            if name in self._held:  # of another length, or of a run beside: neither is lent again
                name = f"{name}\0{len(self._held)}"
            self._held[name] = lease
            self._changed.notify_all()

    def take_held(self, name: str, nbytes: int) -> Lease | None:
        """Lend again what is held for ``name``, if it is of that size. It is given to ``hold`` afterwards."""
        with self._changed:
            lease = self._held.get(name)
            if lease is None or lease.nbytes != nbytes:
                return None
            del self._held[name]
            self._held_bytes -= lease.range.nbytes
            self._lent_bytes += lease.range.nbytes
            return lease

    def _find_all(self, sizes: Sequence[int]) -> list[Lease] | None:
        leases: list[Lease] = []
        alone = not self._lent_bytes  # nobody will give anything back: what is asked for is granted, limit or not
        for nbytes in sizes:
            lease = self._find(nbytes, alone=alone)
            if lease is None:
                for other in leases:
                    self._lent_bytes -= other.range.nbytes
                    other.slab.extents.give(other.range)
                return None
            leases.append(lease)
        return leases

    def _find(self, nbytes: int, *, alone: bool) -> Lease | None:
        for slab in self._slabs:
            if slab.extents.free >= nbytes and (found := slab.extents.take(nbytes)) is not None:
                return self._lend(slab, found[0], nbytes)
        grown = self._grow(nbytes, alone=alone)
        if grown is None or (found := grown.extents.take(nbytes)) is None:
            return None
        return self._lend(grown, found[0], nbytes)

    def _lend(self, slab: _Slab, extent: Range, nbytes: int) -> Lease:
        self._lent_bytes += extent.nbytes
        memory = slab.memory[extent.offset : extent.offset + nbytes]
        return Lease(memory, slab.memory.ctypes.data + extent.offset, slab, extent)

    def _grow(self, nbytes: int, *, alone: bool) -> _Slab | None:
        """Register another slab, if the limit allows; who is alone gets it in any case."""
        size = -(-max(nbytes, min(_SLAB_BYTES, self.limit)) // PAGE) * PAGE
        if not self._room_for(size):
            self._shrink()
            if not self._room_for(size) and not alone:
                return None
        memory = np.empty(size, np.uint8)
        self._refused = self._register(memory.ctypes.data, size) != 0
        if self._refused:
            return None
        slab = _Slab(memory, Extents(size))
        self._slabs.append(slab)
        return slab

    def _room_for(self, size: int) -> bool:
        return self.memory_bytes - self._held_bytes + size <= self.limit

    def _shrink(self) -> None:
        """Let go of slabs that nobody uses: they are too small for what is asked for."""
        for slab in [slab for slab in self._slabs if not slab.extents.used]:
            if self._unregister(slab.memory.ctypes.data) == 0:
                self._slabs.remove(slab)

    def __repr__(self) -> str:
        return f"Pool({self.memory_bytes} bytes, {self._lent_bytes} lent, {self._held_bytes} held, limit {self.limit})"
