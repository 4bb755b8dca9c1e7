"""The roles as the controller sees them: who is there, who is free, what each was ordered to do. One event loop's own.

Invariants: a peer is free when it has answered everything it was ordered, its first order being to say where it stands,
so what a controller before this one ordered is done with; an order ends with its answer or with its peer; whoever
gave up waiting does not make its peer free. Nobody is given an order while it owes an answer, so no pipe ever fills.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from penstock.demo.messages import LAUNCHER, Answer, Hello, Joined, Left, Letter, News, Order, letter
from penstock.demo.processes import kind_of
from penstock.errors import DataPlaneError

__all__ = ["TAKE_ORDERS", "Crew", "PeerLeft"]

TAKE_ORDERS = frozenset({"worker", "trainer"})


class PeerLeft(DataPlaneError):
    """A peer ended before it answered: what it was ordered may be done or not."""


class Crew:
    """All peers that take orders.

    Args:
        me: the address of this controller.
        send: sends a letter; must not block.
        joined, left: told who takes orders now, and who does no more.
    """

    def __init__(
        self,
        me: str,
        send: Callable[[bytes], object],
        joined: Callable[[str], None] = lambda _peer: None,
        left: Callable[[str], None] = lambda _peer: None,
    ) -> None:
        self._me = me
        self._send = send
        self._joined, self._left = joined, left
        self._numbers = itertools.count(1)
        self._owed: dict[str, dict[int, asyncio.Future[Answer]]] = {}  # peer -> its orders that are not answered
        self._waiting: list[asyncio.Future[None]] = []
        self._on_free: list[Callable[[], None]] = []
        self._letters = msgspec.json.Decoder(Letter)
        self._news: msgspec.json.Decoder[News] = msgspec.json.Decoder(News)
        self._answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)

    # -- orders -------------------------------------------------------------------------------------------------------

    def free(self, kind: str) -> list[str]:
        """Return the peers of a kind that have nothing to do, longest there first."""
        return [peer for peer, owed in self._owed.items() if kind_of(peer) == kind and not owed]

    async def await_free(self, kind: str) -> str:
        """Return a peer of a kind that has nothing to do, as soon as there is one."""
        while not (free := self.free(kind)):
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        return free[0]

    def when_free(self, act: Callable[[], None]) -> None:
        """Call ``act`` whenever somebody becomes free."""
        self._on_free.append(act)

    def order(self, peer: str, order: Order) -> asyncio.Future[Answer]:
        """Order ``peer`` to do something; return what will be its answer.

        Raises (when it is awaited):
            PeerLeft: the peer ended before it answered, or has ended already.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        owed = self._owed.get(peer)
        if owed is None:
            future.set_exception(PeerLeft(f"{peer} has left"))
            return future
        number = next(self._numbers)
        owed[number] = future
        self._send(letter(peer, self._me, order, number))
        return future

    # -- letters ------------------------------------------------------------------------------------------------------

    def receive(self, line: bytes) -> None:
        """Take a letter."""
        found = self._letters.decode(line)
        if found.sender != LAUNCHER:
            self._take(found.sender, found.number, self._answers.decode(found.body))
            return
        news = self._news.decode(found.body)
        if kind_of(news.peer) not in TAKE_ORDERS:
            return
        if isinstance(news, Joined):
            self._enrol(news)
        else:
            self._strike_off(news)

    def _enrol(self, news: Joined) -> None:
        self._owed[news.peer] = {}
        self._joined(news.peer)
        self.order(news.peer, Hello()).add_done_callback(_seen)

    def _strike_off(self, news: Left) -> None:
        owed = self._owed.pop(news.peer, {})
        for future in owed.values():
            if not future.done():
                future.set_exception(PeerLeft(f"{news.peer} left before it answered"))
        self._left(news.peer)

    def _take(self, peer: str, number: int, answer: Answer) -> None:
        owed = self._owed.get(peer, {})
        future = owed.pop(number, None)
        if future is None:
            return  # of an order that nobody here gave
        if not future.done():
            future.set_result(answer)
        if not owed:
            self._somebody_is_free()

    def _somebody_is_free(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for act in self._on_free:
            act()


def _seen(answer: asyncio.Future[Answer]) -> None:
    """Nobody awaits it; a peer that left instead must not appear in the log as an error that nobody looked at."""
    if not answer.cancelled():
        answer.exception()
