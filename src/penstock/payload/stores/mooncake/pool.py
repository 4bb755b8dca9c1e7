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
from penstock.payload.stores.mooncake.codes import LATE
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
        register: ``(address, nbytes, deadline) -> code`` of the client; anything but 0 is no room.
        unregister: ``(address, deadline) -> code``; memory that was not unregistered is kept.
        limit: bytes that are lent or free, at most.
    """

    def __init__(
        self, register: Callable[[int, int, Deadline], int], unregister: Callable[[int, Deadline], int], limit: int
    ) -> None:
        self.limit = limit
        self._register = register
        self._unregister = unregister
        self._slabs: list[_Slab] = []
        self._late: list[Bytes] = []  # may be registered yet, by a call that did not come back
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

    def prepare(self, deadline: Deadline) -> bool:
        """Register the first slab, so that transfers find memory; False = the client refuses."""
        with self._changed:
            return bool(self._slabs) or self._grow(1, deadline, alone=True) is not None

    def take(self, sizes: Sequence[int], deadline: Deadline, *, wait: bool = True) -> list[Lease] | None:
        """Lend memory of these sizes, all of it or none: None at the deadline.

        None also when the client would not register more, which waiting does not change; and, without ``wait``, when
        others would have to give some back first.
        """
        if not self._changed.acquire(timeout=deadline.remaining()):
            return None  # somebody's registering does not come back
        try:
            while (leases := self._find_all(sizes, deadline)) is None:
                if self._refused or not wait or deadline.expired():
                    return None
                self._changed.wait(deadline.remaining())
            return leases
        finally:
            self._changed.release()

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

    def _find_all(self, sizes: Sequence[int], deadline: Deadline) -> list[Lease] | None:
        leases: list[Lease] = []
        alone = not self._lent_bytes  # nobody will give anything back: what is asked for is granted, limit or not
        for nbytes in sizes:
            lease = self._find(nbytes, deadline, alone=alone)
            if lease is None:
                for other in leases:
                    self._lent_bytes -= other.range.nbytes
                    other.slab.extents.give(other.range)
                return None
            leases.append(lease)
        return leases

    def _find(self, nbytes: int, deadline: Deadline, *, alone: bool) -> Lease | None:
        for slab in self._slabs:
            if slab.extents.free >= nbytes and (found := slab.extents.take(nbytes)) is not None:
                return self._lend(slab, found[0], nbytes)
        grown = self._grow(nbytes, deadline, alone=alone)
        if grown is None or (found := grown.extents.take(nbytes)) is None:
            return None
        return self._lend(grown, found[0], nbytes)

    def _lend(self, slab: _Slab, extent: Range, nbytes: int) -> Lease:
        self._lent_bytes += extent.nbytes
        memory = slab.memory[extent.offset : extent.offset + nbytes]
        return Lease(memory, slab.memory.ctypes.data + extent.offset, slab, extent)

    def _grow(self, nbytes: int, deadline: Deadline, *, alone: bool) -> _Slab | None:
        """Register another slab, if the limit allows; who is alone gets it in any case."""
        size = -(-max(nbytes, min(_SLAB_BYTES, self.limit)) // PAGE) * PAGE
        if not self._room_for(size):
            self._shrink(deadline)
            if not self._room_for(size) and not alone:
                return None
        memory = np.empty(size, np.uint8)
        code = self._register(memory.ctypes.data, size, deadline)
        self._refused = code != 0
        if code == LATE:
            self._late.append(memory)  # given back, it would be others' when the library comes to register it
        if self._refused:
            return None
        slab = _Slab(memory, Extents(size))
        self._slabs.append(slab)
        return slab

    def _room_for(self, size: int) -> bool:
        return self.memory_bytes - self._held_bytes + size <= self.limit

    def _shrink(self, deadline: Deadline) -> None:
        """Let go of slabs that nobody uses: they are too small for what is asked for."""
        for slab in [slab for slab in self._slabs if not slab.extents.used]:
            if self._unregister(slab.memory.ctypes.data, deadline) == 0:
                self._slabs.remove(slab)

    def __repr__(self) -> str:
        return f"Pool({self.memory_bytes} bytes, {self._lent_bytes} lent, {self._held_bytes} held, limit {self.limit})"
