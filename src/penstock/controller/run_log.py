"""A listener that writes log lines: changes of the run's state at INFO, each group's way at DEBUG, trouble as warnings.

Invariants: every event has a line of some level; of warnings of one kind at most one is logged in ten seconds, all are
counted, and a line says how many it stands for; the run's last line says them all.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from penstock.controller import events as ev
from penstock.controller.sentences import sentence

__all__ = ["RunLog"]

_EVERY_S = 10.0  # one line of a kind in this time, as for the plane's warnings

_CHANGES = (ev.Started, ev.Paused, ev.Recovered, ev.Joined, ev.Reaped, ev.Trained)
_TROUBLE = {ev.Stalled: "stalled", ev.Dropped: "dropped", ev.Missed: "missed"}


class RunLog:
    """Listens to a run.

    Args:
        log: where lines go; None = the logger of this module.
        clock: monotonic seconds.
    """

    def __init__(self, log: logging.Logger | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.counters: Counter[str] = Counter()
        self._log = log if log is not None else logging.getLogger(__name__)
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # kind -> when it was last logged, and its count then

    def __call__(self, event: ev.RunEvent) -> None:
        kind = _trouble(event)
        if kind is not None:
            self._warn(kind, event)
        elif isinstance(event, ev.Finished):
            self._finished(event)
        elif isinstance(event, _CHANGES):
            self._log.info("%s", sentence(event))
        elif self._log.isEnabledFor(logging.DEBUG):  # one for each group: not worth a sentence that nobody reads
            self._log.debug("%s", sentence(event))

    def _warn(self, kind: str, event: ev.RunEvent) -> None:
        self.counters[kind] += 1
        count, now = self.counters[kind], self._clock()
        when, counted = self._said.get(kind, (-_EVERY_S, 0))
        if now - when < _EVERY_S:
            return
        self._said[kind] = (now, count)
        unsaid = count - counted - 1
        more = f" ({unsaid} more {kind} since the last such line)" if unsaid else ""
        self._log.warning("%s%s", sentence(event), more)

    def _finished(self, event: ev.Finished) -> None:
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(self.counters.items()))
        level = logging.INFO if event.ok else logging.ERROR
        self._log.log(level, "%s%s", sentence(event), f" (warnings: {counted})" if counted else "")


def _trouble(event: ev.RunEvent) -> str | None:
    """Return the kind of warning that an event is; None = it is none."""
    if isinstance(event, ev.Again):
        return None if event.why == "stale" else "again"  # to be too late is the policy's doing, nobody's failure
    if isinstance(event, ev.Ordered):
        return "ordered again" if event.attempt > 1 else None
    return _TROUBLE.get(type(event))
