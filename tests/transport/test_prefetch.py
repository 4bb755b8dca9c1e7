"""The prefetcher: a batch's result is its own, whatever happened to the others; bounds; ends."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from penstock.errors import (
    BadArgument,
    DataPlaneReadError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
)
from penstock.records import KVBatchMeta
from penstock.transport.prefetch import Prefetcher, Resolved, resolved_bytes, row_by_row

SOON_S = 30.0


class Source:
    """Fetches batches by name, each when it is let; notes which were begun."""

    def __init__(self, *, held: bool = False) -> None:
        self._changed = threading.Condition()
        self._held = held
        self._let: set[str] = set()
        self.begun: list[str] = []
        self.timeouts: list[float] = []
        self.fails: dict[str, BaseException] = {}

    def fetch(self, name: str, timeout_s: float) -> str:
        with self._changed:
            self.begun.append(name)
            self.timeouts.append(timeout_s)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._held or name in self._let, SOON_S)
        if name in self.fails:
            raise self.fails[name]
        return f"payload of {name}"

    def let(self, name: str) -> None:
        with self._changed:
            self._let.add(name)
            self._changed.notify_all()

    def wait_for(self, *names: str) -> None:
        """Until the fetches that were begun are these."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.begun == list(names), SOON_S), self.begun


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "penstock-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def settled(prefetcher: Prefetcher[str, str], condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds, woken by the prefetcher's own changes."""
    with prefetcher._desk._changed:
        assert prefetcher._desk._changed.wait_for(condition, SOON_S)


def test_batches_are_fetched_ahead_and_in_order() -> None:
    """While the first is still with the caller, the next one is fetched."""
    source = Source()
    with Prefetcher(source.fetch, depth=3, timeout_s=7.0) as prefetcher:
        tickets = [prefetcher.submit(name) for name in "abc"]
        settled(prefetcher, lambda: prefetcher.statistics().fetched == 3)
        assert source.begun == ["a", "b", "c"]
        assert [prefetcher.result(ticket) for ticket in tickets] == [f"payload of {name}" for name in "abc"]
        assert source.timeouts == [7.0] * 3


def test_after_a_timeout_every_later_batch_gets_its_own_payload() -> None:
    """The trap: a wait that ignored whose result it was gave each batch the one before's from then on."""
    source = Source(held=True)
    with Prefetcher(source.fetch, depth=2) as prefetcher:
        a, b = prefetcher.submit("a"), prefetcher.submit("b")
        with pytest.raises(DataPlaneTimeout, match="batch 1 is still fetching"):
            prefetcher.result(a, timeout_s=0.01)
        with pytest.raises(DataPlaneTimeout, match="batch 2 is still queued"):
            prefetcher.result(b, timeout_s=0.0)
        assert prefetcher.cancel(a)
        c = prefetcher.submit("c")
        for name in "abc":
            source.let(name)
        assert prefetcher.result(b) == "payload of b"
        assert prefetcher.result(c) == "payload of c"
        assert prefetcher.statistics().late == 2


def test_a_result_that_was_late_can_still_be_had() -> None:
    """The ticket stays good; and it is good once."""
    source = Source(held=True)
    with Prefetcher(source.fetch) as prefetcher:
        ticket = prefetcher.submit("a")
        with pytest.raises(DataPlaneTimeout):
            prefetcher.result(ticket, timeout_s=0.01)
        source.let("a")
        assert prefetcher.result(ticket) == "payload of a"
        with pytest.raises(BadArgument, match="there is no batch 1"):
            prefetcher.result(ticket)


def test_results_may_be_taken_in_any_order() -> None:
    """Each is its own."""
    source = Source()
    with Prefetcher(source.fetch, depth=3) as prefetcher:
        a, b, c = (prefetcher.submit(name) for name in "abc")
        assert [prefetcher.result(ticket)[-1] for ticket in (c, a, b)] == ["c", "a", "b"]


