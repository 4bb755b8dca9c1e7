"""What two agents say to each other: both at once, over connections that break, with peers that speak garbage."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import xxhash

from penstock.endpoint.connection import Connection
from penstock.errors import DataPlaneError, DataPlaneFull, TransportError
from penstock.host import conversation
from penstock.host.conversation import Conversation, Copy
from penstock.parts import BlockPlace, HostPlace
from penstock.retry import Deadline
from penstock.testing.memory_wire import Fault, MemoryNetwork, MemoryWire

LIMIT_S = 20.0  # of a test; far above what it takes
SOURCE = HostPlace(1, 1, "alpha", "10.0.0.1", [7001])


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


def block(block_id: int, host: int = 1) -> BlockPlace:
    return BlockPlace(block_id, 1, 0, 64, 3, 0, host)


async def copied(asked: Copy) -> BlockPlace:
    """A peer that always manages; block 13 is unlucky."""
    if asked.block.block_id == 13:
        raise DataPlaneFull("no room for 13")
    return block(asked.block.block_id, host=2)


@asynccontextmanager
async def connected(faults: Sequence[Fault] = ()) -> AsyncIterator[tuple[Connection, Connection]]:
    network = MemoryNetwork()
    other: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def serve(connection: Connection) -> None:
        other.set_result(connection)
        await over.wait()

    listener = await MemoryWire(network).listen("here", 0, serve)
    connection = await MemoryWire(network, faults=faults).connect(listener.address, Deadline(LIMIT_S))
    yield connection, await other
    over.set()
    await listener.close()


@asynccontextmanager
async def talking(faults: Sequence[Fault] = ()) -> AsyncIterator[tuple[Conversation, Conversation]]:
    async with connected(faults) as ends:
        talks = [Conversation(end, copied) for end in ends]
        tasks = [asyncio.create_task(talk.run()) for talk in talks]
        yield talks[0], talks[1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(talk: Conversation, block_id: int, timeout_s: float = LIMIT_S) -> BlockPlace:
    return await talk.ask(block(block_id), 9, SOURCE, Deadline(timeout_s))


def test_both_ask_at_once_and_each_gets_its_own_answer() -> None:
    """A hundred questions from either side, over one connection."""

    async def play() -> None:
        async with talking() as (a, b):
            asked = [ask(talk, n) for n in range(100, 200) for talk in (a, b)]
            answers = await asyncio.gather(*asked)
            assert [place.block_id for place in answers] == [n for n in range(100, 200) for _ in (a, b)]
            assert {place.host for place in answers} == {2}

    run(play())


def test_a_refusal_has_its_reason_and_ends_nothing() -> None:
    """The conversation goes on."""

    async def play() -> None:
        async with talking() as (a, _):
            with pytest.raises(DataPlaneError, match="no room for 13"):
                await ask(a, 13)
            assert (await ask(a, 14)).block_id == 14

    run(play())


def test_who_does_not_wait_any_more_disturbs_nobody() -> None:
    """A deadline or a cancellation leaves the question; its late answer is dropped."""

    async def play() -> None:
        slow = asyncio.Event()

        async def slowly(asked: Copy) -> BlockPlace:
            if asked.block.block_id == 1:
                await slow.wait()
            return await copied(asked)

        async with connected() as (here, there):
            a, b = Conversation(here, copied), Conversation(there, slowly)
            tasks = [asyncio.create_task(talk.run()) for talk in (a, b)]
            with pytest.raises(TransportError, match="has not pulled block 1 within") as late:
                await ask(a, 1, 0.05)
            assert late.value.code == "timeout"
            leaving = asyncio.create_task(ask(a, 1))
            await asyncio.sleep(0)
            leaving.cancel()
            slow.set()
            assert (await ask(a, 2)).block_id == 2
            assert not a.over
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(play())


def test_a_lost_connection_fails_what_was_asked_and_what_will_be() -> None:
    """Nobody waits for his deadline; both sides know that it is over."""

    async def play() -> None:
        async def never(_asked: Copy) -> BlockPlace:
            await asyncio.Event().wait()
            raise AssertionError

        async with connected() as (here, there):
            a, b = Conversation(here, copied), Conversation(there, never)
            tasks = [asyncio.create_task(talk.run()) for talk in (a, b)]
            asked = asyncio.create_task(ask(a, 1))
            await asyncio.sleep(0.01)
            there.abort()
            with pytest.raises(TransportError):
                await asked
            await asyncio.gather(*tasks)
            for talk in (a, b):
                assert talk.over
                with pytest.raises(TransportError):
                    await ask(talk, 2)

    run(play())


def message(body: bytes, magic: bytes = b"PSc\x01", nbytes: int | None = None) -> list[bytes]:
    length = len(body) if nbytes is None else nbytes
    return [struct.pack("<4sIQ", magic, length, xxhash.xxh3_64_intdigest(body)), *([body] if nbytes is None else [])]


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET / HTTP/1.1\r\n"],
        message(b"", nbytes=1 << 31),
        message(b"", nbytes=0),
        message(b"\xc1\xc1\xc1\xc1"),
        message(b"\x90"),
        message(b"\x90", magic=b"PSc\x02"),
        [message(b"\x90")[0], b"\x91"],
    ],
)
def test_garbage_ends_this_conversation_and_nothing_else(parts: list[bytes]) -> None:
    """Another protocol, a length beyond the limit, what is no message."""

    async def play() -> None:
        async with connected() as (here, there):
            talk = Conversation(there, copied)
            task = asyncio.create_task(talk.run())
            await here.send(*parts, deadline=Deadline(LIMIT_S))
            await task
            assert talk.over
            assert here.broken or there.broken

    run(play())


def test_a_peer_that_asks_too_much_at_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has asked does not pile up."""
    monkeypatch.setattr(conversation, "_MAX_SERVED", 2)

    async def play() -> None:
        async def never(_asked: Copy) -> BlockPlace:
            await asyncio.Event().wait()
            raise AssertionError

        async with connected() as (here, there):
            talk = Conversation(there, never)
            asking = Conversation(here, copied)
            tasks = [asyncio.create_task(each.run()) for each in (talk, asking)]
            asked = [asyncio.create_task(ask(asking, n)) for n in range(3)]
            await asyncio.gather(*tasks)
            assert all(isinstance(e, TransportError) for e in await asyncio.gather(*asked, return_exceptions=True))

    run(play())


