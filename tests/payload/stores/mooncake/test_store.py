"""The store as its callers see it: closing, counting, and what a call under way does then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from penstock.errors import DataPlaneUnavailable, RefusedType
from penstock.payload.stores.contract import Failed, Missing, Ok
from penstock.payload.stores.mooncake.store import MooncakeStore
from penstock.retry import NONE, Deadline
from penstock.testing.fake_mooncake import FakeMooncake
from penstock.testing.fake_mooncake_faults import fail, hang
from tests.payload.stores.sites import FakeSite

SOON = 20.0


def test_without_retries_a_failure_is_a_failure(site: FakeSite) -> None:
    """The policy is the caller's to choose; None is never confused with it."""
    store = MooncakeStore(
        site.fake.config(), library=site.fake, ask=site.fake.ask, clock=site.clock, sleep=site.sleep, policy=NONE
    )
    with store:
        store.put_many(["a"], [b"v"], site.deadline())
        site.fake.inject(fail(-800, call="get", key="a"))
        (outcome,) = store.get_many(["a"], [1], site.deadline())
        assert isinstance(outcome, Failed)
        assert (outcome.code, outcome.attempts, outcome.reason) == ("-800", 1, "attempts")
        assert store.get_many(["a"], [1], site.deadline()) == [Ok(memoryview(b"v"), 1)]


@pytest.mark.parametrize("call", ["put", "get", "exists", "remove", "life"])
def test_close_ends_the_calls_that_are_under_way(call: str) -> None:
    """With ``DataPlaneUnavailable``, whether they wait for the library or for their next attempt."""
    with ExitStack() as stack:
        fake = stack.enter_context(FakeMooncake())
        store = stack.enter_context(MooncakeStore(fake.config(), library=fake, ask=fake.ask))
        stuck = fake.inject(hang(call="get" if call == "life" else "describe" if call == "get" else call))  # type: ignore[arg-type]
        deadline = Deadline(SOON)
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: store.put_many(["k"], [b"v"], deadline),
            "get": lambda: store.get_many(["k"], None, deadline),
            "exists": lambda: store.exists_many(["k"], deadline),
            "remove": lambda: store.remove_many(["k"], deadline),
            "life": lambda: store.life(deadline),
        }
        if call == "exists":
            stuck.call = "describe"
        ended: list[str] = []

        def wait() -> None:
            with pytest.raises(DataPlaneUnavailable) as caught:
                calls[call]()
            ended.append(str(caught.value))

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert stuck.entered.wait(SOON)
        began = time.monotonic()
        store.close(0.05)
        waiting.join(SOON)
        assert ended == ["the store was closed"]
        assert time.monotonic() - began < SOON / 2
        assert fake.misuses == []


def test_close_does_not_wait_for_a_retry() -> None:
    """Who waits for his next attempt is woken."""
    with FakeMooncake() as fake, MooncakeStore(fake.config(), library=fake, ask=fake.ask) as store:
        fault = fake.inject(fail(-800, call="describe", times=10_000))
        fake.inject(fail(-800, call="get", times=10_000))
        ended = threading.Event()

        def wait() -> None:
            with pytest.raises(DataPlaneUnavailable):
                store.get_many(["k"], None, Deadline(60.0))
            ended.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        until = time.monotonic() + SOON
        while fault.fired < 3 and time.monotonic() < until:
            time.sleep(0.005)
        store.close()
        assert ended.wait(SOON)
        waiting.join()


def test_a_call_after_close_is_refused(site: FakeSite) -> None:
    """Each of them, and closing again is fine."""
    store = site.open()
    store.close()
    store.close()
    deadline = site.deadline()
    for call in (
        lambda: store.put_many(["k"], [b"v"], deadline),
        lambda: store.get_many(["k"], None, deadline),
        lambda: store.exists_many(["k"], deadline),
        lambda: store.remove_many(["k"], deadline),
        lambda: store.life(deadline),
    ):
        with pytest.raises(DataPlaneUnavailable, match="closed"):
            call()
    assert site.fake.misuses == []


