"""The managers, between the real controller and a store: what is named, replaced, removed, and what failures say."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from transfer_queue.metadata import BatchMeta

from penstock.errors import (
    BadArgument,
    BatchError,
    DataPlaneError,
    DataPlaneFull,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    DataPlaneWriteError,
    RefusedType,
    UnknownName,
)
from tests.compat.storage.site import Site, blocks_of, column, fetched, rows


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The module's site, whose store must be empty when a test begins."""
    assert len(shared.shelf) == 0
    yield shared
    shared.shelf.restart()


def test_what_was_put_is_read(site: Site) -> None:
    """A put stores one value per row and field, and another client reads them by the controller's metadata."""
    client, other, partition = site.client(), site.client(), site.partition()
    data = TensorDict({"a": torch.arange(6.0).reshape(2, 3), "s": NonTensorStack("x", "y")}, batch_size=2)
    client.put(data, partition_id=partition)
    read = other.get_data(fetched(other, partition, ["a", "s"]))
    assert [row.tolist() for row in read["a"]] == [[0, 1, 2], [3, 4, 5]]
    assert read["s"].tolist() == ["x", "y"]
    assert len(site.shelf) == 4


def test_a_replaced_value_is_removed(site: Site) -> None:
    """Writing a field again leaves one value of it, the new one."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(value=1.0), partition_id=partition)
    client.put(rows(value=2.0, fields=["a"]), metadata=meta)
    assert column(client, fetched(client, partition), "a") == [2.0, 2.0]
    assert column(client, fetched(client, partition), "b") == [1.0, 1.0]
    assert len(site.shelf) == 4


def test_a_value_is_replaced_by_whoever_knows_nothing_of_it(site: Site) -> None:
    """Metadata from before the first put names no values; the controller is asked, and the old ones are removed."""
    client, other, partition = site.client(), site.client(), site.partition()
    empty = client.get_meta(["a", "b"], 2, partition, mode="insert")
    client.put(rows(value=1.0), metadata=empty.select_samples([0, 1]))
    other.put(rows(value=2.0), metadata=empty.select_samples([0, 1]))
    assert column(other, fetched(other, partition), "a") == [2.0, 2.0]
    assert len(site.shelf) == 4


def test_a_put_beside_rows_that_were_never_written(site: Site) -> None:
    """While a partition has rows without values its controller cannot tell who has what; puts go on, nothing leaks."""
    client, partition = site.client(), site.partition()
    empty = client.get_meta(["a", "b"], 4, partition, mode="insert")
    client.put(rows(value=1.0), metadata=empty.select_samples([0, 1]))
    client.put(rows(value=2.0), metadata=empty.select_samples([1, 2]))
    assert len(site.shelf) == 3 * 2


def test_a_new_field_does_not_hide_a_replaced_one(site: Site) -> None:
    """A put of an old and a new field removes the old field's values, though the controller never saw the new one."""
    client, other, partition = site.client(), site.client(), site.partition()
    empty = client.get_meta(["a"], 2, partition, mode="insert")
    client.put(rows(fields=["a"]), metadata=empty.select_samples([0, 1]))
    other.put(rows(value=2.0, fields=["a", "new"]), metadata=empty.select_samples([0, 1]))
    assert len(site.shelf) == 4


def test_stale_metadata_reads_the_value_in_its_place(site: Site) -> None:
    """A reader whose value was replaced after it asked gets the new one, as on TransferQueue's own backends."""
    client, reader, partition = site.client(), site.client(), site.partition()
    meta = client.put(rows(value=1.0), partition_id=partition)
    stale = fetched(reader, partition)
    client.put(rows(value=2.0), metadata=meta)
    assert column(reader, stale, "a") == [2.0, 2.0]


def test_a_reused_index_is_not_read_by_its_old_name(site: Site) -> None:
    """Metadata of rows that were cleared never reads the rows of another partition that got their indexes."""
    client, partition, later = site.client(), site.partition(), site.partition()
    client.put(rows(value=1.0), partition_id=partition)
    stale = fetched(client, partition)
    client.clear_partition(partition)
    new = client.put(rows(count=4, value=2.0), partition_id=later)
    assert set(stale.global_indexes) & set(new.global_indexes), "no index was reused: this shows nothing"
    with pytest.raises(BatchError) as caught:
        client.get_data(stale)
    assert {f"{row}@a" for row in stale.global_indexes} <= set(caught.value.failures)
    assert all(isinstance(error, UnknownName) for error in caught.value.failures.values())


