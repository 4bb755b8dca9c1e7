"""What the plane does by the clock: ticks, deadlines, the garbage collector, checkpoints of the journal, its own end.

Invariants: the ledger is ticked at least once a second; after a pause of the plane itself its sockets are read before
anybody is judged by the clock; the garbage collector never looks at more than what came since it last looked; a
checkpoint is written in slices, between batches.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterator

from penstock.ledger.events import Tick
from penstock.ledger.facts import Entry
from penstock.points import reached
from penstock.server.plane import EX_IOERR, Clock, Plane
from penstock.server.reception import Reception

__all__ = ["Housekeeping", "freeze_collector", "quiet_collector"]

_TICK_S = 1.0
_SHORTEST_S = 0.001  # between two ticks
_LATE_S = 1.0  # a tick later than this means that the plane was stopped, starved, or busy with one long request
_DRAIN_S = 2.0  # at most, reading sockets after such a pause
_YOUNG_OBJECTS = 20_000  # collected at once: about 2 ms
_TOO_MANY_OBJECTS = 200_000  # to look at without holding the loop
_FIRST_CLIENT_S = 30.0  # an auto-started plane waits this long for the client that started it
_CHECKPOINT_ROWS = 500  # restated between two passes of the loop: about 5 ms

log = logging.getLogger("penstock.server")


def quiet_collector() -> None:
    """Take the garbage collector into our own hands: its full passes over a million rows would last seconds."""
    gc.disable()


def freeze_collector() -> None:
    """What there is now will stay: never look at it."""
    gc.freeze()


class Housekeeping:
    """The plane's clockwork.

    Args:
        plane, reception: whose.
        linger_s: an auto-started plane ends so many seconds after its last client; None = it stays.
        resumable_s: how long sessions of an earlier life may come back.
        stands: whether the data directory is still this plane's.
        processor: seconds of processor time that the process has used: what tells busy from stopped.
    """

    def __init__(
        self,
        plane: Plane,
        reception: Reception,
        *,
        linger_s: float | None,
        resumable_s: float,
        stands: Callable[[], bool] = lambda: True,
        processor: Clock = time.process_time,
    ) -> None:
        self._plane = plane
        self._reception = reception
        self._linger_s = linger_s
        self._started = plane.clock()
        self._patience_s = max(resumable_s, 0.0)
        self._seen = (0, 0)  # sessions greeted and connections made, at the last tick
        self._idle_since = self._started
        self._last_tick = self._started
        self._stands = stands
        self._processor = processor
        self._used_at_tick = processor()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._draining = False
        self._checkpoint: Iterator[Entry] | None = None
        self._restated_bytes = 0  # size of the journal right after its last checkpoint
        self.longest_late_s = 0.0
        self.checkpoints = 0
        plane.after_settle = self._after_settle

    def start(self) -> None:
        self._arm()

    def stop(self) -> None:
        """Tick no more. Idempotent."""
        self._plane.after_settle = lambda: None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- time -----------------------------------------------------------------------------------------------------

    def _after_settle(self) -> None:
        if gc.get_count()[0] > _YOUNG_OBJECTS:
            _collect_young()
        self._arm()

    def _arm(self) -> None:
        """Wake when something is due, and at least once a second."""
        when = self._last_tick + _TICK_S
        for other in (self._plane.ledger.next_timer(), self._plane.custody.allotment.next_deadline()):
            if other is not None and other < when:
                when = other
        if self._timer is not None:
            if self._due <= when:
                return
            self._timer.cancel()
        self._due = when
        delay = max(_SHORTEST_S, when - self._plane.clock())
        self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._plane.clock()
        late = now - self._due
        self.longest_late_s = max(self.longest_late_s, late)
        if late > _LATE_S and not self._draining:
            log.warning("%s: reading its sockets before judging anybody", self._why_late(late, now))
            self._draining = True
            self._drain(self._reception.received, now + _DRAIN_S)
        elif not self._draining:
            self._tick(now)

    def _why_late(self, late: float, now: float) -> str:
        """Tell a stopped process from one long request: at 3 a.m. they call for different people."""
        used = self._processor() - self._used_at_tick
        facts = f"{used:.1f} s of processor time in the last {now - self._last_tick:.1f} s"
        longest = self._reception.longest.take()
        if used < late / 2:
            return f"the plane was stopped, or starved, for {late:.1f} s ({facts})"
        return f"the plane was busy and its loop late by {late:.1f} s ({facts}; longest call: {longest})"

    def _drain(self, received: int, until: float) -> None:
        """Let the loop read what its sockets hold; tick when a whole pass brought nothing."""
        loop = asyncio.get_running_loop()

        def look_again() -> None:
            if self._reception.received != received and self._plane.clock() < until:
                self._drain(self._reception.received, until)
                return
            self._draining = False
            self._tick(self._plane.clock())

        # Three turns: the next pass may have polled already, the one after accepts, the third reads what was accepted.
        loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(look_again)))

    def _tick(self, now: float) -> None:
        self._last_tick = now
        self._used_at_tick = self._processor()
        self._reception.longest.take()
        plane = self._plane
        if not self._stands():
            plane.fail(EX_IOERR, "its data directory was removed, moved or replaced: nobody can find it any more")
            return
        plane.tell(Tick(plane.wall()))
        plane.custody.expire(now)
        self._reception.expel(now)
        self._consider_end(now)
        self._consider_checkpoint()
        plane.settle_soon()

    # -- the end of an auto-started plane --------------------------------------------------------------------------

    def _consider_end(self, now: float) -> None:
        plane = self._plane
        if self._linger_s is None:
            return
        made = (
            plane.warnings.counters["connections"] if self._reception.own is None else 0
        )  # its own come again and again
        seen = (self._reception.greeted, made)
        if self._reception.has_clients or seen != self._seen:
            self._seen, self._idle_since = seen, now
        wait = self._linger_s if self._reception.greeted else _FIRST_CLIENT_S
        awaited = plane.ledger.sessions and now - self._started < self._patience_s
        if now - self._idle_since >= wait and not awaited:
            plane.stop("its last client has gone")

    # -- the journal ----------------------------------------------------------------------------------------------

    def _consider_checkpoint(self) -> None:
        plane = self._plane
        limit = 2 * self._restated_bytes + plane.config.segment_bytes
        if self._checkpoint is None and plane.journal.size_bytes > limit and not plane.failed:
            self.begin_checkpoint()

    def begin_checkpoint(self) -> None:
        """Begin to restate what is alive, so that older segments can go."""
        plane = self._plane
        log.info("checkpoint: the journal holds %d bytes", plane.journal.size_bytes)
        if plane.write(plane.journal.begin_checkpoint):
            reached("server.checkpointing")
            self._checkpoint = iter(plane.ledger.checkpoint(_CHECKPOINT_ROWS))
            self._restate()  # at once: what opens the checkpoint must be the first entry of its first segment

    def _restate(self) -> None:
        """Write one slice, and come back after everybody else has had a turn."""
        plane = self._plane
        if self._checkpoint is None or plane.failed or plane.stopped.is_set():
            return
        entry = next(self._checkpoint, None)
        if entry is not None:
            plane.write(lambda: plane.journal.append(entry))
            reached("server.restated")
            plane.settle_soon()
            asyncio.get_running_loop().call_soon(self._restate)
            return
        self._checkpoint = None
        if plane.write(plane.journal.end_checkpoint):
            reached("server.checkpointed")
            self._restated_bytes = plane.journal.size_bytes
            self.checkpoints += 1
            log.info("checkpoint done: the journal holds %d bytes", self._restated_bytes)


def _collect_young() -> None:
    """Look at what came since the last look; what survives is never looked at again.

    What one call brings by the hundred thousand is rows, which make no cycles: it is not looked at at all.
    """
    if gc.get_count()[0] < _TOO_MANY_OBJECTS:
        gc.collect(0)
    gc.freeze()
