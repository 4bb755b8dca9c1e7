"""Which bytes of an arena are free, and which of those still occupy memory.

Free space is of two kinds: warm (resident: a put there faults no page in) and cold (never used, or given back to the
kernel). Warm space is used first; in each kind the best fit, the most recently freed among equals. Pure: it says which
ranges the shell must allocate or punch.

Invariants: extents in use, warm and cold tile the arena; cold extents begin and end on pages; no two neighbours of one
kind stay apart. Cost per call: O(distinct sizes) at worst, O(1) dictionary work as a rule;
O(n log n) when only neighbours of both kinds together are long enough.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from penstock.payload.memory import PAGE

GRANULE = 256  # small puts share pages: at a page each, a 1 KiB row would hold four times its size
_SLACK = 8  # trimming stops 1/8 below the limit, so that a full pool is not trimmed a page at a time


@dataclass(frozen=True, slots=True)
class Range:
    offset: int
    nbytes: int


class _Pool:
    """Free extents of one kind: coalesced, best fit."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._by_start: dict[int, int] = {}
        self._by_end: dict[int, int] = {}
        self._by_size: dict[int, dict[int, None]] = {}  # size -> offsets, the most recent last
        self._sizes: list[int] = []

    def add(self, offset: int, nbytes: int) -> None:
        before = self._by_end.get(offset)
        if before is not None:
            nbytes += self._remove(before)
            offset = before
        if offset + nbytes in self._by_start:
            nbytes += self._remove(offset + nbytes)
        self._by_start[offset] = nbytes
        self._by_end[offset + nbytes] = offset
        if nbytes not in self._by_size:
            self._by_size[nbytes] = {}
            insort(self._sizes, nbytes)
        self._by_size[nbytes][offset] = None
        self.nbytes += nbytes

    def take(self, nbytes: int) -> Range | None:
        """Remove and return the smallest extent of at least ``nbytes``, whole."""
        at = bisect_left(self._sizes, nbytes)
        if at == len(self._sizes):
            return None
        offset = next(reversed(self._by_size[self._sizes[at]]))
        return Range(offset, self._remove(offset))

    def largest(self) -> Range | None:
        """Return the largest extent, the longest free among equals; it stays."""
        if not self._sizes:
            return None
        return Range(next(iter(self._by_size[self._sizes[-1]])), self._sizes[-1])

    def remove(self, offset: int) -> None:
        self._remove(offset)

    def extents(self) -> list[Range]:
        return [Range(offset, nbytes) for offset, nbytes in sorted(self._by_start.items())]

    def _remove(self, offset: int) -> int:
        nbytes = self._by_start.pop(offset)
        del self._by_end[offset + nbytes]
        same = self._by_size[nbytes]
        del same[offset]
        if not same:
            del self._by_size[nbytes]
            del self._sizes[bisect_left(self._sizes, nbytes)]
        self.nbytes -= nbytes
        return nbytes


