"""The reference model's books for rows whose bytes lie elsewhere: what a column is, and which blocks are in use.

Invariants: a block is in use as long as one field of one row lies in it; one that no longer is, is named in ``dead``
exactly once, for whoever frees it; sizes and contents are those that the putting client measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from penstock.config import PlaneConfig
from penstock.plane.columns import Column
from penstock.plane.model import MemoryPlane
from penstock.plane.rows import Partition
from penstock.records import Tag
from penstock.requests import FieldSpec, Source

__all__ = ["BlockPlane", "Chunk", "PutColumn", "Stored", "StoredColumn", "Where", "columns_of", "where"]


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one row's value of one field lies; its ``len`` is the row's, of a ragged field."""

    block: int
    index: int
    length: int = 0

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class StoredColumn(Column):
    """A column by reference. ``values``: ``Stored``; ``sizes``: bytes of each row; ``content``: the put's checksum."""

    sizes: Sequence[int] = ()
    content: int = 0

    def nbytes(self, row: int) -> int:
        return self.sizes[row]

    def checksum(self) -> int:
        return self.content


class Chunk(NamedTuple):
    """A block of a put: its number, how many rows lie in it, how long it is."""

    block: int
    rows: int
    nbytes: int


class PutColumn(NamedTuple):
    """A field of a put, as its client describes it. ``lengths``: of each row, where the field is ragged."""

    spec: FieldSpec
    sizes: list[int]
    lengths: list[int] | None


class Where(NamedTuple):
    """Where asked rows lie: ``blocks`` with their lengths, and which field of which row is where in them."""

    blocks: list[tuple[int, int]]
    sources: list[Source]
    specs: dict[str, FieldSpec]
    kept: list[int]


def columns_of(columns: Sequence[PutColumn], chunks: Sequence[Chunk], content: int) -> list[Column]:
    """Return a put's columns as the model takes them."""
    at = [(chunk.block, index) for chunk in chunks for index in range(chunk.rows)]
    found: list[Column] = []
    for spec, sizes, lengths in columns:
        values: list[Any] = [
            Stored(block, index, length) for (block, index), length in zip(at, lengths or [0] * len(at), strict=True)
        ]
        found.append(StoredColumn(spec, values, lengths is not None, sizes, content))
    return found


def where(
    values: dict[str, list[Stored]], sizes: dict[int, int], specs: dict[str, FieldSpec], kept: list[int]
) -> Where:
    """Return the references of fields, by field and row, as sources: fields that lie side by side are one."""
    numbers: dict[int, int] = {}
    together: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for name, refs in values.items():
        together.setdefault(tuple((ref.block, ref.index) for ref in refs), []).append(name)
    sources = [
        Source(names, [numbers.setdefault(block, len(numbers)) for block, _ in refs], [index for _, index in refs])
        for refs, names in together.items()
    ]
    return Where([(block, sizes[block]) for block in numbers], sources, specs, kept)


class BlockPlane(MemoryPlane):
    """The model, and how often each block is referred to."""

    def __init__(self, incarnation: int, config: PlaneConfig) -> None:
        super().__init__(incarnation, config)
        self.dead: list[int] = []
        self._references: Counter[int] = Counter()

    def in_use(self, block: int) -> bool:
        return block in self._references

    def _write(
        self,
        part: Partition,
        session: int,
        key: str,
        index: int,
        columns: list[Column],
        tags: dict[str, Tag],
        content: int,
        now: float,
        wall: float,
    ) -> None:
        row = part.rows.get(key)
        names = [column.spec.name for column in columns]
        replaced = [row.values[name].block for name in names if name in row.values] if row is not None else []
        super()._write(part, session, key, index, columns, tags, content, now, wall)
        self._references.update(column.values[index].block for column in columns)
        self._let_go(replaced)

    def _remove(self, part: Partition, key: str, reason: str, now: float) -> None:
        row = part.rows.get(key)
        super()._remove(part, key, reason, now)
        if row is not None:
            self._let_go(value.block for value in row.values.values())

    def _let_go(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._references[block] -= 1
            if not self._references[block]:
                del self._references[block]
                self.dead.append(block)
