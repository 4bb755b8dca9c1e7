"""Carries sentences out on processes that take part, whoever started them; see ``faults`` and ``injection``.

A process that reaches a point which a sentence names says so and waits: the director counts, sends the signal, sees it
take effect and lets the process go on, if it lives. Sentences may be armed before a process starts and while it runs.

Invariants: a fault counts as fired only when the kernel says so (the process is gone, or stopped); one whose moment
came and that took no effect is missed, one whose moment never came is pending, and both say why; a stopped process is
continued; after ``close`` nobody is held or stopped. For one thread; knows nothing of planes.
"""

from __future__ import annotations

import itertools
import os
import select
import selectors
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.errors import BadArgument
from penstock.testing.faults import Fired, Kind, Missed, Sentence
from penstock.testing.injection import Seat

__all__ = ["Director"]

_SIGNALS: dict[Kind, signal.Signals] = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "terminate": signal.SIGTERM,
}
_EFFECT_S = 10.0  # by then the kernel has carried out a signal, on any machine that is not itself stopped
_LOOK_S = 0.001  # between two looks at what no descriptor tells
_RESEND_S = 0.05  # until a process that was told much and reached nothing is told again


@dataclass(order=True)
class _Later:
    """Something to do at a moment."""

    due: float
    order: int
    do: Callable[[], object] = field(compare=False)


@dataclass
class _Armed:
    sentence: Sentence
    count: int = 0  # how often its point was reached


@dataclass(frozen=True)
class _Ending:
    """A process that has been asked to end. ``held``: who waits for it, having reached the point."""

    sentence: Sentence
    pid: int
    process: int
    until: float
    held: Seat | None


@dataclass(frozen=True)
class _Stopped:
    process: int
    until: float


