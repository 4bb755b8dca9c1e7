"""What puts return and gets by meta take: keys, tags, partition and columns of a batch; never a tensor.

The attributes and methods are those of TransferQueue's ``KVBatchMeta``.
Invariants: keys are distinct, tags are aligned with them and this meta's own: no two metas share one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.errors import BadArgument, abbreviate

__all__ = ["KVBatchMeta"]


@dataclass
class KVBatchMeta:
    """A batch by its keys.

    Args:
        keys: distinct.
        tags: one dict per key.
        partition_id: where the rows are.
        fields: the columns that all of the rows have; None = not said.
        extra_info: anything the caller wants carried along.

    Raises:
        BadArgument: (also ``ValueError``) keys or fields are repeated, or tags are not aligned.
    """

    keys: list[str] = field(default_factory=list)
    tags: list[dict[str, Any]] = field(default_factory=list)
    partition_id: str | None = None
    fields: list[str] | None = None
    extra_info: dict[str, Any] | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.tags):
            raise BadArgument(f"KVBatchMeta: {len(self.tags)} tags for {len(self.keys)} keys")
        _require_distinct(self.keys, "keys")
        _require_distinct(self.fields or [], "fields")
        self.tags = copy.deepcopy(self.tags)
        self.extra_info = copy.deepcopy(self.extra_info)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __str__(self) -> str:
        return f"KVBatchMeta(size={self.size}, field_names={self.fields}, extra_info={self.extra_info})"

    def select_keys(self, keys_to_select: list[str]) -> KVBatchMeta:
        """Return these rows, in this order.

        Raises:
            BadArgument: a key is named twice, or is not of this batch.
        """
        _require_distinct(keys_to_select, "keys")
        at = {key: i for i, key in enumerate(self.keys)}
        absent = [key for key in keys_to_select if key not in at]
        if absent:
            raise BadArgument(f"not of this batch: {abbreviate(absent)}", keys=absent)
        return self._rows([at[key] for key in keys_to_select])

    def reorder(self, indexes: list[int]) -> None:
        """Put the rows into the order of ``indexes``, in place."""
        if sorted(indexes) != list(range(self.size)):
            raise BadArgument(f"indexes must name each of {self.size} rows once, got {indexes}")
        self.keys = [self.keys[i] for i in indexes]
        self.tags = [self.tags[i] for i in indexes]

    def chunk(self, chunks: int) -> list[KVBatchMeta]:
        """Split into ``chunks`` parts whose sizes differ by one at most; the first ones are the larger."""
        if chunks < 1:
            raise BadArgument(f"chunks must be at least 1, got {chunks}")
        least, larger = divmod(self.size, chunks)
        ends = [least * (i + 1) + min(i + 1, larger) for i in range(chunks)]
        return [self._rows(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]

    @classmethod
    def concat(cls, data: Sequence[KVBatchMeta]) -> KVBatchMeta:
        """Join batches of one partition that have the same fields; empty ones are passed over.

        Raises:
            BadArgument: partitions, fields, or values of one name in ``extra_info`` differ.
        """
        parts = [part for part in data if part.size]
        if not parts:
            return cls()
        first = parts[0]
        if any(part.partition_id != first.partition_id for part in parts):
            raise BadArgument(f"concat: partitions differ: {sorted({str(p.partition_id) for p in parts})}")
        if any(part.fields is not None and set(part.fields) != set(first.fields or []) for part in parts):
            raise BadArgument("concat: the batches have different fields")
        return cls(
            keys=[key for part in parts for key in part.keys],
            tags=[tag for part in parts for tag in part.tags],
            partition_id=first.partition_id,
            fields=first.fields,
            extra_info=_joined_info(parts),
        )

    def _rows(self, at: Sequence[int]) -> KVBatchMeta:
        return KVBatchMeta(
            keys=[self.keys[i] for i in at],
            tags=[self.tags[i] for i in at],
            partition_id=self.partition_id,
            fields=self.fields,
            extra_info=self.extra_info,
        )


def _require_distinct(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        raise BadArgument(f"{what} are repeated: {abbreviate(twice)}")


def _joined_info(parts: Sequence[KVBatchMeta]) -> dict[str, Any] | None:
    joined: dict[str, Any] = {}
    for part in parts:
        for name, value in (part.extra_info or {}).items():
            if name in joined and not _same(joined[name], value):
                raise BadArgument(f"concat: extra_info {name!r} has several values")
            joined[name] = value
    return joined or None


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal; arrays and tensors are when all of their elements are."""
    if one is other:
        return True
    equal = one == other
    return bool(equal.all()) and one.shape == other.shape if hasattr(equal, "all") else bool(equal)