def test_a_batch_that_fails_is_that_batchs_failure() -> None:
    """Its error is raised to who takes it, whatever its type; the others come."""
    source = Source()
    source.fails = {"a": DataPlaneReadError("rows are lost", keys=["k"]), "b": ZeroDivisionError("a bug")}
    with Prefetcher(source.fetch, depth=3) as prefetcher:
        a, b, c = (prefetcher.submit(name) for name in "abc")
        with pytest.raises(DataPlaneReadError) as lost:
            prefetcher.result(a)
        assert lost.value.keys == ["k"]
        with pytest.raises(ZeroDivisionError):
            prefetcher.result(b)
        assert prefetcher.result(c) == "payload of c"
        assert (prefetcher.statistics().failed, prefetcher.statistics().fetched) == (2, 1)


@pytest.mark.parametrize("end", [asyncio.CancelledError(), SystemExit(3)])
def test_a_fetch_that_would_end_its_thread_is_that_batchs_failure(end: BaseException) -> None:
    """A cancellation inside a fetch, or an exit, reaches who takes the batch; the batches after it still come."""
    source = Source()
    source.fails = {"a": end}
    with Prefetcher(source.fetch, depth=2, timeout_s=SOON_S / 3) as prefetcher:
        a, b = prefetcher.submit("a"), prefetcher.submit("b")
        with pytest.raises(type(end)):
            prefetcher.result(a)
        assert prefetcher.result(b) == "payload of b"


def test_no_more_than_depth_batches_are_ahead() -> None:
    """One more is refused, until one is taken or cancelled."""
    source = Source()
    with Prefetcher(source.fetch, depth=2) as prefetcher:
        a, b = prefetcher.submit("a"), prefetcher.submit("b")
        with pytest.raises(BadArgument, match="2 batches are ahead"):
            prefetcher.submit("c")
        prefetcher.result(a)
        prefetcher.submit("c")
        assert prefetcher.cancel(b)
        assert not prefetcher.cancel(b)
        prefetcher.submit("d")
        assert prefetcher.statistics().ahead == 2


def test_waiting_results_are_bounded_in_bytes() -> None:
    """A fetch does not begin while a result as large as the largest would be too much; alone it always may."""
    source = Source()
    sizes = {"a": 60, "b": 30, "c": 30, "d": 500, "e": 1}
    limits = {"depth": 9, "max_bytes": 100}
    with Prefetcher(source.fetch, nbytes_of=lambda value: sizes[value[-1]], **limits) as prefetcher:
        a, b, c, d, e = (prefetcher.submit(name) for name in "abcde")
        source.wait_for("a")
        settled(prefetcher, lambda: prefetcher.statistics().waiting_bytes == 60)
        assert prefetcher.statistics().fetched == 1  # another 60 would be 120
        prefetcher.result(a)
        source.wait_for("a", "b", "c")  # 30 and 60; then 60 and 60
        settled(prefetcher, lambda: prefetcher.statistics().waiting_bytes == 60)
        prefetcher.result(b)
        source.wait_for("a", "b", "c", "d")
        settled(prefetcher, lambda: prefetcher.statistics().waiting_bytes == 530)
        prefetcher.result(c)
        prefetcher.result(d)
        assert prefetcher.result(e) == "payload of e"
        assert prefetcher.statistics().waiting_bytes == 0


def test_a_cancelled_batch_is_not_fetched_or_not_kept() -> None:
    """Before its fetch: never begun. During it: what comes is thrown away, and counts no bytes."""
    source = Source(held=True)
    with Prefetcher(source.fetch, depth=3, nbytes_of=len) as prefetcher:
        a, b, c = (prefetcher.submit(name) for name in "abc")
        source.wait_for("a")
        assert prefetcher.cancel(a)
        assert prefetcher.cancel(b)
        source.let("a")
        source.let("c")
        assert prefetcher.result(c) == "payload of c"
        assert source.begun == ["a", "c"]
        counts = prefetcher.statistics()
        assert (counts.cancelled, counts.ahead, counts.waiting_bytes) == (2, 0, 0)


def test_cancelling_wakes_who_waits_for_it() -> None:
    """He is told that there is no such batch, at once."""
    source = Source(held=True)
    with Prefetcher(source.fetch) as prefetcher:
        ticket = prefetcher.submit("a")
        threading.Timer(0.05, lambda: prefetcher.cancel(ticket)).start()
        with pytest.raises(BadArgument, match="taken or cancelled"):
            prefetcher.result(ticket, timeout_s=SOON_S)
        source.let("a")


