"""What Perfetto and chrome://tracing ask of a trace, as far as Penstock uses the format."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]
_NEEDED = {
    "M": {"name", "args"},
    "X": {"name", "ts", "dur"},
    "i": {"name", "ts", "s"},
    "C": {"name", "ts", "args"},
    "b": {"name", "ts", "id", "cat"},
    "e": {"name", "ts", "id", "cat"},
    **{phase: {"name", "ts", "id", "cat"} for phase in "stf"},
}


def problems(trace: Json) -> list[str]:
    """Return what is wrong with ``trace``; nothing is right."""
    json.dumps(trace, allow_nan=False)
    events: list[Json] = trace["traceEvents"]
    found = [
        problem for rule in (_shapes, _order, _names, _lanes, _asyncs, _flows, _counters) for problem in rule(events)
    ]
    return [*found, *([] if trace["displayTimeUnit"] in ("ms", "ns") else ["displayTimeUnit"])]


def of_phase(trace: Json, *phases: str) -> list[Json]:
    return [event for event in trace["traceEvents"] if event["ph"] in phases]


def lane_names(trace: Json) -> dict[tuple[int, int], str]:
    named = (event for event in of_phase(trace, "M") if event["name"] == "thread_name")
    return {(event["pid"], event["tid"]): event["args"]["name"] for event in named}


def _shapes(events: list[Json]) -> Iterator[str]:
    for event in events:
        lacking = {"pid", *_NEEDED.get(event["ph"], {"a known phase"})} - event.keys()
        if lacking:
            yield f"{event} lacks {lacking}"
        for name in ("ts", "dur"):
            if name in event and (type(event[name]) is not int or event[name] < (name == "dur")):
                yield f"{event}: {name}"


def _order(events: list[Json]) -> Iterator[str]:
    times = [event["ts"] for event in events if event["ph"] != "M"]
    if times != sorted(times):
        yield "timestamps go back"
    if "M" in "".join(event["ph"] for event in events).lstrip("M"):
        yield "metadata behind events"


def _names(events: list[Json]) -> Iterator[str]:
    processes = [event["pid"] for event in events if event["name"] == "process_name"]
    lanes = [(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"]
    numbers = [*processes, *(lane for _, lane in lanes)]
    if len(set(numbers)) != len(numbers):
        yield "a number names two lanes or processes"
    for event in events:
        if event["ph"] in "XistfbeI" and (event["pid"], event["tid"]) not in lanes:
            yield f"{event}: its lane has no name"
        if event["pid"] not in processes:
            yield f"{event}: its process has no name"


def _lanes(events: list[Json]) -> Iterator[str]:
    busy_until: dict[tuple[int, int], int] = {}
    for event in events:
        if event["ph"] == "X":
            lane = event["pid"], event["tid"]
            if event["ts"] < busy_until.get(lane, 0):
                yield f"{event} overlaps with the one before"
            busy_until[lane] = event["ts"] + event["dur"]


def _asyncs(events: list[Json]) -> Iterator[str]:
    open_: dict[tuple[object, ...], int] = {}
    for event in events:
        if event["ph"] in "be":
            name = event["cat"], event["id"], event["name"], event["pid"]
            open_[name] = open_.get(name, 0) + (1 if event["ph"] == "b" else -1)
            if open_[name] not in (0, 1):
                yield f"{event}: begun twice, or ended before it began"
    yield from (f"{name} never ends" for name, depth in open_.items() if depth)


def _flows(events: list[Json]) -> Iterator[str]:
    spans: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    way: defaultdict[int, str] = defaultdict(str)
    for event in events:  # in order: a span must stand before the flow that it holds
        lane = event["pid"], event.get("tid", 0)
        if event["ph"] == "X":
            spans[lane].append((event["ts"], event["ts"] + event["dur"]))
        if event["ph"] in "stf":
            way[event["id"]] += event["ph"]
            if not any(start <= event["ts"] < end for start, end in spans[lane][-2:]):
                yield f"{event} touches no span"
        if event["ph"] == "f" and event.get("bp") != "e":
            yield f"{event} binds to the next span"
    yield from (f"flow {name}: {passed}" for name, passed in way.items() if passed.replace("t", "") != "sf")


def _counters(events: list[Json]) -> Iterator[str]:
    for event in events:
        if event["ph"] == "C" and not all(type(value) in (int, float) for value in event["args"].values()):
            yield f"{event} counts no numbers"
