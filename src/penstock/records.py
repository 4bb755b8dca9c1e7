"""The records users hold: batch metas, group metas, capabilities, policies, reports.

Invariants: metas are metadata only (never a tensor); their transforms are pure and return new objects; group facts are
derived from the rows' tags in one place (``group_meta``), leniently: what does not parse is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from penstock.errors import BadArgument

__all__ = [
    "DataPlaneCapabilities",
    "DataPlaneGroupMeta",
    "DataPlaneRowMeta",
    "GroupPolicy",
    "KVBatchMeta",
    "Tag",
    "as_int",
    "group_id_of",
    "group_meta",
    "is_true",
]

Tag: TypeAlias = str | int | float | bool | None
_INT64 = 1 << 63  # what crosses the wire as a number


@dataclass
class KVBatchMeta:
    """Names a batch of rows; carries no tensor.

    Args:
        partition_id: the partition of all rows.
        task_name: the task that claimed them; None for rows that were named directly.
        sample_ids: the rows' keys, in order.
        fields: the columns a ``get_data`` of this meta reads by default.
        sequence_lengths: per row, tokens; from the tag ``input_lengths``, else from the first ragged field.
        extra_info: anything the caller wants carried along.
        tags: per row, primitives; aligned with ``sample_ids``.
        lease: JSON-safe tokens of the leases under which the rows are held; joined by ``concat``, kept by ``subset``.

    Raises:
        ValueError: ``tags`` or ``sequence_lengths`` are not aligned with ``sample_ids``.
    """

    partition_id: str
    task_name: str | None
    sample_ids: list[str]
    fields: list[str] | None = None
    sequence_lengths: list[int] | None = None
    extra_info: dict[str, Any] = field(default_factory=dict)
    tags: list[dict[str, Any]] | None = None
    lease: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tags", "sequence_lengths"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.sample_ids):
                raise BadArgument(f"KVBatchMeta: {len(column)} {name} for {len(self.sample_ids)} sample_ids")
        if self.lease is not None:
            self.lease = tuple(self.lease)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.sample_ids)

    def stamp_tags(self, scalars: Mapping[str, Sequence[Any]]) -> None:
        """Write per-row scalar columns into ``tags``, in place. Each column has ``size`` values."""
        for name, values in scalars.items():
            if len(values) != self.size:
                raise BadArgument(f"stamp_tags: {name!r} has {len(values)} values for {self.size} rows")
        if self.tags is None:
            self.tags = [{} for _ in self.sample_ids]
        for name, values in scalars.items():
            for tag, value in zip(self.tags, values, strict=True):
                tag[name] = value

    def subset(self, indices: Sequence[int]) -> KVBatchMeta:
        """Return the rows at ``indices``, in that order."""
        return self._of_rows(
            [self.sample_ids[i] for i in indices],
            None if self.sequence_lengths is None else [self.sequence_lengths[i] for i in indices],
            None if self.tags is None else [self.tags[i] for i in indices],
            self.lease,
        )

    def slice(self, start: int, stop: int) -> KVBatchMeta:
        """Return the rows in ``[start, stop)``."""
        return self.subset(range(*slice(start, stop).indices(self.size)))

    def concat(self, *others: KVBatchMeta) -> KVBatchMeta:
        """Append ``others``; all share one partition. A column that one of them lacks is dropped."""
        metas = (self, *others)
        if any(m.partition_id != self.partition_id for m in metas):
            raise BadArgument(f"concat: partitions differ: {sorted({m.partition_id for m in metas})}")
        lengths = [m.sequence_lengths for m in metas]
        tags = [m.tags for m in metas]
        leases = dict.fromkeys(token for m in metas for token in m.lease or ())
        return self._of_rows(
            [key for m in metas for key in m.sample_ids],
            None if None in lengths else [n for column in lengths if column for n in column],
            None if None in tags else [t for column in tags if column for t in column],
            tuple(leases) if any(m.lease is not None for m in metas) else None,
        )

    def drop(self, indices: Sequence[int]) -> KVBatchMeta | None:
        """Return the rows that are not at ``indices``; None when none is left."""
        dropped = {i % self.size for i in indices} if self.size else set()
        kept = [i for i in range(self.size) if i not in dropped]
        return self.subset(kept) if kept else None

    def with_fields(self, field_names: Sequence[str]) -> KVBatchMeta:
        """Return a copy whose ``fields`` also hold ``field_names``, each once, in order."""
        copy = self.subset(range(self.size))
        copy.fields = list(dict.fromkeys([*(self.fields or []), *field_names]))
        return copy

    def _of_rows(
        self,
        keys: list[str],
        lengths: list[int] | None,
        tags: list[dict[str, Any]] | None,
        lease: tuple[str, ...] | None,
    ) -> KVBatchMeta:
        return KVBatchMeta(
            partition_id=self.partition_id,
            task_name=self.task_name,
            sample_ids=keys,
            fields=None if self.fields is None else list(self.fields),
            sequence_lengths=lengths,
            extra_info=dict(self.extra_info or {}),
            tags=None if tags is None else [dict(t) for t in tags],
            lease=lease,
        )


class DataPlaneGroupMeta(msgspec.Struct, frozen=True):
    """What the plane knows of one group; derived from its rows' tags.

    Attributes:
        keys: sorted.
        weight_version: the oldest over the rows, None when no row says one.
        created_at: seconds since the epoch, the earliest over the rows.
        committed: every row's tag ``committed`` says so.
        expected_num_keys: how many rows make the group complete; None = however many there are.
        size_bytes: payload bytes, measured by the plane.
        tags: those of the first key in sorted order.
        partial_keys: the committed rows that the partition's ``GroupPolicy`` lets go without their siblings; sorted;
            none = it has not released the group as partial. Said by the plane, not by tags.
    """

    partition_id: str
    group_id: str
    keys: list[str]
    weight_version: int | None = None
    created_at: float | None = None
    committed: bool = False
    expected_num_keys: int | None = None
    size_bytes: int = 0
    tags: dict[str, Tag] = {}
    partial_keys: list[str] = []

    @property
    def is_complete(self) -> bool:
        """All declared keys are there."""
        return self.expected_num_keys is None or len(self.keys) == self.expected_num_keys

    @property
    def usable_keys(self) -> list[str]:
        """The keys that may be trained on: all of a committed and complete group, those of a partial one, else none."""
        return self.keys if self.committed and self.is_complete else self.partial_keys


class DataPlaneRowMeta(msgspec.Struct, frozen=True):
    """What the plane knows of one row.

    Attributes:
        fields: those that are produced, sorted.
        tags: the newest value of each.
    """

    key: str
    fields: list[str]
    tags: dict[str, Tag]


class DataPlaneCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter, with its backend, can prove it does.

    Attributes:
        supports_persistent_recovery: acknowledged rows survive the death of the plane's process.
        supports_server_side_filtering: ``list_metadata`` filters and pages on the server.
        supports_atomic_batch_put: all rows of a put become visible, or none.
        supports_verified_clear: a clear, pop or evict that returned has removed the rows.
        supports_leases: claims are leases that end with the consumer.
        supports_bounded_bytes: producers wait when the plane is full.
        durability: what an acknowledged put survives (``PlaneConfig.durability``).
        incarnation: the life of the plane that answered.
    """

    supports_persistent_recovery: bool = False
    supports_server_side_filtering: bool = False
    supports_atomic_batch_put: bool = False
    supports_verified_clear: bool = False
    supports_leases: bool = False
    supports_bounded_bytes: bool = False
    durability: str = "memory"
    incarnation: int = 0


class GroupPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What whole-group claims do about a group that stays incomplete.

    Attributes:
        min_ready: with ``partial``, the least rows of a group that may be handed out.
        deadline_s: seconds after the group's first row; None = never.
        on_deadline: what happens then to a group that is not committed and complete.
            ``wait``: nothing. But what is left of a group that lost a row for good, and that only whole-group claims
            could take, is evicted as ``incomplete`` after the plane's ``abandon_grace_s``.
            ``partial``: its committed rows may be taken as they are, late ones too. ``partial_keys`` of its
            ``DataPlaneGroupMeta`` names them; whole-group claims tag them ``partial`` = True. With fewer than
            ``min_ready`` of them at the deadline it is dropped.
            ``drop``: it is evicted, reason ``incomplete``, once nobody holds a row of it; late rows are ``RowRemoved``.
    """

    min_ready: int = 1
    deadline_s: float | None = None
    on_deadline: Literal["wait", "partial", "drop"] = "wait"

    def __post_init__(self) -> None:
        if self.min_ready < 1:
            raise BadArgument(f"min_ready must be at least 1, got {self.min_ready}")
        if self.on_deadline != "wait" and self.deadline_s is None:
            raise BadArgument(f"group policy {self.on_deadline!r} needs a deadline_s")
        if self.deadline_s is not None and not self.deadline_s >= 0:  # NaN too
            raise BadArgument(f"deadline_s must not be negative, got {self.deadline_s!r}")


def is_true(value: object) -> bool:
    """Whether a tag says yes: True, 1, "1", "true", "yes" (any case)."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "true", "yes")
    return isinstance(value, (bool, int, float)) and value == 1


