"""The facade on real clients: the contract's surface, leases of cancelled claims, the end, a loop that never waits."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self, get_overloads

import pytest
import torch
from prometheus_client import CollectorRegistry

import penstock
from penstock.config import PlaneConfig
from penstock.errors import BadArgument, DataPlaneBadRequest, DataPlaneTimeout, DataPlaneUnavailable
from penstock.plane import aio
from penstock.plane.aio import AsyncDataPlaneClient, aconnect
from penstock.plane.contract import DataPlaneClient
from penstock.plane.crossing import Crossing
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.metrics import MetricsDataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.records import KVBatchMeta

SOON_S = 20.0
GAP_S = 1.0  # a loop that is free ticks every 5 ms; this much is a loaded machine's
QUICK = PlaneConfig(linger_s=0.2)
CONTRACT = {name: member for name, member in inspect.getmembers(DataPlaneClient, inspect.isfunction) if name[0] != "_"}
QUESTIONS = ("audit", "why", "status")


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test's coroutine on a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **options), 4 * SOON_S))

    return run


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.001)


async def until_true(ask: Callable[[], Awaitable[object]]) -> None:
    end = time.monotonic() + SOON_S
    while not await ask():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.001)


@asynccontextmanager
async def opened(inner: DataPlaneClient, **limits: int) -> AsyncIterator[AsyncDataPlaneClient]:
    """A facade with partition p, its field x and the task train."""
    async with AsyncDataPlaneClient(inner, **limits) as plane:
        await plane.register_partition("p", ["x"], 100, ["train"])
        yield plane


def claim(plane: AsyncDataPlaneClient, timeout_s: float | None = 60.0, **more: Any) -> asyncio.Task[KVBatchMeta]:
    """Begin to claim up to 64 rows."""
    return asyncio.create_task(plane.claim_meta("p", "train", ["x"], 64, timeout_s=timeout_s, **more))


async def waiting(plane: AsyncDataPlaneClient, claims: int = 1) -> None:
    """Wait until so many claims wait within the plane, which a local one tells itself."""
    await until(lambda: _in_calls(plane) == claims)
    if isinstance(plane.inner, LocalDataPlaneClient):
        await until_true(lambda: _waiting_claims(plane, claims))


def _in_calls(plane: AsyncDataPlaneClient) -> int:
    """How many claims have a thread, and that thread has begun them."""
    lane = plane.statistics().lanes[0]
    return lane.busy - lane.waiting


async def _waiting_claims(plane: AsyncDataPlaneClient, claims: int) -> bool:
    return [p.waiting_claims for p in (await plane.status()).partitions] == [claims]


async def put(plane: AsyncDataPlaneClient, *keys: str) -> None:
    await plane.put_samples(keys, "p", {"x": torch.arange(len(keys))})


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDataPlaneClient]:
    """One plane for the tests of this module; its first client keeps it from ending in between."""
    with LocalDataPlaneClient(tmp_path_factory.mktemp("plane"), plane=QUICK) as made:
        yield made


@pytest.fixture
def local(keeper: LocalDataPlaneClient) -> Iterator[LocalDataPlaneClient]:
    with LocalDataPlaneClient(keeper.data_dir, plane=QUICK) as made:
        yield made
    keeper.clear_samples(None, "p")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LocalDataPlaneClient]:
    """The only client of its plane, which soon ends the session of one that went without a word."""
    with LocalDataPlaneClient(tmp_path, plane=PlaneConfig(linger_s=0.2, heartbeat_s=0.2, dead_after_s=1.0)) as made:
        yield made


@pytest.fixture(params=["noop", "local"])
def inner(request: pytest.FixtureRequest) -> Iterator[DataPlaneClient]:
    if request.param == "local":
        yield request.getfixturevalue("local")
    else:
        with NoOpDataPlaneClient() as made:
            yield made


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, seen to take effect, and SIGCONT."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# -- the surface ------------------------------------------------------------------------------------------------------


def signatures(method: Callable[..., object]) -> list[inspect.Signature]:
    return [inspect.signature(one) for one in (*get_overloads(method), method)]


@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_each_method_is_the_contracts_with_await(name: str) -> None:
    """Parameters, defaults, annotations, overloads and words are those of the contract; all of them are coroutines."""
    mine = getattr(AsyncDataPlaneClient, name)
    assert signatures(mine) == signatures(CONTRACT[name])
    assert inspect.iscoroutinefunction(mine)
    assert inspect.getdoc(mine) == inspect.getdoc(CONTRACT[name])


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_questions_are_the_local_clients(name: str) -> None:
    """What only some clients answer is asked as the local client is asked."""
    mine = getattr(AsyncDataPlaneClient, name)
    assert signatures(mine) == signatures(getattr(LocalDataPlaneClient, name))
    assert inspect.iscoroutinefunction(mine)


def test_the_facade_has_nothing_else() -> None:
    """Beside the contract and the questions there are its own counts."""
    mine = {name for name, _ in inspect.getmembers(AsyncDataPlaneClient, inspect.isfunction) if name[0] != "_"}
    assert mine == {*CONTRACT, *QUESTIONS, "statistics"}


@on_loop
async def test_questions_are_answered_or_refused_by_name() -> None:
    """A client that cannot answer is named in a DataPlaneBadRequest; one that can answers."""
    async with opened(NoOpDataPlaneClient()) as plane:
        assert (await plane.audit("p")).residue == 0
        with pytest.raises(DataPlaneBadRequest, match="why: NoOpDataPlaneClient does not answer it"):
            await plane.why("p")
        with pytest.raises(DataPlaneBadRequest, match="status: NoOpDataPlaneClient"):
            await plane.status()
    async with opened(MetricsDataPlaneClient(NoOpDataPlaneClient(), registry=CollectorRegistry())) as plane:
        with pytest.raises(DataPlaneBadRequest, match="audit: MetricsDataPlaneClient"):
            await plane.audit()


@on_loop
async def test_a_local_client_answers_all_questions(local: LocalDataPlaneClient) -> None:
    """audit, why and status come through."""
    async with opened(local) as plane:
        await put(plane, "a")
        assert [p.put for p in (await plane.audit("p")).partitions] == [1]
        assert "row 'a'" in (await plane.why("p", key="a")).subject
        assert (await plane.status()).rows == 1


def test_importing_the_facade_imports_no_torch() -> None:
    """``penstock.aconnect`` can be named in a process that never connects."""
    code = "import sys, penstock; penstock.aconnect, penstock.AsyncDataPlaneClient; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@on_loop
async def test_the_facade_shows_its_state() -> None:
    """repr names the inner client and what its lanes do."""
    async with opened(NoOpDataPlaneClient(), max_claims=3) as plane:
        task = claim(plane)
        await waiting(plane)
        assert "NoOpDataPlaneClient(open" in repr(plane)
        assert "open, 1/3 claims" in repr(plane)
        assert plane.statistics().calls == 2
        await cancelled(task)
    assert "closed" in repr(plane)


# -- lanes ------------------------------------------------------------------------------------------------------------


@on_loop
async def test_blocked_claims_hold_up_neither_the_put_they_wait_for_nor_short_calls(inner: DataPlaneClient) -> None:
    """With every claim thread taken, puts, tags, pops, claims that do not wait and pings pass."""
    async with opened(inner, max_claims=2, max_puts=1, max_calls=1) as plane:
        blocked = [claim(plane) for _ in range(2)]
        await waiting(plane, 2)
        await plane.ping(timeout_s=SOON_S)
        assert (await plane.claim_meta("p", "train", ["x"], 1, blocking=False)).size == 0
        await put(plane, "a")
        await plane.put_samples(["a"], "p", tags=[{"committed": True}])
        done, _ = await asyncio.wait(blocked, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().sample_ids for task in done] == [["a"]]
        await plane.pop(["a"], "p")
        await put(plane, "b")
        assert sorted(meta.sample_ids[0] for meta in await asyncio.gather(*blocked)) == ["a", "b"]


@on_loop
async def test_a_claim_beyond_the_limit_waits_its_turn_within_its_deadline() -> None:
    """It is refused at its own deadline, which is the inner client's default where it gives none."""
    async with opened(NoOpDataPlaneClient(timeout_s=0.2), max_claims=1) as plane:
        first = claim(plane)
        await waiting(plane)
        for timeout_s in (0.2, None):
            with pytest.raises(DataPlaneTimeout, match="not begun within 0"):
                await claim(plane, timeout_s)
        second = claim(plane, SOON_S)
        await put(plane, "a")
        assert (await first).sample_ids == ["a"]
        await put(plane, "b")
        assert (await second).sample_ids == ["b"]


