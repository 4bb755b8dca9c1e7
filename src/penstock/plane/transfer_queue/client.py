"""The contract's client on a TransferQueue: calls go to the registrar, bytes to TransferQueue's storage.

Invariants: a put's blocks are written before its commit and are nobody's until then; a read that finds a block gone
locates its rows anew, for they were written again meanwhile; a removal returns when the bytes are gone too; no error of
Ray, ZMQ or TransferQueue leaves a method.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import (
    BadArgument,
    DataPlaneBadRequest,
    DataPlaneClearError,
    DataPlaneError,
    DataPlaneFull,
    DataPlaneTimeout,
    DataPlaneUnavailable,
)
from penstock.payload.columns import Batch
from penstock.plane import checks
from penstock.plane.again import settled
from penstock.plane.contract import Columns, DataPlaneClient, OnFailed, TagRow
from penstock.plane.transfer_queue.chunks import content_of, cut, described, lengths_of
from penstock.plane.transfer_queue.desk import Desk
from penstock.plane.transfer_queue.library import TransferQueue
from penstock.plane.transfer_queue.queue_blocks import QueueBlocks, QueueFailed, QueueFull
from penstock.plane.transfer_queue.reads import Reads
from penstock.plane.transfer_queue.registrar import MAX_DEAD
from penstock.plane.transfer_queue.stored import Chunk
from penstock.records import DataPlaneCapabilities, DataPlaneGroupMeta, GroupPolicy, KVBatchMeta
from penstock.requests import AuditReport
from penstock.retry import Answer, Deadline, Kind, Policy, Reason, Retrier

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["TransferQueueDataPlaneClient"]

# One controller and units that never move: no budget or quarantine would spare anybody anything.
AGAIN = Policy(max_attempts=8, base_s=0.02, cap_s=1.0, corrupt_attempts=2, bucket_tokens=0.0, quarantine_s=0.0)
CLOSE_S = 5.0
FREE_S = 5.0  # for the blocks that a put has replaced, or an ack has left
LEAST_S = 0.5  # of a close whose registrar has not answered
SWEEP_S = 10.0
PARTITION = "penstock"
FIRST = 1  # the session of a registrar's first client

log = logging.getLogger(__name__)


class TransferQueueDataPlaneClient(DataPlaneClient):
    """A session on the plane of one TransferQueue.

    Args:
        queue: a running one, as ``library.find`` or ``library.start`` return it.
        config: how this client behaves.
        plane: how the plane behaves; taken from its first client. Its limits on bytes and rows are not enforced.
    """

    def __init__(
        self, queue: TransferQueue, config: ClientConfig | None = None, plane: PlaneConfig | None = None
    ) -> None:
        self._config = config or ClientConfig()
        deadline = Deadline(self._config.timeout_s)
        self._retrier = Retrier(AGAIN)
        self._desk = Desk(queue, plane or PlaneConfig(durability="memory"), deadline)
        try:
            partition = f"{PARTITION}-{self._desk.incarnation:x}"
            self._blocks = QueueBlocks(queue, partition, deadline)
            self._reads = Reads(self._desk, self._blocks, self._retrier)
        except BaseException:
            self._desk.end(CLOSE_S)
            raise
        self._queue = queue
        if self._desk.session == FIRST:
            self._sweep(partition, deadline.within(SWEEP_S))

    def _sweep(self, mine: str, deadline: Deadline) -> None:
        """Remove the blocks of registrars that this controller had before; nobody knows any more what is in them."""
        try:
            for name in self._blocks.partitions(deadline):
                if name.startswith(f"{PARTITION}-") and name != mine:
                    log.warning("the blocks of an earlier registrar are removed: partition %s", name)
                    self._blocks.remove_partition(name, deadline)
        except DataPlaneError as failed:
            log.warning("blocks of earlier registrars may be left: %s", failed)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._queue.name}, {self._desk!r})"

    @property
    def default_timeout_s(self) -> float:
        return self._config.timeout_s

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
        deadline = self._deadline(timeout_s)
        wanted = checks.registration(
            partition_id, fields, num_samples, consumer_tasks, grpo_group_size, enums, group_policy
        )
        self._desk.ask("register", deadline, wanted=wanted)

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
        deadline = self._deadline(timeout_s)
        chosen = None if keys is None else checks.keys(keys, unique=True)
        checks.claim_sizes(batch_size, min_rows, chosen)
        arguments = {
            "partition_id": checks.name(partition_id, "partition_id"),
            "task_name": checks.name(task_name, "task_name"),
            "required_fields": checks.names(required_fields, "required_fields"),
            "batch_size": batch_size,
            "dp_rank": None if dp_rank is None else checks.count(dp_rank, "dp_rank"),
            "blocking": bool(blocking),
            "min_rows": min_rows,
            "keys": chosen,
            "whole_groups": bool(whole_groups),
            "lease_s": checks.lease_s(lease_s),
        }
        meta: KVBatchMeta = self._desk.claim(deadline, arguments)
        return meta

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
        deadline = self._deadline(timeout_s)
        checks.held(meta, "ack")
        self._free(self._desk.ask("ack", deadline, meta=_plain(meta)).dead, deadline)

    def release(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        deadline = self._deadline(timeout_s)
        checks.held(meta, "release")
        self._desk.ask("release", deadline, meta=_plain(meta))

    def renew(self, meta: KVBatchMeta, lease_s: float | None, *, timeout_s: float | None = None) -> None:
        deadline = self._deadline(timeout_s)
        checks.held(meta, "renew")
        self._desk.ask("renew", deadline, meta=_plain(meta), lease_s=checks.lease_s(lease_s))

    def check_consumption_status(
        self, partition_id: str, task_names: Sequence[str], *, timeout_s: float | None = None
    ) -> bool:
        deadline = self._deadline(timeout_s)
        tasks = checks.names(task_names, "task_names", may_be_empty=False)
        name = checks.name(partition_id, "partition_id")
        return bool(self._desk.ask("check_consumption_status", deadline, partition_id=name, task_names=tasks).value)

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
        deadline = self._deadline(timeout_s)
        partition = checks.name(partition_id, "partition_id")
        keys = checks.keys(sample_ids, unique=True)
        rows = checks.tag_rows(tags, len(keys))
        if fields is None and rows is None:
            raise BadArgument("put_samples: neither fields nor tags", partition=partition)
        batches = cut({} if fields is None else fields, len(keys), strict_tensors=self._config.strict_tensors)
        columns = described(batches)
        if not keys:
            self._desk.require_open()
        elif columns:
            put = {"partition": partition, "keys": keys, "columns": columns, "tags": rows or [{} for _ in keys]}
            self._write(put, batches, deadline)
        else:
            self._desk.ask("tag", deadline, partition=partition, keys=keys, tags=rows)
        return KVBatchMeta(
            partition_id=partition,
            task_name=None,
            sample_ids=keys,
            fields=[column.spec.name for column in columns],
            sequence_lengths=lengths_of(columns),
            tags=rows,
        )

    def _write(self, put: dict[str, Any], batches: Sequence[Batch], deadline: Deadline) -> None:
        """Grant, write, commit. Blocks of a put that fails before its commit go back."""
        specs = [column.spec for column in put["columns"]]
        granted = self._desk.ask("grant", deadline, partition=put["partition"], specs=specs, blocks=len(batches))
        numbers: list[int] = granted.value
        try:
            blocks = {number: np.empty(batch.nbytes, np.uint8) for number, batch in zip(numbers, batches, strict=True)}
            contents = [
                batch.write_into(blocks[number], number) for number, batch in zip(numbers, batches, strict=True)
            ]
            self._store(blocks, put["partition"], put["keys"], deadline)
        except BaseException:
            self._desk.tell("abandon", blocks=numbers)
            raise
        chunks = [Chunk(number, batch.rows, batch.nbytes) for number, batch in zip(numbers, batches, strict=True)]
        try:
            answer = self._desk.ask("commit", deadline, chunks=chunks, content=content_of(contents), **put)
        except (DataPlaneBadRequest, DataPlaneUnavailable):  # it did not happen; of any other end nobody knows
            self._desk.tell("abandon", blocks=numbers)
            raise
        self._free(answer.dead, deadline)

    def _store(self, blocks: Mapping[int, Any], partition: str, keys: list[str], deadline: Deadline) -> None:
        last: list[DataPlaneError] = []

        def attempt(until: Deadline) -> Answer[None]:
            try:
                self._blocks.put(blocks, until)
            except QueueFailed as refused:
                last[:] = [refused]
                full = isinstance(refused, QueueFull)
                return Answer(Kind.BACKPRESSURE if full else Kind.RETRYABLE, code=type(refused).__name__)
            return Answer(Kind.OK)

        end = settled(self._retrier, "put", partition, attempt, deadline)
        if end.reason is not None:
            cls: type[DataPlaneError] = DataPlaneTimeout if end.reason is Reason.DEADLINE else DataPlaneUnavailable
            if isinstance(last[-1], QueueFull):
                cls = DataPlaneFull
            text = f"the put was not made, in {end.attempts} attempts: {last[-1]}"
            raise cls(text, partition=partition, keys=keys, attempts=end.attempts, elapsed_s=deadline.elapsed())

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
        if on_failed == "raise":
            return table
        return table, KVBatchMeta(partition_id, None, [keys[i] for i in kept], fields=fields)

    def _read(
        self,
        partition_id: str,
        sample_ids: Sequence[str],
        select_fields: Sequence[str],
        on_failed: OnFailed,
        timeout_s: float | None,
    ) -> tuple[TensorDict, list[int]]:
        """Return the columns of the rows that can be read, and their positions in ``sample_ids``."""
        deadline = self._deadline(timeout_s)
        partition = checks.name(partition_id, "partition_id")
        keys, drop = checks.keys(sample_ids), checks.on_failed(on_failed)
        fields = list(dict.fromkeys(checks.names(select_fields, "select_fields", may_be_empty=False)))
        return self._reads.read(partition, keys, fields, deadline, drop=drop)

    def clear_samples(
        self, sample_ids: Sequence[str] | None, partition_id: str, *, timeout_s: float | None = None
    ) -> None:
        deadline = self._deadline(timeout_s)
        keys = None if sample_ids is None else checks.keys(sample_ids)
        name = checks.name(partition_id, "partition_id")
        self._remove("clear_samples", name, keys or (), deadline, {"sample_ids": keys, "partition_id": name})

    def _remove(
        self, call: str, partition: str, keys: Sequence[str], deadline: Deadline, arguments: dict[str, Any]
    ) -> None:
        """Have rows removed, and their bytes: an answer that names as many free blocks as it can may not name all."""
        dead = self._desk.ask(call, deadline, **arguments).dead
        while dead:
            try:
                left, why = self._blocks.remove(dead, deadline), "it says that it has removed them, and still has them"
            except DataPlaneError as failed:
                left, why = list(dead), str(failed)
            if left:
                self._desk.freed(sorted(set(dead) - set(left)))
                raise DataPlaneClearError(
                    f"{call}: the rows are removed, but TransferQueue keeps the bytes of {len(left)} blocks or more "
                    f"(the next removal tries again): {why}",
                    partition=partition,
                    keys=keys,
                    elapsed_s=deadline.elapsed(),
                )
            if len(dead) < MAX_DEAD:
                self._desk.freed(dead)
                return
            dead = self._desk.ask("freed", deadline, blocks=dead).dead

    def _free(self, dead: Sequence[int], deadline: Deadline) -> None:
        """Free what a put or an ack has left, if it can be done; if not, the next removal will."""
        try:
            left = set(self._blocks.remove(dead, deadline.within(FREE_S)))
        except DataPlaneError as failed:
            log.debug("%d blocks are left to be freed later: %s", len(dead), failed)
        else:
            self._desk.freed([block for block in dead if block not in left])

    # -- recovery -----------------------------------------------------------------------------------------------------

    def ping(self, timeout_s: float | None = None) -> None:
        deadline = self._deadline(timeout_s)
        self._desk.ask("ping", deadline)
        self._blocks.ping(deadline)

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
        deadline = self._deadline(timeout_s)
        found: list[DataPlaneGroupMeta] = self._desk.ask(
            "list_metadata",
            deadline,
            partition_id=checks.name(partition_id, "partition_id"),
            committed=None if committed is None else bool(committed),
            min_weight_version=checks.version(min_weight_version),
            max_weight_version=checks.version(max_weight_version),
            older_than_s=None if older_than_s is None else checks.seconds(older_than_s, "older_than_s", 0.0),
            ready_for=None if ready_for is None else checks.name(ready_for, "ready_for"),
            limit=None if limit is None else checks.count(limit, "limit", least=1),
            after=None if after is None else checks.name(after, "after"),
        ).value
        return found

    def pop(
        self,
        keys: Sequence[str],
        partition_id: str,
        *,
        lease: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        deadline = self._deadline(timeout_s)
        rows, name, tokens = checks.keys(keys), checks.name(partition_id, "partition_id"), checks.tokens(lease)
        self._remove("pop", name, rows, deadline, {"keys": rows, "partition_id": name, "lease": tokens})

    def evict(
        self,
        keys: Sequence[str],
        partition_id: str,
        reason: str = "stale",
        *,
        timeout_s: float | None = None,
    ) -> None:
        deadline = self._deadline(timeout_s)
        rows, name = checks.keys(keys), checks.name(partition_id, "partition_id")
        why = checks.name(reason, "reason")
        self._remove("evict", name, rows, deadline, {"keys": rows, "partition_id": name, "reason": why})

    def get_capabilities(self, *, timeout_s: float | None = None) -> DataPlaneCapabilities:
        self._desk.ask("ping", self._deadline(timeout_s))
        return DataPlaneCapabilities(
            supports_server_side_filtering=True,
            supports_atomic_batch_put=True,
            supports_verified_clear=True,
            supports_leases=True,
            durability="memory",
            incarnation=self._desk.incarnation,
        )

    def audit(self, partition: str | None = None, *, timeout_s: float | None = None) -> AuditReport:
        """Return the conservation equation of one partition or of all."""
        report: AuditReport = self._desk.ask("audit", self._deadline(timeout_s), partition=partition).value
        return report

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    def close(self, *, timeout_s: float | None = None) -> None:
        limit = min(checks.seconds(timeout_s, "timeout_s", self._config.timeout_s), CLOSE_S)
        deadline = Deadline(limit)
        self._desk.end(limit)
        self._blocks.close(max(deadline.remaining(), LEAST_S))

    def _deadline(self, timeout_s: float | None) -> Deadline:
        deadline = Deadline(checks.seconds(timeout_s, "timeout_s", self._config.timeout_s))
        self._desk.require_open()
        return deadline


def _plain(meta: KVBatchMeta) -> KVBatchMeta:
    """What the registrar needs of a meta: extra_info and tags may hold anything."""
    return KVBatchMeta(meta.partition_id, meta.task_name, list(meta.sample_ids), lease=meta.lease)
