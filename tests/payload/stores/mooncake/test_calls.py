"""Every call of a client: under a deadline, never after its close, its reply counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from penstock.errors import DataPlaneUnavailable
from penstock.payload.stores.mooncake.calls import _LEFT_BEHIND, LANES, Calls
from penstock.payload.stores.mooncake.codes import LATE, MISALIGNED, RAISED
from penstock.payload.stores.mooncake.library import Client
from penstock.retry import Deadline

SOON = 20.0  # seconds; nothing here takes as long


class Closing:
    """A client that notes when it is closed, and what else was under way then."""

    def __init__(self) -> None:
        self.closed = 0
        self.under_way = 0
        self.seen: list[int] = []

    def close(self) -> int:
        self.closed += 1
        self.seen.append(self.under_way)
        return 0


class Gate:
    """A call that does not come back until it is opened."""

    def __init__(self, client: Closing) -> None:
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._client = client

    def __call__(self, count: int = 1) -> list[int]:
        self._client.under_way += 1
        self.entered.release()
        self._open.wait(SOON)
        self._client.under_way -= 1
        return [0] * count

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def client() -> Closing:
    return Closing()


@pytest.fixture
def gate(client: Closing) -> Iterator[Gate]:
    made = Gate(client)
    yield made
    made.open()


@pytest.fixture
def calls(client: Closing) -> Iterator[Calls]:
    made = Calls(cast("Client", client))
    yield made
    made.retire()


def now() -> Deadline:
    return Deadline(0.02)


def test_a_call_answers_a_code_for_each_key(calls: Calls) -> None:
    """As the library gave them."""
    assert calls.codes(calls.submit(lambda: [0, -704]), 2, Deadline(SOON)) == [0, -704]
    assert calls.one(lambda: 7, deadline=Deadline(SOON)) == 7


@pytest.mark.parametrize("reply", [[], [0], [0, 0, 0], None, {}, "ab", [0, None], (0, 0)])
def test_a_reply_that_does_not_fit_the_keys_is_not_believed(calls: Calls, reply: Any) -> None:
    """Not a part of it."""
    assert calls.codes(calls.submit(lambda: reply), 2, Deadline(SOON)) == [MISALIGNED, MISALIGNED]


def test_what_the_library_raises_is_a_code(calls: Calls) -> None:
    """For every key: it is not known how far it came."""

    def raises() -> list[int]:
        raise RuntimeError("cannot convert")

    assert calls.codes(calls.submit(raises), 2, Deadline(SOON)) == [RAISED, RAISED]
    assert calls.one(cast("Any", raises), deadline=Deadline(SOON)) == RAISED


def test_nobody_waits_past_the_deadline(calls: Calls, gate: Gate) -> None:
    """The call is left alone with its thread, and counted."""
    began = time.monotonic()
    assert calls.codes(calls.submit(gate), 3, now()) == [LATE] * 3
    assert time.monotonic() - began < SOON / 2
    assert calls.stuck == 1


def test_a_call_that_nobody_waits_for_any_more_is_not_made(calls: Calls, gate: Gate) -> None:
    """One that still waited for a thread when its deadline came."""
    stuck = [calls.submit(gate) for _ in range(LANES)]
    for _ in stuck:
        assert gate.entered.acquire(timeout=SOON)
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return [0]

    assert calls.codes(calls.submit(make), 1, now()) == [LATE]
    gate.open()
    for job in stuck:
        assert calls.codes(job, 1, Deadline(SOON)) == [0]
    assert calls.one(lambda: 0, deadline=Deadline(SOON)) == 0
    assert made == []


def test_no_call_is_made_after_the_end(calls: Calls, client: Closing) -> None:
    """The real library would end the process."""
    assert calls.one(lambda: 0, deadline=Deadline(SOON)) == 0
    calls.retire()
    assert calls.join(SOON)
    with pytest.raises(DataPlaneUnavailable):
        calls.submit(lambda: [0])
    assert client.closed == 1


def test_the_client_is_closed_when_its_last_call_has_ended(calls: Calls, client: Closing, gate: Gate) -> None:
    """Not before, however long that takes; and once."""
    calls.codes(calls.submit(gate), 1, now())
    calls.retire()
    calls.retire()
    assert not calls.join(0.05)
    assert client.closed == 0
    gate.open()
    assert calls.join(SOON)
    assert (client.closed, client.seen) == (1, [0])


def test_one_call_that_ends_does_not_close_under_another(calls: Calls, client: Closing, gate: Gate) -> None:
    """The last one does."""
    other = Gate(client)
    for one in (gate, other):
        calls.submit(one)
        assert one.entered.acquire(timeout=SOON)
    calls.retire()
    other.open()
    assert not calls.join(0.05)
    assert client.closed == 0
    gate.open()
    assert calls.join(SOON)
    assert (client.closed, client.seen) == (1, [0])


def test_who_waits_is_sent_home_at_the_end(calls: Calls, gate: Gate) -> None:
    """With the reason; the call itself goes on."""
    job = calls.submit(gate)
    assert gate.entered.acquire(timeout=SOON)
    ended: list[str] = []

    def wait() -> None:
        with pytest.raises(DataPlaneUnavailable) as caught:
            calls.codes(job, 1, Deadline(SOON))
        ended.append(str(caught.value))

    waiting = threading.Thread(target=wait)
    waiting.start()
    calls.retire(refuse="the store was closed")
    waiting.join(SOON)
    assert ended == ["the store was closed"]


def test_threads_are_as_many_as_calls_at_once(calls: Calls) -> None:
    """And end with the last call."""
    before = threading.active_count()
    for _ in range(20):
        calls.one(lambda: 0, deadline=Deadline(SOON))
    assert threading.active_count() <= before + LANES
    calls.retire()
    assert calls.join(SOON)


def test_a_client_that_may_not_be_closed_is_left_behind(client: Closing) -> None:
    """Closing it would stop the whole process for as long as the master is silent."""
    calls = Calls(cast("Client", client), may_close=lambda: False)
    assert calls.one(lambda: 0, deadline=Deadline(SOON)) == 0
    calls.retire()
    assert calls.join(SOON)
    assert client.closed == 0


def test_a_client_that_was_never_called_is_neither_closed_nor_kept(client: Closing) -> None:
    """It is not open: the store was found to be away before its setup, at every try of an outage."""
    asked: list[int] = []
    before = len(_LEFT_BEHIND)

    def may_close() -> bool:
        asked.append(1)
        return False

    calls = Calls(cast("Client", client), may_close=may_close)
    calls.retire()
    assert calls.ended.is_set()
    assert (asked, client.closed, len(_LEFT_BEHIND)) == ([], 0, before)