def test_a_client_tells_its_default_deadline(local: LocalDataPlaneClient) -> None:
    """Each adapter tells its own; one that says nothing has the contract's."""
    noop = NoOpDataPlaneClient(timeout_s=7.0)
    assert noop.default_timeout_s == 7.0
    assert MetricsDataPlaneClient(noop, registry=CollectorRegistry()).default_timeout_s == 7.0
    assert local.default_timeout_s == 30.0
    assert DataPlaneClient.default_timeout_s.fget(local) == 30.0  # type: ignore[attr-defined]


# -- cancellation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middleware", [False, True])
@on_loop
async def test_a_cancelled_claim_is_taken_back_at_once(inner: DataPlaneClient, middleware: bool) -> None:
    """Its thread is free, the plane waits for it no longer, and rows that come later go to who asks for them."""
    client = MetricsDataPlaneClient(inner, registry=CollectorRegistry()) if middleware else inner
    async with opened(client, max_claims=1) as plane:
        for _ in range(3):
            task = claim(plane)
            await until(lambda: _in_calls(plane) == 1)
            await cancelled(task)
            await until(lambda: plane.statistics().lanes[0].busy == 0)
        if isinstance(client, LocalDataPlaneClient):
            await until_true(lambda: _waiting_claims(plane, 0))
        await put(plane, "a", "b")
        meta = await claim(plane, SOON_S)
        assert meta.sample_ids == ["a", "b"]
        assert meta.tags == [{}, {}]  # a first delivery
        assert plane.statistics().given_back == 0


