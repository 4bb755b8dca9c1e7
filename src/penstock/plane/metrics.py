"""Middleware that records every call of a client: a callback, Prometheus metrics, and totals.

Invariants: the inner client's results and errors pass unchanged; each call, recovery operations and ``close`` included,
is recorded once, when it ends; a callback that raises breaks nothing and is counted.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import prometheus_client
from prometheus_client.registry import Collector, CollectorRegistry

from penstock.plane.contract import Columns, DataPlaneClient, OnFailed, TagRow
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, GroupPolicy, KVBatchMeta

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["ClientStatistics", "MetricsDataPlaneClient", "OperationRecord", "OperationTotals"]

_log = logging.getLogger(__name__)
_BUCKETS_S = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)  # to the longest default
T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class OperationRecord:
    """One call. ``outcome``: ``"ok"``, ``"timeout"``, or the error's class name; ``bytes``: payload carried."""

    name: str
    partition: str | None
    rows: int
    bytes: int
    seconds: float
    outcome: str


@dataclass(frozen=True)
class OperationTotals:
    """All calls of one operation so far; ``rows`` and ``bytes`` of those that succeeded."""

    calls: int = 0
    failures: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0


@dataclass(frozen=True)
class ClientStatistics:
    """Totals by operation, and how many callbacks raised."""

    operations: Mapping[str, OperationTotals]
    callback_errors: int


class _Exported:
    """The Prometheus metrics of one registry, shared by all clients that report to it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> prometheus_client.Counter:
            return prometheus_client.Counter(f"penstock_client_{name}", text, labels, registry=registry)

        self.calls = counter("operations", "Calls that ended.", "operation", "outcome")
        self.rows = counter("rows", "Rows of calls that succeeded.", "operation")
        self.bytes = counter("bytes", "Payload bytes of calls that succeeded.", "operation")
        self.callback_errors = counter("callback_errors", "Metrics callbacks that raised.")
        self.seconds = prometheus_client.Histogram(
            "penstock_client_operation_seconds", "Duration.", ["operation"], registry=registry, buckets=_BUCKETS_S
        )

    def add(self, record: OperationRecord) -> None:
        self.calls.labels(record.name, record.outcome).inc()
        self.seconds.labels(record.name).observe(record.seconds)
        if record.outcome == "ok":
            self.rows.labels(record.name).inc(record.rows)
            self.bytes.labels(record.name).inc(record.bytes)


_exported: weakref.WeakKeyDictionary[Collector | CollectorRegistry, _Exported] = weakref.WeakKeyDictionary()
_exported_lock = threading.Lock()


def _export_to(registry: CollectorRegistry) -> _Exported:
    """Return the registry's metrics: a name can be registered once, clients come and go."""
    with _exported_lock:
        if registry not in _exported:
            _exported[registry] = _Exported(registry)
        return _exported[registry]


