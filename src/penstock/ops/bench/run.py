"""``penstock bench``: hire the peers, let them take turns, print what was measured as a table and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from penstock.errors import BadArgument, DataPlaneError
from penstock.ops.bench.figures import Figure, Goal, Measured, Ratio, figures_of, goals_of, ledger_goals_of, ratios_of
from penstock.ops.bench.hire import Worker
from penstock.ops.bench.peers import MEMCPY, PEERS, PENSTOCK
from penstock.ops.machine import machine_facts, package_version, versions
from penstock.ops.report import Report
from penstock.ops.tables import bytes_text, table

__all__ = ["BenchOptions", "run_bench"]

LEDGER, WIRES = "ledger", "wires"
_SOURCE = Path(__file__).resolve().parents[3]
_OPEN_S, _TURN_S = 120.0, 60.0
_WARMUP = 2  # turns that are not counted: first touches of pages, imports, connections
_REPEATS, _QUICK_REPEATS = 9, 3


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        only: peers (and ``ledger``, ``wires``); empty = all. memcpy is always measured: the rest is compared with it.
        peer_python: interpreter for peers that are not installed in this one.
    """

    quick: bool = False
    full: bool = False
    only: tuple[str, ...] = ()
    repeats: int | None = None
    peer_python: Path | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.only) - {*PEERS, LEDGER, WIRES})
        if unknown:
            raise BadArgument(f"unknown: {unknown}; --only knows {[*PEERS, LEDGER, WIRES]}")

    @property
    def laps(self) -> int:
        return self.repeats or (_QUICK_REPEATS if self.quick else _REPEATS)

    @property
    def batches(self) -> tuple[str, ...]:
        return ("ragged",) if self.quick else ("ragged", "dense")

    @property
    def sizes(self) -> tuple[int, ...]:
        return (1_000, 100_000, 1_000_000) if self.full else (1_000, 10_000) if self.quick else (1_000, 100_000)

    def wants(self, name: str) -> bool:
        return not self.only or name in self.only


def run_bench(report: Report, options: BenchOptions) -> None:
    """Measure, print, and write ``options.output`` where one is asked for."""
    value: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "versions": versions(),
        "laps": options.laps,
    }
    goals: list[Goal] = []
    shown = _measure_peers(report, options, value, goals)
    if options.wants(LEDGER):
        shown += _measure_ledger(report, options, value, goals)
    if options.wants(WIRES):
        shown += _measure_wires(report, options, value, goals)
    value["goals"] = [{**asdict(goal), "met": goal.met} for goal in goals]
    if goals:
        shown.append(_goals_table(goals))
    value["busy"] = busy = _others_at_work()
    if busy:
        report.progress(f"{busy}: these figures say little")
    if options.output is not None:
        options.output.write_text(json.dumps(value, indent=1) + "\n")
    report.answer(value, *shown)