@on_loop
async def test_a_cancelled_claim_is_taken_back_while_the_plane_is_stopped(local: LocalDataPlaneClient) -> None:
    """It needs no answer of the plane; when the plane goes on it leases nothing for nobody."""
    async with opened(local, max_claims=1) as plane:
        await put(plane, "a")
        with stopped((await plane.status()).pid):
            task = claim(plane)
            await until(lambda: _in_calls(plane) == 1)
            await cancelled(task)
            await until(lambda: plane.statistics().lanes[0].busy == 0)
        assert (await claim(plane, SOON_S)).sample_ids == ["a"]
        await until_true(lambda: _leases(plane, 1))


async def _leases(plane: AsyncDataPlaneClient, leases: int) -> bool:
    return sum(session.leases for session in (await plane.status()).sessions) == leases


class Deaf(NoOpDataPlaneClient):
    """A client whose claims nothing wakes: they take what there is when they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def claim_meta(self, *args: Any, **options: Any) -> KVBatchMeta:
        assert self.let_go.wait(SOON_S)
        return super().claim_meta(*args, **options)


@on_loop
async def test_a_lease_that_nobody_receives_is_released_on_arrival() -> None:
    """A claim that cannot be woken ends in its own time; its rows are ready again at once, as a first delivery."""
    inner = Deaf()
    async with opened(inner, max_claims=1) as plane:
        await put(plane, "a", "b")
        task = claim(plane)
        await until(lambda: _in_calls(plane) == 1)
        await cancelled(task)
        assert plane.statistics().lanes[0].busy == 1
        inner.let_go.set()
        await until(lambda: plane.statistics().given_back == 1)
        meta = await claim(plane, SOON_S)
        assert (meta.sample_ids, meta.tags) == (["a", "b"], [{}, {}])


@on_loop
async def test_no_lease_is_lost_whenever_a_claim_is_cancelled(local: LocalDataPlaneClient) -> None:
    """Cancelled at any moment of its way, a claim that was not received leaves its row ready."""
    async with opened(local) as plane:
        received = 0
        await put(plane, "a")
        for n in range(120):
            task = claim(plane, SOON_S)
            await asyncio.sleep(n % 30 * 0.0001)
            task.cancel()
            try:
                meta = await task
            except asyncio.CancelledError:
                continue
            received += 1
            await plane.release(meta)
        assert (await claim(plane, SOON_S)).sample_ids == ["a"]
        assert plane.statistics().left + received == 120
        assert plane.statistics().left > 0


@on_loop
async def test_a_release_that_fails_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """When a lease cannot be given back the log names its rows and says how long they stay leased."""

    class Stubborn(Deaf):
        def release(self, meta: KVBatchMeta, *, timeout_s: float | None = None) -> None:
            raise DataPlaneTimeout("no answer")

    inner = Stubborn()
    async with opened(inner) as plane:
        await put(plane, "a")
        task = claim(plane)
        await until(lambda: _in_calls(plane) == 1)
        await cancelled(task)
        inner.let_go.set()
        await until(lambda: "rows 'a' stay leased until this client is closed: no answer" in caplog.text)


@on_loop
async def test_a_timeout_of_asyncio_gives_the_lease_back_too() -> None:
    """``wait_for`` and ``timeout`` cancel: what holds for cancellation holds for them."""
    async with opened(NoOpDataPlaneClient()) as plane:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(plane.claim_meta("p", "train", ["x"], 1), 0.02)
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.02):
                await plane.claim_meta("p", "train", ["x"], 1)
        await put(plane, "a")
        assert (await claim(plane, SOON_S)).sample_ids == ["a"]


@on_loop
async def test_a_cancelled_put_is_whole_or_not_at_all(local: LocalDataPlaneClient) -> None:
    """Its outcome is unknown; the same put again succeeds, and the books balance."""
    async with opened(local) as plane:
        columns = {"x": torch.arange(64 * 256).view(64, 256)}
        for n in range(20):
            keys = [f"{n}-{i}" for i in range(64)]
            task = asyncio.create_task(plane.put_samples(keys, "p", columns))
            await asyncio.sleep(n * 0.0002)
            task.cancel()
            await asyncio.wait([task])
            assert len(await plane.list_metadata("p")) in (0, 64)
            await plane.put_samples(keys, "p", columns)
            assert torch.equal((await plane.get_samples(keys, "p", ["x"]))["x"], columns["x"])
            await plane.evict(keys, "p")
        assert (await plane.audit("p")).residue == 0


@on_loop
async def test_puts_that_were_cancelled_on_a_full_plane_do_not_starve_the_next(tmp_path: Path) -> None:
    """They are taken back at once: their threads are free, and room that comes goes to those who still wait."""
    room = PlaneConfig(linger_s=0.2, max_rows=1, reserve_fraction=0.0)
    columns = {"x": torch.zeros(1, 4)}
    async with opened(LocalDataPlaneClient(tmp_path, plane=room), max_puts=2) as plane:

        async def none_waits() -> bool:
            return [p.waiting_puts for p in (await plane.status()).partitions] == [0]

        await plane.put_samples(["full"], "p", columns)
        for _ in range(5):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(plane.put_samples(["left"], "p", columns, timeout_s=SOON_S), 0.05)
        await until_true(none_waits)
        stays = asyncio.create_task(plane.put_samples(["stays"], "p", columns, timeout_s=SOON_S))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(plane.put_samples(["left"], "p", columns, timeout_s=SOON_S), 0.05)
        await plane.evict(["full"], "p")
        await stays
        assert [group.keys for group in await plane.list_metadata("p")] == [["stays"]]


# -- the end ----------------------------------------------------------------------------------------------------------


@on_loop
async def test_closing_wakes_blocked_claims_at_once(inner: DataPlaneClient) -> None:
    """They raise DataPlaneUnavailable; closing again does nothing; no thread is left, and every call is refused."""
    async with opened(inner) as plane:
        tasks = [claim(plane) for _ in range(5)]
        await waiting(plane, 5)
        began = time.monotonic()
        await asyncio.gather(*(plane.close() for _ in range(3)))
        for task in tasks:
            with pytest.raises(DataPlaneUnavailable, match="claim_meta: the client was closed"):
                await task
        assert time.monotonic() - began < SOON_S
    assert threads_of(plane) == []
    with pytest.raises(DataPlaneUnavailable):
        await plane.ping()
    with pytest.raises(DataPlaneUnavailable):
        inner.ping()


def threads_of(plane: AsyncDataPlaneClient) -> list[str]:
    lanes = plane._crossing._lanes
    return [thread.name for lane in lanes for thread in lane._threads if thread.is_alive()]


@on_loop
async def test_a_lease_of_a_claim_that_closing_interrupted_goes_back(local: LocalDataPlaneClient) -> None:
    """What the plane granted to a claim that was told that nothing happened is ready for others."""
    with LocalDataPlaneClient(local.data_dir, plane=QUICK) as other:
        async with opened(local) as plane:
            task = claim(plane)
            await waiting(plane)
            closing = asyncio.create_task(plane.close())
            await asyncio.sleep(0)
            other.put_samples(["a"], "p", {"x": torch.arange(1)})
            with pytest.raises(DataPlaneUnavailable):
                await task
            await closing
        assert other.claim_meta("p", "train", ["x"], 1, timeout_s=SOON_S).sample_ids == ["a"]


@on_loop
async def test_async_with_closes_when_it_is_cancelled(inner: DataPlaneClient) -> None:
    """The block's task is cancelled in a claim: the client is closed by the time that the task has ended."""
    made: list[AsyncDataPlaneClient] = []

    async def work() -> None:
        async with opened(inner) as plane:
            made.append(plane)
            await plane.claim_meta("p", "train", ["x"], 1)

    task = asyncio.create_task(work())
    await until(lambda: made)
    await waiting(made[0])
    await cancelled(task)
    assert threads_of(made[0]) == []
    with pytest.raises(DataPlaneUnavailable):
        inner.ping()


