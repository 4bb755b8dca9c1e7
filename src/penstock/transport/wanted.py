"""What a fetch is asked for, and what it hands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from penstock.parts import HostPlace
from penstock.payload.block import BlockHeader, Bytes

__all__ = ["Fetched", "Place", "Wanted"]

Place: TypeAlias = tuple[HostPlace, int]
"""A host and the generation of the block's slot there."""


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """One block, and where it lies.

    Attributes:
        block_id: its number, the same at every place.
        nbytes: its length, the same at every place.
        places: preferred first; a place whose host fails is followed by the next.
        buffer: ``nbytes`` of writable memory that the block is received into, each attempt anew, and which holds
            whatever came if the fetch fails; None = memory of the client's own, for each attempt another.
    """

    block_id: int
    nbytes: int
    places: Sequence[Place]
    buffer: Bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """A block that has arrived and passed its checks.

    Attributes:
        data: its bytes, the caller's for as long as he likes.
        host_id: where it came from.
        damaged: hosts whose bytes of it were damaged, more than once: the ledger should know.
    """

    block_id: int
    header: BlockHeader
    data: Bytes
    host_id: int
    damaged: tuple[int, ...] = ()