def _others_at_work() -> str:
    """Say so if more wants to run than the machine has cores for: the benchmark itself keeps about one busy."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return f"the machine is busy (load {load:.1f} on {cores} cores)" if load > cores + 1 else ""


# -- peers ------------------------------------------------------------------------------------------------------------


def _measure_peers(report: Report, options: BenchOptions, value: dict[str, Any], goals: list[Goal]) -> list[Table]:
    wanted = [name for name in PEERS if name == MEMCPY or options.wants(name)]
    if wanted == [MEMCPY] and options.only:
        return []
    left_out: dict[str, str] = {}
    with _staff(report, wanted, options.peer_python, left_out) as staff:
        value["peer_versions"] = {name: _open(report, name, staff, left_out) for name in list(staff)}
        measured = [m for batch in options.batches for m in _race(report, batch, staff, options.laps, left_out)]
    figures = figures_of(measured)
    ratios = ratios_of(figures, PENSTOCK)
    goals += goals_of(figures, ratios)
    value["figures"] = [asdict(f) for f in figures]
    value["ratios"] = [asdict(r) for r in ratios]
    value["left_out"] = left_out
    return [
        *_figures_tables(figures, measured),
        _ratios_table(ratios),
        *([table("left out", ("peer", "why"), left_out.items())] if left_out else []),
    ]


@contextmanager
def _staff(
    report: Report, wanted: Sequence[str], peer_python: Path | None, left_out: dict[str, str]
) -> Iterator[dict[str, Worker]]:
    """Yield a worker for each peer that is installed somewhere; end them all."""
    staff: dict[str, Worker] = {}
    try:
        for name in wanted:
            python = _interpreter(PEERS[name], peer_python)
            if python is None:
                left_out[name] = f"not installed: {', '.join(PEERS[name])}"
                report.progress(f"{name}: {left_out[name]}")
            else:
                staff[name] = Worker(name, python, _SOURCE)
        yield staff
    finally:
        for worker in staff.values():
            worker.dismiss()
        for worker in staff.values():
            worker.close()


def _interpreter(distributions: Sequence[str], peer_python: Path | None) -> Path | None:
    """Return the interpreter that has all of ``distributions``, this one first."""
    if all(package_version(name) for name in distributions):
        return Path(sys.executable)
    if peer_python is None:
        return None
    asked = "import sys, importlib.metadata as m; [m.version(n) for n in sys.argv[1:]]"
    command = [str(peer_python), "-c", asked, *distributions]
    found = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=_OPEN_S, check=False).returncode == 0
    return peer_python if found else None


def _open(report: Report, name: str, staff: dict[str, Worker], left_out: dict[str, str]) -> dict[str, str]:
    report.progress(f"{name}: starting")
    answer = _ask(report, name, {"do": "open"}, _OPEN_S, staff, left_out)
    return dict(answer["versions"]) if answer else {}


def _race(report: Report, batch: str, staff: dict[str, Worker], laps: int, left_out: dict[str, str]) -> list[Measured]:
    """Let every peer take its turns with a batch, one after the other, again and again."""
    found: dict[str, Measured] = {}
    for turn in range(_WARMUP + laps):
        report.progress(f"{batch}: turn {turn + 1} of {_WARMUP + laps}")
        for name in list(staff):
            order = {"do": "turn", "batch": batch, "turn": turn}
            answer = _ask(report, name, order, _TURN_S, staff, left_out)
            if answer is None or turn < _WARMUP:
                continue
            measured = found.setdefault(name, Measured(name, batch, answer["nbytes"], answer["half_nbytes"]))
            for operation, seconds in answer["seconds"].items():
                measured.seconds.setdefault(operation, []).append(seconds)
    return list(found.values())


def _ask(
    report: Report,
    name: str,
    order: dict[str, Any],
    timeout_s: float,
    staff: dict[str, Worker],
    left_out: dict[str, str],
) -> dict[str, Any] | None:
    """Give an order; a peer that fails is out of the race, with its reason, and the others go on."""
    try:
        return staff[name].ask(order, timeout_s)
    except DataPlaneError as failure:
        left_out[name] = failure.message
        report.progress(f"{name}: left out: {failure.message}")
        staff.pop(name).close()
        return None


# -- tables -----------------------------------------------------------------------------------------------------------


def _figures_tables(figures: Sequence[Figure], measured: Sequence[Measured]) -> list[Table]:
    sizes = {m.batch: bytes_text(m.nbytes) for m in measured}
    return [
        table(
            f"{batch}: 512 rows, {size}; medians, interleaved",
            ("peer", "operation", "ms>", "range>", "MB/s>", "/ memcpy>"),
            [_figure_row(f) for f in figures if f.batch == batch],
        )
        for batch, size in sizes.items()
    ]


def _figure_row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.peer,
        figure.operation,
        f"{figure.median_ms:.2f}",
        f"{figure.best_ms:.2f}-{figure.worst_ms:.2f}",
        "" if figure.mb_s is None else f"{figure.mb_s:,.0f}",
        "" if figure.of_memcpy is None else f"{figure.of_memcpy:.3f}",
    )


def _ratios_table(ratios: Sequence[Ratio]) -> Table:
    rows = [(r.batch, r.operation, r.other, f"{r.ratio:.2f} x") for r in ratios]
    return table("penstock's rate over the peer's", ("batch", "operation", "peer", "ratio>"), rows)


def _goals_table(goals: Sequence[Goal]) -> Table:
    rows = [
        (g.what, f"{'<=' if g.at_most else '>='} {g.goal:g}", f"{g.measured:,.2f}", "met" if g.met else "NOT met")
        for g in goals
    ]
    return table("goals of the design", ("figure", "goal>", "measured>", ""), rows)


# -- the ledger -------------------------------------------------------------------------------------------------------


def _measure_ledger(report: Report, options: BenchOptions, value: dict[str, Any], goals: list[Goal]) -> list[Table]:
    from penstock.ops.bench.scaling import measure_ledger

    found = measure_ledger(report, options.sizes, options.laps * 3)
    value["ledger"] = [asdict(f) for f in found]
    goals += ledger_goals_of(found)
    title = "512 rows at the client's call, by rows alive; (x) over the fewest"
    columns = ("live rows>", "put ms>", "claim ms>", "pop ms>", "bytes/row>", "restart s>")
    seen = [
        (f"{f.live_rows:,}", *_by_operation(f.median_ms, f.of_smallest), f"{f.bytes_per_row:.0f}", f"{f.restart_s:.2f}")
        for f in found
    ]
    spent = [(f"{f.live_rows:,}", *_by_operation(f.plane_cpu_ms, f.cpu_of_smallest)) for f in found]
    return [table(title, columns, seen), table("the same, processor time of the plane", columns[:4], spent)]


def _by_operation(values: dict[str, float], ratios: dict[str, float]) -> Iterator[str]:
    return (f"{values[name]:.2f} ({ratios[name]:.2f})" for name in ("put", "claim", "pop"))


# -- the wires --------------------------------------------------------------------------------------------------------


def _measure_wires(report: Report, options: BenchOptions, value: dict[str, Any], goals: list[Goal]) -> list[Table]:
    from penstock.ops.bench.wires import measure_wires, wire_goals_of

    left_out: dict[str, str] = {}
    found = measure_wires(report, options.laps, left_out)
    value["wires"] = [asdict(f) for f in found]
    value["wires_left_out"] = left_out
    goals += wire_goals_of(found)
    rows = [
        (*numbers, *("" if ratio is None else f"{ratio:.2f}" for ratio in (f.of_memcpy, f.of_plain)))
        for f in found
        for numbers in [(f.carrier, f"{f.gb_s:.2f}", f"{f.best_gb_s:.2f}", f"{f.cpu_ms:.1f}", f"{f.round_trip_us:.0f}")]
    ]
    columns = ("carrier", "GB/s>", "best>", "CPU ms>", "round trip us>", "/ memcpy>", "/ plain>")
    shown = [table("64 MiB and 8 bytes from another process; medians, interleaved", columns, rows)]
    return shown + ([table("wires left out", ("carrier", "why"), left_out.items())] if left_out else [])
