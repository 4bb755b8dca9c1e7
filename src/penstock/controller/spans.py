"""A run's events folded into what lasted how long: the material of a trace. Pure.

Invariants: time never goes back (a clock that was set back shows as events at one moment); every span that began has an
end: what a life left unfinished ends with the life, and says so; groups that wait in the plane wait across lives.
Events may be missing (a file that was full, a kill): nothing is assumed of what came before an event.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.controller import events as ev

__all__ = ["Arrow", "Count", "Kind", "Moment", "Span", "Timeline", "timeline"]

_US = 1_000_000


class Kind(enum.Enum):
    """What a span is about; a lane shows one kind."""

    LIFE = "life"
    PAUSE = "pause"
    PUBLISH = "publish"
    GENERATION = "generation"
    QUEUE = "queue"
    STEP = "step"
    POP = "pop"
    REPLICA = "replica"


@dataclass(slots=True, eq=False)
class Span:
    """Something that lasted. ``start`` and ``end``: microseconds since the first event; ``args``: JSON values."""

    kind: Kind
    name: str
    start: int
    end: int
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened."""

    name: str
    at: int
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Count:
    """The value that a track has from ``at`` on."""

    track: str
    at: int
    value: float


@dataclass(frozen=True, slots=True)
class Arrow:
    """A group's way into a step: its generation, its wait, the step; those of them that are known."""

    group_id: str
    spans: tuple[Span, ...]


@dataclass(slots=True)
class Timeline:
    """A run. ``origin``: seconds since the epoch of the first event."""

    origin: float = 0.0
    spans: list[Span] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)


def timeline(events: Iterable[ev.RunEvent]) -> Timeline:
    """Fold ``events``, oldest first, of one run; any number of lives."""
    fold = _Fold()
    for event in events:
        fold.take(event)
    fold.end()
    return fold.made


