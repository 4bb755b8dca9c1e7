"""A run as a trace that Perfetto and chrome://tracing open: lanes of spans, counters, moments, arrows. Pure.

The format is Google's "Trace Event Format". Invariants: spans are complete events ("X", at least 1 us long), and those
of one lane never overlap: a kind has as many lanes as spans of it ran at one time, each span in the lowest that is
free; each lane and its process is named; each flow and each async span that begins ends; timestamps are whole
microseconds since the first event, ascending; every argument is JSON.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from penstock.controller.events import RunEvent
from penstock.controller.spans import Arrow, Kind, Span, Timeline, timeline

__all__ = ["chrome_trace"]

_PROCESSES = {
    "controller": (Kind.LIFE, Kind.PAUSE, Kind.PUBLISH),
    "generation": (Kind.GENERATION,),
    "waiting in the plane": (Kind.QUEUE,),
    "training": (Kind.STEP, Kind.POP),
}
_LANE_NAMES = {
    Kind.LIFE: "lives",
    Kind.PAUSE: "pauses and recoveries",
    Kind.PUBLISH: "publish",
    Kind.GENERATION: "slot",
    Kind.QUEUE: "place",
    Kind.STEP: "steps",
    Kind.POP: "pop",
}
_CONTROLLER = 1  # its process, where moments, counters and replicas are
_MOMENTS = 100  # the lane of moments; other lanes follow it: a lane's number is that of no process and no other lane

Json = dict[str, Any]


def chrome_trace(events: Iterable[RunEvent]) -> Json:
    """Return the trace of ``events``, oldest first, of one run and all its lives, as one JSON object."""
    made = timeline(events)
    lanes = _Lanes(made.spans)
    timed = chain(
        (_complete(span, lanes) for span in made.spans if span.kind is not Kind.REPLICA),
        _replicas(made.spans),
        _moments(made),
        _counters(made),
        _flows(made.arrows, lanes),
    )
    names = list(lanes.names())
    return {
        "traceEvents": names + sorted(timed, key=lambda event: event["ts"]),  # stable: a span before its flows
        "displayTimeUnit": "ms",
        "otherData": {"origin": made.origin},
    }


class _Lanes:
    """Where each span is drawn: process and lane, by number."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._place: dict[Span, tuple[int, int]] = {}  # process, lane
        self._names: dict[tuple[int, int], str] = {}
        of_kind: dict[Kind, list[Span]] = {kind: [] for kind in Kind}
        for span in spans:
            of_kind[span.kind].append(span)
        lane = _MOMENTS + 1
        for process, kinds in enumerate(_PROCESSES.values(), start=_CONTROLLER):
            for kind in kinds:
                lane = self._lay(of_kind[kind], kind, process, lane)

    def _lay(self, spans: list[Span], kind: Kind, process: int, first: int) -> int:
        """Lay spans of one kind, as they began, into the lowest free lane each; return the next free lane number."""
        spans.sort(key=lambda span: (span.start, span.end))
        free: list[int] = []
        busy: list[tuple[int, int]] = []  # until when, which lane
        used = 0
        for span in spans:
            while busy and busy[0][0] <= span.start:
                heapq.heappush(free, heapq.heappop(busy)[1])
            if not free:
                heapq.heappush(free, first + used)
                used += 1
            lane = heapq.heappop(free)
            heapq.heappush(busy, (_end(span), lane))
            self._place[span] = process, lane
        width = len(str(used))
        for number in range(used):
            one = used == 1 and kind not in (Kind.GENERATION, Kind.QUEUE)
            name = _LANE_NAMES[kind] if one else f"{_LANE_NAMES[kind]} {number + 1:0{width}}"
            self._names[process, first + number] = name
        return first + used

    def of(self, span: Span) -> Json:
        process, lane = self._place[span]
        return {"pid": process, "tid": lane}

    def names(self) -> Iterator[Json]:
        """Metadata: the names and the order of processes and lanes."""
        for number, name in enumerate(_PROCESSES, start=_CONTROLLER):
            yield _metadata("process_name", number, number, name=name)
            yield _metadata("process_sort_index", number, number, sort_index=number)
        for (process, lane), name in {(_CONTROLLER, _MOMENTS): "moments", **self._names}.items():
            yield _metadata("thread_name", process, lane, name=name)
            yield _metadata("thread_sort_index", process, lane, sort_index=lane)


def _metadata(what: str, process: int, lane: int, **args: Any) -> Json:
    return {"ph": "M", "name": what, "pid": process, "tid": lane, "args": args}


def _end(span: Span) -> int:
    return max(span.end, span.start + 1)  # nothing to see, and nothing for an arrow to hold on to, in less


def _complete(span: Span, lanes: _Lanes) -> Json:
    times = {"ts": span.start, "dur": _end(span) - span.start}
    return {"ph": "X", "name": span.name, "cat": span.kind.value, **times, **lanes.of(span), "args": span.args}


def _replicas(spans: Iterable[Span]) -> Iterator[Json]:
    """Replicas are async spans: they come and go, one lane would say nothing."""
    for number, span in enumerate((span for span in spans if span.kind is Kind.REPLICA), start=1):
        common = {"cat": "replica", "name": span.name, "id": number, "pid": _CONTROLLER, "tid": _MOMENTS}
        yield {"ph": "b", "ts": span.start, **common, "args": span.args}
        yield {"ph": "e", "ts": _end(span), **common}


def _moments(made: Timeline) -> Iterator[Json]:
    where = {"pid": _CONTROLLER, "tid": _MOMENTS, "s": "t"}
    for one in made.moments:
        yield {"ph": "i", "name": one.name, "cat": "moment", "ts": one.at, **where, "args": dict(one.args)}


def _counters(made: Timeline) -> Iterator[Json]:
    for one in made.counts:
        yield {"ph": "C", "name": one.track, "ts": one.at, "pid": _CONTROLLER, "args": {"value": one.value}}


def _flows(arrows: Iterable[Arrow], lanes: _Lanes) -> Iterator[Json]:
    """An arrow leaves the end of its first span, touches the beginning of each next one and ends in the last."""
    for number, arrow in enumerate(arrows, start=1):
        for place, span in enumerate(arrow.spans):
            phase = "s" if place == 0 else "f" if place == len(arrow.spans) - 1 else "t"
            moment = _end(span) - 1 if place == 0 else span.start
            flow: Json = {"ph": phase, "name": "into a step", "cat": "flow", "id": number, "ts": moment}
            yield flow | lanes.of(span) | ({"bp": "e"} if phase == "f" else {})
