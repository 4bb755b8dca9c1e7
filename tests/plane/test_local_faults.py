"""The local client while processes are killed and stopped: deadlines hold, nothing acknowledged is lost or doubled."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    LeaseLost,
)
from penstock.payload.block import Bytes
from penstock.plane.arenas import Arenas
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.recall import Recall, Recalled
from penstock.records import KVBatchMeta
from penstock.requests import ArenaPlace, BlockPlace, Locate, Located
from penstock.retry import Deadline
from penstock.wire import paths

QUICK = PlaneConfig(linger_s=0.2)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[LocalDataPlaneClient]:
    with LocalDataPlaneClient(tmp_path, plane=QUICK) as made:
        made.register_partition("p", ["x"], 100, ["score", "train"])
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


def read(plane: DataPlaneClient, keys: list[str]) -> torch.Tensor:
    x = plane.get_samples(keys, "p", ["x"])["x"]
    assert isinstance(x, torch.Tensor)
    return x


def read_claimed(plane: DataPlaneClient, meta: KVBatchMeta) -> torch.Tensor:
    x = plane.get_data(meta)["x"]
    assert isinstance(x, torch.Tensor)
    return x


def dropping(plane: DataPlaneClient, keys: list[str]) -> tuple[TensorDict, KVBatchMeta]:
    return plane.get_samples(keys, "p", ["x"], on_failed="drop")


def put(plane: LocalDataPlaneClient, *keys: str, width: int = 4) -> torch.Tensor:
    x = torch.arange(len(keys) * width).view(len(keys), width)
    plane.put_samples(list(keys), "p", {"x": x})
    return x


def life(plane: LocalDataPlaneClient) -> int:
    return plane.get_capabilities().incarnation


# -- the plane is killed ----------------------------------------------------------------------------------------------


def test_a_killed_plane_comes_back_with_rows_and_leases(plane: LocalDataPlaneClient) -> None:
    """The client starts another on the directory, resumes its session, and its lease still acks."""
    x = put(plane, "a", "b")
    meta = plane.claim_meta("p", "train", ["x"], 1)
    before = life(plane)
    os.kill(plane.status().pid, signal.SIGKILL)
    assert torch.equal(read(plane, ["a", "b"]), x)
    assert life(plane) > before
    assert plane.statistics().sessions == 1
    plane.ack(meta)
    assert [p.trained for p in plane.audit("p").partitions] == [1]


def test_views_outlive_a_killed_plane(plane: LocalDataPlaneClient) -> None:
    """Shared memory of a dead plane stays as it is under those who look at it."""
    keys = [f"k{i}" for i in range(256)]
    x = put(plane, *keys, width=128)
    view = read(plane, keys)
    os.kill(plane.status().pid, signal.SIGKILL)
    plane.pop(keys, "p")
    for _ in range(3):
        put(plane, *(f"n{i}" for i in range(256)), width=128)
    assert torch.equal(view, x)


def test_views_outlive_a_client_that_closes_without_its_plane(plane: LocalDataPlaneClient) -> None:
    """Nobody is there to say goodbye to; the views are made private all the same."""
    keys = [f"k{i}" for i in range(256)]
    x = put(plane, *keys, width=128)
    view = read(plane, keys)
    paths.served_path(plane.data_dir).touch()  # nobody starts another
    os.kill(plane.status().pid, signal.SIGKILL)
    with pytest.raises(DataPlaneUnavailable, match="penstock serve"):
        plane.depth("p", timeout_s=1.0)
    plane.close()
    assert plane._arenas.live_views == 0
    assert torch.equal(view, x)
    paths.served_path(plane.data_dir).unlink()
    LocalDataPlaneClient(plane.data_dir, plane=QUICK).close()  # whose plane tidies up after the killed one


def test_memory_of_a_dead_plane_is_let_go(plane: LocalDataPlaneClient) -> None:
    """A client keeps no mapping of an arena that the next plane has unlinked."""
    put(plane, "a")
    plane.get_samples(["a"], "p", ["x"])
    for _ in range(2):
        os.kill(plane.status().pid, signal.SIGKILL)
        put(plane, "b")
        plane.evict(["b"], "p")
    plane._arenas._look_at = 0.0
    deadline = time.monotonic() + 20
    while len(plane._arenas._maps) > 2 and time.monotonic() < deadline:
        plane._arenas._look_at = 0.0
        plane.get_samples(["a"], "p", ["x"])
    assert all(arena.path.exists() for arena in plane._arenas._maps.values())


def test_a_plane_killed_between_grant_and_commit_costs_another_copy(
    plane: LocalDataPlaneClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grant died with its plane: the client asks for another, copies again, and the put is whole."""
    fired: list[int] = []
    writer = Arenas.writer

    def kill_once(self: Arenas, place: BlockPlace, arena: ArenaPlace) -> Bytes:
        if not fired:
            fired.append(place.block_id)
            os.kill(plane.status().pid, signal.SIGKILL)
        return writer(self, place, arena)

    monkeypatch.setattr(Arenas, "writer", kill_once)
    x = put(plane, "a", "b")
    assert len(fired) == 1
    assert torch.equal(read(plane, ["a", "b"]), x)


