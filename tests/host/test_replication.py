"""Second copies: pulled, verified, answered; and what is left when something on the way goes wrong."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import DataPlaneTimeout, TransportError
from penstock.host import replication
from penstock.host.blocks import State
from penstock.host.conversation import Copy
from penstock.host.events import Ordered
from penstock.host.keeper import ORDERED_S
from penstock.host.own_calls import OwnCalls
from penstock.hosting import Orders
from penstock.parts import HostPlace
from penstock.requests import Reserve
from penstock.retry import Deadline
from tests.host.inside import CAPACITY, hosts

LIMIT_S = 60.0


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


def test_a_second_host_pulls_the_block_and_holds_the_same_bytes(tmp_path: Path) -> None:
    """Both places are answered, the own host's first."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            sealed = await a.put(100, b)
            assert [place.host for place in sealed.places] == [1, 2]
            assert a.bytes_of(100) == b.bytes_of(100)
            assert b.agent.keeper.state_of(100) is State.SEALED

    run(play())


def test_two_hosts_copy_to_each_other_at_once(tmp_path: Path) -> None:
    """Forty blocks each, in both directions, all at the same time."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            puts = [
                h.put(n, o, fill=n % 200)
                for h, o, first in ((a, b, 100), (b, a, 200))
                for n in range(first, first + 40)
            ]
            sealed = await asyncio.gather(*puts)
            assert all(len(s.places) == 2 for s in sealed), [s.why for s in sealed if s.why]
            for n in [*range(100, 140), *range(200, 240)]:
                assert a.bytes_of(n) == b.bytes_of(n)
            assert (a.replication.made, b.replication.made) == (40, 40)

    run(play())


def test_a_second_host_without_room_refuses_and_nothing_is_left_there(tmp_path: Path) -> None:
    """The put stands on one host, with the reason; by its deadline."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            await b.own.ask(Reserve(1, CAPACITY - 4096), Deadline(1.0))
            content = await a.write(100, row_bytes=8192)
            sealing = asyncio.ensure_future(a.seal(100, content, b, timeout_s=5.0))
            due = None
            for _ in range(500):
                due = due or b.agent.plane.custody.allotment.next_deadline()
                await asyncio.sleep(0.0 if due else 0.01)
            assert due is not None
            assert due < b.agent.plane.clock() + 4.5  # what keeps it is said before who asked gives up
            b.agent.plane.custody.expire(due)  # as housekeeping does
            b.agent.plane.settle()
            sealed = await sealing
            assert len(sealed.places) == 1
            assert "no room for a block" in sealed.why
            assert b.agent.keeper.state_of(100) is State.GONE

    run(play())


def test_a_second_host_that_is_not_there_is_told_with_its_name(tmp_path: Path) -> None:
    """Nobody listens at its port: no waiting for the deadline."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            await b.peers.close()
            sealed = await a.put(100, b)
            assert len(sealed.places) == 1
            assert "host2" in sealed.why

    run(play())


def test_a_damaged_source_is_never_copied(tmp_path: Path) -> None:
    """What does not hold its checksums is not answered for by anybody; the slot there is given back."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            content = await a.write(100)
            place = a.arena.place_of(100)
            a.arena.writer(place)[-3] ^= 0xFF
            sealed = await a.seal(100, content, b, timeout_s=8.0)
            assert len(sealed.places) == 1
            assert b.agent.keeper.state_of(100) is State.GONE
            assert b.arena.statistics().used == 0

    run(play())


def test_a_pull_that_nobody_waits_for_ends_and_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host's answer came too late: the copy is not forgotten."""
    begun, go = asyncio.Event(), asyncio.Event()
    real = replication.Replication._fetch

    async def slowly(self: Any, *arguments: Any) -> None:
        begun.set()
        await go.wait()
        await real(self, *arguments)

    monkeypatch.setattr(replication.Replication, "_fetch", slowly)

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            content = await a.write(100)
            await a.seal(100, content, None)
            asked = Copy(1, a.storage.place_of(100), content, a.place, 10.0)
            asking = asyncio.create_task(b.replication.serve(asked))
            await begun.wait()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            go.set()
            await b.replication.serve(asked)
            assert b.replication.pulled == 1
            due = b.agent.keeper.next_timer()
            assert due is not None
            assert due > b.agent.plane.clock() + ORDERED_S - 1

    run(play())