def test_a_clear_removes_fields_that_its_metadata_does_not_name(site: Site) -> None:
    """Clearing rows by the metadata of one field leaves none of the others behind."""
    client, partition = site.client(), site.partition()
    client.put(rows(), partition_id=partition)
    client.clear_samples(fetched(client, partition, ["a"]))
    assert len(site.shelf) == 0


def test_a_clear_may_stick_to_the_fields_it_names(site: Site) -> None:
    """``complete_clear=False`` removes what the metadata names, and asks nobody."""
    client, partition = site.client(complete_clear=False), site.partition()
    client.put(rows(), partition_id=partition)
    client.clear_samples(fetched(client, partition, ["a"]))
    assert len(site.shelf) == 2


def test_rows_without_columns_can_be_cleared(site: Site) -> None:
    """Keys that have tags and no columns are cleared; the package's own managers refuse them."""
    client, partition = site.client(), site.partition()
    client.kv_retrieve_meta(keys=["k0", "k1"], partition_id=partition, create=True)
    client.clear_samples(client.kv_retrieve_meta(keys=["k0", "k1"], partition_id=partition, create=False))
    assert client.kv_list(partition)[partition] == {}


def test_other_rows_survive_a_clear(site: Site) -> None:
    """A clear touches its rows alone, in the controller and in the store."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(count=3, value=5.0), partition_id=partition)
    client.clear_samples(meta.select_samples([0]))
    rest = meta.select_samples([1, 2])
    assert column(client, rest, "a") == [5.0, 5.0]
    assert len(site.shelf) == 4


def test_a_clear_that_fails_says_so_and_can_be_repeated(site: Site) -> None:
    """When the store does not remove, the clear raises, the controller keeps the rows, and a second clear ends it."""
    client, partition = site.client(), site.partition()
    client.put(rows(), partition_id=partition)
    fired = threading.Event()

    def fail() -> None:
        fired.set()
        raise BatchError("clear: planted", failures={})

    blocks_of(client).before_remove = fail
    with pytest.raises(RuntimeError, match="planted"):
        client.clear_partition(partition)
    assert fired.is_set()
    blocks_of(client).before_remove = lambda: None
    client.clear_partition(partition)
    assert len(site.shelf) == 0


def test_a_put_that_is_not_acknowledged_raises(site: Site) -> None:
    """A controller that hangs ends a put in time with an error that names it; the package's managers report success."""
    client, partition = site.client(timeout_s=0.5), site.partition()
    meta = client.put(rows(value=1.0), partition_id=partition)
    began = time.monotonic()
    with site.silent_controller(), pytest.raises(DataPlaneTimeout, match="controller"):
        asyncio.run(client.storage_manager.put_data(rows(value=2.0), meta))
    assert time.monotonic() - began < 10.0
    client.put(rows(value=3.0), metadata=meta)
    assert column(client, fetched(client, partition), "a") == [3.0, 3.0]
    assert len(site.shelf) == 4, "the value of the put that was not acknowledged is left"


def test_what_an_unacknowledged_put_left_goes_with_its_rows(site: Site) -> None:
    """A clear by the manager that wrote it removes a value of which the controller may never have heard."""
    client, partition = site.client(timeout_s=0.5), site.partition()
    meta = client.put(rows(value=1.0), partition_id=partition)
    with site.silent_controller(), pytest.raises(DataPlaneTimeout):
        asyncio.run(client.storage_manager.put_data(rows(value=2.0), meta))
    assert len(site.shelf) == 8
    client.clear_partition(partition)
    assert len(site.shelf) == 0


def test_a_refused_value_stores_nothing(site: Site) -> None:
    """A value of a type that is not carried is a TypeError that names row and field, and changes nothing."""
    client, partition = site.client(), site.partition()
    data = TensorDict({"a": torch.zeros(2, 1), "odd": NonTensorStack({"x"}, {"y"})}, batch_size=2)
    with pytest.raises(RefusedType, match=r"@odd.*set"):
        client.put(data, partition_id=partition)
    assert len(site.shelf) == 0


def test_a_full_store_stores_nothing_of_a_put() -> None:
    """A put for which there is no room is refused, key by key, and leaves nothing; smaller ones go on."""
    site = Site(capacity_bytes=1000)
    try:
        client, partition = site.client(), site.partition()
        with pytest.raises(BatchError) as caught:
            client.put(rows(count=20), partition_id=partition)
        assert {type(error) for error in caught.value.failures.values()} == {DataPlaneFull}
        assert len(site.shelf) == 0
        client.put(rows(count=2, fields=["a"]), partition_id=partition)
    finally:
        site.close()