class Director:
    """Args: find: who a victim is right now, if that is not told by the seats; None = nobody.

    It may name a process that has just ended, and is then asked again.

    Attributes:
        fired, missed: what became of the faults whose moment came.
    """

    def __init__(self, find: Callable[[str], int | None] | None = None) -> None:
        self.fired: list[Fired] = []
        self.missed: list[Missed] = []
        self._find_pid = find or self._seated
        self._armed: list[_Armed] = []
        self._seats: list[Seat] = []
        self._left: set[str] = set()  # names that processes had, which have ended
        self._agenda: list[_Later] = []
        self._order = itertools.count()
        self._endings: list[_Ending] = []
        self._stopped: dict[int, _Stopped] = {}
        self._selector = selectors.EpollSelector()

    # -- before and while processes run -------------------------------------------------------------------------------

    def arm(self, *sentences: Sentence) -> None:
        """Let these faults happen; reaching a point counts from now on.

        Raises:
            BadArgument: one of them is armed already; nothing was armed.
        """
        known = self.pending
        for sentence in sentences:
            if sentence in known:
                raise BadArgument(f"{sentence} is armed already")
            known.append(sentence)
        self._armed += [_Armed(sentence) for sentence in sentences]
        self._rewatch()

    def disarm(self, *sentences: Sentence) -> None:
        """Let these faults not happen; those whose moment has come are none of them any more."""
        self._armed = [armed for armed in self._armed if armed.sentence not in sentences]
        self._rewatch()

    def enrol(self, *names: str) -> Seat:
        """Return a seat for a process that is about to be started; sentences know it by any of ``names``."""
        seat = Seat(names)
        self._seats.append(seat)
        self._selector.register(seat, selectors.EVENT_READ, lambda: self._hear(seat))
        self._rewatch()
        return seat

    def rename(self, seat: Seat, *names: str) -> None:
        """The process of ``seat`` answers to other names from now on."""
        seat.names = names
        self._rewatch()

    def fileno(self) -> int:
        """Readable when ``turn`` has something to do."""
        return self._selector.fileno()

    def due(self) -> float | None:
        """Return the moment, in monotonic seconds, at which ``turn`` has something to do anyway."""
        moments = [later.due for later in self._agenda] + [ending.until for ending in self._endings]
        if any(seat.behind for seat in self._seats):
            moments.append(time.monotonic() + _RESEND_S)
        return min(moments, default=None)

    def turn(self, timeout_s: float = 0.0) -> None:
        """Wait for something to happen, at most so long, and do what is to be done."""
        due = self.due()
        if due is not None:
            timeout_s = min(timeout_s, max(0.0, due - time.monotonic()))
        for key, _ in self._selector.select(timeout_s):
            key.data()
        now = time.monotonic()
        for later in sorted(later for later in self._agenda if later.due <= now):
            self._agenda.remove(later)
            later.do()
        for ending in [ending for ending in self._endings if ending.until <= now]:
            self._ended(ending, gone=False)
        for seat in self._seats:
            seat.send()

    # -- how it stands ------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> list[Sentence]:
        """The faults whose moment has not come."""
        return [armed.sentence for armed in self._armed]

    @property
    def busy(self) -> bool:
        """Whether a fault's moment has come and it is not over: its signal is due, or somebody is to be continued."""
        return bool(self._agenda or self._endings)

    @property
    def stopped(self) -> list[int]:
        """The processes that are stopped at the moment."""
        return list(self._stopped)

    def shortfalls(self) -> list[str]:
        """Say of each pending fault how far it came, and whether anybody is left who could reach its point."""
        return [self._shortfall(armed) for armed in self._armed]

    def _shortfall(self, armed: _Armed) -> str:
        role, times = armed.sentence.role, "once" if armed.count == 1 else f"{armed.count} times"
        said = f"{armed.sentence}: its point was reached {times}"
        if any(role in seat.names for seat in self._seats):
            return said
        return f"{said}; {f'every {role!r} has ended' if role in self._left else f'there was no {role!r}'}"

    def is_ending(self, pid: int) -> bool:
        """Whether ``pid`` has been killed or asked to end by a sentence."""
        ended = any(f.pid == pid and f.sentence.kind in ("kill", "terminate") for f in self.fired)
        return ended or any(ending.pid == pid for ending in self._endings)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def _rewatch(self) -> None:
        for seat in self._seats:
            seat.watch(frozenset(a.sentence.point for a in self._armed if a.sentence.role in seat.names))

    def _hear(self, seat: Seat) -> None:
        if seat not in self._seats:
            return
        point = seat.hear()
        if point is None:
            self._leave(seat)
            return
        held = False
        for armed in [a for a in self._armed if a.sentence.point == point and a.sentence.role in seat.names]:
            armed.count += 1
            if armed.count == armed.sentence.nth:
                self._armed.remove(armed)
                held |= self._strike(armed.sentence, seat)
        self._rewatch()
        if not held:
            seat.go()

    def _leave(self, seat: Seat) -> None:
        self._seats.remove(seat)
        self._left.update(seat.names)
        self._selector.unregister(seat)
        seat.close()

    def _strike(self, sentence: Sentence, seat: Seat) -> bool:
        """The moment has come. Returns whether the process stays held for now."""
        if sentence.kind == "delay":
            self.fired.append(Fired(sentence, seat.pid or 0, time.monotonic()))
            self._in(sentence.for_s, seat.go)
            return True
        if sentence.later_s:
            self._in(sentence.later_s, lambda: self._carry_out(sentence, seat, held=False))
            return False
        return self._carry_out(sentence, seat, held=True)

    def _in(self, seconds: float, do: Callable[[], object]) -> None:
        self._agenda.append(_Later(time.monotonic() + seconds, next(self._order), do))

    # -- faults -------------------------------------------------------------------------------------------------------

    def _carry_out(self, sentence: Sentence, seat: Seat, *, held: bool) -> bool:
        """Send the signal. Returns whether ``seat``, if it is held, is to stay so until the signal has its effect."""
        found = self._find(sentence.victim, seat)
        if found is None:
            self.missed.append(Missed(sentence, f"nobody to {sentence.kind}"))
            return False
        pid, process = found
        if sentence.kind == "terminate":
            self._continue(pid)  # a stopped process takes no other signal than SIGKILL
            signal.pidfd_send_signal(process, _SIGNALS[sentence.kind])
            waits = held and pid != seat.pid  # to end it must go on
            until = time.monotonic() + _EFFECT_S
            self._await_end(_Ending(sentence, pid, process, until, seat if waits else None))
            return waits
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, _SIGNALS[sentence.kind])
        if sentence.kind == "stop":
            self._saw(sentence, pid, _is_stopped(pid))
            self._keep_stopped(pid, process, sentence.for_s)
            return False
        self._saw(sentence, pid, _is_gone(process, _EFFECT_S))
        os.close(process)
        return False

    def _saw(self, sentence: Sentence, pid: int, effect: bool) -> None:
        if effect:
            self.fired.append(Fired(sentence, pid, time.monotonic()))
        else:
            self.missed.append(Missed(sentence, f"process {pid} shows no effect after {_EFFECT_S:g} s"))

    def _await_end(self, ending: _Ending) -> None:
        """Go on hearing others, and this one: on its way out it passes points too."""
        self._endings.append(ending)
        self._selector.register(ending.process, selectors.EVENT_READ, lambda: self._ended(ending, gone=True))

    def _ended(self, ending: _Ending, *, gone: bool) -> None:
        if ending not in self._endings:
            return
        self._endings.remove(ending)
        self._selector.unregister(ending.process)
        os.close(ending.process)
        self._saw(ending.sentence, ending.pid, gone)
        if ending.held is not None:
            ending.held.go()

    def _find(self, victim: str, seat: Seat) -> tuple[int, int] | None:
        """Return the victim's process, by id and descriptor: who reached the point, if it is one of that name."""
        if victim in seat.names and seat.pid is not None:
            process = _living(seat.pid)
            if process is not None:
                return seat.pid, process
        end = time.monotonic() + _EFFECT_S
        while time.monotonic() < end:
            pid = self._find_pid(victim)
            if pid is None:
                return None
            process = _living(pid)
            if process is not None:
                return pid, process
            time.sleep(_LOOK_S)
        return None

    def _seated(self, victim: str) -> int | None:
        for seat in reversed(self._seats):
            if victim in seat.names and seat.pid is not None:
                process = _living(seat.pid)
                if process is not None:
                    os.close(process)
                    return seat.pid
        return None

    def _keep_stopped(self, pid: int, process: int, for_s: float) -> None:
        until = time.monotonic() + for_s
        before = self._stopped.get(pid)
        if before is not None:  # who is stopped twice stays so until both are over
            os.close(before.process)
            until = max(until, before.until)
        self._stopped[pid] = _Stopped(process, until)
        self._in(for_s, lambda: self._continue_if_due(pid))

    def _continue_if_due(self, pid: int) -> None:
        stopped = self._stopped.get(pid)
        if stopped is not None and stopped.until <= time.monotonic():
            self._continue(pid)

    def _continue(self, pid: int) -> None:
        stopped = self._stopped.pop(pid, None)
        if stopped is not None:
            with suppress(ProcessLookupError):  # killed while it was stopped
                signal.pidfd_send_signal(stopped.process, signal.SIGCONT)
            os.close(stopped.process)

    # -- the end ------------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Continue whoever is stopped."""
        for pid in list(self._stopped):
            self._continue(pid)

    def close(self) -> None:
        """Hang up: nobody is held or stopped any more, and nothing that is pending happens. Idempotent."""
        self.go_on()
        for ending in self._endings:
            os.close(ending.process)
        for seat in self._seats:
            seat.close()
        self._endings.clear()
        self._seats.clear()
        self._agenda.clear()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        counts = f"{len(self.fired)} fired, {len(self.missed)} missed, {len(self._armed)} pending"
        return f"Director({len(self._seats)} processes, {counts})"


def _living(pid: int) -> int | None:
    """Return a descriptor of the process, None if it has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _is_gone(process, 0.0):
        os.close(process)
        return None
    return process


def _is_gone(process: int, within_s: float) -> bool:
    """Whether the process of a pidfd ends in time."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(1000 * within_s))


def _is_stopped(pid: int) -> bool:
    """Whether all of ``pid`` is stopped in time. The kernel tells this to a parent only: others must look."""
    end = time.monotonic() + _EFFECT_S
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                return True
        except OSError:
            return False
        time.sleep(_LOOK_S)
    return False