def test_what_is_no_bytes_is_refused(site: FakeSite) -> None:
    """None is not an empty value; its key is named."""
    store = site.open()
    with pytest.raises(RefusedType, match="'b'") as caught:
        store.put_many(["a", "b"], [b"", None], site.deadline())  # type: ignore[list-item]
    assert caught.value.keys == ["b"]
    assert store.get_many(["a"], None, site.deadline()) == [Missing()]


def test_a_removal_is_by_force_and_of_every_copy(site: FakeSite) -> None:
    """What was just read is leased to its reader; removing goes on all the same, and again after failures."""
    store = site.open(replicas=2)
    store.put_many(["a"], [b"v"], site.deadline())
    store.get_many(["a"], None, site.deadline())
    fault = site.fake.inject(fail(-900, call="remove", times=2))
    assert store.remove_many(["a", "never"], site.deadline()) == [Ok(), Ok()]
    assert fault.fired == 2
    assert [key for key in site.fake.master.keys if "canary" not in key] == []


def test_everything_is_counted(site: FakeSite) -> None:
    """Outcomes by call, bytes, memory, retries."""
    store = site.open()
    site.fake.inject(fail(-800, call="get", key="a"))
    store.put_many(["a", "b"], [b"12", b"3"], site.deadline())
    store.get_many(["a", "a", "none"], None, site.deadline())
    counts = store.statistics()
    assert counts.outcomes == {("put", "Ok"): 2, ("get", "Ok"): 2, ("get", "Missing"): 1}
    assert (counts.bytes_written, counts.bytes_read) == (3, 4)
    assert counts.memory_bytes >= counts.quarantined_bytes > 0
    assert counts.retries.outcomes["get", "-800"] == 1
    assert (counts.clients_replaced, counts.restarts, counts.failovers) == (0, 0, 0)
    assert "fake:1" in repr(store)


def test_a_full_quarantine_costs_its_client(site: FakeSite) -> None:
    """Memory is bounded: what is held back goes with the connection it belongs to."""
    store = site.open(local_buffer=1 << 20)
    value = bytes(300_000)
    for number in range(8):
        site.fake.inject(fail(-800, call="put", key=f"k{number}"))
        assert store.put_many([f"k{number}"], [value], site.deadline()) == [Ok(nbytes=len(value))]
        assert store.statistics().memory_bytes <= 6 << 20
    assert store.statistics().clients_replaced >= 2
    outcomes = store.get_many([f"k{number}" for number in range(8)], None, site.deadline())
    assert outcomes == [Ok(memoryview(value), len(value))] * 8


def test_a_batch_beyond_the_memory_is_moved_in_shares(site: FakeSite) -> None:
    """Neither refused nor granted more."""
    store = site.open(local_buffer=1 << 20)
    keys, value = [f"k{number}" for number in range(40)], bytes(100_000)
    assert store.put_many(keys, [value] * 40, site.deadline()) == [Ok(nbytes=len(value))] * 40
    assert store.get_many(keys, None, site.deadline()) == [Ok(memoryview(value), len(value))] * 40
    assert store.statistics().memory_bytes <= 1 << 20


def test_a_store_that_does_not_open_says_why(site: FakeSite) -> None:
    """Within its time, and it leaves nothing open."""
    site.fake.inject(fail(-900, call="setup", times=10_000))
    began = site.clock.now
    with pytest.raises(DataPlaneUnavailable, match=r"fake:1 .* -900"):
        site.open(open_timeout_s=3.0)
    assert site.clock.now - began <= 4.0
    assert not any(client.is_open for client in site.fake._clients)


def test_a_master_that_is_away_while_a_store_opens_is_waited_for(site: FakeSite) -> None:
    """As it is in calls."""
    fault = site.fake.inject(fail(-900, call="setup", times=3))
    assert site.open(open_timeout_s=20.0).life(site.deadline())
    assert fault.fired == 3
