"""The crew: who is there, who is free, and that every order ends with an answer or with its peer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine

import msgspec
import pytest

from penstock.demo.crew import Crew, PeerLeft
from penstock.demo.messages import (
    LAUNCHER,
    Answer,
    Hello,
    Here,
    Joined,
    Left,
    Letter,
    Order,
    RolledOut,
    Rollout,
    letter,
)

ME = "controller-0.9"


class Exchange:
    """A crew, and the other ends of its letters."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Order, int]] = []
        self.joined: list[str] = []
        self.left: list[str] = []
        self.crew = Crew(ME, self._note, self.joined.append, self.left.append)

    def _note(self, line: bytes) -> None:
        found = msgspec.json.decode(line, type=Letter)
        assert found.sender == ME
        self.sent.append((found.to, msgspec.json.decode(found.body, type=Order), found.number))

    def join(self, *peers: str, free: bool = True) -> None:
        """Let ``peers`` join, and say that they are ``free``."""
        for peer in peers:
            self.crew.receive(letter(ME, LAUNCHER, Joined(peer)))
            if free:
                self.answer(Here())

    def leave(self, peer: str) -> None:
        self.crew.receive(letter(ME, LAUNCHER, Left(peer)))

    def answer(self, answer: Answer, which: int = -1) -> None:
        """Answer the last order, or another."""
        peer, _, number = self.sent[which]
        self.crew.receive(letter(ME, peer, answer, number))


def on_a_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 30))

    run.__doc__, run.__name__ = test.__doc__, test.__name__
    return run


@on_a_loop
async def test_who_joins_is_asked_first_and_is_free_when_it_has_answered() -> None:
    """It may still be at what a controller before this one ordered."""
    exchange = Exchange()
    exchange.join("worker-0.2", free=False)
    assert exchange.sent == [("worker-0.2", Hello(), 1)]
    assert (exchange.joined, exchange.crew.free("worker")) == (["worker-0.2"], [])
    exchange.answer(Here())
    assert (exchange.crew.free("worker"), exchange.crew.free("trainer")) == (["worker-0.2"], [])


@on_a_loop
async def test_only_who_takes_orders_belongs_to_it() -> None:
    """The scorer works by itself: nobody speaks to it."""
    exchange = Exchange()
    exchange.join("scorer-0.3", free=False)
    exchange.leave("scorer-0.3")
    assert (exchange.sent, exchange.joined, exchange.left) == ([], [], [])


@on_a_loop
async def test_an_order_is_answered_by_its_number() -> None:
    """Answers to orders that nobody here gave, or gives up waiting for, settle nothing else."""
    exchange = Exchange()
    exchange.join("worker-0.2")
    answer = exchange.crew.order("worker-0.2", Rollout(0, []))
    exchange.crew.receive(letter(ME, "worker-0.2", Here(), 99))
    exchange.crew.receive(letter(ME, "worker-0.77", RolledOut(), exchange.sent[-1][2]))
    assert not answer.done()
    assert exchange.crew.free("worker") == []
    exchange.answer(RolledOut())
    assert await answer == RolledOut()
    assert exchange.crew.free("worker") == ["worker-0.2"]


@on_a_loop
async def test_who_is_not_waited_for_any_more_is_not_free_before_it_has_answered() -> None:
    """It is still at it; what it answers then is nobody's."""
    exchange = Exchange()
    exchange.join("trainer-0.2")
    exchange.crew.order("trainer-0.2", Rollout(0, [])).cancel()
    assert exchange.crew.free("trainer") == []
    exchange.answer(RolledOut())
    assert exchange.crew.free("trainer") == ["trainer-0.2"]


@on_a_loop
async def test_an_order_ends_with_its_peer() -> None:
    """All that it owed fails; so does what it is ordered afterwards; the controller is told once."""
    exchange = Exchange()
    exchange.join("worker-0.2")
    answers = [exchange.crew.order("worker-0.2", Rollout(0, [])), exchange.crew.order("worker-0.2", Hello())]
    exchange.leave("worker-0.2")
    for answer in [*answers, exchange.crew.order("worker-0.2", Hello())]:
        with pytest.raises(PeerLeft, match=r"worker-0\.2 "):
            await answer
    assert (exchange.left, exchange.crew.free("worker")) == (["worker-0.2"], [])


@on_a_loop
async def test_somebody_free_is_waited_for() -> None:
    """Whoever becomes free first: one that answers, or one that joins; not one of another kind."""
    exchange = Exchange()
    waiting = asyncio.create_task(exchange.crew.await_free("trainer"))
    exchange.join("worker-0.2")
    exchange.join("trainer-0.3", free=False)
    await asyncio.sleep(0)
    assert not waiting.done()
    exchange.answer(Here())
    assert await waiting == "trainer-0.3"
    assert await exchange.crew.await_free("trainer") == "trainer-0.3"


@on_a_loop
async def test_two_who_wait_for_the_same_peer_do_not_both_get_it() -> None:
    """Who takes it first has it; the other waits on."""
    exchange = Exchange()

    async def take() -> str:
        peer = await exchange.crew.await_free("trainer")
        exchange.crew.order(peer, Hello())
        return peer

    first, second = asyncio.create_task(take()), asyncio.create_task(take())
    await asyncio.sleep(0)
    exchange.join("trainer-0.2")
    assert await first == "trainer-0.2"
    await asyncio.sleep(0)
    assert not second.done()
    exchange.answer(Here())
    assert await second == "trainer-0.2"


def test_a_peer_that_leaves_before_its_first_answer_leaves_no_noise() -> None:
    """Its greeting is awaited by nobody: the log must not end with an error that says so."""
    noise: list[dict[str, object]] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: noise.append(context))
        exchange = Exchange()
        exchange.join("worker-0.1", free=False)
        exchange.leave("worker-0.1")
        assert exchange.left == ["worker-0.1"]
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(test())
    assert noise == []