def test_close_calls_everything_off_and_joins() -> None:
    """What was queued is never begun, who waited is told, later calls are refused; twice is once."""
    source = Source(held=True)
    prefetcher = Prefetcher(source.fetch, depth=3)
    a, _ = prefetcher.submit("a"), prefetcher.submit("b")
    source.wait_for("a")
    told: list[str] = []

    def wait() -> None:
        try:
            prefetcher.result(a, timeout_s=SOON_S)
        except DataPlaneUnavailable as error:
            told.append(str(error))
        source.let("a")  # only then does its fetch end

    waiter = threading.Thread(target=wait)
    waiter.start()
    settled(prefetcher, lambda: True)
    prefetcher.close()
    waiter.join(SOON_S)
    assert told == ["the prefetcher is closed"]
    assert (threads(), source.begun) == ([], ["a"])
    counts = prefetcher.statistics()
    assert (counts.ahead, counts.cancelled) == (0, 2)
    for call in (lambda: prefetcher.submit("c"), lambda: prefetcher.result(a)):
        with pytest.raises(DataPlaneUnavailable, match="is closed"):
            call()
    prefetcher.close()


def test_a_fetch_that_ignores_its_timeout_does_not_hang_close(caplog: pytest.LogCaptureFixture) -> None:
    """It is given up, and that is logged."""
    source = Source(held=True)
    prefetcher = Prefetcher(source.fetch)
    prefetcher.submit("a")
    source.wait_for("a")
    prefetcher.close(timeout_s=0.05)
    assert "did not end" in caplog.text
    source.let("a")
    for thread in threads():
        thread.join(SOON_S)


def test_a_prefetcher_that_is_dropped_ends_its_thread() -> None:
    """The garbage collector is enough."""
    prefetcher: Prefetcher[str, str] = Prefetcher(Source().fetch)
    prefetcher.result(prefetcher.submit("a"))
    (thread,) = threads()
    del prefetcher
    gc.collect()
    thread.join(SOON_S)


def test_a_taken_result_is_let_go_of() -> None:
    """The prefetcher keeps nothing of a batch that was handed out."""

    class Payload:
        alive = 0

        def __init__(self) -> None:
            Payload.alive += 1

        def __del__(self) -> None:
            Payload.alive -= 1

    def fetch(_name: str, _timeout_s: float) -> Payload:
        return Payload()

    with Prefetcher(fetch) as prefetcher:
        value = prefetcher.result(prefetcher.submit("a"))
        del value
        prefetcher.result(prefetcher.submit("b"))  # the thread has gone on
        gc.collect()
        assert Payload.alive == 0


def test_a_forked_child_is_told() -> None:
    """The thread is its parent's; the parent goes on."""
    with Prefetcher(Source().fetch) as prefetcher:
        ticket = prefetcher.submit("a")
        pid = os.fork()
        if pid == 0:
            try:
                prefetcher.result(ticket, timeout_s=1.0)
            except DataPlaneUnavailable as told:
                prefetcher.close()
                os._exit(0 if "does not survive a fork" in str(told) else 2)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert prefetcher.result(ticket) == "payload of a"