def test_a_client_that_is_dropped_ends_its_threads_and_its_session(own: LocalDataPlaneClient) -> None:
    """Not closed but collected, it leaves neither."""

    async def use() -> list[threading.Thread]:
        plane = AsyncDataPlaneClient(LocalDataPlaneClient(own.data_dir, plane=QUICK))
        await plane.ping()
        assert len(own.status().sessions) == 2
        return [thread for lane in plane._crossing._lanes for thread in lane._threads]

    threads = asyncio.run(use())
    gc.collect()
    for thread in threads:
        thread.join(SOON_S)
        assert not thread.is_alive()
    end = time.monotonic() + SOON_S
    while len(own.status().sessions) > 1:
        assert time.monotonic() < end


# -- connecting -------------------------------------------------------------------------------------------------------


@on_loop
async def test_connecting_gives_a_client_or_a_context(tmp_path: Path) -> None:
    """Awaited, the client is the caller's to close; entered, it is closed at the end. Options go where they belong."""
    async with penstock.aconnect("local", data_dir=tmp_path, linger_s=0.2, timeout_s=9.0, max_claims=3) as plane:
        await plane.ping()
        assert plane.inner.default_timeout_s == 9.0
        assert plane.statistics().lanes[0].limit == 3
    assert threads_of(plane) == []
    noop = await penstock.aconnect({"impl": "noop"}, strict_tensors=False)
    await noop.ping()
    await noop.close()