class _Books:
    """What the workers of a chaotic run know: puts begun and acknowledged, acks begun and acknowledged."""

    def __init__(self) -> None:
        self.put_begun: set[str] = set()
        self.put_done: set[str] = set()
        self.trained: Counter[str] = Counter()
        self.in_doubt: set[str] = set()
        self.wrong: list[str] = []
        self.errors: list[BaseException] = []


def _produce(plane: LocalDataPlaneClient, books: _Books, me: int, over: Callable[[], bool]) -> None:
    for step in itertools.takewhile(lambda _: not over(), itertools.count()):
        keys = [f"w{me}-{step}-{i}" for i in range(4)]
        books.put_begun.update(keys)
        values = torch.full((4, 64), me * 1000 + step)
        while True:
            try:
                plane.put_samples(keys, "p", {"x": values})
            except (DataPlaneTimeout, DataPlaneUnavailable):
                continue  # safe to repeat
            break
        books.put_done.update(keys)


def _consume(plane: LocalDataPlaneClient, books: _Books, over: Callable[[], bool]) -> None:
    while not over():
        try:
            meta = plane.claim_meta("p", "train", ["x"], 8, timeout_s=0.5)
            table = read_claimed(plane, meta).tolist()
        except (DataPlaneTimeout, DataPlaneUnavailable):
            continue
        for key, row in zip(meta.sample_ids, table, strict=True):
            who, step, _ = key[1:].split("-")
            if row != [int(who) * 1000 + int(step)] * 64:
                books.wrong.append(key)
        try:
            plane.ack(meta)
        except DataPlaneTimeout:
            books.in_doubt.update(meta.sample_ids)
        except (LeaseLost, DataPlaneUnavailable):
            continue
        else:
            books.trained.update(meta.sample_ids)


@pytest.mark.slow
def test_a_plane_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """kill -9 during puts, claims, reads and acks of six threads: what was acknowledged is trained, once."""
    books, kills = _Books(), 0
    enough, producing = threading.Event(), threading.Event()
    with LocalDataPlaneClient(tmp_path, plane=QUICK, config=ClientConfig(timeout_s=20.0)) as plane:
        plane.register_partition("p", ["x"], 100, ["train"])

        def drained() -> bool:
            done = set(books.trained) | books.in_doubt
            return producing.is_set() and books.put_done <= done

        def guarded(work: Callable[..., None], *arguments: Any) -> threading.Thread:
            def run() -> None:
                try:
                    work(plane, books, *arguments)
                except BaseException as error:
                    books.errors.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        producers = [guarded(_produce, me, enough.is_set) for me in range(3)]
        until = time.monotonic() + 60
        consumers = [guarded(_consume, lambda: drained() or time.monotonic() > until) for _ in range(3)]
        while kills < 4 and time.monotonic() < until:
            time.sleep(0.3)
            os.kill(plane.status().pid, signal.SIGKILL)
            kills += 1
        enough.set()
        for thread in producers:
            thread.join(60)
        producing.set()
        for thread in consumers:
            thread.join(60)
        (audit,) = plane.audit("p").partitions
        left = {key for group in plane.list_metadata("p") for key in group.keys}
    assert kills == 4
    assert books.errors == []
    assert books.wrong == []
    assert books.put_done <= set(books.trained) | books.in_doubt | left
    assert max(books.trained.values()) == 1
    assert (audit.residue, audit.broken, audit.lost) == (0, [], {})
    assert audit.put == len(books.put_done) > 0


