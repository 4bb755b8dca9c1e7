"""Moving whole values between registered memory and the store, some calls at a time.

Values are moved in chunks: one call each, of one segment, of limited bytes and keys. While a chunk is under way the
next one is prepared, so that copying and hashing cost no time of their own.

Invariants: each part gets one code; memory is given back when its call answered that nothing more will be moved, held
when it may be, and left to its link when the call did not come back; held memory serves its own run alone, whose bytes
are the same; at most ``_WINDOW`` chunks are out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from penstock.payload.stores.mooncake.calls import Job
from penstock.payload.stores.mooncake.codes import LATE, NO_MEMORY, NOT_SENT, meaning_of
from penstock.payload.stores.mooncake.link import Link
from penstock.payload.stores.mooncake.pool import Lease
from penstock.retry import Deadline

__all__ = ["Part", "Settle", "new_run", "transfer"]

_WINDOW = 2
_SHARES = 4  # a chunk takes a share of the registered memory, so that several fit
_runs = itertools.count(1)


def new_run() -> int:
    """Return the number of a run: attempts at the same values in the same direction."""
    return next(_runs)


@dataclass(frozen=True, slots=True)
class Part:
    """One stored value that is to be moved.

    Attributes:
        key: whose copy it is; ``name``: what the copy is called in the store.
        segment: where it lies, or is to lie; "" = not known.
        nbytes: with its header.
    """

    key: str
    name: str
    segment: str
    nbytes: int


Fill: TypeAlias = Callable[[Part, Lease], None]
"""Called before a transfer with memory that does not hold the part yet."""
Submit: TypeAlias = Callable[[str, list[str], list[int], list[int]], Job[list[int]]]
"""``submit(segment, names, addresses, sizes)``."""
Settle: TypeAlias = Callable[[Part, int, Lease | None], None]
"""``settle(part, code, lease)``: its memory is the callee's to read until it returns; None = it has none."""


@dataclass(slots=True)
class _Chunk:
    parts: list[Part]
    leases: list[Lease]
    reused: list[bool]
    job: Job[list[int]]


def transfer(
    link: Link,
    parts: Sequence[Part],
    run: int,
    deadline: Deadline,
    submit: Submit,
    settle: Settle,
    fill: Fill | None = None,
) -> None:
    """Move ``parts``, an attempt of ``run``; ``settle`` is called once for each."""
    out: deque[_Chunk] = deque()
    silent: set[str] = set()  # segments that left us waiting: nothing more is sent there

    def finish(chunk: _Chunk) -> None:
        if _finish(link, chunk, run, deadline, settle) == LATE:
            silent.add(chunk.parts[0].segment)

    for group in _grouped(link, parts):
        while len(out) >= _WINDOW:
            finish(out.popleft())
        if group[0].segment in silent or deadline.expired():
            for part in group:
                settle(part, NOT_SENT, None)
            continue
        chunk = _begin(link, group, run, deadline, submit, fill, wait=not out)
        while chunk is None and out:
            finish(out.popleft())
            chunk = _begin(link, group, run, deadline, submit, fill, wait=not out)
        if chunk is None:
            for part in group:
                settle(part, NO_MEMORY, None)
        else:
            out.append(chunk)
    while out:
        finish(out.popleft())


def _grouped(link: Link, parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Cut ``parts`` into chunks of one segment; the segments take turns, so that all owners are at work."""
    by_segment: dict[str, list[Part]] = {}
    for part in parts:
        by_segment.setdefault(part.segment, []).append(part)
    turns = itertools.zip_longest(*(_chunks(link, same) for same in by_segment.values()))
    return (chunk for turn in turns for chunk in turn if chunk is not None)


def _chunks(link: Link, parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Cut by bytes and number; a chunk takes a share of the registered memory, so that several fit."""
    limit = min(link.config.chunk_bytes, link.config.local_buffer // _SHARES)
    group: list[Part] = []
    nbytes = 0
    for part in parts:
        if group and (nbytes + part.nbytes > limit or len(group) >= link.config.chunk_keys):
            yield group
            group, nbytes = [], 0
        group.append(part)
        nbytes += part.nbytes
    yield group


def _begin(
    link: Link, parts: list[Part], run: int, deadline: Deadline, submit: Submit, fill: Fill | None, *, wait: bool
) -> _Chunk | None:
    """Send a chunk off; None = there is no memory for it, at the deadline or (without ``wait``) now."""
    held = [link.pool.take_held(_held_as(part, run), part.nbytes) for part in parts]
    sizes = [part.nbytes for part, lease in zip(parts, held, strict=True) if lease is None]
    fresh = link.pool.take(sizes, deadline, wait=wait)
    if fresh is None:
        for part, lease in zip(parts, held, strict=True):
            if lease is not None:
                link.pool.hold(_held_as(part, run), lease)
        return None
    supply = iter(fresh)
    leases = [lease or next(supply) for lease in held]
    if fill is not None:
        for part, lease, old in zip(parts, leases, held, strict=True):
            if old is None:
                fill(part, lease)
    names, sizes = [part.name for part in parts], [part.nbytes for part in parts]
    job = submit(parts[0].segment, names, [lease.address for lease in leases], sizes)
    return _Chunk(parts, leases, [old is not None for old in held], job)


def _finish(link: Link, chunk: _Chunk, run: int, deadline: Deadline, settle: Settle) -> int:
    """Wait for a chunk's answer, hand it on, and see to its memory; return the first code."""
    limit = deadline.within(link.config.call_time_s(sum(part.nbytes for part in chunk.parts)))
    codes = link.calls.codes(chunk.job, len(chunk.parts), limit)
    if codes[0] == LATE:
        link.taint("a transfer did not come back in time")
    free: list[Lease] = []
    for part, code, lease, reused in zip(chunk.parts, codes, chunk.leases, chunk.reused, strict=True):
        settle(part, code, lease)
        if code == LATE:
            continue  # the call may still be at work in it: it goes with the link
        if reused or (code < 0 and not meaning_of(code).settled):
            link.pool.hold(_held_as(part, run), lease)
        else:
            free.append(lease)
    link.pool.give(free)
    if link.pool.held_bytes > link.config.local_buffer // 2:
        link.taint(f"{link.pool.held_bytes} bytes of its memory are in quarantine")
    return codes[0]


def _held_as(part: Part, run: int) -> str:
    """A key may be removed and put again with other bytes: only attempts of one run mean the same ones."""
    return f"{run}\0{part.name}"