@on_loop
async def test_connecting_refuses_what_connect_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown names and options are errors when it is awaited; bad limits are, before anything is connected to."""
    for name, options in (("nowhere", {}), ("noop", {"colour": 1}), ({"impl": "noop", "enabled": False}, {})):
        with pytest.raises(BadArgument):
            await aconnect(name, **options)
    monkeypatch.setattr(aio, "connect", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(BadArgument, match="max_puts"):
        await aconnect("noop", max_puts=0)


@on_loop
async def test_a_cancelled_connect_leaves_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that arrives when nobody waits for it is closed."""
    begun, let_go, made = threading.Event(), threading.Event(), list[NoOpDataPlaneClient]()

    def slow(*_: object, **__: object) -> DataPlaneClient:
        begun.set()
        assert let_go.wait(SOON_S)
        made.append(NoOpDataPlaneClient())
        return made[0]

    async def connecting() -> None:
        async with aconnect("noop"):
            pytest.fail("connected")

    monkeypatch.setattr(aio, "connect", slow)
    task = asyncio.create_task(connecting())
    await until(begun.is_set)
    await cancelled(task)
    let_go.set()
    await until(lambda: made and made[0]._closed)


@on_loop
async def test_a_cancelled_connect_to_a_plane_that_does_not_answer_ends_at_once(own: LocalDataPlaneClient) -> None:
    """Its wait for the plane is recalled: thread and connection are gone long before its deadline."""
    name = "penstock-aio-calls-1"
    before = [thread for thread in threading.enumerate() if thread.name == name]
    with stopped(own.status().pid):
        task = asyncio.create_task(_connected(own.data_dir))
        await until(lambda: len([t for t in threading.enumerate() if t.name == name]) > len(before))
        await asyncio.sleep(0.1)
        await cancelled(task)
        await until(lambda: [t for t in threading.enumerate() if t.name == name] == before)
    assert [session.connected for session in own.status().sessions].count(True) == 1


