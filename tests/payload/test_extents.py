"""Free space: nothing is lost, given twice or left resident beyond the limit."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.payload.extents import GRANULE, Extents, Range
from penstock.payload.memory import PAGE

CAPACITY = 64 * PAGE


def test_freed_space_is_used_again_before_untouched_space() -> None:
    """The second put of a size touches no new page."""
    extents = Extents(CAPACITY)
    first, allocate = extents.take(3 * PAGE) or (None, [])
    assert first is not None
    assert allocate == [Range(first.offset, 3 * PAGE)]
    extents.give(first)
    again, allocate = extents.take(2 * PAGE + 1) or (None, [])
    assert again == Range(first.offset, 2 * PAGE + GRANULE)
    assert allocate == []


def test_small_blocks_share_a_page() -> None:
    """Sixteen quarter-KiB blocks cost one page."""
    extents = Extents(CAPACITY)
    taken = [extents.take(200) for _ in range(PAGE // GRANULE)]
    assert sum(1 for found in taken if found and found[1]) == 1
    assert (extents.used, extents.warm) == (PAGE, 0)


def test_trimming_gives_back_whole_pages_and_stops_below_the_limit() -> None:
    """Pages that a block in use shares stay; neighbours of the same kind join."""
    extents = Extents(CAPACITY)
    taken = [found[0] for _ in range(20) if (found := extents.take(PAGE + GRANULE))]
    for extent in taken[1:]:
        extents.give(extent)
    punched = extents.trim(4 * PAGE)
    assert punched
    assert extents.warm <= 4 * PAGE
    assert all(r.offset % PAGE == 0 and r.nbytes % PAGE == 0 for r in punched)
    assert all(r.offset >= taken[0].nbytes for r in punched)
    assert extents.trim(4 * PAGE) == []
    extents.check_invariants()


def test_warm_and_cold_neighbours_serve_a_block_that_neither_holds() -> None:
    """Only the cold part is allocated; what is left of each goes back to its kind."""
    extents = Extents(8 * PAGE)
    taken = [found[0] for _ in range(5) if (found := extents.take(PAGE))]
    for extent in taken[2:]:
        extents.give(extent)  # used 0-1, warm 2-4, cold 5-7
    found = extents.take(5 * PAGE + 1)
    assert found == (Range(2 * PAGE, 5 * PAGE + GRANULE), [Range(5 * PAGE, 3 * PAGE)])
    extents.check_invariants()
    assert (extents.warm, extents.free) == (PAGE - GRANULE, PAGE - GRANULE)
    assert extents.take(PAGE) is None


def test_everything_freed_is_one_extent_again() -> None:
    """After any churn an empty arena holds a block as large as itself."""
    extents = Extents(CAPACITY)
    taken = [found[0] for n in range(1, 40) if (found := extents.take(n * 100))]
    for extent in taken[::2] + taken[1::2]:
        extents.give(extent)
    extents.trim(0)
    assert extents.warm == 0
    assert extents.take(CAPACITY) is not None
    assert extents.take(1) is None


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9 * PAGE)), max_size=120))
def test_no_byte_is_in_two_extents(steps: list[tuple[int, int]]) -> None:
    """Takes, gives and trims in any order keep extents disjoint and allocated before they are given."""
    extents = Extents(CAPACITY)
    held: list[Range] = []
    backed: set[int] = set()
    for action, size in steps:
        if action <= 1 and (found := extents.take(size)):
            extent, allocate = found
            for cold in allocate:
                backed |= set(range(cold.offset // PAGE, (cold.offset + cold.nbytes) // PAGE))
            pages = range(extent.offset // PAGE, -(-(extent.offset + extent.nbytes) // PAGE))
            assert set(pages) <= backed, "granted without memory behind it"
            assert all(extent.offset >= h.offset + h.nbytes or h.offset >= extent.offset + extent.nbytes for h in held)
            assert extent.nbytes >= size
            held.append(extent)
        elif action == 2 and held:
            extents.give(held.pop(size % len(held)))
        elif action == 3:
            for cold in extents.trim(size):
                backed -= set(range(cold.offset // PAGE, (cold.offset + cold.nbytes) // PAGE))
        extents.check_invariants()
        assert extents.used == sum(h.nbytes for h in held)
