"""The functions that users call, each beside its twin that is awaited; what they do is in ``key_values``.

Invariants: a function and its twin take the same arguments and do the same; an awaited call runs in a thread of the
session's lanes, so that it never blocks the loop, and puts that wait for room do not hold up the clears that make it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from penstock.compat.transfer_queue import sessions
from penstock.compat.transfer_queue.columns import Parser
from penstock.compat.transfer_queue.key_values import KeyValues
from penstock.compat.transfer_queue.meta import KVBatchMeta
from penstock.compat.transfer_queue.refusals import FieldsNotReady
from penstock.config import ClientConfig
from penstock.errors import BadArgument
from penstock.plane import checks
from penstock.plane.crossing import Crossing
from penstock.plane.lanes import Lane
from penstock.retry import Deadline

if TYPE_CHECKING:
    from tensordict import TensorDict

__all__ = [
    "async_kv_batch_get",
    "async_kv_batch_get_by_meta",
    "async_kv_batch_put",
    "async_kv_clear",
    "async_kv_list",
    "async_kv_put",
    "close",
    "init",
    "kv_batch_get",
    "kv_batch_get_by_meta",
    "kv_batch_put",
    "kv_clear",
    "kv_list",
    "kv_put",
]

T = TypeVar("T")


def init(conf: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Open this process's session, on a plane that is started if there is none. Again: the session stays as it is.

    Args:
        conf: a mapping, or an OmegaConf. Its section ``penstock`` says where the plane is: ``plane`` ("local",
            "penstock://HOST:PORT" or "ray") and options of ``penstock.connect``. Without one it is the plane of the Ray
            cluster that this process is connected to, else one that this process starts for itself and for those who
            are given what this returns. TransferQueue's own sections have no meaning here.

    Returns:
        ``conf`` with the section that leads to this plane: what other processes pass to their ``init``. On Ray they
        need not call it.

    Raises:
        BadArgument: (also ``ValueError``) a section or an option that nobody knows; another plane than the session's.
        DataPlaneUnavailable: the plane cannot be reached or started.
    """
    return sessions.open_session(conf)


def close() -> None:
    """Close this process's session. A plane that was started for it alone ends with its last session. Idempotent."""
    sessions.close()


def kv_put(
    key: str,
    partition_id: str,
    fields: TensorDict | dict[str, Any] | None = None,
    tag: dict[str, Any] | None = None,
    data_parser: Parser | None = None,
    *,
    timeout_s: float | None = None,
) -> KVBatchMeta:
    """Write columns and tags of one row.

    Args:
        key: the row's name. A known one gets further columns, or new values of a column.
        partition_id: made with its first row.
        fields: a dict of values without a batch dimension (tensors; strings, numbers, None, and lists and dicts of
            them), or a TensorDict of batch size 1. None = tags alone.
        tag: merged into those that the row has: primitives, and lists and dicts of them.
        data_parser: makes, in this process, the columns that are stored of those that are given.
        timeout_s: seconds until the call must have ended; None = the session's (30 s).

    Returns:
        The row's tags and columns, those of earlier puts included.

    Raises:
        BadArgument: (also ``ValueError``) neither fields nor tag; a nested tensor; a column of another dtype or rank
            than the field has had.
        RefusedType: (also ``TypeError``) a value that is not carried.
        DataPlaneFull: no room before the deadline.
    """
    return _called(lambda kv, left: kv.put(key, partition_id, fields, tag, data_parser, left), timeout_s)


async def async_kv_put(
    key: str,
    partition_id: str,
    fields: TensorDict | dict[str, Any] | None = None,
    tag: dict[str, Any] | None = None,
    data_parser: Parser | None = None,
    *,
    timeout_s: float | None = None,
) -> KVBatchMeta:
    """As ``kv_put``."""
    return await _awaited(
        "async_kv_put", _puts, lambda kv, left: kv.put(key, partition_id, fields, tag, data_parser, left), timeout_s
    )


def kv_batch_put(
    keys: list[str],
    partition_id: str,
    fields: TensorDict | None = None,
    tags: list[dict[str, Any]] | None = None,
    data_parser: Parser | None = None,
    *,
    timeout_s: float | None = None,
) -> KVBatchMeta:
    """Write columns and tags of rows, all or none.

    Args:
        keys: distinct.
        partition_id: see ``kv_put``.
        fields: a TensorDict of as many rows as ``keys``.
        tags: one dict per key.
        data_parser: see ``kv_put``.
        timeout_s: see ``kv_put``.

    Returns:
        The rows' tags, and the columns that all of them have.

    Raises:
        BadArgument: (also ``ValueError``) neither fields nor tags; they are not aligned with the keys; repeated keys.
        RefusedType, DataPlaneFull: see ``kv_put``.
    """
    return _called(lambda kv, left: kv.batch_put(keys, partition_id, fields, tags, data_parser, left), timeout_s)


async def async_kv_batch_put(
    keys: list[str],
    partition_id: str,
    fields: TensorDict | None = None,
    tags: list[dict[str, Any]] | None = None,
    data_parser: Parser | None = None,
    *,
    timeout_s: float | None = None,
) -> KVBatchMeta:
    """As ``kv_batch_put``."""
    return await _awaited(
        "async_kv_batch_put",
        _puts,
        lambda kv, left: kv.batch_put(keys, partition_id, fields, tags, data_parser, left),
        timeout_s,
    )


