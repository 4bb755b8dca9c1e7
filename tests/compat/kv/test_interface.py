"""The calls on a real plane: twins, deadlines, many callers at once, and a plane that is killed."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict

import penstock.compat.transfer_queue as tq
from penstock.compat.transfer_queue import sessions
from penstock.errors import BadArgument, DataPlaneFull, DataPlaneTimeout, RowRemoved
from penstock.plane.client import PlaneClient
from penstock.plane.crossing import MAX_CALLS
from penstock.retry import Deadline

FUNCTIONS = ["kv_put", "kv_batch_put", "kv_batch_get", "kv_batch_get_by_meta", "kv_list", "kv_clear"]
ROOM = 8 * 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def opened() -> Iterator[None]:
    tq.close()
    tq.init({"penstock": {"plane": "local", "max_bytes": ROOM, "reserve_fraction": 0.0}})
    yield
    tq.close()


@pytest.fixture
def p(request: pytest.FixtureRequest) -> str:
    """A partition of this test's own."""
    return str(request.node.name)


def plane() -> PlaneClient:
    return sessions.current(Deadline(30.0)).opened.client


def big() -> dict[str, Any]:
    return {"x": torch.zeros(ROOM // 2 + 1, dtype=torch.uint8)}


def at_once(calls: list[Callable[[], object]]) -> list[BaseException]:
    """Run calls in a thread each; return what they raised."""
    raised: list[BaseException] = []
    begin = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        begin.wait()
        try:
            call()
        except Exception as error:  # told to the test
            raised.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_the_originals(name: str) -> None:
    """Of functions and of twins, but for the deadline that each takes besides, by name alone."""
    import transfer_queue

    for one in (name, f"async_{name}"):
        mine, theirs = inspect.signature(getattr(tq, one)), inspect.signature(getattr(transfer_queue, one))
        given = {n: (q.default, q.kind) for n, q in mine.parameters.items() if n != "timeout_s"}
        assert given == {n: (q.default, q.kind) for n, q in theirs.parameters.items()}
        assert mine.parameters["timeout_s"].kind is inspect.Parameter.KEYWORD_ONLY
        assert inspect.iscoroutinefunction(getattr(tq, one)) == one.startswith("async_")


def test_everything_of_the_family_is_there() -> None:
    """What 0.1.11 calls ``kv_*``, and its names beside them."""
    import transfer_queue

    family = {name for name in transfer_queue.__all__ if "kv_" in name}
    assert family | {"init", "close", "KVBatchMeta", "StorageKeyNotFoundError"} <= set(tq.__all__)
    assert issubclass(tq.StorageKeyNotFoundError, KeyError)


def test_the_twins_do_the_same(p: str) -> None:
    """Awaited, many of them at once, on one loop and on the next."""

    async def use() -> None:
        puts = [tq.async_kv_put(f"k{i}", p, {"x": torch.tensor([i])}, {"i": i}) for i in range(40)]
        assert {meta.keys[0] for meta in await asyncio.gather(*puts)} == {f"k{i}" for i in range(40)}
        meta = await tq.async_kv_batch_put(["k0", "k1"], p, TensorDict({"y": torch.ones(2, 3)}, batch_size=[2]))
        assert meta.fields == ["x", "y"]
        assert sorted((await tq.async_kv_batch_get_by_meta(meta)).keys()) == ["x", "y"]
        read = await tq.async_kv_batch_get(["k3", "k2"], p, "x")
        assert [row.tolist() for row in read["x"].unbind()] == [[3], [2]]
        assert (await tq.async_kv_list(p))[p]["k39"] == {"i": 39}
        await tq.async_kv_clear([f"k{i}" for i in range(40)], p)
        with pytest.raises(tq.NotFound):
            await tq.async_kv_batch_get("k0", p)

    asyncio.run(use())
    asyncio.run(use())


def test_puts_that_wait_for_room_do_not_hold_up_the_clears_that_make_it(p: str) -> None:
    """More of them than there are threads for other calls; each gets its turn."""

    async def in_turn(key: str) -> None:
        await tq.async_kv_put(key, p, big())
        await tq.async_kv_clear(key, p)

    async def use() -> None:
        await tq.async_kv_put("first", p, big())
        waiting = [asyncio.create_task(in_turn(f"k{i}")) for i in range(MAX_CALLS + 4)]
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        assert done == set(), "there was room"
        await tq.async_kv_clear("first", p)
        await asyncio.gather(*waiting)

    asyncio.run(use())
    assert tq.kv_list(p) == {p: {}}


def test_a_full_plane_refuses_by_the_deadline_and_nothing_is_left(p: str) -> None:
    """Typed, in time; the key of the refused put is not listed."""
    tq.kv_put("fits", p, big())
    began = time.monotonic()
    with pytest.raises(DataPlaneFull):
        tq.kv_put("does not", p, big(), timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert list(tq.kv_list(p)[p]) == ["fits"]
    tq.kv_clear("fits", p)


def test_tags_of_many_writers_are_all_kept(p: str) -> None:
    """Nobody reads, changes and writes back."""
    tq.kv_put("row", p, tag={"n": 0})
    assert at_once([lambda i=i: tq.kv_put("row", p, tag={f"t{i}": i}) for i in range(12)]) == []  # type: ignore[misc]
    assert tq.kv_list(p)[p]["row"] == {"n": 0, **{f"t{i}": i for i in range(12)}}


def test_a_partition_is_made_once_by_whoever_comes_first(p: str) -> None:
    """Columns and tags alone alike."""
    puts = [lambda i=i: tq.kv_put(f"k{i}", p, {"x": torch.tensor([i])}) for i in range(6)]
    tags = [lambda i=i: tq.kv_put(f"t{i}", p, tag={"i": i}) for i in range(6)]
    assert at_once([*puts, *tags]) == []
    assert len(tq.kv_list(p)[p]) == 12


def test_a_partition_of_other_clients_is_used_as_it_is(p: str) -> None:
    """Its tasks stay; rows of groups are listed with their own tags."""
    plane().register_partition(p, ["x"], 8, ["train"], grpo_group_size=2)
    plane().put_samples(["g0", "g1"], p, {"x": torch.ones(2, 1)}, [{"group_id": "g", "n": i} for i in range(2)])
    meta = tq.kv_put("g1", p, tag={"m": 5})
    assert meta.tags == [{"group_id": "g", "n": 1, "m": 5}]
    assert tq.kv_list(p)[p] == {"g0": {"group_id": "g", "n": 0}, "g1": {"group_id": "g", "n": 1, "m": 5}}
    assert plane().claim_meta(p, "train", ["x"], 8, blocking=False).size == 2
    plane().evict(["g0"], p)
    with pytest.raises(RowRemoved):
        tq.kv_put("g0", p, tag={"late": 1})


def test_rows_stay_when_their_writer_has_ended(p: str) -> None:
    """A plane gives up groups that stay unfinished; whatever their tags say, these rows are in none."""
    tq.kv_put("row", p, {"x": torch.ones(1)}, {"group_id": "g", "committed": False, "expected_num_keys": 4})
    (group,) = plane().list_metadata(p)
    assert (group.group_id, group.expected_num_keys, group.is_complete) == ("row", None, True)
    assert "committed" not in group.tags


def test_reads_and_puts_go_on_when_the_plane_was_killed(p: str) -> None:
    """kill -9 of its process: what was put is there, and the same session goes on."""
    tq.kv_batch_put(["a", "b"], p, TensorDict({"x": torch.arange(4).view(2, 2)}, batch_size=[2]), [{"n": 1}, {}])
    before = plane().status()
    os.kill(before.pid, signal.SIGKILL)
    read = tq.kv_batch_get(["b", "a"], p)
    assert [row.tolist() for row in read["x"].unbind()] == [[2, 3], [0, 1]]
    assert tq.kv_put("c", p, {"x": torch.arange(2)}).fields == ["x"]
    assert tq.kv_list(p)[p] == {"a": {"n": 1}, "b": {}, "c": {}}
    assert plane().status().pid != before.pid


def test_a_stopped_plane_costs_no_more_than_the_deadline(p: str) -> None:
    """Each call ends typed, in time; when the plane goes on, so do they."""
    tq.kv_put("a", p, {"x": torch.arange(2)})
    pid = plane().status().pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for call in (
            lambda: tq.kv_put("b", p, tag={"n": 1}, timeout_s=0.3),
            lambda: tq.kv_batch_get("a", p, timeout_s=0.3),
            lambda: tq.kv_list(p, timeout_s=0.3),
            lambda: tq.kv_clear("a", p, timeout_s=0.3),
        ):
            began = time.monotonic()
            with pytest.raises(DataPlaneTimeout):
                call()
            assert time.monotonic() - began < 5
    finally:
        os.kill(pid, signal.SIGCONT)
    assert p in tq.kv_list()


def test_a_repeated_key_leaves_nothing_of_its_batch(p: str) -> None:
    """Refused before anything is sent."""
    with pytest.raises(BadArgument, match="distinct"):
        tq.kv_batch_put(["a", "a"], p, TensorDict({"x": torch.ones(2, 1)}, batch_size=[2]))
    assert tq.kv_list(p) == {}


def test_many_rows_are_listed_and_read(p: str) -> None:
    """More than one page of them."""
    keys = [f"k{i}" for i in range(2500)]
    tags = [{"i": i} for i in range(2500)]
    meta = tq.kv_batch_put(keys, p, TensorDict({"x": torch.arange(2500).view(2500, 1)}, batch_size=[2500]), tags)
    assert meta.tags == tags
    assert list(tq.kv_list(p)[p].items()) == [(key, {"i": i}) for i, key in enumerate(keys)]
    assert tq.kv_batch_get(keys[::-1], p)["x"].values().flatten().tolist() == list(range(2499, -1, -1))