class MetricsDataPlaneClient(DataPlaneClient):
    """A client that records what passes through it.

    Args:
        inner: does the work; it is closed with this client.
        callback: called with an ``OperationRecord`` in the calling thread, after each call.
        registry: where Prometheus metrics go; None = the process's default registry.
        clock: seconds.
    """

    def __init__(
        self,
        inner: DataPlaneClient,
        callback: Callable[[OperationRecord], object] | None = None,
        registry: CollectorRegistry | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.inner = inner
        self._callback = callback
        self._exported = _export_to(prometheus_client.REGISTRY if registry is None else registry)
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: dict[str, OperationTotals] = {}
        self._callback_errors = 0

    def __repr__(self) -> str:
        with self._lock:
            calls = sum(totals.calls for totals in self._totals.values())
        return f"MetricsDataPlaneClient({self.inner!r}, calls={calls})"

    def statistics(self) -> ClientStatistics:
        """Return the totals so far."""
        with self._lock:
            return ClientStatistics(dict(self._totals), self._callback_errors)

    @property
    def default_timeout_s(self) -> float:
        return self.inner.default_timeout_s

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
        self._record(
            "register_partition",
            partition_id,
            lambda: self.inner.register_partition(
                partition_id,
                fields,
                num_samples,
                consumer_tasks,
                grpo_group_size,
                enums,
                group_policy=group_policy,
                timeout_s=timeout_s,
            ),
        )

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
        return self._record(
            "claim_meta",
            partition_id,
            lambda: self.inner.claim_meta(
                partition_id,
                task_name,
                required_fields,
                batch_size,
                dp_rank,
                blocking,
                timeout_s,
                min_rows=min_rows,
                keys=keys,
                whole_groups=whole_groups,
                lease_s=lease_s,
            ),
            rows_of=lambda meta: meta.size,
        )

    def get_data(
        self,
        meta: KVBatchMeta,
        select_fields: Sequence[str] | None = None,
        *,
        on_failed: OnFailed = "raise",
        timeout_s: float | None = None,
    ) -> TensorDict | tuple[TensorDict, KVBatchMeta]:
        return self._record(
            "get_data",
            _partition_of(meta),
            lambda: self.inner.get_data(meta, select_fields, on_failed=on_failed, timeout_s=timeout_s),
            rows_of=_rows_read,
            bytes_of=_bytes_read,
        )

    def ack(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        self._record("ack", _partition_of(meta), lambda: self.inner.ack(meta, timeout_s=timeout_s), _all(meta))

    def release(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        self._record("release", _partition_of(meta), lambda: self.inner.release(meta, timeout_s=timeout_s), _all(meta))

    def renew(self, meta: KVBatchMeta, lease_s: float | None, *, timeout_s: float | None = None) -> None:
        call = lambda: self.inner.renew(meta, lease_s, timeout_s=timeout_s)  # noqa: E731
        self._record("renew", _partition_of(meta), call, _all(meta))

    def check_consumption_status(
        self, partition_id: str, task_names: Sequence[str], *, timeout_s: float | None = None
    ) -> bool:
        return self._record(
            "check_consumption_status",
            partition_id,
            lambda: self.inner.check_consumption_status(partition_id, task_names, timeout_s=timeout_s),
        )

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
        return self._record(
            "put_samples",
            partition_id,
            lambda: self.inner.put_samples(sample_ids, partition_id, fields, tags, timeout_s=timeout_s),
            rows_of=lambda meta: meta.size,
            bytes_of=lambda _: _bytes_in(fields),
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
        return self._record(
            "get_samples",
            partition_id,
            lambda: self.inner.get_samples(
                sample_ids, partition_id, select_fields, on_failed=on_failed, timeout_s=timeout_s
            ),
            rows_of=_rows_read,
            bytes_of=_bytes_read,
        )

    def clear_samples(
        self, sample_ids: Sequence[str] | None, partition_id: str, *, timeout_s: float | None = None
    ) -> None:
        rows = _countable(sample_ids)
        call = lambda: self.inner.clear_samples(rows, partition_id, timeout_s=timeout_s)  # noqa: E731
        self._record("clear_samples", partition_id, call, lambda _: 0 if rows is None else len(rows))

    # -- recovery -----------------------------------------------------------------------------------------------------

    def ping(self, timeout_s: float | None = None) -> None:
        self._record("ping", None, lambda: self.inner.ping(timeout_s))

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
        return self._record(
            "list_metadata",
            partition_id,
            lambda: self.inner.list_metadata(
                partition_id,
                committed=committed,
                min_weight_version=min_weight_version,
                max_weight_version=max_weight_version,
                older_than_s=older_than_s,
                ready_for=ready_for,
                limit=limit,
                after=after,
                timeout_s=timeout_s,
            ),
            rows_of=lambda groups: sum(len(group.keys) for group in groups),
        )

    def depth(self, partition_id: str, *, timeout_s: float | None = None) -> int:
        return self._record("depth", partition_id, lambda: self.inner.depth(partition_id, timeout_s=timeout_s))

    def pop(
        self,
        keys: Sequence[str],
        partition_id: str,
        *,
        lease: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        rows = _countable(keys)
        call = lambda: self.inner.pop(rows, partition_id, lease=lease, timeout_s=timeout_s)  # noqa: E731
        self._record("pop", partition_id, call, lambda _: len(rows))

    def evict(
        self,
        keys: Sequence[str],
        partition_id: str,
        reason: str = "stale",
        *,
        timeout_s: float | None = None,
    ) -> None:
        rows = _countable(keys)
        call = lambda: self.inner.evict(rows, partition_id, reason, timeout_s=timeout_s)  # noqa: E731
        self._record("evict", partition_id, call, lambda _: len(rows))

    def get_capabilities(self, *, timeout_s: float | None = None) -> DataPlaneCapabilities:
        return self._record("get_capabilities", None, lambda: self.inner.get_capabilities(timeout_s=timeout_s))

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    def close(self, *, timeout_s: float | None = None) -> None:
        self._record("close", None, lambda: self.inner.close(timeout_s=timeout_s))

    def _record(
        self,
        name: str,
        partition: str | None,
        call: Callable[[], T],
        rows_of: Callable[[T], int] = lambda _: 0,
        bytes_of: Callable[[T], int] = lambda _: 0,
    ) -> T:
        started = self._clock()
        try:
            result = call()
        except BaseException as error:
            outcome = "timeout" if isinstance(error, TimeoutError) else type(error).__name__
            self._ended(OperationRecord(name, partition, 0, 0, self._clock() - started, outcome))
            raise
        took = self._clock() - started
        self._ended(OperationRecord(name, partition, rows_of(result), bytes_of(result), took, "ok"))
        return result

    def _ended(self, record: OperationRecord) -> None:
        with self._lock:
            old = self._totals.get(record.name, OperationTotals())
            self._totals[record.name] = OperationTotals(
                old.calls + 1,
                old.failures + (record.outcome != "ok"),
                old.rows + record.rows,
                old.bytes + record.bytes,
                old.seconds + record.seconds,
                max(old.slowest_s, record.seconds),
            )
        self._exported.add(record)
        if self._callback is not None:
            self._call_back(self._callback, record)

    def _call_back(self, callback: Callable[[OperationRecord], object], record: OperationRecord) -> None:
        try:
            callback(record)
        except Exception as error:  # noqa: BLE001  # top frame of a user's code: it must not break what it watches
            with self._lock:
                self._callback_errors += 1
                first = self._callback_errors == 1
            self._exported.callback_errors.inc()
            _log.log(
                logging.WARNING if first else logging.DEBUG, "metrics callback raised on %s: %r", record.name, error
            )


def _partition_of(meta: object) -> str | None:
    """The partition of a meta; None if it is no meta, which the inner client will say."""
    return meta.partition_id if isinstance(meta, KVBatchMeta) else None


def _countable(keys: S) -> S:
    """An iterator's keys as a list, for they are counted after they were used; anything else as it is."""
    return list(keys) if isinstance(keys, Iterator) else keys  # type: ignore[return-value]


def _all(meta: KVBatchMeta) -> Callable[[object], int]:
    return lambda _: meta.size


def _rows_read(read: Any) -> int:
    table = read[0] if isinstance(read, tuple) else read
    return int(table.batch_size[0])


def _bytes_read(read: Any) -> int:
    return _bytes_in(read[0] if isinstance(read, tuple) else read)


def _bytes_in(fields: Any) -> int:
    """Payload bytes of columns: of tensors, lists of tensors and arrays; other values count nothing."""
    return 0 if fields is None else sum(_column_bytes(fields.get(name)) for name in fields.keys())  # noqa: SIM118


def _column_bytes(column: Any) -> int:
    import numpy as np
    import torch

    if isinstance(column, torch.Tensor):
        return column.numel() * column.element_size()
    if isinstance(column, np.ndarray):
        return column.nbytes
    return sum(_column_bytes(value) for value in column) if isinstance(column, (list, tuple)) else 0
