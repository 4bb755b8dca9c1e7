"""The client for callers without a loop: threads, close, fork, the garbage collector and the interpreter's end."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable
from penstock.parts import HostPlace
from penstock.payload.arena import Reading
from penstock.payload.slots import Mode
from penstock.retry import Deadline
from penstock.transport.client import PayloadClient
from penstock.transport.config import TransportConfig
from penstock.transport.loop_thread import LoopThread
from penstock.transport.server import PayloadServer
from penstock.transport.wanted import Fetched, Wanted
from tests.descriptors import open_descriptors
from tests.transport.hosts import FIRST_GENERATION, a_block
from tests.transport.payload_process import Shelf
from tests.transport.station import a_wire

SOON_S = 30.0


class Slow(Shelf):
    """Lets nobody begin until it is told to."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.asked = threading.Event()
        self.go = threading.Event()

    async def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        self.asked.set()
        self.go.wait(SOON_S)
        return await super().begin_read(block_id, generation, mode)


@pytest.fixture
def host() -> Iterator[HostPlace]:
    with PayloadServer(Shelf(64), a_wire) as server:
        yield HostPlace(1, 1, "h1", "127.0.0.1", list(server.statistics().ports))


@pytest.fixture
def slow() -> Iterator[tuple[HostPlace, Slow]]:
    shelf = Slow(4)
    with PayloadServer(shelf, a_wire, listeners=1) as server:
        yield HostPlace(1, 1, "h1", "127.0.0.1", list(server.statistics().ports)), shelf
        shelf.go.set()


def a_client(**limits: float) -> PayloadClient:
    return PayloadClient({"tcp": a_wire}, TransportConfig(**limits))  # type: ignore[arg-type]


def wanted(host: HostPlace, *block_ids: int) -> list[Wanted]:
    return [Wanted(i, len(a_block(i)), [(host, FIRST_GENERATION)]) for i in block_ids]


def ours() -> list[threading.Thread]:
    names = ("penstock-transport", "penstock-verify")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def test_several_threads_share_one_client(host: HostPlace) -> None:
    """Each gets its own blocks, in its own order."""
    with a_client() as client, ThreadPoolExecutor(8) as pool:

        def fetch(first: int) -> bool:
            ids = [(first + i) % 64 for i in range(20)]
            outcomes = client.fetch(wanted(host, *ids), Deadline(SOON_S))
            pairs = zip(ids, outcomes, strict=True)
            return all(isinstance(o, Fetched) and np.array_equal(o.data, a_block(i)) for i, o in pairs)

        assert all(pool.map(fetch, range(24)))
        assert client.statistics().blocks == 24 * 20


def test_nothing_is_started_before_it_is_needed_and_nothing_is_left(host: HostPlace) -> None:
    """No thread, no socket and no loop: before the first fetch, and after close; twice is once."""
    gc.collect()
    before = open_descriptors()
    client = a_client(check_in_thread_bytes=0)
    assert client.fetch([], Deadline(1.0)) == []
    assert ours() == []
    client.fetch(wanted(host, *range(64)), Deadline(SOON_S))
    assert {thread.name.split("_")[0] for thread in ours()} == {"penstock-transport", "penstock-verify"}
    assert open_descriptors() > before
    client.close()
    assert ours() == []
    client.close()
    with pytest.raises(DataPlaneUnavailable, match="is closed"):
        client.fetch(wanted(host, 1), Deadline(1.0))
    for _ in range(100):  # the server's ends of our connections are in this process as well
        if open_descriptors() <= before:
            break
        time.sleep(0.05)
    assert open_descriptors() <= before


def test_a_client_that_was_never_used_is_closed_at_no_cost() -> None:
    """And refuses afterwards."""
    client = a_client()
    client.close()
    with pytest.raises(DataPlaneUnavailable, match="is closed"):
        client.fetch(wanted(HostPlace(1, 1, "h", "127.0.0.1", [1]), 1), Deadline(1.0))
    with pytest.raises(BadArgument, match="at least one wire"):
        PayloadClient({})


def test_close_ends_the_calls_of_other_threads(slow: tuple[HostPlace, Slow]) -> None:
    """They are told at once, not at their deadlines."""
    host, shelf = slow
    client = a_client()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.fetch, wanted(host, 1), Deadline(600.0))
        assert shelf.asked.wait(SOON_S)
        client.close()
        with pytest.raises(DataPlaneUnavailable, match="closed during"):
            call.result(SOON_S)
    assert ours() == []