def as_int(value: object) -> int | None:
    """Parse a tag as an integer, leniently: None when it does not parse, is not finite, or no 64 bits hold it."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -_INT64 <= number < _INT64 else None


def as_float(value: object) -> float | None:
    """Parse a tag as a float, leniently."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def group_id_of(key: str, tags: Mapping[str, Tag]) -> str:
    """Return the group of a row: its tag ``group_id``, else the key itself (a group of one)."""
    group = tags.get("group_id")
    return key if group is None else str(group)


def expected_of(tags: Mapping[str, Tag], default: int | None) -> int | None:
    """Return how many keys a row says its group has: ``expected_num_keys``, else ``num_keys``.

    ``default`` (the partition's group size) serves rows that are tagged with a ``group_id`` and declare no number.
    """
    for name in ("expected_num_keys", "num_keys"):
        number = as_int(tags.get(name))
        if number is not None:
            return number
    return default if tags.get("group_id") is not None else None


def group_meta(
    partition_id: str,
    group_id: str,
    rows: Iterable[tuple[str, Mapping[str, Tag]]],
    *,
    size_bytes: int = 0,
    created_at: float | None = None,
    default_expected: int | None = None,
    partial_keys: Iterable[str] = (),
) -> DataPlaneGroupMeta:
    """Derive a group's meta from its rows' ``(key, tags)``.

    ``created_at`` is the plane's own stamp, used where the producer gave none; ``partial_keys`` are its policy's word.
    """
    ordered = sorted(rows, key=lambda row: row[0])
    tags = [t for _, t in ordered]
    versions = [v for v in (as_int(t.get("weight_version")) for t in tags) if v is not None]
    stamps = [s for s in (as_float(t.get("created_at")) for t in tags) if s is not None]
    expected = [e for e in (expected_of(t, default_expected) for t in tags) if e is not None]
    return DataPlaneGroupMeta(
        partition_id=partition_id,
        group_id=group_id,
        keys=[key for key, _ in ordered],
        weight_version=min(versions) if versions else None,
        created_at=min(stamps) if stamps else created_at,
        committed=bool(tags) and all(is_true(t.get("committed")) for t in tags),
        expected_num_keys=max(expected) if expected else None,
        size_bytes=size_bytes,
        tags=dict(tags[0]) if tags else {},
        partial_keys=sorted(partial_keys),
    )