def test_many_questions_at_once_wait_their_turn() -> None:
    """As many writers as a host may have: the peer, which bounds what is open there, refuses none."""

    async def play() -> None:
        open_there, most = 0, 0

        async def slowly(asked: Copy) -> BlockPlace:
            nonlocal open_there, most
            open_there += 1
            most = max(most, open_there)
            await asyncio.sleep(0.02)
            open_there -= 1
            return await copied(asked)

        async with connected() as (here, there):
            talk, peer = Conversation(here, copied), Conversation(there, slowly)
            tasks = [asyncio.create_task(each.run()) for each in (talk, peer)]
            answers = await asyncio.gather(*(ask(talk, n) for n in range(100, 500)))
            assert [place.block_id for place in answers] == list(range(100, 500))
            assert most == conversation._MAX_ASKED
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(play())


def test_who_waits_for_his_turn_is_told_of_the_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not at his deadline; and nothing is left that the loop would complain of."""
    monkeypatch.setattr(conversation, "_MAX_ASKED", 1)

    async def play() -> None:
        unheard: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))

        async def never(_asked: Copy) -> BlockPlace:
            await asyncio.Event().wait()
            raise AssertionError

        async with connected() as (here, there):
            talk, peer = Conversation(here, copied), Conversation(there, never)
            tasks = [asyncio.create_task(each.run()) for each in (talk, peer)]
            asked = [asyncio.create_task(ask(talk, n)) for n in range(3)]
            await asyncio.sleep(0.05)
            there.abort()
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert all(isinstance(end, TransportError) and end.code != "timeout" for end in ends), ends
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        gc.collect()
        assert unheard == []

    run(play())


@pytest.mark.parametrize("kind", ["fail", "stall", "truncate", "flip"])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_whatever_happens_to_a_call_the_question_ends_by_its_deadline(kind: Any, call: int) -> None:
    """With the right answer, or with an error; and nothing hangs."""

    async def play() -> None:
        async with talking([Fault(call, kind)]) as (a, _):
            for n in (1, 2, 3):
                try:
                    place = await ask(a, n, 0.3)
                except DataPlaneError:
                    continue
                assert place == block(n, host=2)

    run(play())
