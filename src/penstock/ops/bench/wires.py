"""How fast the wires carry: 64 MiB and 8 bytes from another process, beside plain sockets, plain ucxx and a memcpy.

Invariants: every carrier has two processes of its own and takes its turns interleaved with the others; a carrier that
is not installed, or fails, is left out with its reason; no process outlives the measurement.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from penstock.errors import DataPlaneError
from penstock.ops.bench.carrier import MAX_BYTES
from penstock.ops.bench.carriers import CARRIERS, MEMCPY
from penstock.ops.bench.figures import Goal
from penstock.ops.bench.hire import Worker
from penstock.ops.machine import package_version
from penstock.ops.report import Report

__all__ = ["PLAIN", "WireFigure", "measure_wires", "wire_goals_of"]

PLAIN = {"tcp": "sockets", "tls": "sockets", "ucx": "ucxx"}  # what each wire of ours is compared with
_LARGE, _SMALL = MAX_BYTES, 8
_TIMES = {_LARGE: 2, _SMALL: 100}  # of each turn
_WARMUP = 2
_OPEN_S, _TURN_S = 60.0, 60.0
_SOURCE = Path(__file__).resolve().parents[3]
_LEAST = 0.9


@dataclass(frozen=True)
class WireFigure:
    """One carrier.

    Attributes:
        gb_s: gigabytes (10^9) a second, of the median fetch of 64 MiB.
        best_gb_s: of the fastest one.
        cpu_ms: processor time of the fetching process for 64 MiB, median; a busy machine disturbs it less.
        round_trip_us: the median fetch of 8 bytes.
        of_memcpy: its rate over that of a memcpy in the same run.
        of_plain: over that of what it is built on; None for those.
    """

    carrier: str
    gb_s: float
    best_gb_s: float
    cpu_ms: float
    round_trip_us: float
    of_memcpy: float | None
    of_plain: float | None


@dataclass
class _Laps:
    large: list[float]
    small: list[float]
    cpu: list[float]


def measure_wires(report: Report, repeats: int, left_out: dict[str, str]) -> list[WireFigure]:
    """Measure every carrier that is installed."""
    with _carriers(report, left_out) as staff:
        for name in list(staff):
            _ask(report, staff, name, {"do": "open"}, left_out)
        found = _race(report, staff, repeats, left_out)
    rates = {name: _LARGE / median(laps.large) / 1e9 for name, laps in found.items()}
    return [_figure(name, laps, rates) for name, laps in found.items()]


def wire_goals_of(figures: Sequence[WireFigure]) -> list[Goal]:
    """Return the design's goals that were measured; encryption has none."""
    return [
        Goal(f"wire {f.carrier} / plain {PLAIN[f.carrier]}", _LEAST, f.of_plain)
        for f in figures
        if f.of_plain is not None and f.carrier != "tls"
    ]


@contextmanager
def _carriers(report: Report, left_out: dict[str, str]) -> Iterator[dict[str, Worker]]:
    staff: dict[str, Worker] = {}
    try:
        for name, distributions in CARRIERS.items():
            if all(package_version(each) for each in distributions):
                staff[name] = Worker(name, Path(sys.executable), _SOURCE, module="penstock.ops.bench.carry")
            else:
                left_out[name] = f"not installed: {', '.join(distributions)}"
                report.progress(f"{name}: {left_out[name]}")
        yield staff
    finally:
        for worker in staff.values():
            worker.dismiss()
        for worker in staff.values():
            worker.close()


def _race(report: Report, staff: dict[str, Worker], repeats: int, left_out: dict[str, str]) -> dict[str, _Laps]:
    found: dict[str, _Laps] = {}
    for turn in range(_WARMUP + repeats):
        report.progress(f"wires: turn {turn + 1} of {_WARMUP + repeats}")
        for name in list(staff):
            large = _ask(report, staff, name, _fetch(_LARGE), left_out)
            small = _ask(report, staff, name, _fetch(_SMALL), left_out) if large else None
            if large is None or small is None or turn < _WARMUP:
                continue
            laps = found.setdefault(name, _Laps([], [], []))
            laps.large += large["seconds"]
            laps.cpu += large["cpu_s"]
            laps.small += small["seconds"]
    return found


def _fetch(nbytes: int) -> dict[str, Any]:
    return {"do": "fetch", "nbytes": nbytes, "times": _TIMES[nbytes]}


def _ask(
    report: Report, staff: dict[str, Worker], name: str, order: dict[str, Any], left_out: dict[str, str]
) -> dict[str, Any] | None:
    """Give an order; a carrier that fails is out of the race."""
    try:
        return staff[name].ask(order, _OPEN_S if order["do"] == "open" else _TURN_S)
    except DataPlaneError as failure:
        left_out[name] = failure.message
        report.progress(f"{name}: left out: {failure.message}")
        staff.pop(name).close()
        return None


def _figure(name: str, laps: _Laps, rates: dict[str, float]) -> WireFigure:
    plain = PLAIN.get(name)
    return WireFigure(
        carrier=name,
        gb_s=rates[name],
        best_gb_s=_LARGE / min(laps.large) / 1e9,
        cpu_ms=1e3 * median(laps.cpu),
        round_trip_us=1e6 * median(laps.small),
        of_memcpy=rates[name] / rates[MEMCPY] if MEMCPY in rates else None,
        of_plain=rates[name] / rates[plain] if plain in rates else None,
    )
