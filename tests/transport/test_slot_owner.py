"""Beginning and ending reads from other loops: whatever happens to the asker, what was begun is ended once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from penstock.errors import DataPlaneUnavailable, StaleSlotError
from penstock.payload.arena import Reading
from penstock.payload.slots import Mode
from penstock.transport.slot_owner import LoopOwner

SOON_S = 20.0


class Books:
    """A store that keeps what was begun and not ended; ``gate`` closed: its loop stands still in ``begin_read``."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.begun = 0
        self.wrong = 0
        self.ended: list[bool] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.gate.set()

    def begin_read(self, block_id: int, generation: int, mode: Mode) -> Reading:
        self.entered.set()
        assert self.gate.wait(SOON_S)
        if block_id < 0:
            raise StaleSlotError("no such block")
        self.begun += 1
        self.open.add(self.begun)
        return Reading(block_id, generation, self.begun, memoryview(b"bytes"))

    def end_read(self, reading: Reading, *, consumed: bool) -> bool:
        self.wrong += reading.token not in self.open
        self.open.discard(reading.token)
        self.ended.append(consumed)
        return True


class Owner:
    """A loop in a thread, and its owner of books."""

    def __init__(self, patience_s: float = SOON_S) -> None:
        self.books = Books()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.rooms = 0
        self.owner = LoopOwner(self.books, self.loop, ended=self._on_end, patience_s=patience_s)

    def _on_end(self) -> None:
        assert threading.current_thread() is self._thread
        self.rooms += 1

    def settle(self) -> None:
        """Wait until the loop has done all that it was asked to."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(done.set)
        assert done.wait(SOON_S)

    def close(self) -> None:
        self.books.gate.set()
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(SOON_S)
            self.loop.close()


@pytest.fixture
def made() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


def test_a_read_is_begun_and_ended_on_the_owners_loop(made: Owner) -> None:
    """The asker gets what the store said, from another thread's loop, and its word at the end is carried there."""

    async def read(consumed: bool) -> None:
        reading = await made.owner.begin_read(7, 3, Mode.CONSUME)
        assert (reading.block_id, reading.generation, bytes(reading.data)) == (7, 3, b"bytes")
        made.owner.end_read(reading, consumed=consumed)

    asyncio.run(read(True))
    asyncio.run(read(False))
    made.settle()
    assert (made.books.ended, made.books.open, made.rooms) == ([True, False], set(), 2)


def test_a_refusal_is_raised_where_it_was_asked(made: Owner) -> None:
    """With its own type; nothing is begun and nothing ended."""
    with pytest.raises(StaleSlotError):
        asyncio.run(made.owner.begin_read(-1, 3, Mode.RETAIN))
    made.settle()
    assert (made.books.begun, made.books.ended) == (0, [])


def test_who_leaves_before_the_owner_decides_begins_nothing(made: Owner) -> None:
    """Cancelled while the owner's loop is busy elsewhere: it never touches the slot."""

    async def leave() -> None:
        blocked = threading.Event()
        made.loop.call_soon_threadsafe(blocked.wait, SOON_S)
        asking = asyncio.create_task(made.owner.begin_read(7, 3, Mode.RETAIN))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        blocked.set()

    asyncio.run(leave())
    made.settle()
    assert (made.books.begun, made.books.ended) == (0, [])


def test_who_leaves_while_the_owner_decides_has_it_ended(made: Owner) -> None:
    """The store is in the middle of beginning when the asker is cancelled, and its loop ends as well."""

    async def leave() -> None:
        made.books.gate.clear()
        asking = asyncio.create_task(made.owner.begin_read(7, 3, Mode.RETAIN))
        assert await asyncio.to_thread(made.books.entered.wait, SOON_S)
        threading.Timer(0.01, made.books.gate.set).start()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    asyncio.run(leave())
    made.settle()
    assert (made.books.begun, made.books.ended, made.books.open) == (1, [False], set())


def test_who_leaves_when_the_answer_has_come_has_it_ended(made: Owner) -> None:
    """The answer waits on the asker's loop; the cancellation is delivered first."""

    async def leave() -> None:
        asking = asyncio.create_task(made.owner.begin_read(7, 3, Mode.RETAIN))
        await asyncio.sleep(0)  # it asks
        made.settle()  # the owner has answered; this loop has not turned since
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(leave())
    made.settle()
    assert (made.books.begun, made.books.ended, made.books.open) == (1, [False], set())


def test_many_who_leave_at_any_moment_leave_nothing_begun(made: Owner) -> None:
    """Two hundred askers on three loops, cancelled after zero to four turns of theirs."""

    async def ask_and_leave(number: int) -> None:
        asking = asyncio.create_task(made.owner.begin_read(number, 1, Mode.RETAIN))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            made.owner.end_read(await asking, consumed=False)

    async def crowd() -> None:
        for number in range(200):
            await ask_and_leave(number)

    threads = [threading.Thread(target=asyncio.run, args=(crowd(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON_S)
    made.settle()
    assert (made.books.open, made.books.wrong) == (set(), 0)
    assert len(made.books.ended) == made.books.begun


def test_an_owner_that_stands_still_is_unavailable_and_nothing_stays_begun() -> None:
    """The asker's patience has an end; what the owner would do later it does not do."""
    made = Owner(patience_s=0.05)
    try:
        blocked = threading.Event()
        made.loop.call_soon_threadsafe(blocked.wait, SOON_S)
        with pytest.raises(DataPlaneUnavailable, match="did not answer within"):
            asyncio.run(made.owner.begin_read(7, 3, Mode.RETAIN))
        blocked.set()
        made.settle()
        assert (made.books.begun, made.books.ended) == (0, [])
    finally:
        made.close()


def test_an_owner_that_has_ended_is_unavailable(made: Owner) -> None:
    """Its slots are gone with it: ending a read is no error any more."""

    async def read() -> Reading:
        return await made.owner.begin_read(7, 3, Mode.RETAIN)

    reading = asyncio.run(read())
    made.close()
    made.owner.end_read(reading, consumed=True)
    with pytest.raises(DataPlaneUnavailable, match="has ended"):
        asyncio.run(read())


def test_a_bug_of_the_owner_is_not_called_its_silence(made: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asked is told at once, and the owner's loop has the traceback."""
    seen: list[object] = []
    made.loop.set_exception_handler(lambda _, context: seen.append(context.get("exception")))

    def broken(*_: object) -> Reading:
        raise ZeroDivisionError

    monkeypatch.setattr(made.books, "begin_read", broken)

    async def read() -> None:
        async with asyncio.timeout(SOON_S / 2):
            await made.owner.begin_read(1, 1, Mode.RETAIN)

    with pytest.raises(RuntimeError, match="bug of the arena's owner"):
        asyncio.run(read())
    made.settle()
    assert [type(error) for error in seen] == [ZeroDivisionError]


def test_the_owners_own_loop_may_ask(made: Owner) -> None:
    """One loop for everything works as well."""

    async def read() -> None:
        made.owner.end_read(await made.owner.begin_read(1, 1, Mode.RETAIN), consumed=False)

    asyncio.run_coroutine_threadsafe(read(), made.loop).result(SOON_S)
    made.settle()
    assert made.books.open == set()
