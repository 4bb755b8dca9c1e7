"""TransferQueue's key-value interface on a Penstock plane: its users change one import.

    import penstock.compat.transfer_queue as tq  # was: import transfer_queue as tq

Names, arguments and results are those of TransferQueue 0.1.11's ``init``, ``close``, ``kv_*``, ``async_kv_*`` and
``KVBatchMeta``; what differs, on purpose, is in docs/transferqueue.md. Every call also takes ``timeout_s``.
Invariants: no call blocks past its deadline; errors are of Penstock's tree, and a ``ValueError`` or ``TypeError``
where TransferQueue's is; a get returns every row it was asked for or raises.
"""

from __future__ import annotations

from penstock.compat.transfer_queue.interface import (
    async_kv_batch_get,
    async_kv_batch_get_by_meta,
    async_kv_batch_put,
    async_kv_clear,
    async_kv_list,
    async_kv_put,
    close,
    init,
    kv_batch_get,
    kv_batch_get_by_meta,
    kv_batch_put,
    kv_clear,
    kv_list,
    kv_put,
)
from penstock.compat.transfer_queue.meta import KVBatchMeta
from penstock.compat.transfer_queue.refusals import FieldsNotReady, NotFound

__all__ = [
    "FieldsNotReady",
    "KVBatchMeta",
    "NotFound",
    "StorageKeyNotFoundError",
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

StorageKeyNotFoundError = NotFound  # TransferQueue's name for a row that was cleared while it was being read