def test_a_pull_that_fails_when_nobody_waits_for_it_is_nobodys_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asked has died, and then it fails: that must not reach the loop's own handler, which ends the agent."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def fail(*_: Any) -> None:
        begun.set()
        await go.wait()
        raise TransportError("refused", code="refused")

    monkeypatch.setattr(replication.Replication, "_fetch", fail)

    async def play() -> None:
        unheard: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with hosts(tmp_path) as (a, b):
            content = await a.write(100)
            await a.seal(100, content, None)
            asking = asyncio.create_task(b.replication.serve(Copy(1, a.storage.place_of(100), content, a.place, 10.0)))
            await begun.wait()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            del asking
            (pull,) = b.replication._pulls.values()
            go.set()
            await asyncio.wait({pull})
            await asyncio.sleep(0)
            del pull
            gc.collect()
            assert b.agent.keeper.state_of(100) is State.GONE
        assert unheard == []

    run(play())


def test_a_slot_whose_answer_came_as_its_caller_left_is_never_sealed_unwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Granted, and the deadline in the same turn of the loop: the slot is given back, the next pull fetches."""
    real = OwnCalls.ask

    async def too_late(self: OwnCalls, body: Any, deadline: Deadline) -> Any:
        answer = await real(self, body, deadline)
        if isinstance(body, Reserve):
            raise DataPlaneTimeout("the answer came with the deadline")
        return answer

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            content = await a.write(100)
            await a.seal(100, content, None)
            asked = Copy(1, a.storage.place_of(100), content, a.place, 10.0)
            with monkeypatch.context() as late:
                late.setattr(OwnCalls, "ask", too_late)
                with pytest.raises(DataPlaneTimeout):
                    await b.replication.serve(asked)
            assert b.agent.keeper.state_of(100) is State.GONE
            assert b.arena.statistics().used == 0
            await b.replication.serve(asked)
            assert b.bytes_of(100) == a.bytes_of(100)

    run(play())


def test_a_block_is_pulled_once_however_often_that_is_asked(tmp_path: Path) -> None:
    """Asked at once and asked again: one pull, one answer."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            content = await a.write(100)
            await a.seal(100, content, None)
            asked = Copy(1, a.storage.place_of(100), content, a.place, 5.0)
            places = await asyncio.gather(*(b.replication.serve(asked) for _ in range(5)))
            assert len(set(places)) == 1
            assert await b.replication.serve(asked) == places[0]
            assert b.replication.pulled == 1

    run(play())


def test_nobody_pulls_from_himself_or_for_a_stranger(tmp_path: Path) -> None:
    """What makes no sense is refused before anything is reserved."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            content = await a.write(100)
            await a.seal(100, content, None)
            place = a.storage.place_of(100)
            for source in (b.place, HostPlace(9, 1, "host9", "host9", [1])):
                with pytest.raises(Exception, match="cannot be pulled here"):
                    await b.replication.serve(Copy(1, place, content, source, 5.0))
            assert b.arena.statistics().used == 0

    run(play())


def test_a_copy_that_is_freed_while_it_is_read_keeps_its_bytes_until_the_end(tmp_path: Path) -> None:
    """An order to free the source in mid-pull does not put other bytes under the reader."""

    async def play() -> None:
        async with hosts(tmp_path) as (a, b):
            content = await a.write(100)
            await a.seal(100, content, None)
            asked = Copy(1, a.storage.place_of(100), content, a.place, 5.0)
            reading = a.shelves.begin_read(100, a.arena.place_of(100).generation, _retain())
            said = a.agent.keeper.report()
            a.agent.plane.tell(Ordered(Orders(1, free=[100]), said))
            a.agent.plane.settle()
            assert a.arena.statistics().used > 0
            a.shelves.end_read(reading, consumed=False)
            assert a.arena.statistics().used == 0
            with pytest.raises(Exception, match="100"):
                await b.replication.serve(asked)
            assert b.arena.statistics().used == 0

    run(play())


def _retain() -> Any:
    from penstock.payload.slots import Mode

    return Mode.RETAIN