# -- the plane is stopped ---------------------------------------------------------------------------------------------


def test_deadlines_hold_while_the_plane_is_stopped(plane: LocalDataPlaneClient) -> None:
    """Every call ends within its deadline, typed; afterwards the plane serves as before."""
    put(plane, "a", "b")
    meta = plane.claim_meta("p", "train", ["x"], 1)
    calls: dict[str, Callable[[float], object]] = {
        "ping": lambda t: plane.ping(t),
        "put": lambda t: plane.put_samples(["c"], "p", {"x": torch.zeros(1, 4).long()}, timeout_s=t),
        "get": lambda t: plane.get_samples(["a"], "p", ["x"], timeout_s=t),
        "claim": lambda t: plane.claim_meta("p", "train", ["x"], 1, timeout_s=t),
        "renew": lambda t: plane.renew(meta, 30.0, timeout_s=t),
        "list": lambda t: plane.list_metadata("p", timeout_s=t),
        "status": lambda t: plane.status(timeout_s=t),
        "none": lambda _: plane.depth("p", timeout_s=0),
    }
    with stopped(plane.status().pid):
        for name, call in calls.items():
            began = time.monotonic()
            with pytest.raises((DataPlaneTimeout, DataPlaneUnavailable)):
                call(0.3)
            assert time.monotonic() - began < 2.0, name
    assert plane.depth("p") == 0
    assert plane.claim_meta("p", "train", ["x"], 1, timeout_s=10.0).size == 1  # the claim that timed out was given back
    plane.ack(meta)


def test_many_calls_at_once_keep_their_deadlines_while_the_plane_is_stopped(plane: LocalDataPlaneClient) -> None:
    """Also when the socket is full and others wait: nobody holds anybody up."""
    keys = [f"a rather long key that fills the socket's buffer soon {i}" for i in range(2000)]
    took: list[float] = []
    errors: list[object] = []

    def ask() -> None:
        began = time.monotonic()
        try:
            plane.get_samples(keys, "p", ["x"], timeout_s=0.5)
        except DataPlaneError as error:
            errors.append(type(error))
        took.append(time.monotonic() - began)

    with stopped(plane.status().pid):
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(took) == 12
    assert max(took) < 5.0
    assert set(errors) == {DataPlaneTimeout, DataPlaneUnavailable}
    assert plane.depth("p") == 0


def test_a_new_client_does_not_wait_for_ever_for_a_stopped_plane(plane: LocalDataPlaneClient) -> None:
    """It says that the plane took the connection and does not answer."""
    with stopped(plane.status().pid):
        began = time.monotonic()
        with pytest.raises((DataPlaneTimeout, DataPlaneUnavailable), match="does not answer"):
            LocalDataPlaneClient(plane.data_dir, config=ClientConfig(timeout_s=0.5), plane=QUICK)
        assert time.monotonic() - began < 5.0


# -- callers leave ----------------------------------------------------------------------------------------------------