def test_an_interpreter_that_ends_without_closing_waits_for_the_fetch_under_way() -> None:
    """And for nothing else: what was queued is called off."""
    program = """
        import threading, time
        from penstock.transport.prefetch import Prefetcher

        begun = threading.Event()

        def fetch(name, timeout_s):
            begun.set()
            time.sleep(0.3)
            print(name, flush=True)

        prefetcher = Prefetcher(fetch)
        prefetcher.submit("a"), prefetcher.submit("b")
        begun.wait(30)
    """
    command = [sys.executable, "-X", "dev", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")


@pytest.mark.parametrize("limits", [{"depth": 0}, {"max_bytes": 0}, {"timeout_s": -1.0}, {"timeout_s": float("inf")}])
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    """At once, by name."""
    with pytest.raises(BadArgument):
        Prefetcher(Source().fetch, **limits)  # type: ignore[arg-type]


# -- the iterator -----------------------------------------------------------------------------------------------------


def test_going_through_batches_keeps_depth_ahead() -> None:
    """The next one is with the thread before the current one is handed out; a failure does not end the others."""
    source = Source()
    source.fails = {"b": DataPlaneReadError("lost")}
    with Prefetcher(source.fetch, depth=2) as prefetcher:
        taken: list[tuple[str, str]] = []
        for batch in prefetcher.batches("abcd"):
            assert prefetcher.statistics().ahead == min(2, 3 - len(taken))
            taken.append((batch.asked, type(batch.error).__name__ if batch.error else batch.require()))
        assert taken == [
            ("a", "payload of a"),
            ("b", "DataPlaneReadError"),
            ("c", "payload of c"),
            ("d", "payload of d"),
        ]
        assert prefetcher.statistics().ahead == 0


def test_an_error_of_a_batch_is_raised_by_require() -> None:
    """And not before."""
    source = Source()
    source.fails = {"a": DataPlaneReadError("lost")}
    with Prefetcher(source.fetch) as prefetcher:
        (batch,) = prefetcher.batches(["a"])
        with pytest.raises(DataPlaneReadError, match="lost"):
            batch.require()


def test_leaving_the_loop_calls_the_rest_off() -> None:
    """Nothing stays ahead."""
    source = Source()
    with Prefetcher(source.fetch, depth=2) as prefetcher:
        batches = prefetcher.batches("abcd")
        assert next(batches).require() == "payload of a"
        batches.close()  # type: ignore[attr-defined]
        assert prefetcher.statistics().ahead == 0
        assert prefetcher.result(prefetcher.submit("z")) == "payload of z"


def test_a_batch_that_does_not_come_in_time_is_reported_and_the_next_is_its_own() -> None:
    """The iterator waits twice a fetch's time, and then goes on with the next batch's own payload."""
    source = Source(held=True)
    source.let("b")
    with Prefetcher(source.fetch, depth=2, timeout_s=0.0) as prefetcher:
        prefetcher._patience = lambda timeout_s=None: type(prefetcher)._patience(prefetcher, 0.05)  # type: ignore[method-assign]
        batches = prefetcher.batches("ab")
        first = next(batches)
        assert isinstance(first.error, DataPlaneTimeout)
        source.let("a")
        prefetcher._patience = lambda timeout_s=None: type(prefetcher)._patience(prefetcher, SOON_S)  # type: ignore[method-assign]
        assert next(batches).require() == "payload of b"


# -- row by row -------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_read_are_named_and_the_others_delivered() -> None:
    """Over a client's ``get_data``, which is asked to drop them."""
    asked: list[tuple[str, float]] = []

    def get_data(meta: KVBatchMeta, *, on_failed: str, timeout_s: float) -> tuple[list[str], KVBatchMeta]:
        asked.append((on_failed, timeout_s))
        kept = [key for key in meta.sample_ids if key != "y"]
        return [f"row {key}" for key in kept], KVBatchMeta("train", None, kept)

    with Prefetcher(row_by_row(get_data), timeout_s=9.0) as prefetcher:
        meta = KVBatchMeta("train", None, ["x", "y", "z"])
        resolved = prefetcher.result(prefetcher.submit(meta))
    assert isinstance(resolved, Resolved)
    assert (resolved.columns, resolved.meta.sample_ids, resolved.missing) == (["row x", "row z"], ["x", "z"], ("y",))
    assert asked == [("drop", 9.0)]


def test_the_bytes_of_a_clients_batches_are_counted() -> None:
    """Dense columns and ragged ones: what waits to be taken is known."""
    import torch
    from tensordict import TensorDict

    def get_data(meta: KVBatchMeta, *, on_failed: str, timeout_s: float) -> tuple[Any, KVBatchMeta]:
        ragged = torch.nested.nested_tensor([torch.ones(3), torch.ones(5)], layout=torch.jagged)
        return TensorDict({"x": torch.zeros(2, 1000), "r": ragged}, [2]), meta

    with Prefetcher(row_by_row(get_data), nbytes_of=resolved_bytes) as prefetcher:
        ticket = prefetcher.submit(KVBatchMeta("train", None, ["a", "b"]))
        with prefetcher._desk._changed:
            assert prefetcher._desk._changed.wait_for(lambda: prefetcher.statistics().fetched == 1, SOON_S)
        assert 8000 + 32 <= prefetcher.statistics().waiting_bytes <= 9000
        prefetcher.result(ticket)
