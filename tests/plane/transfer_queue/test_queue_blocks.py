"""Blocks in TransferQueue's storage, with a client that misbehaves on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from penstock.errors import CorruptPayload, DataPlaneTimeout, DataPlaneUnavailable, StaleSlotError
from penstock.payload import codec
from penstock.plane.blocks import FetchedBlock
from penstock.plane.transfer_queue.library import TransferQueue
from penstock.plane.transfer_queue.queue_blocks import QueueBlocks, QueueFailed, QueueFull
from penstock.retry import Deadline


@dataclass
class Meta:
    """Rows of the fake, by key."""

    keys: list[str]
    field_names: list[str]

    @property
    def size(self) -> int:
        return len(self.keys)

    def select_samples(self, indices: list[int]) -> Meta:
        return Meta([self.keys[i] for i in indices], self.field_names)


@dataclass
class FakeClient:
    """One controller and storage in memory. ``fault``: what goes wrong."""

    fault: str = ""
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    known: dict[str, None] = field(default_factory=dict)
    closed: int = 0
    storage_manager: Any = field(
        default_factory=lambda: SimpleNamespace(
            controller_info=SimpleNamespace(id="c", ip="127.0.0.1", ports={"request_handle_socket": 1})
        )
    )

    async def async_kv_retrieve_meta(self, keys: list[str], partition_id: str, create: bool = False) -> Meta:
        if self.fault == "hang":
            await asyncio.sleep(60)
        if create:
            self.known.update(dict.fromkeys(keys))
        found = [key for key in keys if key in self.known]
        return Meta(found, ["block"] if found and all(key in self.rows for key in found) else [])

    async def async_put(self, data: Any, metadata: Meta) -> None:
        if self.fault == "full":
            raise ValueError("Storage capacity exceeded: 1 existing + 1 new > 1")
        if self.fault != "lost put":
            self.rows.update(zip(metadata.keys, data["block"].unbind(), strict=True))

    async def async_get_data(self, metadata: Meta) -> Any:
        if any(key not in self.rows for key in metadata.keys):
            raise RuntimeError("key not found")
        rows = [self.rows[key].clone() for key in metadata.keys]
        if self.fault == "flip":
            rows[0][100] ^= 1
        rows = rows[:-1] if self.fault == "short" else rows
        if not rows:
            return TensorDict({}, batch_size=0)
        return {"block": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}

    async def async_clear_samples(self, metadata: Meta) -> None:
        for key in metadata.keys if self.fault != "lost clear" else ():
            self.rows.pop(key, None)

    async def async_kv_list(self, partition_id: str | None = None) -> Mapping[str, Mapping[str, Any]]:
        return {str(partition_id): {key: {} for key in self.known}}

    async def async_get_partition_list(self) -> list[str]:
        return []

    async def async_clear_partition(self, partition_id: str) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@pytest.fixture
def blocks(fake: FakeClient) -> Iterator[QueueBlocks]:
    queue = cast("TransferQueue", SimpleNamespace(open_client=lambda: fake, name="fake"))
    made = QueueBlocks(queue, "p", soon())
    yield made
    made.close(5.0)


def soon(timeout_s: float = 20.0) -> Deadline:
    return Deadline(timeout_s)


def data(number: int, rows: int = 3) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    batch = codec.encode({"x": torch.arange(rows) + number}, rows)
    out = np.empty(batch.nbytes, np.uint8)
    batch.write_into(out, number)
    return out


def put(blocks: QueueBlocks, *numbers: int) -> dict[int, int]:
    """Put blocks; return their sizes."""
    written = {number: data(number, number) for number in numbers}
    blocks.put(written, soon())
    return {number: len(block) for number, block in written.items()}


def test_blocks_come_back(blocks: QueueBlocks) -> None:
    """What was put is read, whole, by number."""
    got = blocks.get(put(blocks, 2, 7), soon())
    assert [block.header.rows for block in got.values() if isinstance(block, FetchedBlock)] == [2, 7]


def test_a_put_that_is_not_there_is_no_success(fake: FakeClient, blocks: QueueBlocks) -> None:
    """A put that TransferQueue reports as done and whose bytes it does not list has failed."""
    fake.fault = "lost put"
    with pytest.raises(QueueFailed, match="not there"):
        put(blocks, 2)


def test_full_units_are_told_from_failures(fake: FakeClient, blocks: QueueBlocks) -> None:
    """A capacity that is exceeded is a failure of its own: waiting may help."""
    fake.fault = "full"
    with pytest.raises(QueueFull):
        put(blocks, 2)


def test_a_block_that_is_gone_costs_itself(fake: FakeClient, blocks: QueueBlocks) -> None:
    """The controller leaves unknown rows out without a word: they are found out, the others served."""
    sizes = put(blocks, 2, 3)
    del fake.known["2"]
    got = blocks.get(sizes, soon())
    assert isinstance(got[2], StaleSlotError)
    assert isinstance(got[3], FetchedBlock)


@pytest.mark.parametrize(("fault", "kind"), [("flip", CorruptPayload), ("short", QueueFailed)])
def test_what_is_wrong_is_not_served(fake: FakeClient, blocks: QueueBlocks, fault: str, kind: type[Exception]) -> None:
    """A flipped bit, fewer rows than asked for: an error of the block, never bytes."""
    sizes = put(blocks, 2)
    fake.fault = fault
    assert isinstance(blocks.get(sizes, soon())[2], kind)


def test_somebody_elses_bytes_are_seen(fake: FakeClient, blocks: QueueBlocks) -> None:
    """Another block under this one's key, as after a reuse of indexes, is not served."""
    sizes = put(blocks, 2, 3)
    fake.rows["2"] = fake.rows["3"]
    assert isinstance(blocks.get({2: sizes[3]}, soon())[2], CorruptPayload)


def test_a_clear_is_looked_at(fake: FakeClient, blocks: QueueBlocks) -> None:
    """A clear reported as done that left the bytes names the blocks; what is absent is removed."""
    put(blocks, 2, 3)
    fake.fault = "lost clear"
    assert blocks.remove([2, 3], soon()) == [2, 3]
    fake.fault = ""
    assert blocks.remove([2, 3], soon()) == []
    assert blocks.remove([99], soon()) == []
    assert fake.rows == {}


def test_silence_ends_at_the_deadline(fake: FakeClient, blocks: QueueBlocks) -> None:
    """A request that is never answered is a DataPlaneTimeout that says which part takes no connection."""
    sizes = put(blocks, 2)
    fake.fault = "hang"
    deadline = soon(0.3)
    assert isinstance(blocks.get(sizes, deadline)[2], DataPlaneTimeout)
    with pytest.raises(DataPlaneTimeout, match=r"controller c at 127\.0\.0\.1:1"):
        blocks.put({2: data(2)}, soon(0.2))
    assert deadline.elapsed() < 10.0


def test_after_close_nothing_is_asked(fake: FakeClient, blocks: QueueBlocks) -> None:
    """A closed one says so; closing again does nothing; TransferQueue's client is closed once."""
    sizes = put(blocks, 2)
    blocks.close(5.0)
    blocks.close(5.0)
    with pytest.raises(DataPlaneUnavailable):
        blocks.put({2: data(2)}, soon())
    assert isinstance(blocks.get(sizes, soon())[2], DataPlaneUnavailable)
    assert fake.closed == 1
