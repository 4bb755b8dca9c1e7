"""One visible put as rows see it: its columns of tags, its fields, and which of its rows still need it.

Invariant: ``live`` is the number of rows that name the write; at 0 its block is free.
"""

from __future__ import annotations

from array import array

from penstock.records import as_int, is_true
from penstock.requests import BlockPlace, FieldSpec, TagColumn

ABSENT = object()  # a row does not have this tag; None is a value


class Write:
    """One visible put: where its block lies, which columns and tags it brought, how many rows still need it."""

    __slots__ = (
        "columns",
        "content",
        "dead",
        "field_bits",
        "fields",
        "id",
        "kept",
        "lengths",
        "live",
        "names",
        "partition",
        "place",
        "replica",
        "row_bytes",
        "rows",
        "session_id",
        "size",
        "sparse",
        "standing",
        "tag_order",
        "wall",
    )

    def __init__(
        self,
        write_id: int,
        fields: list[FieldSpec],
        field_bits: int,
        tags: list[TagColumn],
        size: int,
    ) -> None:
        self.id = write_id
        self.fields = fields
        self.field_bits = field_bits
        self.tag_order = tags
        self.columns = {column.name: TagValues(column) for column in tags}
        self.names = frozenset(self.columns)
        self.standing = _standing_of(self.columns)
        self.sparse = any(column.rows is not None for column in tags)  # some rows lack some of the tags
        self.size = size
        self.live = 0
        self.dead: bytearray | None = None  # 1 per row that no longer needs this write; None while all do
        self.kept: list[int] | None = None  # original indices that the block still holds, after a compaction
        self.place: BlockPlace | None = None
        self.replica: BlockPlace | None = None  # where the block lies a second time, on another host
        self.partition = ""
        self.rows: array[int] | None = None  # their ids, of a block on hosts: it may be lost with its host
        self.content = 0
        self.row_bytes: array[int] = array("Q")
        self.lengths: array[int] | None = None
        self.session_id = 0
        self.wall = 0.0

    def bury(self, index: int) -> bool:
        """Row ``index`` no longer needs this write. Return whether none does any more."""
        if self.dead is None:
            self.dead = bytearray(self.size)
        if not self.dead[index]:
            self.dead[index] = 1
            self.live -= 1
        return self.live == 0

    def bury_all(self) -> None:
        """No row needs this write any more."""
        self.dead = bytearray(b"\x01" * self.size)
        self.live = 0

    @property
    def hosted(self) -> bool:
        """Whether the block lies on a host, not in the plane's arena."""
        return self.place is not None and self.place.host != 0

    def places(self) -> list[BlockPlace]:
        """Everywhere the block lies, its first place first."""
        return [place for place in (self.place, self.replica) if place is not None]

    def living(self) -> list[int]:
        """Ids of the rows that need this write; of a block on hosts."""
        rows = self.rows
        assert rows is not None, f"block {self.id} is not on hosts"
        return list(rows) if self.dead is None else [row for row, dead in zip(rows, self.dead, strict=True) if not dead]

    def names_of(self, index: int) -> frozenset[str]:
        """The tags that row ``index`` has in this write."""
        if not self.sparse:
            return self.names
        return frozenset(name for name, column in self.columns.items() if column.get(index, ABSENT) is not ABSENT)

    def alive(self) -> list[int]:
        """Original indices of the rows that need this write, in order."""
        dead = self.dead
        return list(range(self.size)) if dead is None else [i for i in range(self.size) if not dead[i]]


class TagValues:
    """One tag column, readable by row index. ``get`` distinguishes "no such tag" (``default``) from the value None."""

    __slots__ = ("by_row", "constant", "values")

    def __init__(self, column: TagColumn) -> None:
        self.by_row = None if column.rows is None else dict(zip(column.rows, column.values, strict=True))
        self.constant = self.by_row is None and len(column.values) == 1
        self.values = column.values

    def get(self, index: int, default: object = None) -> object:
        if self.by_row is not None:
            return self.by_row.get(index, default)
        return self.values[0] if self.constant else self.values[index]


def _standing_of(columns: dict[str, TagValues]) -> tuple[bool, int | None] | None:
    """(committed, declared rows) of every row of a put, if its tags say the same of all; else None."""
    said: dict[str, object] = {}
    for name in ("committed", "expected_num_keys", "num_keys"):
        column = columns.get(name)
        if column is not None:
            if not column.constant:
                return None
            said[name] = column.values[0]
    declared = as_int(said.get("expected_num_keys"))
    return is_true(said.get("committed")), as_int(said.get("num_keys")) if declared is None else declared
