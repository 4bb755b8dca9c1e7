"""What requests and replies are made of: names of places, columns, tokens; and the base of all of them.

Invariant: arrays, not maps: positions are part of ``requests.WIRE_VERSION``.
"""

from __future__ import annotations

import msgspec

from penstock.records import Tag

__all__ = [
    "ANY_TOKEN",
    "NO_TOKEN",
    "ArenaPlace",
    "BlockPlace",
    "FieldSpec",
    "HostPlace",
    "Record",
    "RowIssue",
    "Source",
    "TagColumn",
    "Tokens",
]


class Record(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Base of everything on the wire."""


class FieldSpec(msgspec.Struct, frozen=True, array_like=True):
    """A column's type. ``dtype`` is torch's short name ("int64", "bfloat16") or "object"; ``rank`` is per row."""

    name: str
    dtype: str
    rank: int


class TagColumn(msgspec.Struct, frozen=True, array_like=True):
    """One tag of a put's rows.

    Attributes:
        values: one value for all rows (length 1, ``rows`` None), or one per row, or one per row named in ``rows``.
        rows: indices, within the put, of the rows that carry this tag; None = all.
    """

    name: str
    values: list[Tag]
    rows: list[int] | None = None


class Tokens(msgspec.Struct, frozen=True, array_like=True):
    """The leases under which a request's keys are held.

    Attributes:
        lease: distinct tokens.
        of: per key of the request an index into ``lease``, ``NO_TOKEN``, or ``ANY_TOKEN`` (whichever of ``lease``);
            empty = the same for all keys: any of ``lease``, or none when that is empty.
    """

    lease: list[str]
    of: list[int]


NO_TOKEN = -1
ANY_TOKEN = -2


class BlockPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where a block lies: an arena, bytes ``[offset, offset + nbytes)`` of it, and the slot's generation.

    ``host``: the id of the machine whose agent owns the arena; 0 = the plane itself, on this machine.
    """

    block_id: int
    arena_id: int
    offset: int
    nbytes: int
    generation: int
    pin: int = 0
    host: int = 0


class HostPlace(msgspec.Struct, frozen=True, array_like=True):
    """A host agent and where it is reached.

    Attributes:
        host_id: 62 random bits, kept in the agent's directory: the same after a restart.
        life: the agent's life number; it grows with each start.
        name: the machine's, for people.
        address: a name or number that other hosts can connect to.
        ports: of its payload listeners; each stands for itself, so that one may fail.
        ucx_ports: of the listeners over which UCX endpoints are agreed; empty = no UCX here.
        peer_port: where other agents agree on endpoints with it.
        store: the URL under which whoever reads or writes there opens it (``payload.stores``), of a host that is no
            machine but a store of its own; "" = a machine.
    """

    host_id: int
    life: int
    name: str
    address: str
    ports: list[int]
    ucx_ports: list[int] = []
    peer_port: int = 0
    store: str = ""


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Where some fields of the asked rows lie: row i is row ``index[i]`` of ``Located.blocks[block[i]]``."""

    fields: list[str]
    block: list[int]
    index: list[int]


class RowIssue(msgspec.Struct, frozen=True, array_like=True):
    """Why one row cannot be read: an error code (``errors.code_of``) and a sentence."""

    key: str
    code: str
    why: str


class ArenaPlace(msgspec.Struct, frozen=True, array_like=True):
    """An arena a client may map: its id and the size of its file. Its path follows from id and data directory."""

    arena_id: int
    nbytes: int
    in_shm: bool