class Extents:
    """The space of one arena of ``capacity`` bytes (a multiple of the page), all of it cold at first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._warm = _Pool()
        self._cold = _Pool()
        self._cold.add(0, capacity)

    @property
    def warm(self) -> int:
        """Free bytes that are resident."""
        return self._warm.nbytes

    @property
    def free(self) -> int:
        """Free bytes of either kind; the largest piece may be smaller."""
        return self._warm.nbytes + self._cold.nbytes

    def take(self, nbytes: int) -> tuple[Range, list[Range]] | None:
        """Take room for ``nbytes``: the extent, and the ranges of it that must be allocated first, being cold.

        None = no stretch of free bytes is long enough.
        """
        size = -(-nbytes // GRANULE) * GRANULE
        found = self._warm.take(size)
        if found is not None:
            return self._use(found.offset, size, [(found, self._warm)])
        found = self._cold.take(-(-size // PAGE) * PAGE)
        if found is not None:
            return self._use(found.offset, size, [(found, self._cold)])
        run = self._shortest_run(size) if self.free >= size else []
        for extent, pool in run:
            pool.remove(extent.offset)
        return self._use(run[0][0].offset, size, run) if run else None

    def _use(self, start: int, size: int, run: list[tuple[Range, _Pool]]) -> tuple[Range, list[Range]]:
        """Cut ``size`` bytes off neighbouring extents that have left their pools; the rest goes back."""
        end = start + size
        cold = []
        for extent, pool in run:
            stop = extent.offset + extent.nbytes
            if pool is self._cold and extent.offset < end:
                cut = min(-(-end // PAGE) * PAGE, stop)
                cold.append(Range(extent.offset, cut - extent.offset))
                self._add(self._warm, max(end, extent.offset), cut)
                self._add(self._cold, cut, stop)
            else:
                self._add(pool, max(end, extent.offset), stop)
        self.used += size
        return Range(start, size), cold

    def _shortest_run(self, size: int) -> list[tuple[Range, _Pool]]:
        """Return the shortest stretch of neighbours that holds ``size`` bytes: a last resort, O(n log n)."""
        free = [(e, pool) for pool in (self._warm, self._cold) for e in pool.extents()]
        free.sort(key=lambda item: item[0].offset)
        best: list[tuple[Range, _Pool]] = []
        run: list[tuple[Range, _Pool]] = []
        for item in free:
            if run and run[-1][0].offset + run[-1][0].nbytes != item[0].offset:
                run = []
            run.append(item)
            if _length(run) >= size and (not best or _length(run) < _length(best)):
                best = run.copy()
        return best

    def give(self, extent: Range, cold: Iterable[Range] = ()) -> None:
        """Take back an extent that ``take`` returned; it is warm, but for ``cold``: whole pages of it, in order."""
        self.used -= extent.nbytes
        at = extent.offset
        for part in cold:
            self._add(self._warm, at, part.offset)
            self._cold.add(part.offset, part.nbytes)
            at = part.offset + part.nbytes
        self._add(self._warm, at, extent.offset + extent.nbytes)

    def trim(self, limit: int) -> list[Range]:
        """Make warm space cold until at most ``limit`` bytes of it are left; return the ranges to punch.

        What lies on a page with bytes in use stays warm.
        """
        if self._warm.nbytes <= limit:
            return []
        target = limit - limit // _SLACK
        punched: list[Range] = []
        unaligned: list[Range] = []
        aside = 0
        while (excess := self._warm.nbytes + aside - target) > 0:
            extent = self._warm.largest()
            if extent is None or extent.nbytes < PAGE:
                break
            self._warm.remove(extent.offset)
            cold = _pages_within(extent, excess)
            if cold is None:
                unaligned.append(extent)
                aside += extent.nbytes
                continue
            self._add(self._warm, extent.offset, cold.offset)
            self._add(self._warm, cold.offset + cold.nbytes, extent.offset + extent.nbytes)
            self._cold.add(cold.offset, cold.nbytes)
            punched.append(cold)
        for extent in unaligned:
            self._warm.add(extent.offset, extent.nbytes)
        return punched

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant."""
        assert self.used + self._warm.nbytes + self._cold.nbytes == self.capacity, "bytes are lost or invented"
        for pool in (self._warm, self._cold):
            extents = pool.extents()
            assert sum(e.nbytes for e in extents) == pool.nbytes, "a pool is miscounted"
            for left, right in pairwise(extents):
                assert left.offset + left.nbytes < right.offset, "neighbours overlap or stay apart"
        for extent in self._cold.extents():
            assert extent.offset % PAGE == 0, "a cold extent begins within a page"
            assert extent.nbytes % PAGE == 0, "a cold extent ends within a page"

    @staticmethod
    def _add(pool: _Pool, start: int, end: int) -> None:
        if end > start:
            pool.add(start, end - start)


def _length(run: list[tuple[Range, _Pool]]) -> int:
    return run[-1][0].offset + run[-1][0].nbytes - run[0][0].offset


def _pages_within(extent: Range, wanted: int) -> Range | None:
    """Return whole pages at the end of ``extent``, about ``wanted`` bytes of them."""
    first = -(-extent.offset // PAGE) * PAGE
    end = (extent.offset + extent.nbytes) // PAGE * PAGE
    start = max(first, (end - wanted) // PAGE * PAGE)
    return Range(start, end - start) if end > start else None
