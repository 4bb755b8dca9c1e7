"""The key-value calls on a client of a plane: what each of them asks, in which order, and what it makes of the answers.

Invariants: a put is one put of the plane, so all of it becomes visible or nothing; a get returns every row that was
asked for or raises; one deadline covers all that a call asks. A partition is registered with its first put, by
whoever comes first, with one consumer, ``TASK``: nobody claims these rows, they stay until they are cleared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.compat.transfer_queue import columns, tags
from penstock.compat.transfer_queue.columns import MARK, Parser
from penstock.compat.transfer_queue.meta import KVBatchMeta
from penstock.compat.transfer_queue.refusals import FieldsNotReady, NotFound
from penstock.errors import BadArgument, FieldNotProduced, RefusedType, UnknownName, abbreviate
from penstock.plane import checks
from penstock.plane.client import PlaneClient
from penstock.records import DataPlaneRowMeta, Tag
from penstock.retry import Deadline

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = ["TASK", "KeyValues"]

TASK = "kv"  # the consumer of partitions that were registered here


class KeyValues:
    """The calls, on one client, which stays the caller's to close."""

    def __init__(self, client: PlaneClient) -> None:
        self._client = client

    @property
    def default_timeout_s(self) -> float:
        """The deadline of a call that gives none."""
        return self._client.default_timeout_s

    def put(
        self,
        key: str,
        partition_id: str,
        fields: object = None,
        tag: dict[str, Any] | None = None,
        data_parser: Parser | None = None,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        """See ``kv_put``."""
        if fields is None and tag is None:
            raise BadArgument("kv_put: neither fields nor tag")
        batch = None if fields is None else columns.of_row(fields)
        return self._put(_keys([key]), partition_id, batch, None if tag is None else [tag], data_parser, timeout_s)

    def batch_put(
        self,
        keys: Sequence[str],
        partition_id: str,
        fields: object = None,
        tags_: Sequence[dict[str, Any]] | None = None,
        data_parser: Parser | None = None,
        timeout_s: float | None = None,
    ) -> KVBatchMeta:
        """See ``kv_batch_put``."""
        if fields is None and tags_ is None:
            raise BadArgument("kv_batch_put: neither fields nor tags")
        named = _keys(keys)
        batch = None if fields is None else columns.of_batch(fields, len(named))
        return self._put(named, partition_id, batch, tags_, data_parser, timeout_s)

    def _put(
        self,
        keys: list[str],
        partition_id: str,
        fields: TensorDict | None,
        given: Sequence[dict[str, Any]] | None,
        parser: Parser | None,
        timeout_s: float | None,
    ) -> KVBatchMeta:
        deadline = self._deadline(timeout_s)
        named = checks.keys(keys, unique=True)
        rows = tags.stored(given, len(named))
        has_columns = fields is not None and bool(len(fields.keys()))
        contents = columns.parsed(fields, parser) if fields is not None and has_columns else None
        self._write(named, partition_id, contents, rows if rows is not None else [{} for _ in named], deadline)
        return self._meta(named, partition_id, deadline)

    def _write(
        self, keys: list[str], partition_id: str, contents: Any, rows: list[dict[str, Tag]], deadline: Deadline
    ) -> None:
        try:
            self._client.put_samples(keys, partition_id, contents, rows, timeout_s=deadline.remaining())
        except UnknownName as unknown:
            if not unknown.keys:
                self._client.register_partition(partition_id, [], 0, [TASK], timeout_s=deadline.remaining())
            if contents is None:  # tags alone make no rows
                contents = columns.marks(len(keys))
            self._client.put_samples(keys, partition_id, contents, rows, timeout_s=deadline.remaining())

    def _meta(self, keys: list[str], partition_id: str, deadline: Deadline) -> KVBatchMeta:
        """What is known of these rows now; one that was removed meanwhile has no tags and no fields."""
        found = self._rows(keys, partition_id, deadline)
        return KVBatchMeta(
            keys=keys,
            tags=[tags.read(found[key].tags) if key in found else {} for key in keys],
            partition_id=partition_id,
            fields=_common_fields(list(found.values())) if len(found) == len(keys) else [],
        )

    def get(
        self,
        keys: Sequence[str] | str,
        partition_id: str,
        select_fields: Sequence[str] | str | None = None,
        timeout_s: float | None = None,
    ) -> TensorDict:
        """See ``kv_batch_get``."""
        deadline = self._deadline(timeout_s)
        named = _keys(keys)
        fields = [select_fields] if isinstance(select_fields, str) else select_fields
        try:
            wanted = fields if fields is not None else self._fields_of(named, partition_id, deadline)
            read = self._client.get_samples(named, partition_id, wanted, timeout_s=deadline.remaining())
        except UnknownName as unknown:
            kind = NotFound if unknown.keys or not _are_fields(unknown, fields) else FieldsNotReady
            raise _as(kind, unknown) from unknown
        except FieldNotProduced as lacking:
            raise _as(FieldsNotReady, lacking) from lacking
        return columns.as_read(read)

    def _fields_of(self, keys: list[str], partition_id: str, deadline: Deadline) -> list[str]:
        found = self._rows(keys, partition_id, deadline)
        absent = [key for key in keys if key not in found]
        if absent:
            raise NotFound(
                f"unknown rows of partition {partition_id!r}: {abbreviate(absent)}", partition=partition_id, keys=absent
            )
        common = _common_fields(list(found.values()))
        if not common:
            raise FieldsNotReady(
                f"no field is produced for all of the rows {abbreviate(keys)} of partition {partition_id!r}",
                partition=partition_id,
                keys=keys,
            )
        return common

    def _rows(self, keys: list[str], partition_id: str, deadline: Deadline) -> dict[str, DataPlaneRowMeta]:
        distinct = list(dict.fromkeys(keys))
        rows = self._client.list_rows(partition_id, distinct, timeout_s=deadline.remaining())
        return {row.key: row for row in rows}

    def listing(self, partition_id: str | None = None, timeout_s: float | None = None) -> dict[str, dict[str, Any]]:
        """See ``kv_list``."""
        deadline = self._deadline(timeout_s)
        known = [p.partition for p in self._client.status(timeout_s=deadline.remaining()).partitions]
        wanted = known if partition_id is None else [name for name in known if name == partition_id]
        return {
            name: {row.key: tags.read(row.tags) for row in self._client.list_rows(name, timeout_s=deadline.remaining())}
            for name in wanted
        }

    def clear(self, keys: Sequence[str] | str, partition_id: str, timeout_s: float | None = None) -> None:
        """See ``kv_clear``."""
        self._client.clear_samples(_keys(keys), partition_id, timeout_s=timeout_s)

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(checks.seconds(timeout_s, "timeout_s", self._client.default_timeout_s))


def _keys(keys: object) -> list[str]:
    """Return keys as TransferQueue takes them: one, or a list of at least one."""
    if isinstance(keys, str):
        return checks.keys([keys])
    if not isinstance(keys, list):
        raise RefusedType(f"keys must be a string or a list of strings, got {type(keys).__name__}")
    odd = [key for key in keys if not isinstance(key, str)]
    if odd:
        raise RefusedType(f"keys must be strings, got {type(odd[0]).__name__}")
    if not keys:
        raise BadArgument("keys: at least one is needed")
    return checks.keys(keys)


def _common_fields(rows: list[DataPlaneRowMeta]) -> list[str]:
    sets = {tuple(row.fields) for row in rows}
    return sorted(set.intersection(*map(set, sets)) - {MARK}) if sets else []


def _are_fields(unknown: UnknownName, fields: Sequence[str] | None) -> bool:
    return bool(unknown.missing) and set(unknown.missing) <= set(fields or ())


def _as(kind: type[NotFound | FieldsNotReady], error: UnknownName | FieldNotProduced) -> NotFound | FieldsNotReady:
    return kind(
        error.message,
        partition=error.partition,
        keys=error.keys,
        missing=error.missing,
        attempts=error.attempts,
        elapsed_s=error.elapsed_s,
        incarnation=error.incarnation,
    )