def kv_batch_get(
    keys: list[str] | str,
    partition_id: str,
    select_fields: list[str] | str | None = None,
    *,
    timeout_s: float | None = None,
) -> TensorDict:
    """Read rows, in the order asked for.

    Args:
        keys: one key, or a list; repeated ones are allowed.
        partition_id: where they are.
        select_fields: a column, or a list of them; None = those that all of the rows have.
        timeout_s: see ``kv_put``.

    Returns:
        A TensorDict of batch size (rows,). Columns of tensors are jagged, of scalars dense, others NonTensorStacks.

    Raises:
        NotFound: (also ``ValueError`` and ``KeyError``) rows or the partition are not there; ``keys`` names them.
        FieldsNotReady: (likewise) a column is not there for all of the rows; ``missing`` names it.
        DataPlaneReadError: rows are there and cannot be read.
    """
    return _called(lambda kv, left: kv.get(keys, partition_id, select_fields, left), timeout_s)


async def async_kv_batch_get(
    keys: list[str] | str,
    partition_id: str,
    select_fields: list[str] | str | None = None,
    *,
    timeout_s: float | None = None,
) -> TensorDict:
    """As ``kv_batch_get``."""
    return await _awaited(
        "async_kv_batch_get", _calls, lambda kv, left: kv.get(keys, partition_id, select_fields, left), timeout_s
    )


def kv_batch_get_by_meta(
    meta: KVBatchMeta, select_fields: list[str] | str | None = None, *, timeout_s: float | None = None
) -> TensorDict:
    """Read the rows of ``meta``: the columns it names, or of those the selected ones. Otherwise as ``kv_batch_get``.

    Raises:
        BadArgument: (also ``ValueError``) the meta names no partition, or not the selected columns.
    """
    partition, fields = _of_meta(meta, select_fields)
    return kv_batch_get(meta.keys, partition, fields, timeout_s=timeout_s)


async def async_kv_batch_get_by_meta(
    meta: KVBatchMeta, select_fields: list[str] | str | None = None, *, timeout_s: float | None = None
) -> TensorDict:
    """As ``kv_batch_get_by_meta``."""
    partition, fields = _of_meta(meta, select_fields)
    return await async_kv_batch_get(meta.keys, partition, fields, timeout_s=timeout_s)


def kv_list(partition_id: str | None = None, *, timeout_s: float | None = None) -> dict[str, dict[str, Any]]:
    """Return the tags of every row: partition -> key -> tags. An unknown partition is not in it; None = all."""
    return _called(lambda kv, left: kv.listing(partition_id, left), timeout_s)


async def async_kv_list(
    partition_id: str | None = None, *, timeout_s: float | None = None
) -> dict[str, dict[str, Any]]:
    """As ``kv_list``."""
    return await _awaited("async_kv_list", _calls, lambda kv, left: kv.listing(partition_id, left), timeout_s)


def kv_clear(keys: list[str] | str, partition_id: str, *, timeout_s: float | None = None) -> None:
    """Remove rows; what is not there is no error. Puts that were under way are refused; later ones make new rows."""
    _called(lambda kv, left: kv.clear(keys, partition_id, left), timeout_s)


async def async_kv_clear(keys: list[str] | str, partition_id: str, *, timeout_s: float | None = None) -> None:
    """As ``kv_clear``."""
    await _awaited("async_kv_clear", _calls, lambda kv, left: kv.clear(keys, partition_id, left), timeout_s)


def _of_meta(meta: KVBatchMeta, select_fields: Sequence[str] | str | None) -> tuple[str, list[str] | None]:
    if meta.partition_id is None:
        raise BadArgument("kv_batch_get_by_meta: the meta names no partition")
    if select_fields is None:
        return meta.partition_id, meta.fields
    fields = [select_fields] if isinstance(select_fields, str) else list(select_fields)
    unknown = [name for name in fields if name not in (meta.fields or [])]
    if unknown:
        raise FieldsNotReady(f"the meta has the fields {meta.fields}, not {unknown}", missing=unknown)
    return meta.partition_id, fields


def _puts(crossing: Crossing) -> Lane:
    return crossing.puts


def _calls(crossing: Crossing) -> Lane:
    return crossing.calls


def _called(call: Callable[[KeyValues, float | None], T], timeout_s: float | None) -> T:
    """Make a call; to open the session, where there is none yet, takes of its time."""
    session = sessions.here()
    if session is None:
        deadline = _deadline(timeout_s)
        session = sessions.current(deadline)
        timeout_s = deadline.remaining()
    return call(session.calls, timeout_s)


def _deadline(timeout_s: float | None) -> Deadline:
    return Deadline(checks.seconds(timeout_s, "timeout_s", ClientConfig().timeout_s))


async def _awaited(
    method: str, lane: Callable[[Crossing], Lane], call: Callable[[KeyValues, float | None], T], timeout_s: float | None
) -> T:
    session = sessions.here()
    if session is None:
        deadline = _deadline(timeout_s)
        session = await asyncio.to_thread(sessions.current, deadline)
        timeout_s = deadline.remaining()
    calls, crossing = session.calls, session.crossing
    return await crossing.run(
        lane(crossing), method, lambda left: call(calls, left), timeout_s, calls.default_timeout_s
    )