@on_loop
async def test_a_cancelled_connect_that_starts_a_plane_leaves_none() -> None:
    """At whatever stage of the start: plane, directory and thread go, which the watch for leaks sees to."""
    name = "penstock-aio-calls-1"
    before = [thread for thread in threading.enumerate() if thread.name == name]
    for delay_s in (0.0, 0.05, 0.2, 0.5):
        task = asyncio.create_task(_connected(None))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.wait([task])
    await until(lambda: [t for t in threading.enumerate() if t.name == name] == before)


async def _connected(directory: Path | None) -> None:
    await aconnect("local", data_dir=directory, linger_s=0.2, timeout_s=600.0)


# -- a loop that never waits ------------------------------------------------------------------------------------------


class Ticker:
    """Ticks on the loop and keeps the largest gap between two ticks."""

    def __init__(self) -> None:
        self.gap_s = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)
        self._task.cancel()

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            self.gap_s, last = max(self.gap_s, now - last), now


async def largest_gap(plane: AsyncDataPlaneClient, pid: int, timeout_s: float) -> float:
    """Block claims, stop the plane under calls of every lane, cancel some, close; return the loop's largest gap."""
    async with Ticker() as ticker:
        claims = [claim(plane, timeout_s) for _ in range(10)]
        await asyncio.sleep(0.1)
        with stopped(pid):
            calls = [
                asyncio.create_task(plane.ping(timeout_s=timeout_s)),
                asyncio.create_task(plane.put_samples(["a"], "p", {"x": torch.arange(1)}, timeout_s=timeout_s)),
                asyncio.create_task(plane.get_samples(["a"], "p", ["x"], timeout_s=timeout_s)),
                claim(plane, timeout_s, blocking=False),
            ]
            await asyncio.sleep(0.2)
            for task in (claims[0], calls[1]):
                task.cancel()
            await asyncio.sleep(0.2)
            await plane.close()
            await asyncio.wait([*claims, *calls])
        assert all(task.cancelled() or task.exception() for task in [*claims, *calls])
    return ticker.gap_s


@on_loop
async def test_the_loop_is_never_blocked(local: LocalDataPlaneClient) -> None:
    """Claims wait, the plane is stopped, calls are cancelled and the client is closed: the loop ticks on."""
    async with opened(local) as plane:
        pid = (await plane.status()).pid
        assert await largest_gap(plane, pid, 3 * GAP_S) < GAP_S


@on_loop
async def test_a_facade_that_blocked_the_loop_would_be_seen(
    local: LocalDataPlaneClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same test on an implementation that makes its calls on the loop finds the gap."""

    async def run(
        _: Crossing, __: object, ___: str, call: Callable[[float | None], Any], timeout_s: float | None, *____: object
    ) -> Any:
        return call(timeout_s)

    async with opened(local) as plane:
        pid = (await plane.status()).pid
        monkeypatch.setattr(Crossing, "run", run)
        assert await largest_gap(plane, pid, 0.2) > GAP_S  # ten claims, one after the other


@on_loop
async def test_connecting_does_not_block_the_loop(tmp_path: Path) -> None:
    """A plane is started, which takes most of a second, and the loop ticks on."""
    async with Ticker() as ticker, aconnect("local", data_dir=tmp_path, linger_s=0.2) as plane:
        await plane.ping()
    assert ticker.gap_s < GAP_S
