"""What the reference model knows: rows, holds, tombstones, and the questions one partition answers about them.

Invariants: ``Partition.rows`` is in order of arrival; a hold keeps its token until another claim of the task supersedes
it, so that a consumer that was only slow can still be told from one that was replaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from penstock.errors import RowRemoved, UnknownName
from penstock.records import DataPlaneGroupMeta, GroupPolicy, Tag, as_int, group_id_of, group_meta, is_true
from penstock.requests import FieldSpec, PartitionAudit

GROUP_TAGS = frozenset({"group_id", "committed", "expected_num_keys", "num_keys"})


class Held(Enum):
    """How a claim of a row stands."""

    LEASED = "leased"
    LAPSED = "lapsed"  # expired, or its session ended: ready again, but nobody else has claimed it yet
    RELEASED = "released"
    CONSUMED = "consumed"


@dataclass
class Hold:
    """The latest claim of a row by a task. ``ends_at``: monotonic seconds; None = with the session."""

    token: str
    session: int
    ends_at: float | None
    whole_group: bool
    state: Held = Held.LEASED


@dataclass
class Row:
    """A row: ``values`` and ``nbytes`` by field; ``contents``: the puts (checksum, index) that wrote it."""

    key: str
    born_at: float
    created_at: float
    tags: dict[str, Tag] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    nbytes: dict[str, int] = field(default_factory=dict)
    length: int | None = None
    contents: set[tuple[int, int]] = field(default_factory=set)
    putters: set[int] = field(default_factory=set)
    holds: dict[str, Hold] = field(default_factory=dict)
    deliveries: Counter[str] = field(default_factory=Counter)

    @property
    def group(self) -> str:
        return group_id_of(self.key, self.tags)

    @property
    def committed(self) -> bool:
        return is_true(self.tags.get("committed"))

    def leased(self, task: str) -> bool:
        return task in self.holds and self.holds[task].state is Held.LEASED

    def consumed(self, task: str) -> bool:
        return task in self.holds and self.holds[task].state is Held.CONSUMED

    def free(self, task: str) -> bool:
        """Whether ``task`` has neither leased nor consumed this row."""
        return not self.leased(task) and not self.consumed(task)

    def lacks(self, required: Sequence[str]) -> list[str]:
        return [name for name in required if name not in self.values]

    def tokens_of(self) -> int | None:
        """The row's sequence length: tag ``input_lengths``, else that of its first ragged field."""
        tagged = as_int(self.tags.get("input_lengths"))
        return self.length if tagged is None else tagged


@dataclass
class Tombstone:
    """A removed row. ``token``: the latest lease of the final task on it, None if there was none."""

    reason: str
    token: str | None
    contents: set[tuple[int, int]]
    ends_at: float