class _Leaver:
    """A thread in one call, which it can be told to leave, as Ctrl-C tells the main thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.recall = Recall()
        self.ended: object = None
        self._call = call
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.recall.cover()
        try:
            self.ended = self._call()
        except (Recalled, DataPlaneError) as error:
            self.ended = error

    def leave(self) -> None:
        self.recall.ask()
        self.thread.join(20)
        assert isinstance(self.ended, Recalled), self.ended


def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def _waiting_puts(plane: LocalDataPlaneClient) -> int:
    return sum(p.waiting_puts for p in plane.status().partitions)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[LocalDataPlaneClient]:
    """Room for two rows, and a heartbeat so rare that nothing here can wait for it."""
    small = PlaneConfig(linger_s=0.2, max_rows=2, reserve_fraction=0.0, heartbeat_s=60.0, dead_after_s=300.0)
    with LocalDataPlaneClient(tmp_path, plane=small) as made:
        made.register_partition("p", ["x"], 100, ["train"])
        yield made


def test_puts_that_left_while_they_waited_for_room_take_none(tiny: LocalDataPlaneClient) -> None:
    """They are off the queue at once, and what waits behind them gets the room as soon as there is some."""
    put(tiny, "a", "b")
    left = [_Leaver(partial(put, tiny, f"left{n}", f"left too{n}")) for n in range(4)]
    _until(lambda: _waiting_puts(tiny) == 4)
    stays = threading.Thread(target=put, args=(tiny, "stays"))
    stays.start()
    _until(lambda: _waiting_puts(tiny) == 5)
    for leaver in left:
        leaver.leave()
    _until(lambda: _waiting_puts(tiny) == 1)
    tiny.evict(["a"], "p")
    stays.join(20)
    assert sorted(group.keys for group in tiny.list_metadata("p")) == [["b"], ["stays"]]
    tiny.evict(["stays"], "p")
    tiny.put_samples(["next"], "p", {"x": torch.zeros(1, 4).long()}, timeout_s=20.0)
    assert tiny.status().counters["grants.withdrawn"] == 4


def test_room_that_comes_as_its_put_leaves_is_not_lost(tmp_path: Path) -> None:
    """Leaving and room cross on the wire, at any moment of the put: another put of the client gets the room."""
    with LocalDataPlaneClient(tmp_path, plane=PlaneConfig(linger_s=0.2, max_rows=2, reserve_fraction=0.0)) as plane:
        plane.register_partition("p", ["x"], 100, ["train"])

        def evict_all() -> None:
            plane.evict([key for group in plane.list_metadata("p") for key in group.keys], "p")

        for n in range(40):
            put(plane, f"a{n}", f"b{n}")
            left = _Leaver(partial(put, plane, f"left{n}", f"left too{n}"))
            _until(lambda: _waiting_puts(plane) == 1)
            stays = threading.Thread(target=put, args=(plane, f"stays{n}", f"stays too{n}"))
            evicting = threading.Thread(target=evict_all)
            for thread in (stays, evicting):
                thread.start()
            time.sleep(n * 0.0001)
            left.recall.ask()
            for thread in (evicting, left.thread):
                thread.join(20)
            began = time.monotonic()
            while stays.is_alive():
                assert time.monotonic() - began < 15
                evict_all()  # what was committed before it was left
                stays.join(0.01)
            evict_all()
        (books,) = plane.audit("p").partitions
        assert (books.residue, _waiting_puts(plane)) == (0, 0)


@pytest.mark.parametrize("what", ["claims", "puts"])
def test_callers_that_come_and_go_do_not_use_up_the_connection(tiny: LocalDataPlaneClient, what: str) -> None:
    """The plane reads no more from one with 256 open calls: those whose caller has left are not among them."""
    put(tiny, "a", "b")
    for _ in range(270):
        if what == "claims":
            leaver = _Leaver(lambda: tiny.claim_meta("p", "train", ["x"], 3, min_rows=3))
        else:
            leaver = _Leaver(lambda: put(tiny, "c"))
        time.sleep(0.001)
        leaver.leave()
    tiny.ping(timeout_s=10.0)
    assert tiny.claim_meta("p", "train", ["x"], 2, timeout_s=10.0).size == 2


# -- a client is killed -----------------------------------------------------------------------------------------------


def test_leases_of_a_killed_client_return(plane: LocalDataPlaneClient) -> None:
    """The kernel says that the process is gone: its rows are ready again long before its heartbeat is overdue."""
    put(plane, "a")
    script = f"""
import sys, time
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
client = LocalDataPlaneClient({str(plane.data_dir)!r})
print(client.claim_meta("p", "train", ["x"], 1).sample_ids, flush=True)
time.sleep(600)
"""
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline().strip() == "['a']"
        assert plane.claim_meta("p", "train", ["x"], 1, blocking=False).size == 0
    finally:
        worker.kill()
        worker.communicate()
    began = time.monotonic()
    assert plane.claim_meta("p", "train", ["x"], 1, timeout_s=20.0).sample_ids == ["a"]
    assert time.monotonic() - began < QUICK.dead_after_s


def test_a_client_that_was_stopped_too_long_keeps_only_what_nobody_else_took(tmp_path: Path) -> None:
    """Its session is over when it wakes: a lease that nobody superseded still acks, the other is refused."""
    hasty = PlaneConfig(linger_s=0.2, heartbeat_s=0.1, dead_after_s=0.5)
    script = f"""
