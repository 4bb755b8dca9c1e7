"""How much is received at once: bounds, order, and that every end counts out what was let in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from hypothesis import given
from hypothesis import strategies as st

from penstock.transport.gate import Gate, Gates


class Room:
    """Reads at a gate, each inside until it is told to leave."""

    def __init__(self, max_reads: int, max_bytes: int) -> None:
        self.gate = Gate(max_reads, max_bytes)
        self.inside: list[int] = []
        self._leave: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def come(self, name: int, nbytes: int) -> None:
        self._leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.get_running_loop().create_task(self._read(name, nbytes))
        await settled()

    async def leave(self, name: int) -> None:
        self._leave[name].set()
        await settled()

    async def _read(self, name: int, nbytes: int) -> None:
        async with self.gate.passing(nbytes):
            self.inside.append(name)
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def test_so_many_reads_and_so_many_bytes() -> None:
    """Whichever limit is reached first; who leaves lets the next in."""

    async def test() -> None:
        room = Room(2, 100)
        for name, nbytes in enumerate([60, 40, 1]):
            await room.come(name, nbytes)
        assert room.inside == [0, 1]
        await room.leave(1)
        assert room.inside == [0, 2]
        await room.come(3, 50)
        await room.leave(2)
        assert room.inside == [0]  # 110 bytes would be too many
        await room.leave(0)
        assert room.inside == [3]
        await room.leave(3)
        assert (room.gate.reads, room.gate.bytes) == (0, 0)

    run(test)


def test_a_giant_goes_alone_and_is_not_overtaken() -> None:
    """It waits for an empty gate, and what came after it waits for it."""

    async def test() -> None:
        room = Room(9, 100)
        for name, nbytes in enumerate([10, 1000, 10]):
            await room.come(name, nbytes)
        assert room.inside == [0]
        await room.leave(0)
        assert room.inside == [1]
        await room.leave(1)
        assert room.inside == [2]
        await room.leave(2)

    run(test)


def test_a_giant_that_gives_up_lets_those_behind_it_in() -> None:
    """Nobody waits for who has left."""

    async def test() -> None:
        room = Room(9, 100)
        for name, nbytes in enumerate([10, 1000, 10]):
            await room.come(name, nbytes)
        room.tasks[1].cancel()
        await settled()
        assert room.inside == [0, 2]
        for name in (0, 2):
            await room.leave(name)

    run(test)


def test_who_is_let_in_and_cancelled_at_the_same_moment_counts_out() -> None:
    """The place goes to the next."""

    async def test() -> None:
        room = Room(1, 100)
        for name in range(3):
            await room.come(name, 1)
        room._leave[0].set()
        await asyncio.sleep(0)  # 0 leaves: 1 is let in, and has not run yet
        room.tasks[1].cancel()
        await settled()
        assert room.inside == [2]
        await room.leave(2)
        assert (room.gate.reads, room.gate.bytes) == (0, 0)

    run(test)


def test_each_host_has_a_gate_of_its_own() -> None:
    """A full one is no other's business; gates where nobody is are let go of, others are kept."""

    async def test() -> None:
        gates = Gates(1, 100)
        await gates.of(1).enter(60)
        await gates.of(2).enter(70)
        assert (gates.reads, gates.bytes) == (2, 130)
        for host_id in range(3, 200):
            gate = gates.of(host_id)
            await gate.enter(1)
            gate.leave(1)
        assert (gates.reads, gates.bytes) == (2, 130)
        assert len(gates._gates) < 100
        gates.of(1).leave(60)
        gates.of(2).leave(70)
        assert (gates.reads, gates.bytes) == (0, 0)

    run(test)


@given(
    st.lists(
        st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.integers(1, 150), st.integers(0, 9)), max_size=40
    )
)
def test_whatever_comes_and_goes_the_limits_hold_and_nobody_is_forgotten(steps: list[tuple[str, int, int]]) -> None:
    """At every moment within the limits, or one alone; in the end all have passed or left."""

    async def test() -> None:
        room = Room(3, 100)
        sizes: dict[int, int] = {}
        for step, nbytes, which in steps:
            if step == "come":
                sizes[len(sizes)] = nbytes
                await room.come(len(sizes) - 1, nbytes)
            elif which in room.tasks and step == "leave":
                await room.leave(which)
            elif which in room.tasks:
                room.tasks[which].cancel()
                await settled()
            inside = sum(sizes[name] for name in room.inside)
            assert len(room.inside) <= 3
            assert inside <= 100 or len(room.inside) == 1
            assert (room.gate.reads, room.gate.bytes) == (len(room.inside), inside)
        for name in list(room.tasks):
            await room.leave(name)
        for _ in room.tasks:
            await settled()
        assert all(task.done() for task in room.tasks.values())
        assert (room.gate.reads, room.gate.bytes) == (0, 0)

    run(test)