@dataclass
class Partition:
    """One partition's rows, and what is remembered of those that are gone."""

    name: str
    tasks: list[str]
    enums: dict[str, list[str]]
    fields: list[str] = field(default_factory=list)
    num_samples: int = 0
    group_size: int | None = None
    policy: GroupPolicy = field(default_factory=GroupPolicy)
    specs: dict[str, FieldSpec] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    tombs: dict[str, Tombstone] = field(default_factory=dict)
    closed_groups: dict[str, float] = field(default_factory=dict)
    put: int = 0
    removed: Counter[str] = field(default_factory=Counter)  # "trained", "cleared", "quarantined", "evicted:<reason>"

    @property
    def final_task(self) -> str:
        return self.tasks[-1]

    def known_task(self, task: str) -> str:
        if task not in self.tasks:
            raise UnknownName(
                f"unknown task {task!r}: partition {self.name!r} has {self.tasks}", partition=self.name, missing=[task]
            )
        return task

    def known_fields(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.fields and name not in self.specs]
        if unknown:
            raise UnknownName(
                f"unknown field {unknown} of partition {self.name!r}", partition=self.name, missing=unknown
            )

    def barred(self, key: str) -> bool:
        """Whether a removed row stays removed: a cleared one may be put anew."""
        return key in self.tombs and self.tombs[key].reason != "cleared"

    def closed(self, key: str, tags: Mapping[str, Tag]) -> bool:
        """Whether ``key`` would be a late row of a group that was evicted unfinished."""
        return key not in self.rows and not self.barred(key) and group_id_of(key, tags) in self.closed_groups

    def groups(self) -> dict[str, list[Row]]:
        """Return the rows by group, both in order of arrival."""
        found: dict[str, list[Row]] = {}
        for row in self.rows.values():
            found.setdefault(row.group, []).append(row)
        return found

    def describe(self, group: str, rows: Sequence[Row], partial_keys: Sequence[str] = ()) -> DataPlaneGroupMeta:
        return group_meta(
            self.name,
            group,
            [(row.key, row.tags) for row in rows],
            size_bytes=sum(sum(row.nbytes.values()) for row in rows),
            created_at=min(row.created_at for row in rows),
            default_expected=self.group_size,
            partial_keys=partial_keys,
        )

    def ready_rows(self, task: str, required: Sequence[str]) -> list[Row]:
        return [row for row in self.rows.values() if row.free(task) and not row.lacks(required)]

    def ready_groups(self, task: str, required: Sequence[str], now: float) -> list[list[Row]]:
        """Return the groups that may be handed out: whole, or, overdue under the policy "partial", what there is."""
        found = []
        for group, rows in self.groups().items():
            ready = [row for row in rows if row.free(task) and not row.lacks(required)]
            if self.done(group, rows):
                found.append(ready if len(ready) == len(rows) else [])
            elif self.partial(rows, now):
                found.append([row for row in ready if row.committed])
        return [rows for rows in found if rows]

    def done(self, group: str, rows: Sequence[Row]) -> bool:
        """Whether a group is committed and complete."""
        meta = self.describe(group, rows)
        return meta.committed and meta.is_complete

    def partial(self, rows: Sequence[Row], now: float) -> bool:
        """Whether the policy lets an unfinished group go as it is."""
        enough = sum(row.committed for row in rows) >= self.policy.min_ready
        return self.policy.on_deadline == "partial" and self.overdue(rows, now) and enough

    def partial_keys(self, group: str, rows: Sequence[Row], now: float) -> list[str]:
        """The rows that may go without their siblings."""
        released = not self.done(group, rows) and self.partial(rows, now)
        return [row.key for row in rows if row.committed] if released else []

    def overdue(self, rows: Sequence[Row], now: float) -> bool:
        """Whether the deadline of a group that says it is one has passed."""
        tagged = any(GROUP_TAGS & row.tags.keys() for row in rows)
        return tagged and self.policy.deadline_s is not None and now >= rows[0].born_at + self.policy.deadline_s

    def chosen_rows(self, keys: Sequence[str], task: str, required: Sequence[str]) -> list[Row] | None:
        """Return exactly these rows, or None while one is leased or lacks a field."""
        gone = [key for key in keys if key not in self.rows and key in self.tombs]
        gone += [key for key in keys if key in self.rows and self.rows[key].consumed(task)]
        if gone:
            why = f"rows were removed, or consumed by task {task!r} already: {gone[:8]}{self._reasons(gone)}"
            raise RowRemoved(why, partition=self.name, keys=gone)
        rows = self.rows_of(keys)
        return rows if all(row.free(task) and not row.lacks(required) for row in rows) else None

    def rows_of(self, keys: Sequence[str]) -> list[Row]:
        absent = [key for key in dict.fromkeys(keys) if key not in self.rows]
        if absent:
            raise UnknownName(
                f"unknown rows in partition {self.name!r}: {absent[:8]}{self._reasons(absent)}",
                partition=self.name,
                keys=absent,
                missing=[f"row {key!r}" for key in absent],
            )
        return [self.rows[key] for key in keys]

    def _reasons(self, keys: Sequence[str]) -> str:
        told = [f"{key!r} was {self.tombs[key].reason}" for key in keys if key in self.tombs]
        return f" ({', '.join(told[:8])})" if told else ""

    def audit(self, registered: bool = True) -> PartitionAudit:
        """Return the conservation equation, for the final task."""
        leased = sum(row.leased(self.final_task) for row in self.rows.values())
        evicted = {name.removeprefix("evicted:"): n for name, n in self.removed.items() if name.startswith("evicted:")}
        return PartitionAudit(
            partition=self.name,
            put=self.put,
            in_flight=len(self.rows) - leased,
            leased=leased,
            trained=self.removed["trained"],
            evicted=evicted,
            cleared=self.removed["cleared"],
            quarantined=self.removed["quarantined"],
            residue=self.put - len(self.rows) - sum(self.removed.values()),
            live_bytes=sum(sum(row.nbytes.values()) for row in self.rows.values()),
            registered=registered,
        )


def common_length(rows: Sequence[Row]) -> list[int] | None:
    """Return the rows' sequence lengths, or None when one of them has none."""
    lengths = [row.tokens_of() for row in rows]
    return None if None in lengths else [n for n in lengths if n is not None]