import sys
from penstock.errors import LeaseLost
from penstock.plane.local import LocalDataPlaneClient
client = LocalDataPlaneClient({str(tmp_path)!r})
meta = client.claim_meta("p", "train", ["x"], 2)
print(*meta.sample_ids, flush=True)
sys.stdin.readline()
client.depth("p")  # a question goes again under the next session; an ack that met the dead one would be a timeout
client.ack(meta.subset([0]))
try:
    client.ack(meta.subset([1]))
except LeaseLost:
    print("acked one, lost one, sessions", client.statistics().sessions, flush=True)
"""
    with LocalDataPlaneClient(tmp_path, plane=hasty) as plane:
        plane.register_partition("p", ["x"], 2, ["train"])
        put(plane, "a", "b")
        worker = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline().split() == ["a", "b"]
            with stopped(worker.pid):
                assert plane.claim_meta("p", "train", ["x"], 2, keys=["b"], timeout_s=20.0).sample_ids == ["b"]
            said, _ = worker.communicate("\n", timeout=60)
        finally:
            worker.kill()
            worker.wait()
        assert said.strip() == "acked one, lost one, sessions 2"
        assert [p.trained for p in plane.audit("p").partitions] == [1]


# -- bytes are damaged ------------------------------------------------------------------------------------------------


def _flip_a_byte(plane: LocalDataPlaneClient, key: str, value: bytes) -> None:
    """Damage ``value`` in the block that holds the row, in the plane's shared memory."""
    located = plane._link.ask(Locate("p", [key], ["x"]), Located, Deadline(10.0))
    (place,), (arena,) = located.blocks, located.arenas
    plane._link.unpin(place.pin)
    with paths.arena_path(plane.data_dir, arena).open("r+b") as file:
        file.seek(place.offset)
        at = file.read(place.nbytes).find(value)
        assert at >= 0
        file.seek(place.offset + at)
        file.write(bytes([value[0] ^ 1]))


def test_damaged_bytes_are_never_served_and_their_rows_are_named(plane: LocalDataPlaneClient) -> None:
    """A flipped bit costs the rows of its block, which are named and then lost in the audit; others are served."""
    x = put(plane, "good", "also good")
    marked = torch.full((2, 4), 0x0123456789ABCDEF)
    plane.put_samples(["bad", "worse"], "p", {"x": marked})
    _flip_a_byte(plane, "bad", marked.numpy().tobytes())
    with pytest.raises(DataPlaneReadError) as caught:
        plane.get_samples(["good", "bad", "worse"], "p", ["x"])
    assert caught.value.keys == ["bad", "worse"]
    table, meta = dropping(plane, ["good", "bad", "also good"])
    assert meta.sample_ids == ["good", "also good"]
    assert torch.equal(table["x"], x)
    (books,) = plane.audit("p").partitions
    assert (sum(books.lost.values()), books.residue) == (2, 0)


def test_damage_that_the_plane_does_not_see_is_not_served_either(
    plane: LocalDataPlaneClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When only this reader finds damage, twice, his rows are an error, and with ``drop`` they are left out."""
    put(plane, "good")
    put(plane, "bad")
    fired: list[int] = []
    reader = Arenas.reader
    (bad,) = plane._link.ask(Locate("p", ["bad"], ["x"]), Located, Deadline(10.0)).blocks
    plane._link.unpin(bad.pin)

    def damaged(self: Arenas, place: BlockPlace, arena: ArenaPlace) -> Any:
        if place.block_id == bad.block_id:
            fired.append(place.pin)
            raise CorruptPayload(f"block {place.block_id} looks damaged from here")
        return reader(self, place, arena)

    monkeypatch.setattr(Arenas, "reader", damaged)
    with pytest.raises(CorruptPayload) as caught:
        plane.get_samples(["good", "bad"], "p", ["x"])
    assert caught.value.keys == ["bad"]
    assert len(fired) == 2
    _, meta = dropping(plane, ["bad", "good"])
    assert meta.sample_ids == ["good"]
    until = time.monotonic() + 10
    while plane._link._courier._pins.held:  # those of blocks that failed are given back too
        assert time.monotonic() < until
        time.sleep(0.01)
