"""What a store's agent has to do and to say. Pure: it is told what came of things, and asks nobody.

The plane orders, by number; the agent states back the highest number up to which everything is done. The plane repeats
what was not stated back, so that an order may come twice and is done once.

Invariants: a number is stated back only when every order up to it was carried out; what rows need is looked for after
each enlisting, and again every while, for a store tells nobody what it has lost; what is lost is told until the plane
has answered; only blocks that the plane has named are ever freed; one that no row ever needed is freed twice, for
whoever put it may have written it after the first time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from itertools import islice
from typing import Literal, TypeAlias

from penstock.host.news import News
from penstock.hosting import HostReport, Orders

__all__ = ["LATE_PATROLS", "Duties"]

LATE_PATROLS = 12  # after which what nobody ever needed is removed once more: a minute, longer than a put takes

_Duty: TypeAlias = tuple[Literal["free", "check"], int]


class _Batch:
    """The orders that came with one number, as far as they are not carried out."""

    __slots__ = ("duties", "number")

    def __init__(self, number: int, duties: Iterable[_Duty]) -> None:
        self.number = number
        self.duties = set(duties)


class Duties:
    """Of one agent. Attributes: counters: what was done, since it began."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._live: dict[int, None] = {}
        self._free: dict[int, None] = {}
        self._check: dict[int, None] = {}
        self._survey: dict[int, None] = {}
        self._batches: deque[_Batch] = deque()
        self._batch_of: dict[_Duty, _Batch] = {}
        self._late: dict[int, int] = {}  # freed though never needed -> at which patrol that is done once more
        self._never_needed: set[int] = set()  # of those that are to be freed
        self._patrols = 0
        self._done: dict[_Duty, int] = {}  # carried out, and perhaps told again: with the number it came under
        self._after = 0
        self._highest = 0
        self._news = News()

    # -- what the plane says ------------------------------------------------------------------------------------------

    def enlisted(self, live: Iterable[int], after: int) -> None:
        """Rows need these blocks of the store, and none that the agent has known else. Numbers begin anew."""
        needed = dict.fromkeys(live)
        unneeded = [block for block in (*self._free, *self._live) if block not in needed]
        self._live, self._free = needed, dict.fromkeys(unneeded)
        self._never_needed &= self._free.keys()
        self._check, self._survey = {}, dict(needed)
        self._batches.clear()
        self._batch_of.clear()
        self._done.clear()
        self._after = self._highest = after

    def ordered(self, orders: Orders, said: HostReport) -> None:
        """The plane has answered the report ``said``."""
        self._news.heard(said)
        self._done = {duty: number for duty, number in self._done.items() if number > said.after}
        if orders.number <= self._highest:  # told before, or the answer to an older report
            return
        self._highest = orders.number
        for block in orders.adopt:
            if block not in self._free:
                self._live[block] = None
        asked: list[_Duty] = [("free", block) for block in orders.free]
        asked += [("check", block) for block in orders.verify]
        fresh = [duty for duty in asked if duty not in self._batch_of and duty not in self._done]
        for what, block in fresh:
            if what == "free":
                if block not in self._live:
                    self._never_needed.add(block)
                self._forget(block)
                self._free[block] = None
            else:
                self._check[block] = None
        batch = _Batch(orders.number, fresh)
        self._batches.append(batch)
        self._batch_of.update(dict.fromkeys(fresh, batch))
        self._settle()

    def _forget(self, block: int) -> None:
        self._live.pop(block, None)
        self._survey.pop(block, None)

    # -- what is to be done -------------------------------------------------------------------------------------------

    def to_free(self, limit: int) -> list[int]:
        """Return blocks that are to be removed, the oldest first."""
        return list(islice(self._free, limit))

    def to_check(self, limit: int) -> list[int]:
        """Return blocks that a reader did not get whole: they are to be read."""
        return list(islice(self._check, limit))

    def to_survey(self, limit: int) -> list[int]:
        """Return blocks of which is to be seen whether they are there at all."""
        return list(islice(self._survey, limit))

    def known(self) -> list[int]:
        """Return every block that may lie in the store, as far as the plane has said."""
        return [*self._live, *self._free, *self._late]

    def patrol(self) -> None:
        """It is time to look for everything again."""
        self._survey = dict(self._live)
        self._patrols += 1
        due = [block for block, patrol in self._late.items() if patrol <= self._patrols]
        for block in due:
            del self._late[block]
            self._free[block] = None

    @property
    def idle(self) -> bool:
        return not (self._free or self._check or self._survey)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def freed(self, blocks: Iterable[int]) -> None:
        """They do not lie in the store any more."""
        for block in blocks:
            if block in self._free:
                del self._free[block]
                self.counters["store.freed"] += 1
                if block in self._never_needed:
                    self._never_needed.discard(block)
                    self._late[block] = self._patrols + LATE_PATROLS
            self._carried_out(("free", block))
        self._settle()

    def checked(self, blocks: Iterable[int]) -> None:
        """They were read, or looked for; what is wrong with one is told by ``lost``."""
        for block in blocks:
            self._survey.pop(block, None)
            if block in self._check:
                del self._check[block]
                self.counters["store.checked"] += 1
            self._carried_out(("check", block))
        self._settle()

    def lost(self, blocks: Iterable[int], why: str) -> None:
        """Of these, those that rows need are not to be had any more."""
        lost = [block for block in blocks if block in self._live]
        for block in lost:
            self._forget(block)
        self._news.lost(lost, why)
        self.counters["store.lost"] += len(lost)

    def _carried_out(self, duty: _Duty) -> None:
        batch = self._batch_of.pop(duty, None)
        if batch is not None:
            batch.duties.discard(duty)
            self._done[duty] = batch.number

    def _settle(self) -> None:
        while self._batches and not self._batches[0].duties:
            self._after = self._batches.popleft().number

    # -- what the plane is told (``host.reporting.Reporter``) ---------------------------------------------------------

    @property
    def has_news(self) -> bool:
        return bool(self._news)

    @property
    def live_bytes(self) -> int:
        """Whether blocks of this plane lie in the store: their number, for what they measure nobody here knows."""
        return len(self._live)

    def report(self) -> HostReport:
        """Return what the plane is to be told now."""
        return self._news.report(self._after, [])

    def check_invariants(self) -> None:
        """Raise AssertionError on a broken invariant."""
        assert self._live.keys().isdisjoint(self._free), "what rows need is to be freed"
        assert self._survey.keys() <= self._live.keys(), "what nobody needs is looked for"
        assert self._never_needed <= self._free.keys(), "what is not to be freed is remembered"
        assert self._live.keys().isdisjoint(self._late), "what rows need is to be freed again"
        numbers = [batch.number for batch in self._batches]
        assert numbers == sorted(set(numbers)), "orders are not in order"
        assert all(number > self._after for number in numbers), "what is not done was stated back"
        waiting = {("free", block) for block in self._free} | {("check", block) for block in self._check}
        assert self._batch_of.keys() <= waiting, "an order is neither done nor to be done"

    def __repr__(self) -> str:
        todo = f"{len(self._free)} to free, {len(self._check)} to check, {len(self._survey)} to look for"
        return f"Duties({len(self._live)} blocks, {todo}, after {self._after})"
