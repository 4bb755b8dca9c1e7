"""The contract in one process's memory: no server, no files; for tests, notebooks, and as the reference model.

Invariants: every call takes the plane's lock once and lets pass first what time has overtaken; a blocked claim waits on
a condition that every change signals, never longer than until the next lease or group deadline; a client that is closed
answers nothing but ``DataPlaneUnavailable``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.config import PlaneConfig
from penstock.errors import (
    BadArgument,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    FieldNotProduced,
    abbreviate,
)
from penstock.plane import checks
from penstock.plane import columns as tables
from penstock.plane.contract import Columns, DataPlaneClient, OnFailed, TagRow
from penstock.plane.model import Grant, MemoryPlane, Operation, Want
from penstock.plane.recall import recallable
from penstock.plane.rows import Row, common_length
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, GroupPolicy, KVBatchMeta, Tag
from penstock.requests import AuditReport, FieldSpec

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["NoOpDataPlaneClient", "Selected", "Shared"]


@dataclass(frozen=True)
class Shared:
    """What the clients of one plane have in common."""

    plane: MemoryPlane
    changed: threading.Condition
    clock: Callable[[], float]
    wall: Callable[[], float]


class Selected(NamedTuple):
    """Rows of a read: positions of those that are ``kept``; their values, and the types, by field."""

    kept: list[int]
    values: dict[str, list[Any]]
    specs: dict[str, FieldSpec | None]


class NoOpDataPlaneClient(DataPlaneClient):
    """A session on a plane in this process's memory; it is gone with its last client.

    Args:
        strict_tensors: True refuses non-tensor columns with a ``TypeError``; False carries msgspec-encodable values.
        timeout_s: default deadline of a call.
        config: how the plane behaves; its limits on bytes and rows are not enforced here.
        clock: monotonic seconds; tests may bring their own.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        strict_tensors: bool = True,
        timeout_s: float = 30.0,
        config: PlaneConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        plane = MemoryPlane(incarnation=int(wall() * 1e9), config=config or PlaneConfig(durability="memory"))
        self._start(Shared(plane, threading.Condition(), clock, wall), strict_tensors, timeout_s)

    def _start(self, shared: Shared, strict_tensors: bool, timeout_s: float) -> None:
        self._shared = shared
        self._strict = strict_tensors
        self._timeout_s = checks.seconds(timeout_s, "timeout_s", 30.0)
        self._closed = False
        self._tokens: dict[tuple[str, str, str], str] = {}  # (partition, task, key) -> the lease this client holds
        with shared.changed:
            self._session = shared.plane.open_session()

    def peer(self) -> NoOpDataPlaneClient:
        """Open another session on the same plane."""
        with self._turn(None):
            client = type(self).__new__(type(self))
        client._start(self._shared, self._strict, self._timeout_s)  # noqa: SLF001 - its own kind
        return client

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return (
            f"{type(self).__name__}({state}, session={self._session}, partitions={len(self._shared.plane.partitions)})"
        )

    @property
    def default_timeout_s(self) -> float:
        return self._timeout_s

    # -- task-mediated ------------------------------------------------------------------------------------------------

    def register_partition(
        self,
        partition_id: str,
        fields: Sequence[str],
        num_samples: int,
        consumer_tasks: Sequence[str],
        grpo_group_size: int | None = None,
        enums: Mapping[str, Sequence[str]] | None = None,
        *,
        group_policy: GroupPolicy | None = None,
        timeout_s: float | None = None,
    ) -> None:
        wanted = checks.registration(
            partition_id, fields, num_samples, consumer_tasks, grpo_group_size, enums, group_policy
        )
        with self._turn(timeout_s):
            self._shared.plane.register(wanted)

    def claim_meta(
        self,
        partition_id: str,
        task_name: str,
        required_fields: Sequence[str],
        batch_size: int,
        dp_rank: int | None = None,
        blocking: bool = True,
        timeout_s: float | None = 60.0,
        *,
        min_rows: int = 1,
        keys: Sequence[str] | None = None,
        whole_groups: bool = False,
        lease_s: float | None = None,
    ) -> KVBatchMeta:
        partition_id = checks.name(partition_id, "partition_id")
        if dp_rank is not None:
            checks.count(dp_rank, "dp_rank")
        chosen = None if keys is None else checks.keys(keys, unique=True)
        batch, least = checks.claim_sizes(batch_size, min_rows, chosen)
        want = Want(
            checks.name(task_name, "task_name"),
            checks.names(required_fields, "required_fields"),
            batch,
            least,
            chosen,
            whole_groups,
            checks.lease_s(lease_s),
        )
        with self._turn(timeout_s) as started:
            limit = checks.seconds(timeout_s, "timeout_s", self._timeout_s) if blocking else 0.0
            grant = self._wait_for(partition_id, want, started, limit, least if blocking else 0)
            return self._claimed(partition_id, want, grant)

    def _wait_for(self, partition_id: str, want: Want, started: float, limit: float, at_least: int) -> Grant:
        shared, plane = self._shared, self._shared.plane
        while True:
            now = shared.clock()
            plane.tick(now)
            grant = plane.claim(self._session, partition_id, want, now, at_least)
            if grant is not None:
                return grant
            if now >= started + limit:
                raise self._too_late(partition_id, want, now - started)
            until = min(started + limit, plane.next_change_at(now) or started + limit)
            with recallable(self._stir):
                shared.changed.wait(until - now)
            self._require_open()

    def _stir(self) -> None:
        """Let those who wait look again."""
        with self._shared.changed:
            self._shared.changed.notify_all()

    def _too_late(self, partition_id: str, want: Want, elapsed: float) -> DataPlaneTimeout:
        plane = self._shared.plane
        missing = plane.missing(partition_id, want)
        ready = plane.ready(partition_id, want, self._shared.clock())
        return DataPlaneTimeout(
            f"{ready} of {want.min_rows} rows were ready for task {want.task!r} of partition {partition_id!r} after "
            f"{elapsed:.3g} s; missing: {'; '.join(missing[:8])}",
            partition=partition_id,
            keys=want.keys or (),
            missing=missing,
            attempts=1,
            elapsed_s=elapsed,
            incarnation=plane.incarnation,
        )

    def _claimed(self, partition_id: str, want: Want, grant: Grant) -> KVBatchMeta:
        for row in grant.rows:
            self._tokens[partition_id, want.task, row.key] = grant.token
        extra = [_told_by_plane(row, want.task, row.group in grant.partial_groups) for row in grant.rows]
        return KVBatchMeta(
            partition_id=partition_id,
            task_name=want.task,
            sample_ids=[row.key for row in grant.rows],
            fields=list(want.required),
            sequence_lengths=common_length(grant.rows),
            tags=[{**row.tags, **told} for row, told in zip(grant.rows, extra, strict=True)],
            lease=(grant.token,) if grant.rows else (),
        )

    def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
        fields = checks.fields_of(checks.meta(meta), select_fields)
        table, kept = self._read(meta.partition_id, meta.sample_ids, fields, on_failed, timeout_s)
        return table if on_failed == "raise" else (table, meta.subset(kept))

    def ack(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        self._finish("ack", meta, timeout_s)

    def release(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        self._finish("release", meta, timeout_s)

    def renew(self, meta: KVBatchMeta, lease_s: float | None, *, timeout_s: float | None = None) -> None:
        self._finish("renew", meta, timeout_s, checks.lease_s(lease_s))

    def _finish(
        self, operation: Operation, meta: KVBatchMeta, timeout_s: float | None, lease_s: float | None = None
    ) -> None:
        name, task, keys, given = checks.held(meta, operation)
        with self._turn(timeout_s) as now:
            tokens = self._holding(name, given)
            self._shared.plane.finish(operation, name, task, keys, tokens, self._session, now, lease_s)
            if operation != "renew":
                self._forget(name, keys, task)

    def check_consumption_status(
        self, partition_id: str, task_names: Sequence[str], *, timeout_s: float | None = None
    ) -> bool:
        tasks = checks.names(task_names, "task_names", may_be_empty=False)
        partition_id = checks.name(partition_id, "partition_id")
        with self._turn(timeout_s):
            return self._shared.plane.all_handed_out(partition_id, tasks)

    # -- direct, by key -----------------------------------------------------------------------------------------------

    def put_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        fields: Columns | None = None,
        tags: Sequence[TagRow] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        partition_id = checks.name(partition_id, "partition_id")
        keys = checks.keys(sample_ids, unique=True)
        rows = checks.tag_rows(tags, len(keys))
        if fields is None and rows is None:
            raise BadArgument("put_samples: neither fields nor tags", partition=partition_id)
        columns = [] if fields is None else tables.split(fields, len(keys), self._strict)
        with self._turn(timeout_s) as now:
            plane, wall = self._shared.plane, self._shared.wall()
            plane.put(self._session, partition_id, keys, columns, rows or [{} for _ in keys], now, wall)
        ragged = next((c for c in columns if c.ragged), None)
        return KVBatchMeta(
            partition_id=partition_id,
            task_name=None,
            sample_ids=keys,
            fields=[c.spec.name for c in columns],
            sequence_lengths=None if ragged is None else [len(value) for value in ragged.values],
            tags=rows,
        )

    def get_samples(
        self,
        sample_ids: Sequence[str],
        partition_id: str,
        select_fields: Sequence[str],
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
        keys, fields = checks.keys(sample_ids), checks.names(select_fields, "select_fields")
        table, kept = self._read(partition_id, keys, fields, on_failed, timeout_s)
        meta = KVBatchMeta(partition_id, None, [keys[i] for i in kept], fields=fields)
        return table if on_failed == "raise" else (table, meta)

    def _read(
        self,
        partition_id: str,
        sample_ids: Sequence[str],
        select_fields: Sequence[str],
        on_failed: OnFailed,
        timeout_s: float | None,
    ) -> tuple[TensorDict, list[int]]:
        """Return the columns of the rows that can be read, and their positions in ``sample_ids``."""
        found = self._select(partition_id, sample_ids, select_fields, on_failed, timeout_s)
        joined = {field: tables.join(found.specs[field], values) for field, values in found.values.items()}
        return tables.table(joined, len(found.kept)), found.kept

    def _select(
        self,
        partition_id: str,
        sample_ids: Sequence[str],
        select_fields: Sequence[str],
        on_failed: OnFailed,
        timeout_s: float | None,
    ) -> Selected:
        """Return what a read is made of: the values of one moment."""
        partition_id = checks.name(partition_id, "partition_id")
        keys, drop = checks.keys(sample_ids), checks.on_failed(on_failed)
        fields = checks.names(select_fields, "select_fields", may_be_empty=False)
        with self._turn(timeout_s):
            part = self._shared.plane.partition(partition_id)
            part.known_fields(fields)
            readable = [i for i, key in enumerate(keys) if key in part.rows and not part.rows[key].lacks(fields)]
            rows = [part.rows[keys[i]] for i in readable] if drop else part.rows_of(keys)
            values = {field: [row.values[field] for row in rows if field in row.values] for field in fields}
            specs = {field: part.specs.get(field) for field in fields}
        unproduced = [field for field in fields if len(values[field]) < len(rows)]
        if unproduced:
            raise self._not_produced(partition_id, unproduced, [r.key for r in rows if r.lacks(fields)])
        return Selected(readable, values, specs)

    def _not_produced(self, partition_id: str, fields: list[str], keys: list[str]) -> FieldNotProduced:
        return FieldNotProduced(
            f"field {abbreviate(fields)} of partition {partition_id!r} is not produced yet for rows {abbreviate(keys)}",
            partition=partition_id,
            keys=keys,
            missing=[f"field {field!r}" for field in fields],
        )

    def clear_samples(
        self, sample_ids: Sequence[str] | None, partition_id: str, *, timeout_s: float | None = None
    ) -> None:
        keys = None if sample_ids is None else checks.keys(sample_ids)
        name = checks.name(partition_id, "partition_id")
        with self._turn(timeout_s) as now:
            self._shared.plane.clear(name, keys, now)
            self._forget(name, keys)

    # -- recovery -----------------------------------------------------------------------------------------------------

    def ping(self, timeout_s: float | None = None) -> None:
        with self._turn(timeout_s):
            pass

    def list_metadata(
        self,
        partition_id: str,
        *,
        committed: bool | None = None,
        min_weight_version: int | None = None,
        max_weight_version: int | None = None,
        older_than_s: float | None = None,
        ready_for: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        timeout_s: float | None = None,
    ) -> list[DataPlaneGroupMeta]:
        at_most = None if limit is None else checks.count(limit, "limit", least=1)
        age = None if older_than_s is None else checks.seconds(older_than_s, "older_than_s", 0.0)
        oldest, newest = checks.version(min_weight_version), checks.version(max_weight_version)
        ready_for = None if ready_for is None else checks.name(ready_for, "ready_for")
        after = None if after is None else checks.name(after, "after")
        with self._turn(timeout_s) as now:
            found = self._shared.plane.groups(checks.name(partition_id, "partition_id"), ready_for, now)
        if committed is not None:
            found = [g for g in found if (g.committed or bool(g.partial_keys)) is bool(committed)]
        if oldest is not None:
            found = [g for g in found if g.weight_version is not None and g.weight_version >= oldest]
        if newest is not None:
            found = [g for g in found if g.weight_version is not None and g.weight_version <= newest]
        if age is not None:
            born_before = self._shared.wall() - age
            found = [g for g in found if g.created_at is not None and g.created_at < born_before]
        paged = sorted((g for g in found if after is None or g.group_id > after), key=lambda g: g.group_id)
        return paged[:at_most]

    def pop(
        self,
        keys: Sequence[str],
        partition_id: str,
        *,
        lease: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        rows, name, given = checks.keys(keys), checks.name(partition_id, "partition_id"), checks.tokens(lease)
        with self._turn(timeout_s) as now:
            self._shared.plane.finish("pop", name, "", rows, self._holding(name, given), self._session, now)
            self._forget(name, rows)

    def evict(
        self,
        keys: Sequence[str],
        partition_id: str,
        reason: str = "stale",
        *,
        timeout_s: float | None = None,
    ) -> None:
        rows, name = checks.keys(keys), checks.name(partition_id, "partition_id")
        why = checks.name(reason, "reason")
        with self._turn(timeout_s) as now:
            self._shared.plane.evict(name, rows, why, now)
            self._forget(name, rows)

    def get_capabilities(self, *, timeout_s: float | None = None) -> DataPlaneCapabilities:
        with self._turn(timeout_s):
            return DataPlaneCapabilities(
                supports_server_side_filtering=True,
                supports_atomic_batch_put=True,
                supports_verified_clear=True,
                supports_leases=True,
                durability="memory",
                incarnation=self._shared.plane.incarnation,
            )

    def audit(self, partition: str | None = None, *, timeout_s: float | None = None) -> AuditReport:
        """Return the conservation equation of one partition or of all."""
        with self._turn(timeout_s):
            return self._shared.plane.audit(partition)

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    def close(self, *, timeout_s: float | None = None) -> None:
        checks.seconds(timeout_s, "timeout_s", self._timeout_s)
        with self._shared.changed:
            if self._closed:
                return
            self._closed = True
            self._shared.plane.end_session(self._session, self._shared.clock())
            self._shared.changed.notify_all()

    @contextmanager
    def _turn(self, timeout_s: float | None) -> Iterator[float]:
        """Hold the plane for one call; yields now. Others learn of what it changed."""
        checks.seconds(timeout_s, "timeout_s", self._timeout_s)
        with self._shared.changed:
            self._require_open()
            now = self._shared.clock()
            self._shared.plane.tick(now)
            try:
                yield now
            finally:
                self._shared.changed.notify_all()

    def _require_open(self) -> None:
        if self._closed:
            raise DataPlaneUnavailable(f"this client is closed (session {self._session})")

    def _holding(self, name: str, given: list[str] | None) -> Callable[[str, str], list[str]]:
        """Return which tokens a key is held under: those given, else the one it was claimed under here."""

        def tokens(task: str, key: str) -> list[str]:
            if given is not None:
                return given
            mine = self._tokens.get((name, task, key))
            return [] if mine is None else [mine]

        return tokens

    def _forget(self, name: str, keys: Sequence[str] | None, task: str | None = None) -> None:
        gone = None if keys is None else set(keys)
        for held in list(self._tokens):
            if held[0] == name and task in (None, held[1]) and (gone is None or held[2] in gone):
                del self._tokens[held]


def _told_by_plane(row: Row, task: str, partial: bool) -> dict[str, Tag]:
    """What a claimed row's tags say beside the producer's: a group handed out as it is, a row that came back."""
    told: dict[str, Tag] = {"partial": True} if partial else {}
    if row.deliveries[task]:
        told["deliveries"] = row.deliveries[task] + 1
    return told