def test_a_value_that_is_lost_is_named(site: Site) -> None:
    """Values that the store has lost are an error that names rows and fields, not ``None``."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    site.shelf.remove(next(name for name in list(site.shelf._values) if f"/{meta.global_indexes[1]}@b@" in name))
    with pytest.raises(BatchError) as caught:
        client.get_data(fetched(client, partition))
    assert list(caught.value.failures) == [f"{meta.global_indexes[1]}@b"]


def test_a_slow_store_does_not_stop_the_event_loop(site: Site) -> None:
    """While the store keeps a read waiting the loop goes on: it is what lets the store answer here."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    may_answer = threading.Event()
    blocks_of(client).before_get = lambda: None if may_answer.wait(10.0) else pytest.fail("the loop was stopped")

    async def read() -> TensorDict:
        reading = asyncio.ensure_future(client.storage_manager.get_data(meta))
        await asyncio.sleep(0)
        may_answer.set()
        return await reading

    assert asyncio.run(read()).batch_size == torch.Size([2])


def test_data_and_metadata_must_agree(site: Site) -> None:
    """A put of more rows than its metadata has is refused before anything is stored; so is a parser."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    with pytest.raises(BadArgument, match="3 rows"):
        client.put(rows(count=3), metadata=meta)
    with pytest.raises(RefusedType, match="data_parser"):
        client.put(rows(), metadata=meta, data_parser=print)
    assert asyncio.run(client.storage_manager.put_data(rows(count=0), BatchMeta.empty())) is None
    assert len(site.shelf) == 4


def test_a_closed_manager_says_so(site: Site) -> None:
    """After ``close``, which may be repeated, every call is ``DataPlaneUnavailable`` at once; none waits for ever."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    manager = client.storage_manager
    manager.close()
    manager.close()
    calls: list[tuple[str, tuple[Any, ...]]]
    calls = [("put_data", (rows(), meta)), ("get_data", (meta,)), ("clear_data", (meta,))]
    for name, given in calls:
        with pytest.raises(DataPlaneUnavailable):
            asyncio.run(asyncio.wait_for(getattr(manager, name)(*given), 10.0))


@pytest.mark.parametrize("call", ["put_data", "clear_data"])
def test_a_close_in_the_middle_of_a_call_ends_it(site: Site, call: str) -> None:
    """A call that waits for the controller while another thread closes the manager ends, typed."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    manager = client.storage_manager
    given = (rows(), meta) if call == "put_data" else (meta,)
    site.controller.answering.clear()
    with ThreadPoolExecutor(1) as thread:
        try:
            made = thread.submit(asyncio.run, asyncio.wait_for(getattr(manager, call)(*given), 10.0))
            until = time.monotonic() + 10.0
            while not asyncio.run_coroutine_threadsafe(_exchanging(), manager._notify_loop).result(10.0):
                assert time.monotonic() < until
            manager.close()
            with pytest.raises(DataPlaneTimeout, match="was closed"):
                made.result(20.0)
        finally:
            site.controller.answering.set()


async def _exchanging() -> bool:
    """Whether anybody else is on this loop."""
    return len(asyncio.all_tasks()) > 1


def test_an_answer_that_cannot_be_read_is_no_acknowledgement(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage in place of an answer is an error of ours, and the next put goes on, on another socket."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    answer = site.controller._make_response
    garbage = Mock(**{"serialize.return_value": [b"garbage"]})
    monkeypatch.setattr(site.controller, "_make_response", Mock(return_value=garbage))
    with pytest.raises(DataPlaneTimeout, match="no answer"):
        asyncio.run(client.storage_manager.put_data(rows(value=2.0), meta))
    monkeypatch.setattr(site.controller, "_make_response", answer)
    client.put(rows(value=3.0), metadata=meta)
    assert column(client, fetched(client, partition), "a") == [3.0, 3.0]
    assert len(site.shelf) == 4


def test_a_put_into_a_partition_that_was_cleared_meanwhile(site: Site) -> None:
    """The controller does not take it: an error says so, and its values are removed; the package says success."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    client.clear_partition(partition)
    with pytest.raises(DataPlaneWriteError, match="cleared meanwhile"):
        client.put(rows(value=2.0), metadata=meta)
    assert len(site.shelf) == 0


def test_a_refusal_of_the_controller_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the controller answers a put with an error, its words reach the caller and the old values stay."""
    client, partition = site.client(), site.partition()
    meta = client.put(rows(), partition_id=partition)
    planted = Mock(side_effect=ValueError("planted refusal"))
    monkeypatch.setattr(site.controller, "update_production_status", planted)
    with pytest.raises(DataPlaneError, match="planted refusal"):
        client.put(rows(value=2.0), metadata=meta)
    assert column(client, fetched(client, partition), "a") == [1.0, 1.0]
    assert len(site.shelf) == 4
