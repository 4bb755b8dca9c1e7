"""A client of a plane, whatever carries its calls and its bytes: the contract as requests to the plane's process.

Invariants: a call checks its arguments before anything is sent; every error is of the tree in ``errors``; a client is
fit for use by several threads, each call with its own deadline. Where payloads lie, and how they come and go, is the
business of ``Putting`` and ``Reads``.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from penstock import requests
from penstock.config import ClientConfig
from penstock.errors import BadArgument, DataPlaneError, RefusedType
from penstock.payload import codec
from penstock.payload.columns import Batch
from penstock.plane import checks
from penstock.plane import events as ev
from penstock.plane.contract import Columns, DataPlaneClient, OnFailed, TagRow
from penstock.plane.courier import Identity
from penstock.plane.link import Link, LinkStatistics
from penstock.plane.reads import Reads
from penstock.points import reached
from penstock.records import (
    DataPlaneCapabilities,
    DataPlaneGroupMeta,
    DataPlaneRowMeta,
    GroupPolicy,
    KVBatchMeta,
    Tag,
    as_int,
)
from penstock.requests import AuditReport, Done, Grant, StatusReport, Tokens, WhyReport
from penstock.retry import Deadline

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["CLOSE_S", "PlaneClient", "Putting", "identity_of"]

CLOSE_S = 30.0  # views may be large: each of their pages is written before the end
_NAMED_ROWS = 1000  # rows that one question names: about 5 ms of the plane's time

R = TypeVar("R", bound=requests.Record)


class Putting(Protocol):
    """How the bytes of a put come to where they will lie."""

    def put(self, wanted: Grant, batch: Batch, deadline: Deadline) -> None:
        """Write ``batch`` as ``wanted`` describes it; all its rows are visible on return.

        Raises:
            DataPlaneTimeout: the outcome is unknown.
            DataPlaneError: nothing became visible.
        """


class PlaneClient(DataPlaneClient):
    """The contract over a link to the plane. Args: how it behaves, and what carries calls, puts and reads."""

    def __init__(self, config: ClientConfig, link: Link, puts: Putting, reads: Reads) -> None:
        self._config = config
        self._link = link
        self._puts = puts
        self._reads = reads

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
        body = checks.registration(
            partition_id, fields, num_samples, consumer_tasks, grpo_group_size, enums, group_policy
        )
        self._ask(body, Done, deadline)

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
        batch, least = checks.claim_sizes(batch_size, min_rows, chosen)
        body = requests.Claim(
            checks.name(partition_id, "partition_id"),
            checks.name(task_name, "task_name"),
            checks.names(required_fields, "required_fields"),
            0 if chosen is not None else batch,
            least if blocking else 1,
            bool(blocking),
            chosen,
            bool(whole_groups),
            checks.lease_s(lease_s),
            None if dp_rank is None else checks.count(dp_rank, "dp_rank"),
        )
        self._claiming()
        # Within the ``with``: a signal before the meta is complete gives the rows back.
        with self._link.call(body, requests.Claimed, deadline) as claimed:
            reached("client.claimed")
            return KVBatchMeta(
                partition_id=body.partition,
                task_name=body.task,
                sample_ids=claimed.keys,
                fields=list(body.required),
                sequence_lengths=claimed.lengths,
                tags=[dict(tags) for tags in claimed.tags],
                lease=(claimed.token,) if claimed.token else (),
            )

    def _claiming(self) -> None:
        """Leases are about to be this client's: a subclass sees to it that its death will be noticed at once."""

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
        partition, task, keys, given = checks.held(meta, "ack")
        reached("client.acking")
        self._ask(requests.Ack(partition, task, keys, _tokens(given)), Done, deadline, remembered=given is None)
        reached("client.acked")

    def release(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
        deadline = self._deadline(timeout_s)
        partition, task, keys, given = checks.held(meta, "release")
        self._ask(requests.Release(partition, task, keys, _tokens(given)), Done, deadline, remembered=given is None)

    def renew(self, meta: KVBatchMeta, lease_s: float | None, *, timeout_s: float | None = None) -> None:
        deadline = self._deadline(timeout_s)
        partition, task, keys, given = checks.held(meta, "renew")
        body = requests.Renew(partition, task, keys, _tokens(given), checks.lease_s(lease_s))
        self._ask(body, Done, deadline, remembered=given is None)

    def check_consumption_status(
        self, partition_id: str, task_names: Sequence[str], *, timeout_s: float | None = None
    ) -> bool:
        deadline = self._deadline(timeout_s)
        tasks = checks.names(task_names, "task_names", may_be_empty=False)
        body = requests.CheckConsumption(checks.name(partition_id, "partition_id"), tasks)
        return self._ask(body, requests.Flag, deadline).value

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
        batch = self._encoded({} if fields is None else fields, len(keys))
        lengths = batch.lengths
        meta = KVBatchMeta(
            partition_id=partition,
            task_name=None,
            sample_ids=keys,
            fields=[column.name for column in batch.columns],
            sequence_lengths=_lengths(rows) or lengths,
            tags=rows,
        )
        columns = checks.tag_columns(rows or [])
        if not keys:
            self._link.require_open("put_samples")
        elif batch.columns:
            wanted = requests.Grant(partition, keys, batch.specs, columns, batch.nbytes, batch.row_bytes, lengths)
            self._puts.put(wanted, batch, deadline)
        else:
            reached("client.tagging")
            self._ask(requests.PutTags(partition, keys, columns), Done, deadline)
            reached("client.tagged")
        return meta

    def _encoded(self, fields: Columns, n_rows: int) -> Batch:
        try:
            return codec.encode(fields, n_rows, strict_tensors=self._config.strict_tensors)
        except DataPlaneError:
            raise
        except (RuntimeError, TypeError, ValueError, MemoryError) as odd:  # torch's and numpy's own words
            raise RefusedType(f"put_samples: the columns cannot be laid out: {type(odd).__name__}: {odd}") from odd

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
        self._ask(requests.Clear(checks.name(partition_id, "partition_id"), keys), Done, deadline)

    # -- recovery -----------------------------------------------------------------------------------------------------

    def ping(self, timeout_s: float | None = None) -> None:
        self._link.ask(requests.Ping(), Done, self._deadline(timeout_s), once=True)

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
        wanted = None if limit is None else checks.count(limit, "limit", least=1)
        partition = checks.name(partition_id, "partition_id")
        oldest, newest = checks.version(min_weight_version), checks.version(max_weight_version)
        age = None if older_than_s is None else checks.seconds(older_than_s, "older_than_s", 0.0)
        task = None if ready_for is None else checks.name(ready_for, "ready_for")
        after = None if after is None else checks.name(after, "after")
        found: list[DataPlaneGroupMeta] = []
        while True:
            body = requests.ListMetadata(
                partition,
                None if committed is None else bool(committed),
                oldest,
                newest,
                age,
                task,
                0 if wanted is None else wanted - len(found),
                after,
            )
            page = self._ask(body, requests.Groups, deadline)
            found += page.groups
            if not page.more or not page.groups or len(found) == wanted:
                return found
            after = page.groups[-1].group_id

    def depth(self, partition_id: str, *, timeout_s: float | None = None) -> int:
        deadline = self._deadline(timeout_s)
        return self._ask(requests.Depth(checks.name(partition_id, "partition_id")), requests.Number, deadline).value

    def pop(
        self,
        keys: Sequence[str],
        partition_id: str,
        *,
        lease: str | Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        # The plane removes all rows or none and answers with what became of them: its word is the verification.
        deadline = self._deadline(timeout_s)
        partition, rows, given = checks.name(partition_id, "partition_id"), checks.keys(keys), checks.tokens(lease)
        if given is None and not self._link.book.knows(partition):
            self._learn_final_tasks(deadline)
        body = requests.Pop(partition, rows, _tokens(given))
        reached("client.popping")
        self._ask(body, Done, deadline, remembered=given is None)
        reached("client.popped")

    def _learn_final_tasks(self, deadline: Deadline) -> None:
        """Find out which task's leases a pop must name, where this client did not register the partition itself."""
        for found in self._link.ask(requests.Status(), StatusReport, deadline, method="pop").partitions:
            if found.tasks:
                self._link.note(ev.Learned(found.partition, found.tasks[-1]))

    def evict(
        self,
        keys: Sequence[str],
        partition_id: str,
        reason: str = "stale",
        *,
        timeout_s: float | None = None,
    ) -> None:
        deadline = self._deadline(timeout_s)
        partition, rows, why = (
            checks.name(partition_id, "partition_id"),
            checks.keys(keys),
            checks.name(reason, "reason"),
        )
        self._ask(requests.Evict(partition, rows, why), Done, deadline)

    def get_capabilities(self, *, timeout_s: float | None = None) -> DataPlaneCapabilities:
        return self._ask(requests.Capabilities(), requests.CapabilitiesAre, self._deadline(timeout_s)).value

    # -- questions of operators ---------------------------------------------------------------------------------------

    def audit(self, partition: str | None = None, *, timeout_s: float | None = None) -> AuditReport:
        """Return the conservation equation of one partition, or of all, those that were cleared included."""
        deadline = self._deadline(timeout_s)
        name = None if partition is None else checks.name(partition, "partition")
        return self._ask(requests.Audit(name), AuditReport, deadline)

    def why(
        self,
        partition: str,
        *,
        task: str | None = None,
        key: str | None = None,
        group: str | None = None,
        timeout_s: float | None = None,
    ) -> WhyReport:
        """Return what is missing and who owes it (``owed``), who waits for what since when, and the last events.

        Of the partition, or of one task, row or group of it. Cheap enough for a watchdog that asks while nothing moves.
        """
        deadline = self._deadline(timeout_s)
        given = {"task": task, "key": key, "group": group}
        named = {what: None if value is None else checks.name(value, what) for what, value in given.items()}
        body = requests.Why(checks.name(partition, "partition"), named["task"], named["key"], named["group"])
        return self._ask(body, WhyReport, deadline)

    def list_rows(
        self, partition_id: str, keys: Sequence[str] | None = None, *, timeout_s: float | None = None
    ) -> list[DataPlaneRowMeta]:
        """Return tags and produced fields of single rows; an unknown partition has none.

        Args:
            partition_id: the partition.
            keys: these rows, in this order, those that are not there left out; None = all, in the order of their first
                puts. Many are asked for in several calls, so that they are not all of one moment.
            timeout_s: see the class.
        """
        deadline = self._deadline(timeout_s)
        partition = checks.name(partition_id, "partition_id")
        found: list[DataPlaneRowMeta] = []
        if keys is not None:
            named = checks.keys(keys)
            for start in range(0, len(named), _NAMED_ROWS):
                body = requests.ListRows(partition, named[start : start + _NAMED_ROWS])
                found += self._ask(body, requests.Rows, deadline).rows
            return found
        page = self._ask(requests.ListRows(partition), requests.Rows, deadline)
        while page.last:
            found += page.rows
            page = self._ask(requests.ListRows(partition, after=page.last), requests.Rows, deadline)
        return found + page.rows

    def status(self, *, timeout_s: float | None = None) -> StatusReport:
        """Return the plane at a glance."""
        return self._ask(requests.Status(), StatusReport, self._deadline(timeout_s))

    def statistics(self) -> LinkStatistics:
        """Return this client's own counts; asks nobody."""
        return self._link.statistics()

    # -- lifecycle ----------------------------------------------------------------------------------------------------

    def close(self, *, timeout_s: float | None = None) -> None:
        self._link.close(checks.seconds(timeout_s, "timeout_s", CLOSE_S))

    def _ask(self, body: requests.Request, kind: type[R], deadline: Deadline, *, remembered: bool = False) -> R:
        return self._link.ask(body, kind, deadline, remembered=remembered)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(checks.seconds(timeout_s, "timeout_s", self._config.timeout_s))


def identity_of(config: ClientConfig) -> Identity:
    """Return who a client of this process is."""
    owner = config.owner or f"{Path(sys.argv[0]).name or 'python'}:{os.getpid()}"
    return Identity(secrets.randbits(63), owner, config.role, socket.gethostname(), os.getpid())


def _tokens(given: list[str] | None) -> Tokens:
    """Return tokens each of which may hold any key; None, those that the client remembers, is filled in later."""
    return Tokens(given or [], [])


def _lengths(rows: Sequence[Mapping[str, Tag]] | None) -> list[int] | None:
    """Return the rows' tag ``input_lengths``, if all have one."""
    lengths = [as_int(row.get("input_lengths")) for row in rows or []]
    return [n for n in lengths if n is not None] if lengths and None not in lengths else None
