"""Which host of its plane a store is, and in which life: both follow from what plane and store say of themselves.

Invariants: an agent needs no directory: whoever takes over has the same id, and the same life as long as the store has
it; a store that was restarted has a later life; no two planes have the same id for one store, so that neither frees the
other's blocks.
"""

from __future__ import annotations

import xxhash

from penstock.plane.stores import address_of

__all__ = ["life_number", "store_id"]

_ID_BITS = 62
_NAME_BITS = 32  # of a life's number: a digest of its name; above them: which one in order it is


def store_id(plane: int, url: str) -> int:
    """Return the id of the store at ``url`` for a plane: by its name or, of one that forgets its rows, its life."""
    digest = xxhash.xxh3_64_intdigest(f"{plane:x} {address_of(url)}".encode())
    return digest & ((1 << _ID_BITS) - 1) | 1


def life_number(known: int, name: str) -> int:
    """Return the number of the store's life that is called ``name``; ``known``: the last one the plane knows, or 0."""
    digest = xxhash.xxh3_64_intdigest(name.encode()) & ((1 << _NAME_BITS) - 1)
    if known and known & ((1 << _NAME_BITS) - 1) == digest:
        return known
    return ((known >> _NAME_BITS) + 1) << _NAME_BITS | digest
