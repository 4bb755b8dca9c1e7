"""Blocks in TransferQueue's storage: each is one row, one column of bytes, under its number as key.

Invariants: every request is made under a deadline and given up with its socket when that comes; what TransferQueue
reports is looked at: a put is done when the controller lists the block as produced, a removal when the storage no
longer has it; what is read is served when it is the block that was asked for, whole and undamaged.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    StaleSlotError,
)
from penstock.payload import block as layout
from penstock.payload.block import Bytes
from penstock.plane.blocks import FetchedBlock
from penstock.plane.recall import recallable
from penstock.plane.transfer_queue.library import BatchMeta, QueueClient, TransferQueue, bounded
from penstock.retry import Deadline
from penstock.transport.loop_thread import LoopThread

__all__ = ["QueueBlocks", "QueueFailed", "QueueFull"]

COLUMN = "block"
REFUSED = "refused"
FULL = "capacity exceeded"  # a storage unit's words, within its error's text
FIRST_S, TRY_S = 2.0, 5.0  # a request of little data to all units, to one; a unit that is dead never answers
BYTES_PER_S = 32 << 20  # and this much of it: TransferQueue moves 70-130 MB/s when nobody disturbs it
PROBE_S = 0.3  # how long a host is given to take a connection, when what is wrong is to be said

log = logging.getLogger(__name__)

T = TypeVar("T")


class QueueFailed(DataPlaneUnavailable):
    """TransferQueue refused a request, or gave a wrong answer: another try may succeed."""


class QueueFull(QueueFailed):
    """The storage units have no room."""


class Unit(NamedTuple):
    """A process of TransferQueue: what it is, its own name, where it listens."""

    kind: str
    number: str
    host: str
    port: int

    @classmethod
    def of(cls, kind: str, info: Any, socket: str) -> Unit:
        return cls(kind, str(info.id), str(info.ip), int(info.ports[socket]))

    def __str__(self) -> str:
        return f"{self.kind} {self.number} at {self.host}:{self.port}"


class QueueBlocks:
    """The blocks of one plane, as one client reaches them. Fit for use from several threads.

    Args:
        queue: where they lie.
        partition: TransferQueue's partition that they are rows of.
    """

    def __init__(self, queue: TransferQueue, partition: str, deadline: Deadline) -> None:
        self._partition = partition
        self._client: QueueClient = bounded(
            queue.open_client,
            deadline,
            f"TransferQueue's controller {queue.name} does not shake hands",
            late=lambda client: client.close(),
        )
        self._thread = LoopThread("penstock-transfer-queue", self._end)
        self._closed = False
        self._pid = os.getpid()

    # -- what is asked for --------------------------------------------------------------------------------------------

    def put(self, blocks: Mapping[int, Bytes], deadline: Deadline) -> None:
        """Write blocks, and see that they are there.

        Raises:
            DataPlaneTimeout: no answer by the deadline.
            QueueFailed: refused, or reported as done and not there.
        """
        self._run(lambda: self._put(blocks), deadline, "put")

    def get(self, sizes: Mapping[int, int], deadline: Deadline) -> dict[int, FetchedBlock | DataPlaneError]:
        """Read blocks, given their lengths: each, or why it cannot be read.

        A unit that is dead costs the blocks that lie on it: after a request for all has failed each unit is asked by
        itself. ``DataPlaneReadError``: it is dead, and no other try will help.
        """
        nbytes = sum(sizes.values())
        try:
            return self._run(lambda: self._get(sizes), self._share(deadline, FIRST_S, nbytes), "get")
        except DataPlaneError as failed:
            if deadline.expired():
                return dict.fromkeys(sizes, failed)
        until = self._share(deadline, TRY_S, nbytes)
        try:
            return self._run(lambda: self._by_unit(sizes, until), deadline, "get")
        except DataPlaneError as failed:
            return dict.fromkeys(sizes, failed)

    def remove(self, numbers: Sequence[int], deadline: Deadline) -> list[int]:
        """Remove blocks; return those whose bytes are still there. What a dead unit held is gone with it."""
        if not numbers:
            return []
        until = deadline.within(min(deadline.remaining() / 2, TRY_S))
        return self._run(lambda: self._remove(numbers, until), deadline, "clear")

    def ping(self, deadline: Deadline) -> None:
        """Return when the controller and every storage unit have answered."""
        self._run(self._ping, deadline, "ping")

    def partitions(self, deadline: Deadline) -> list[str]:
        """Return the partitions of this TransferQueue."""
        return self._run(self._client.async_get_partition_list, deadline, "list")

    def remove_partition(self, name: str, deadline: Deadline) -> None:
        self._run(lambda: self._client.async_clear_partition(name), deadline, "clear")

    def close(self, timeout_s: float) -> None:
        """End; calls under way end with ``DataPlaneUnavailable``. Idempotent; in a forked child it leaves all alone."""
        self._thread.stop(timeout_s)
        if self._thread.running:
            log.warning("TransferQueue's client does not end within %g s and is left behind", timeout_s)
        elif not self._closed and os.getpid() == self._pid:
            self._closed = True
            try:
                self._client.close()
            except Exception as foreign:  # noqa: BLE001  # top frame of what is foreign: it is closed as far as it can be
                log.warning("TransferQueue's client did not close in order: %s: %s", type(foreign).__name__, foreign)

    # -- how it is asked for ------------------------------------------------------------------------------------------

    def _run(self, work: Callable[[], Awaitable[T]], deadline: Deadline, what: str) -> T:
        async def limited() -> T:
            try:
                return await asyncio.wait_for(work(), deadline.remaining())
            except TimeoutError:
                why = await self._silent()
                raise DataPlaneTimeout(
                    f"{what}: TransferQueue has not answered within {deadline.elapsed():.3g} s: {why}",
                    missing=[why],
                    attempts=1,
                    elapsed_s=deadline.elapsed(),
                ) from None
            except DataPlaneError:
                raise
            except Exception as foreign:  # top frame of what is foreign: TransferQueue raises RuntimeError and others
                cls = QueueFull if FULL in str(foreign) else QueueFailed
                raise cls(f"{what}: TransferQueue: {type(foreign).__name__}: {foreign}") from foreign

        return self._thread.run(limited, deadline, recallable)

    def _share(self, deadline: Deadline, least_s: float, nbytes: int) -> Deadline:
        """The time of one try, where another one can still be made."""
        return deadline.within(min(deadline.remaining() / 3, least_s + nbytes / BYTES_PER_S))

    async def _put(self, blocks: Mapping[int, Bytes]) -> None:
        import torch
        from tensordict import TensorDict

        keys = [_key(number) for number in blocks]
        meta = await self._client.async_kv_retrieve_meta(keys, self._partition, create=True)
        _require(meta.size == len(keys), f"{meta.size} rows were made for {len(keys)} keys")
        rows = [torch.from_numpy(data) for data in blocks.values()]
        column = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        await self._client.async_put(TensorDict({COLUMN: column}, batch_size=[len(keys)]), meta)
        there = await self._client.async_kv_retrieve_meta(keys, self._partition)
        _require(
            there.size == len(keys) and COLUMN in there.field_names, "a put that was reported as done is not there"
        )

    async def _get(self, sizes: Mapping[int, int]) -> dict[int, FetchedBlock | DataPlaneError]:
        keys = [_key(number) for number in sizes]
        meta = await self._client.async_kv_retrieve_meta(keys, self._partition)
        if meta.size != len(keys):
            return await self._known(sizes)
        _require(COLUMN in meta.field_names, "blocks that were put have no bytes")
        return await self._data(list(sizes.items()), meta)

    async def _data(
        self, sizes: Sequence[tuple[int, int]], meta: BatchMeta
    ) -> dict[int, FetchedBlock | DataPlaneError]:
        data = await self._client.async_get_data(meta)
        rows = list(data[COLUMN].unbind()) if COLUMN in data.keys() else []  # noqa: SIM118 - a TensorDict
        _require(len(rows) == len(sizes), f"{len(rows)} blocks came for {len(sizes)} keys")
        return {number: _opened(number, size, row) for (number, size), row in zip(sizes, rows, strict=True)}

    async def _known(self, sizes: Mapping[int, int]) -> dict[int, FetchedBlock | DataPlaneError]:
        """Read those that the controller knows: it leaves out the others without a word."""
        listed = (await self._client.async_kv_list(self._partition)).get(self._partition, {})
        gone: dict[int, FetchedBlock | DataPlaneError] = {
            number: StaleSlotError(f"block {number} is not in TransferQueue")
            for number in sizes
            if _key(number) not in listed
        }
        _require(bool(gone), "the controller did not find blocks that it lists")
        known = {number: size for number, size in sizes.items() if number not in gone}
        return {**gone, **(await self._get(known) if known else {})}

    async def _by_unit(self, sizes: Mapping[int, int], until: Deadline) -> dict[int, FetchedBlock | DataPlaneError]:
        """As ``_get``; those that lie together fail together, and no others."""
        keys = [_key(number) for number in sizes]
        meta = await asyncio.wait_for(self._client.async_kv_retrieve_meta(keys, self._partition), until.remaining())
        if meta.size != len(keys):
            return await self._known(sizes)
        every = list(sizes.items())

        async def one(unit: Unit | None, group: list[int]) -> dict[int, FetchedBlock | DataPlaneError]:
            mine = [every[index] for index in group]
            try:
                return await asyncio.wait_for(self._data(mine, meta.select_samples(group)), until.remaining())
            except TimeoutError:
                dead = REFUSED in [await _state_of(part) for part in (unit, self._controller) if part is not None]
                why = f"no answer: {await self._silent()}"
                failed: DataPlaneError = DataPlaneReadError(why) if dead else DataPlaneUnavailable(why)
            except DataPlaneError as refused:
                failed = refused
            except Exception as foreign:  # noqa: BLE001  # top frame of what is foreign
                failed = QueueFailed(f"TransferQueue: {type(foreign).__name__}: {foreign}")
            return dict.fromkeys([number for number, _ in mine], failed)

        found = await asyncio.gather(*(one(unit, group) for unit, group in self._together(meta)))
        return {number: block for part in found for number, block in part.items()}

    def _together(self, meta: BatchMeta) -> list[tuple[Unit | None, list[int]]]:
        """Return the positions of rows that lie together: SimpleStorage's units; with other backends each by itself."""
        by_unit = getattr(self._client.storage_manager, "_group_by_hash", None)
        if by_unit is None:
            return [(None, [at]) for at in range(meta.size)]
        units = {unit.number: unit for unit in self._units}
        return [(units[number], group.batch_positions) for number, group in by_unit(meta.global_indexes).items()]

    async def _remove(self, numbers: Sequence[int], until: Deadline) -> list[int]:
        keys = [_key(number) for number in numbers]
        meta = await self._client.async_kv_retrieve_meta(keys, self._partition)
        if not meta.size:
            return []
        groups = self._together(meta)
        gone = await asyncio.gather(*(self._gone(unit, meta.select_samples(group), until) for unit, group in groups))
        left = sorted(at for (_, group), is_gone in zip(groups, gone, strict=True) if not is_gone for at in group)
        named = meta.size == len(numbers)  # otherwise it is not known which of them the controller has left out
        return [numbers[at] for at in left] if named else list(numbers) if left else []

    async def _gone(self, unit: Unit | None, meta: BatchMeta, until: Deadline) -> bool:
        """Clear rows that lie together, and ask their storage for them: a clear that failed there counts as done."""
        try:
            await asyncio.wait_for(self._client.async_clear_samples(meta), until.remaining())
            return not await asyncio.wait_for(self._has(meta), until.remaining())
        except TimeoutError:
            return unit is not None and await _state_of(unit) == REFUSED

    async def _has(self, meta: BatchMeta) -> bool:
        try:
            data = await self._client.async_get_data(meta)
        except Exception as gone:  # top frame of what is foreign: "not found" has as many types as there are backends
            if "not found" in f"{type(gone).__name__} {gone}".lower().replace("notfound", "not found"):
                return False
            raise
        return COLUMN in data.keys()  # noqa: SIM118 - a TensorDict

    async def _ping(self) -> None:
        await self._client.async_get_partition_list()
        probe = getattr(self._client.storage_manager, "_probe_storage_unit", None)  # what a unit answers without rows
        if probe is not None:
            await asyncio.gather(*(probe(target_storage_unit=unit.number) for unit in self._units))

    async def _silent(self) -> str:
        """Say which part takes no connection."""
        parts = [*self._units, self._controller]
        states = await asyncio.gather(*map(_state_of, parts))
        down = [f"{part} ({state})" for part, state in zip(parts, states, strict=True) if state]
        return f"no connection to {', '.join(down)}" if down else "its controller and storage units take connections"

    @property
    def _controller(self) -> Unit:
        return Unit.of("controller", self._client.storage_manager.controller_info, "request_handle_socket")

    @property
    def _units(self) -> list[Unit]:
        """SimpleStorage's units; other backends have none that are known here."""
        infos = getattr(self._client.storage_manager, "storage_unit_infos", {})
        return [Unit.of("storage unit", info, "put_get_socket") for info in infos.values()]

    async def _end(self) -> None:
        """Nothing of the loop is left: its sockets go with the client."""


async def _state_of(unit: Unit) -> str:
    """Return "" if it takes connections, else what is wrong. One that refuses them has ended for good."""
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(unit.host, unit.port), PROBE_S)
    except ConnectionRefusedError:
        return REFUSED
    except (OSError, TimeoutError) as failed:
        return f"{type(failed).__name__} {failed}".strip()
    writer.close()
    return ""


def _key(number: int) -> str:
    return f"{number:x}"


def _require(held: bool, why: str) -> None:
    if not held:
        raise QueueFailed(f"TransferQueue: {why}")


def _opened(number: int, size: int, row: Any) -> FetchedBlock | DataPlaneError:
    data: Bytes = np.ascontiguousarray(row.numpy().reshape(-1))
    try:
        if len(data) != size:
            raise CorruptPayload(f"block {number} has {len(data)} bytes, not {size}")
        header = layout.parse(data, number)
        layout.verify(data, header)
    except CorruptPayload as damaged:
        return damaged
    return FetchedBlock(header, data)
