"""The agent's waiting reports: one is always out, news leaves at once, strangers enlist again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.errors import BadArgument, DataPlaneError, DataPlaneTimeout, DataPlaneUnavailable
from penstock.host import reporting
from penstock.host.events import Enlisting, Ordered
from penstock.host.identity import Home, HostIdentity
from penstock.host.reporting import Reporting, enlist
from penstock.hosting import Enlist, Enlisted, HostReport, Orders
from penstock.parts import HostPlace

LIMIT_S = 20.0
PLACE = HostPlace(1, 1, "alpha", "10.0.0.1", [7001])


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LIMIT_S))


class FakeLine:
    """A plane, as the test plays it: what was asked, and answers by hand."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self.left = 0

    async def ask(self, body: Any, kind: type[Any], timeout_s: float) -> Any:
        del kind, timeout_s
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await self.asked.put((body, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            self.left += 1
            raise

    async def next(self) -> tuple[Any, asyncio.Future[Any]]:
        return await self.asked.get()


class FakeKeeper:
    """Has the news that the test gives it, until it is told that they were heard."""

    def __init__(self) -> None:
        self.news: list[int] = []
        self.told: list[Any] = []
        self.refused: list[str] = []
        self.live_bytes = 0

    @property
    def has_news(self) -> bool:
        return bool(self.news)

    def report(self) -> HostReport:
        return HostReport(0, done_with=list(self.news))

    def tell(self, event: Any) -> None:
        self.told.append(event)
        if isinstance(event, Ordered):
            self.news = [n for n in self.news if n not in event.said.done_with]


class FakeHome(Home):
    """Remembers in memory alone."""

    def __init__(self, plane: int = 0) -> None:
        super().__init__(Path(), HostIdentity(1, 1, plane))

    def is_of(self, plane: int) -> None:
        self.identity = HostIdentity(1, 1, plane)


def playing(play: Callable[[FakeLine, FakeKeeper, Reporting], Coroutine[Any, Any, None]], plane: int = 0) -> None:
    async def work() -> None:
        line, keeper, home = FakeLine(), FakeKeeper(), FakeHome(plane)
        reports = Reporting(line, PLACE, home, keeper, keeper.tell, keeper.refused.append)  # type: ignore[arg-type]
        task = asyncio.create_task(reports.run())
        await play(line, keeper, reports)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(work())


def test_an_answered_report_is_followed_by_the_next() -> None:
    """Orders are handed over with the report that they answer."""

    async def play(line: FakeLine, keeper: FakeKeeper, _reports: Reporting) -> None:
        said, answer = await line.next()
        orders = Orders(1, adopt=[5])
        answer.set_result(orders)
        await line.next()
        assert keeper.told == [Ordered(orders, said)]

    playing(play)


def test_news_does_not_wait_for_the_report_that_is_out() -> None:
    """A second one leaves at once; the same news is not sent a third time."""

    async def play(line: FakeLine, keeper: FakeKeeper, reports: Reporting) -> None:
        _, first = await line.next()
        keeper.news = [7]
        reports.look()
        said, _ = await line.next()
        assert said.done_with == [7]
        for _ in range(5):
            reports.look()
            await asyncio.sleep(0.02)
        assert line.asked.empty()
        assert not first.done()

    playing(play)


def test_reports_on_their_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plane that answers nobody is not sent one report for each piece of news."""
    monkeypatch.setattr(reporting, "_BATCH_S", 0.0)

    async def play(line: FakeLine, keeper: FakeKeeper, reports: Reporting) -> None:
        for n in range(20):
            keeper.news.append(n)
            reports.look()
            await asyncio.sleep(0.005)
        assert line.asked.qsize() == reporting._MAX_OUT

    playing(play)


def test_an_answer_that_does_not_come_means_asking_again() -> None:
    """The plane is away, or stopped: nothing is forgotten."""

    async def play(line: FakeLine, keeper: FakeKeeper, reports: Reporting) -> None:
        keeper.news = [7]
        reports.look()
        _, first = await line.next()
        first.set_exception(DataPlaneTimeout("nobody"))
        said, _ = await line.next()
        assert said.done_with == [7]
        assert reports.enlisted == 1

    playing(play)


def test_a_plane_that_does_not_know_the_host_is_enlisted_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that are out are dropped first; until it works it is tried again."""
    monkeypatch.setattr(reporting, "_PAUSE_S", (0.001, 0.002))

    async def play(line: FakeLine, keeper: FakeKeeper, reports: Reporting) -> None:
        _, first = await line.next()
        keeper.news = [7]
        reports.look()
        await line.next()
        first.set_exception(DataPlaneUnavailable("enlist first"))
        for _ in range(2):
            body, answer = await line.next()
            assert body == Enlist(PLACE)
            answer.set_exception(DataPlaneUnavailable("not yet"))
        assert line.left == 1
        _, answer = await line.next()
        answer.set_result(Enlisted([], 9))
        await line.next()
        assert keeper.told == [Enlisting([], 9)]
        assert reports.enlisted == 2

    playing(play)


@pytest.mark.parametrize(("incarnation", "refused"), [(7, ["a newer life"]), (0, [])])
def test_a_plane_that_will_not_have_the_host_ends_the_agent(
    monkeypatch: pytest.MonkeyPatch, incarnation: int, refused: list[str]
) -> None:
    """Its own word, three times in a row; a line that is down is no such word."""
    monkeypatch.setattr(reporting, "_PAUSE_S", (0.001, 0.002))

    async def play(line: FakeLine, keeper: FakeKeeper, _reports: Reporting) -> None:
        _, first = await line.next()
        first.set_exception(DataPlaneUnavailable("enlist first"))
        for _ in range(4):
            _, answer = await line.next()
            answer.set_exception(DataPlaneUnavailable("a newer life", incarnation=incarnation))
        await line.next()
        assert [why.partition(" (")[0] for why in keeper.refused] == refused

    playing(play)


@pytest.mark.parametrize(("nbytes", "said"), [(64, 5), (0, 0)])
def test_an_agent_that_has_blocks_says_whose_they_are(nbytes: int, said: int) -> None:
    """Another plane at the same address refuses it; one without blocks is anybody's, and remembers whose it became."""

    async def play(line: FakeLine, keeper: FakeKeeper, reports: Reporting) -> None:
        keeper.live_bytes = nbytes
        _, first = await line.next()
        first.set_exception(DataPlaneUnavailable("enlist first"))
        body, answer = await line.next()
        assert body == Enlist(PLACE, said)
        answer.set_result(Enlisted([], 9, said or 6))
        await line.next()
        assert reports._home.plane == (said or 6)

    playing(play, plane=5)


def test_the_first_enlisting_waits_for_a_plane_and_not_for_one_that_refuses() -> None:
    """Nobody there: again. Not wanted: the agent is told why, and ends."""

    async def play() -> None:
        line = FakeLine()
        enlisting = asyncio.create_task(enlist(line, PLACE, 5))  # type: ignore[arg-type]
        _, answer = await line.next()
        answer.set_exception(DataPlaneTimeout("nobody"))
        body, answer = await line.next()
        assert body == Enlist(PLACE, 5)
        answer.set_exception(BadArgument("no host"))
        with pytest.raises(DataPlaneError, match="no host"):
            await enlisting

    run(play())


def test_what_is_news_is_told_apart_from_what_was_carried_out() -> None:
    """A report that differs in its ``after`` alone says nothing new."""
    one = HostReport(1, done_with=[3])
    assert reporting._content(one) == reporting._content(msgspec.structs.replace(one, after=5))