def test_a_call_ends_by_its_deadline(slow: tuple[HostPlace, Slow]) -> None:
    """With an error for each block; the client is as good as before."""
    host, shelf = slow
    with a_client() as client:
        began = time.monotonic()
        (outcome,) = client.fetch(wanted(host, 1), Deadline(0.2))
        assert isinstance(outcome, DataPlaneTimeout)
        assert time.monotonic() - began < 10
        shelf.go.set()
        (outcome,) = client.fetch(wanted(host, 1), Deadline(SOON_S))
        assert isinstance(outcome, Fetched)


def test_a_loop_that_does_not_run_is_no_hang() -> None:
    """The caller gets a timeout, shortly after the deadline."""

    async def at_end() -> None:
        pass

    async def block() -> None:
        release.wait(SOON_S)

    release = threading.Event()
    thread = LoopThread("penstock-transport", at_end)
    with pytest.raises(DataPlaneTimeout, match="does not run"):
        thread.run(block, Deadline(0.05))
    release.set()
    thread.stop()
    assert not thread.running


def test_closing_keeps_to_the_callers_time() -> None:
    """However long a loop that does not run could be waited for."""
    with a_client(close_timeout_s=SOON_S) as client:
        blocked, release = threading.Event(), threading.Event()

        async def block() -> None:
            blocked.set()
            release.wait(SOON_S)

        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(client._thread.run, block, Deadline(SOON_S))
            assert blocked.wait(SOON_S)
            began = time.monotonic()
            client.close(0.05)
            assert time.monotonic() - began < SOON_S / 2
            release.set()
            with suppress(DataPlaneUnavailable):
                call.result(SOON_S)
    assert ours() == []


def test_an_answer_that_comes_at_the_very_end_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the end of the patience and the look at what has come: it has, and no bare ``TimeoutError`` goes out."""

    class Late(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            if timeout is not None:
                self.set_result(7)
                raise TimeoutError
            return super().result()

    async def nothing() -> None:
        pass

    async def work() -> int:
        return 0

    thread = LoopThread("penstock-test", nothing)
    monkeypatch.setattr(thread, "_submit", lambda _: Late())
    assert thread.run(work, Deadline(SOON_S)) == 7


def test_a_client_that_is_dropped_ends_its_thread(host: HostPlace) -> None:
    """Without close: the garbage collector is enough."""
    client = a_client()
    client.fetch(wanted(host, 1), Deadline(SOON_S))
    (thread,) = ours()
    del client
    gc.collect()
    thread.join(SOON_S)
    assert ours() == []


def test_a_forked_child_is_told_and_its_parent_goes_on(host: HostPlace) -> None:
    """The child has no thread of ours, breaks nothing of its parent's, and can make a client of its own."""
    with a_client() as client:
        client.fetch(wanted(host, 1), Deadline(SOON_S))
        pid = os.fork()
        if pid == 0:
            os._exit(in_the_child(client, host))
        assert os.waitpid(pid, 0)[1] == 0
        (outcome,) = client.fetch(wanted(host, 2), Deadline(SOON_S))
        assert isinstance(outcome, Fetched)
        assert client.statistics().pool.dropped == 0


def in_the_child(client: PayloadClient, host: HostPlace) -> int:
    """Return 0 if all is as it should be."""
    try:
        client.fetch(wanted(host, 1), Deadline(1.0))
        return 1
    except DataPlaneUnavailable as refused:
        if "does not survive a fork" not in str(refused):
            return 2
    client.close()
    del client
    gc.collect()
    with a_client() as own:
        (outcome,) = own.fetch(wanted(host, 3), Deadline(SOON_S))
    return 0 if isinstance(outcome, Fetched) else 3


def test_an_interpreter_that_ends_without_closing_ends(host: HostPlace) -> None:
    """At once and with nothing on its error output, though a client is open and has connections."""
    program = f"""
        from penstock.parts import HostPlace
        from penstock.retry import Deadline
        from penstock.transport.client import PayloadClient
        from penstock.transport.config import TransportConfig
        from tests.transport.station import a_wire
        from tests.transport.test_client_thread import wanted

        client = PayloadClient({{"tcp": a_wire}}, TransportConfig(check_in_thread_bytes=0))
        host = HostPlace(1, 1, "h1", "127.0.0.1", {host.ports})
        (outcome,) = client.fetch(wanted(host, 1), Deadline(30.0))
        print(len(outcome.data))
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(len(a_block(1))), "")
