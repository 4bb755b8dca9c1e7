"""The agent's side of its session as a host: enlist, say what there is to say, do as ordered, enlist again.

A report is a waiting call: the plane answers it when there are orders, or a newer one has come. So one is always out,
and a new one leaves as soon as there is news.

Invariants: what was said counts as heard only when its call was answered; answers from before an enlisting are not
looked at after it; while the plane is away nothing is forgotten and nothing is freed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from penstock.errors import DataPlaneError, DataPlaneTimeout
from penstock.host.events import Enlisting, Ordered
from penstock.host.line import Line
from penstock.hosting import Enlist, Enlisted, HostReport, Orders
from penstock.ledger.events import Event
from penstock.parts import HostPlace
from penstock.points import reached

__all__ = ["Belongs", "Reporter", "Reporting", "enlist"]

_WAIT_S = 10.0  # for orders, before asking again
_NEWS_S = 2.0  # the same if there was something to say: what was said is known to be heard when it is answered
_ENLIST_S = 5.0  # for the plane to take us in, before saying that it has not and asking again
_BATCH_S = 0.002  # news, and orders, that come within this go together
_MAX_OUT = 4  # reports on their way; an older one is answered when the plane has a newer
_REFUSALS = 3  # in a row, by the plane itself: it means it
_PAUSE_S = (0.1, 5.0)  # between two tries to enlist: first and longest

log = logging.getLogger("penstock.host")


class Reporter(Protocol):
    """Who knows what there is to say."""

    @property
    def has_news(self) -> bool: ...

    @property
    def live_bytes(self) -> int: ...

    def report(self) -> HostReport: ...


class Belongs(Protocol):
    """Who knows whose the blocks are that lie with this host."""

    @property
    def plane(self) -> int: ...

    def is_of(self, plane: int) -> None: ...


async def enlist(line: Line, place: HostPlace, plane: int) -> Enlisted:
    """Have the plane take this host in for the first time, however long it is away. ``plane``: see ``Enlist``.

    Raises:
        DataPlaneError: it will not, and says why.
    """
    while True:
        try:
            enlisted = await line.ask(Enlist(place, plane), Enlisted, _ENLIST_S)
        except DataPlaneTimeout as nobody:
            log.warning("waiting for the plane: %s", nobody)
        else:
            reached("host.enlisted")
            return enlisted


class Reporting:
    """An agent's reports.

    Args:
        line: to the plane.
        place: this host.
        home: whose the blocks are that lie here.
        reporter: knows what there is to say.
        tell: hand over what the plane says.
        refused: the plane will not have this host any more, and says why: a newer life of it has enlisted, for one.
    """

    def __init__(
        self,
        line: Line,
        place: HostPlace,
        home: Belongs,
        reporter: Reporter,
        tell: Callable[[Event], None],
        refused: Callable[[str], None],
    ) -> None:
        self._line = line
        self._place = place
        self._home = home
        self._reporter = reporter
        self._tell = tell
        self._refused = refused
        self._news = asyncio.Event()
        self._out: set[asyncio.Task[None]] = set()
        self._said: HostReport | None = None  # by the report that left last
        self._again = ""  # why the host must enlist again
        self.enlisted = 1

    def look(self) -> None:
        """See whether there is news; called after each batch of decisions."""
        if self._reporter.has_news and _content(self._reporter.report()) != self._said:
            self._news.set()

    async def run(self) -> None:
        """Report until cancelled. The host has been enlisted once."""
        try:
            while True:
                await self._report_until_strange()
                log.warning("this host has to enlist again: %s", self._again)
                await self._enlist_again()
        finally:
            await self._forget_reports()

    async def _report_until_strange(self) -> None:
        """Keep a report out, and a second one when there is news; return when the plane does not know us."""
        self._again = ""
        while not self._again:
            self._send()
            await self._until_due()
            await asyncio.sleep(_BATCH_S)

    async def _until_due(self) -> None:
        """Wait until none is out, or there is news and room for one more."""
        while self._out and not self._again:
            has_room = len(self._out) < _MAX_OUT
            if has_room and self._news.is_set():
                return
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait({*self._out, *([news] if has_room else [])}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            self._out = {task for task in self._out if not task.done()}

    def _send(self) -> None:
        self._news.clear()
        said = self._reporter.report()
        self._said = _content(said)
        self._out.add(asyncio.get_running_loop().create_task(self._report(said)))

    async def _report(self, said: HostReport) -> None:
        try:
            orders = await self._line.ask(said, Orders, _NEWS_S if _is_news(said) else _WAIT_S)
        except DataPlaneTimeout as nobody:
            log.warning("the plane has not answered: %s", nobody)
        except DataPlaneError as strange:
            self._again = str(strange)
        else:
            reached("host.ordered")
            self._tell(Ordered(orders, said))

    async def _enlist_again(self) -> None:
        await self._forget_reports()
        pause, longest = _PAUSE_S
        refusals = 0
        while True:
            try:
                plane = self._home.plane if self._reporter.live_bytes else 0
                enlisted = await self._line.ask(Enlist(self._place, plane), Enlisted, _ENLIST_S)
            except DataPlaneError as failed:
                log.warning("not enlisted: %s", failed)
                refusals = refusals + 1 if failed.incarnation else 0  # the plane itself has said so
                if refusals == _REFUSALS:
                    self._refused(str(failed))
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                self._home.is_of(enlisted.plane)
                self.enlisted += 1
                log.info("enlisted again: rows need %d blocks of this host", len(enlisted.live))
                self._tell(Enlisting(enlisted.live, enlisted.after))
                return

    async def _forget_reports(self) -> None:
        """Whatever is still answered to them is not looked at."""
        out, self._out = self._out, set()
        for task in out:
            task.cancel()
        await asyncio.gather(*out, return_exceptions=True)

    def __repr__(self) -> str:
        return f"Reporting({self._place.name}, enlisted {self.enlisted} times, {len(self._out)} reports out)"


def _is_news(said: HostReport) -> bool:
    return bool(said.done_with or said.ended or said.lost or said.moved)


def _content(said: HostReport) -> HostReport:
    """What of a report is news."""
    return msgspec.structs.replace(said, after=0)
