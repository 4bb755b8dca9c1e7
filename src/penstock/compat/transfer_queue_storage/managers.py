"""The storage managers: between TransferQueue's metadata and a storage client.

Invariants: what is read or removed is what the controller names; a value that was replaced is removed once the
controller has acknowledged the new one, never before; a put that it does not acknowledge raises; a clear removes every
field of its rows; nothing blocks the caller's event loop; each exchange with store or controller has ``timeout_s``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

from tensordict import TensorDict
from transfer_queue.metadata import BatchMeta, extract_field_schema
from transfer_queue.storage.managers.base import KVStorageManager
from transfer_queue.utils.zmq_utils import ZMQRequestType, ZMQServerInfo

from penstock.compat.transfer_queue_storage import controller_calls as calls
from penstock.compat.transfer_queue_storage.clients import Place
from penstock.compat.transfer_queue_storage.options import MooncakeOptions, PlaneOptions, options_from
from penstock.errors import (
    BadArgument,
    BatchError,
    DataPlaneError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    DataPlaneWriteError,
    RefusedType,
    UnknownName,
)

__all__ = ["PenstockMooncakeManager", "PenstockPlaneManager", "ValueManager"]

_log = logging.getLogger(__name__)
_GRACE_S = 1.0  # exchanges keep to their own limit; one that is this late has nobody who would end it
_END_S = 2.0  # for them to end
T = TypeVar("T")
Cell: TypeAlias = tuple[int, str]  # global index, field
Places: TypeAlias = dict[Cell, Place]
Items: TypeAlias = list[tuple[Cell, Place]]


class ValueManager(KVStorageManager):  # type: ignore[misc]  # the package ships no types
    """What both managers are."""

    client_name: ClassVar[str]
    options: ClassVar[type[MooncakeOptions | PlaneOptions]]

    def __init__(self, controller_info: ZMQServerInfo, config: Any, zmq_context: Any = None) -> None:
        options = options_from(self.options, config)
        self._timeout_s = options.timeout_s
        self._complete_clear = options.complete_clear
        self._unsettled: dict[Cell, list[Place]] = {}
        self._is_closed = False
        super().__init__(controller_info, {**config, "client_name": self.client_name}, zmq_context=zmq_context)

    # -- what TransferQueue calls -------------------------------------------------------------------------------------

    async def put_data(
        self, data: TensorDict, metadata: BatchMeta, data_parser: Callable[[Any], Any] | None = None
    ) -> None:
        """Store ``data`` under new names, tell the controller, then remove what it replaced.

        Raises:
            RefusedType, BatchError: nothing was stored, and nothing has changed.
            DataPlaneWriteError: the controller refused; what was stored is removed again.
            DataPlaneTimeout: the controller did not acknowledge; repeating the put is safe.
        """
        if data_parser is not None:
            raise RefusedType("data_parser runs in SimpleStorage's own units alone; parse before the put")
        if data.batch_size[0] != metadata.size:
            raise BadArgument(f"data of {data.batch_size[0]} rows for metadata of {metadata.size}")
        if not metadata.size:
            return
        fields = sorted(data.keys())
        cells = _cells(metadata, fields)
        self._require_open()
        replaced = await self._in_place(metadata, fields)
        new = await self._write(cells, self._generate_values(data))
        await self._announce(data, metadata, new, replaced)
        await self._forget([*replaced.items(), *self._left_behind(cells)])
        self._settle(cells)

    async def get_data(self, metadata: BatchMeta) -> TensorDict:
        """Read the values that ``metadata`` names, or, where they were replaced meanwhile, those in their place.

        Raises:
            BatchError: names the values that are missing or cannot be read, and why.
        """
        if not metadata.field_names:
            return TensorDict({}, batch_size=len(metadata))
        cells = _cells(metadata, sorted(metadata.field_names))
        places = _places(metadata)
        try:
            values = await self._read(cells, places)
        except BatchError as failed:
            fresh = await self._fresh(metadata, places, failed)
            values = await self._read(cells, fresh)
        return self._merge_tensors_to_tensordict(metadata, values)

    async def clear_data(self, metadata: BatchMeta) -> None:
        """Remove every field of these rows, those that ``metadata`` does not name too.

        Raises:
            BatchError: names what is still there. The controller still knows the rows: clear again.
        """
        places = _places(metadata)
        if self._complete_clear:
            rows = set(metadata.global_indexes)
            for partition in set(metadata.partition_ids):
                known = await self._of_partition(partition)
                places |= {cell: place for cell, place in known.items() if cell[0] in rows}
        await self._remove([*places.items(), *self._left_behind(places)])
        self._settle(places)

    def close(self) -> None:
        """End, idempotently. Later calls are ``DataPlaneUnavailable``."""
        self._is_closed = True
        self._end_exchanges()
        super().close()
        client = getattr(self, "storage_client", None)
        if client is not None:
            client.close()

    # -- values -------------------------------------------------------------------------------------------------------

    async def _read(self, cells: Sequence[Cell], places: Places) -> list[Any]:
        keys = [_key(cell) for cell in cells]
        wanted = [places.get(cell) for cell in cells]
        return await asyncio.to_thread(self.storage_client.get, keys, None, None, wanted)

    async def _write(self, cells: Sequence[Cell], values: list[Any]) -> Places:
        keys = [_key(cell) for cell in cells]
        written = await asyncio.to_thread(self.storage_client.put, keys, values)
        return dict(zip(cells, written, strict=True))

    async def _announce(self, data: TensorDict, metadata: BatchMeta, new: Places, replaced: Places) -> None:
        """Let the controller name the new values, and ``metadata`` with it."""
        by_row: dict[int, dict[str, Place]] = {row: {} for row in metadata.global_indexes}
        for (row, field), place in new.items():
            by_row[row][field] = place
        schema = extract_field_schema(data)
        self._require_open()
        try:
            await self._bounded(
                self.notify_data_update(metadata.partition_ids[0], metadata.global_indexes, schema, by_row)
            )
        except DataPlaneTimeout:
            for cell, place in new.items():  # which of the two it names now is unknown
                self._unsettled.setdefault(cell, []).extend([place, *([replaced[cell]] if cell in replaced else [])])
            raise
        except DataPlaneError:
            await self._withdraw(metadata.partition_ids[0], new)
            raise
        for row, of_row in zip(metadata.global_indexes, metadata._custom_backend_meta, strict=True):  # noqa: SLF001
            of_row.update(by_row[row])

    async def _withdraw(self, partition: str, new: Places) -> None:
        """Remove what a refused put wrote, unless the controller names it all the same."""
        named = await self._of_partition(partition)
        await self._forget([(cell, place) for cell, place in new.items() if named.get(cell) != place])

    def _left_behind(self, cells: Iterable[Cell]) -> Items:
        """Return what puts of these cells left that the controller did not acknowledge."""
        return [(cell, place) for cell in cells for place in self._unsettled.get(cell, [])]

    def _settle(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self._unsettled.pop(cell, None)

    async def _remove(self, items: Items) -> None:
        if items:
            keys = [_key(cell) for cell, _ in items]
            await asyncio.to_thread(self.storage_client.clear, keys, [place for _, place in items])

    async def _forget(self, items: Items) -> None:
        """Remove values that the controller has stopped naming; a failure costs their memory, not the put."""
        try:
            await self._remove(items)
        except DataPlaneError as failed:
            _log.warning("%d replaced values were not removed: %s", len(items), failed)

    async def _in_place(self, metadata: BatchMeta, fields: Sequence[str]) -> Places:
        """Return where the values lie that a put of ``fields`` is going to replace."""
        known = _places(metadata)
        cells = _cells(metadata, fields)
        found = {cell: known[cell] for cell in cells if cell in known}
        if len(found) == len(cells):
            return found
        for partition in set(metadata.partition_ids):  # metadata of an insert names nothing, whatever is there
            if await self._may_have(partition, metadata.global_indexes, fields):
                current = await self._of_partition(partition)
                found |= {cell: current[cell] for cell in cells if cell in current}
        return found

    async def _fresh(self, metadata: BatchMeta, places: Places, failed: BatchError) -> Places:
        """Return the places as the controller knows them now; raise ``failed`` again where that changes nothing."""
        if not all(isinstance(error, UnknownName) for error in failed.failures.values()):
            raise failed
        current: Places = {}
        for partition in set(metadata.partition_ids):
            current |= await self._of_partition(partition)
        stale = {cell for cell in places | current if _key(cell) in failed.failures}
        if not any(cell in current and current[cell] != places.get(cell) for cell in stale):
            raise failed
        return places | current

    # -- the controller -----------------------------------------------------------------------------------------------

    async def _notify_and_wait(self, request_msg: list[Any]) -> None:
        """Tell the controller of a put, on the notifying loop; raises where the package's own logs and returns."""
        body = (await self._exchange(request_msg, ZMQRequestType.NOTIFY_DATA_UPDATE_ACK)).require()
        if not body.get("success", True):
            partition = body.get("partition_id")
            raise DataPlaneWriteError(
                f"TransferQueue's controller did not take the put: was partition {partition!r} cleared meanwhile?",
                partition=partition,
            )

    async def _may_have(self, partition: str, rows: Iterable[int], fields: Sequence[str]) -> bool:
        """Whether one of ``rows`` has one of ``fields``, as far as the controller can tell quickly."""
        wanted = set(rows)
        together = await self._produced(partition, fields, wanted)
        if together is not None:
            return bool(together)
        alone = [await self._produced(partition, [field], wanted) for field in fields]  # a new field hides the others
        return any(alone)

    async def _produced(self, partition: str, fields: Sequence[str], rows: set[int]) -> set[int] | None:
        """Return which of ``rows`` have one of ``fields``; None when the partition has never seen one of these."""
        request = calls.produced(self.storage_manager_id, partition, fields)
        answer = await self._ask(request, ZMQRequestType.PRODUCTION_RESPONSE)
        if answer.body is None:  # it cannot tell while some rows of the partition were never written
            return rows
        known, status = answer.body["global_index"], answer.body["production_status"]
        if known is None or status is None:
            return None
        has_any = status.reshape(len(known), -1).any(dim=1)
        return {int(row) for row, has in zip(known, has_any, strict=True) if has} & rows

    async def _of_partition(self, partition: str) -> Places:
        """Return where all values of a partition lie."""
        request = calls.places_of_partition(self.storage_manager_id, partition)
        body = (await self._ask(request, ZMQRequestType.GET_PARTITION_META_RESPONSE)).require()
        return _places(body["metadata"]) if body["metadata"] else {}

    async def _ask(self, request: list[Any], expected: ZMQRequestType) -> calls.Answer:
        """Ask from the caller's loop; the sockets are the notifying loop's."""
        self._require_open()
        asked = asyncio.run_coroutine_threadsafe(self._exchange(request, expected), self._notify_loop)
        return await self._bounded(asyncio.wrap_future(asked))

    async def _bounded(self, exchange: Awaitable[T]) -> T:
        """Return what comes of an exchange that the notifying loop makes."""
        try:
            return await asyncio.wait_for(exchange, self._timeout_s + _GRACE_S)
        except DataPlaneError:
            raise
        except (TimeoutError, asyncio.CancelledError) as ended:
            if isinstance(ended, asyncio.CancelledError) and not self._is_closed:
                raise  # it was the caller who left
            why = "was closed" if self._is_closed else "does not run"
            raise DataPlaneTimeout(f"an exchange with the controller has no end: this storage manager {why}") from ended

    def _end_exchanges(self) -> None:
        """Cancel what the notifying loop is at: it would end without a word to whoever waits for that."""
        loop = getattr(self, "_notify_loop", None)
        if loop is None or not loop.is_running():
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result(_END_S)

    def _require_open(self) -> None:
        """The notifying loop ends with ``close``; what is handed to it afterwards would wait for ever."""
        if self._is_closed:
            raise DataPlaneUnavailable("this storage manager is closed")

    async def _exchange(self, request: list[Any], expected: ZMQRequestType) -> calls.Answer:
        return await calls.exchange(self.notify_pool, self.controller_info, request, expected, self._timeout_s)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _key(cell: Cell) -> str:
    return f"{cell[0]}@{cell[1]}"


def _cells(metadata: BatchMeta, fields: Iterable[str]) -> list[Cell]:
    """Return (row, field) in the order in which the manager's base lines values up."""
    return [(row, field) for field, row in itertools.product(fields, metadata.global_indexes)]


def _places(metadata: BatchMeta) -> Places:
    """Return where ``metadata`` says that values lie."""
    rows = zip(metadata.global_indexes, metadata._custom_backend_meta, strict=True)  # noqa: SLF001  # has no other name
    return {(row, field): place for row, of_row in rows for field, place in of_row.items() if place}


class PenstockMooncakeManager(ValueManager):
    """``storage_backend: PenstockMooncake``."""

    client_name = "PenstockMooncakeClient"
    options = MooncakeOptions


class PenstockPlaneManager(ValueManager):
    """``storage_backend: PenstockPlane``."""

    client_name = "PenstockPlaneClient"
    options = PlaneOptions