class _Fold:
    def __init__(self) -> None:
        self.made = Timeline()
        self._now = -1  # -1 = no event yet
        self._life: Span | None = None
        self._life_number: int | None = None
        self._generating: dict[str, Span] = {}  # by group
        self._waiting: dict[str, Span] = {}  # by group; groups that wait in the plane
        self._of_prompt: dict[int, list[str]] = {}  # groups that are generating or waiting
        self._last: dict[str, tuple[Span, ...]] = {}  # by group: its generation and its wait, until it is trained
        self._group_of: dict[str, str] = {}  # by key, until its group is trained
        self._claim: ev.Claimed | None = None
        self._step: Span | None = None
        self._pop: Span | None = None
        self._pause: Span | None = None
        self._replicas: dict[str, Span] = {}
        self._shown: dict[str, float] = {}  # by track: its value
        self._version: int | None = None
        self._takers: dict[type[ev.RunEvent], Callable[[Any], None]] = {
            ev.Started: self._started,
            ev.Dispatched: self._dispatched,
            ev.Committed: self._committed,
            ev.Again: self._again,
            ev.Dropped: self._dropped,
            ev.Claimed: self._claimed,
            ev.Ordered: self._ordered,
            ev.Trained: self._trained,
            ev.Popped: self._popped,
            ev.Published: self._published,
            ev.Evicted: self._evicted,
            ev.Paused: self._paused,
            ev.Recovered: self._recovered,
            ev.Joined: self._joined,
            ev.Reaped: self._reaped,
            ev.Stalled: self._stalled,
            ev.Finished: self._finished,
            ev.Missed: self._missed,
        }

    def take(self, event: ev.RunEvent) -> None:
        if self._now < 0:
            self.made.origin = event.at
        if isinstance(event, ev.Started) or event.life != self._life_number:
            self._end_life("life ended")
        self._now = max(self._now, 0, round((event.at - self.made.origin) * _US))
        if self._life is None:
            self._life_number = event.life
            self._life = self._open(Kind.LIFE, f"life {event.life}")
        self._takers[type(event)](event)
        self._count()

    def end(self) -> None:
        """The last event was taken."""
        self._end_life("not over at the last event")
        for span in self._waiting.values():
            self._close(span, "not over at the last event")

    # -- spans --------------------------------------------------------------------------------------------------------

    def _open(self, kind: Kind, name: str, **args: Any) -> Span:
        return Span(kind, name, self._now, self._now, args)

    def _close(self, span: Span | None, outcome: str = "", **args: Any) -> None:
        """A span is over. It is kept from here on: that is why one that is never closed would be lost."""
        if span is None:
            return
        span.end = max(span.start, self._now)
        span.args |= args | ({"outcome": outcome} if outcome else {})
        self.made.spans.append(span)

    def _happened(self, name: str, **args: Any) -> None:
        self.made.moments.append(Moment(name, self._now, args))

    def _count(self) -> None:
        now: dict[str, float] = {"groups in flight": len(self._generating), "groups ready": len(self._waiting)}
        if self._version is not None:
            now["weight version"] = self._version
        for track, value in now.items():
            self._show(track, value)

    def _show(self, track: str, value: float) -> None:
        if self._shown.get(track) != value:
            self._shown[track] = value
            self.made.counts.append(Count(track, self._now, value))

    # -- lives --------------------------------------------------------------------------------------------------------

    def _end_life(self, outcome: str) -> None:
        """What a life was doing ends with its last event; what the plane holds stays."""
        for span in (*self._generating.values(), self._step, self._pop, self._pause, *self._replicas.values()):
            self._close(span, outcome)
        self._close(self._life)
        self._generating.clear()
        self._replicas.clear()
        self._step = self._pop = self._pause = self._life = self._claim = None
        if self._now >= 0:
            self._count()

    def _started(self, event: ev.Started) -> None:
        assert self._life is not None
        self._life.args |= {"step": event.step, "cursor": event.cursor, "open prompts": event.open_prompts}
        self._pause = self._open(Kind.PAUSE, "starting")

    def _finished(self, event: ev.Finished) -> None:
        assert self._life is not None
        self._life.args |= {"reason": event.reason, "ok": event.ok, "last step": event.step}
        self._happened("finished" if event.ok else "failed", reason=event.reason, step=event.step)

    def _paused(self, event: ev.Paused) -> None:
        if self._pause is None:
            self._pause = self._open(Kind.PAUSE, "paused", why=event.why)
        else:
            self._happened("still paused", why=event.why)

    def _recovered(self, event: ev.Recovered) -> None:
        self._close(
            self._pause,
            "recovered",
            seconds=event.seconds,
            plane_seconds=event.plane_s,
            incarnation=event.incarnation,
            empty=event.empty,
            kept=event.kept,
            again=event.again,
        )
        self._pause = None
        if event.empty:
            self._happened("the plane came back empty", incarnation=event.incarnation)

    # -- groups -------------------------------------------------------------------------------------------------------

    def _dispatched(self, event: ev.Dispatched) -> None:
        self._end_attempts(event.prompt, "superseded")
        span = self._open(
            Kind.GENERATION,
            event.group_id,
            prompt=event.prompt,
            attempt=event.attempt,
            version=event.version,
            life=event.life,
        )
        self._generating[event.group_id] = span
        self._of_prompt[event.prompt] = [event.group_id]
        self._last[event.group_id] = (span,)

    def _committed(self, event: ev.Committed) -> None:
        self._close(self._generating.pop(event.group_id, None), "committed", rows=len(event.keys))
        if event.group_id in self._waiting:
            return  # listed again, by another life or after a pause
        span = self._open(
            Kind.QUEUE,
            event.group_id,
            prompt=event.prompt,
            version=event.version,
            rows=len(event.keys),
            bytes=event.size_bytes,
            partial=event.partial,
        )
        self._waiting[event.group_id] = span
        groups = self._of_prompt.setdefault(event.prompt, [])
        if event.group_id not in groups:
            groups.append(event.group_id)
        self._last[event.group_id] = (*self._last.get(event.group_id, ())[:1], span)
        self._group_of |= dict.fromkeys(event.keys, event.group_id)

    def _again(self, event: ev.Again) -> None:
        self._end_attempts(event.prompt, f"again: {event.why}")

    def _dropped(self, event: ev.Dropped) -> None:
        self._end_attempts(event.prompt, f"dropped: {event.reason}")
        self._happened("dropped", prompt=event.prompt, reason=event.reason)

    def _evicted(self, event: ev.Evicted) -> None:
        groups = {event.group_id, *(self._group_of.get(key, event.group_id) for key in event.keys)}
        for group_id in groups & self._waiting.keys():
            self._close(self._waiting.pop(group_id), f"evicted: {event.reason}")
        for group_id in groups:
            self._last.pop(group_id, None)
        for key in event.keys:
            self._group_of.pop(key, None)
        self._happened("evicted", group=event.group_id, rows=len(event.keys), reason=event.reason)

    def _end_attempts(self, prompt: int, outcome: str) -> None:
        for group_id in self._of_prompt.pop(prompt, ()):
            self._close(self._generating.pop(group_id, None), outcome)
            self._close(self._waiting.pop(group_id, None), outcome)
            self._last.pop(group_id, None)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _claimed(self, event: ev.Claimed) -> None:
        self._claim = event
        self._take(event.groups, event.step)

    def _take(self, groups: Iterable[str], step: int) -> None:
        """A step took ``groups``: they wait no more, and are committed, whether that was told or not."""
        for group_id in groups:
            self._close(self._generating.pop(group_id, None), "committed")
            self._close(self._waiting.pop(group_id, None), f"step {step}")

    def _ordered(self, event: ev.Ordered) -> None:
        self._close(self._step, f"failed: {event.why}" if event.why else "failed")
        name = f"step {event.step}" + (f", attempt {event.attempt}" if event.attempt > 1 else "")
        self._step = self._open(Kind.STEP, name, step=event.step, attempt=event.attempt, life=event.life)
        claim = self._claim
        if claim is None or claim.step != event.step:
            return
        self._step.args |= {"groups": len(claim.groups), "rows": len(claim.keys), "staleness": claim.staleness}
        for group_id in claim.groups:
            if before := self._last.get(group_id):
                self.made.arrows.append(Arrow(group_id, (*before, self._step)))

    def _trained(self, event: ev.Trained) -> None:
        if self._step is None:
            self._happened("a step of an earlier life was durable", step=event.step, rows=event.rows)
        metrics = {name: value for name, value in event.metrics.items() if value is not None and math.isfinite(value)}
        self._close(self._step, "trained", rows=event.rows, **{f"metric {n}": value for n, value in metrics.items()})
        self._step = self._claim = None
        for name, value in metrics.items():
            self._show(f"metric {name}", value)
        self._close(self._pop, "superseded")
        self._pop = self._open(Kind.POP, f"pop of step {event.step}", step=event.step, rows=event.rows)
        self._take(event.groups, event.step)
        for group_id in event.groups:
            self._last.pop(group_id, None)

    def _popped(self, event: ev.Popped) -> None:
        if self._pop is None:
            self._happened("popped", step=event.step, rows=len(event.keys), lost=len(event.lost))
        self._close(self._pop, "popped", lost=len(event.lost))
        self._pop = None
        for key in event.keys:
            self._group_of.pop(key, None)

    def _published(self, event: ev.Published) -> None:
        span = self._open(Kind.PUBLISH, f"publish {event.version}", version=event.version)
        span.start = max(0, self._now - round(event.seconds * _US))
        self._close(span)
        self._version = event.version

    # -- the rest -----------------------------------------------------------------------------------------------------

    def _joined(self, event: ev.Joined) -> None:
        self._close(self._replicas.pop(event.replica, None), "joined again")
        self._replicas[event.replica] = self._open(Kind.REPLICA, event.replica, role=event.role)

    def _reaped(self, event: ev.Reaped) -> None:
        outcome = f"silent for {event.silent_s:.1f} s" if event.silent_s else "said goodbye"
        self._close(self._replicas.pop(event.replica, None), outcome)
        self._happened("reaped", replica=event.replica, role=event.role, silent_seconds=event.silent_s)

    def _stalled(self, event: ev.Stalled) -> None:
        self._happened("stalled", seconds=event.seconds, owed="; ".join(event.owed))

    def _missed(self, event: ev.Missed) -> None:
        self._happened("events are missing here", events=event.events, why=event.why)
