"""How the ledger scales: claim, commit and pop of 512 rows with few and with many rows alive; memory a row; restart.

Invariants: the sizes are measured interleaved, each on a plane of its own; every turn puts as many rows as it removes,
so that a plane keeps its size; planes and directories are gone afterwards.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneUnavailable
from penstock.ops.bench.batch import ROWS
from penstock.ops.connecting import await_end
from penstock.ops.report import Report
from penstock.plane.local import LocalDataPlaneClient

__all__ = ["LedgerFigures", "measure_ledger"]

_PARTITION, _TASK, _FIELD = "train", "train", "reward"
_FILL_ROWS = 4096  # of one put while filling
_RESTART_S = 120.0
_END_S = 60.0  # for a plane to write a million rows down, after the grace for sessions of its life before
_ROWS_LIMIT = 4_000_000


@dataclass(frozen=True)
class LedgerFigures:
    """One size.

    Attributes:
        live_rows: rows alive while it was measured.
        median_ms: by operation, for 512 rows at the client's call.
        of_smallest: the same over the smallest size's.
        plane_cpu_ms: processor time of the plane's loop for it, which a busy machine disturbs less.
        cpu_of_smallest: the same over the smallest size's.
        bytes_per_row: private memory of the plane's process per live row, tags not counted (there are none).
        restart_s: from kill -9 of the plane to the first answer of its next life, at the client's call.
    """

    live_rows: int
    median_ms: dict[str, float]
    of_smallest: dict[str, float]
    plane_cpu_ms: dict[str, float]
    cpu_of_smallest: dict[str, float]
    bytes_per_row: float
    restart_s: float


@dataclass
class _Plane:
    size: int
    client: LocalDataPlaneClient
    bytes_per_row: float = 0.0
    restart_s: float = 0.0
    turns: int = 0
    laps: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)


def measure_ledger(report: Report, sizes: Sequence[int], repeats: int) -> list[LedgerFigures]:
    """Measure every size of ``sizes``, the smallest first."""
    with ExitStack() as cleanup:
        planes = [_start(size, cleanup) for size in sorted(sizes)]
        for plane in planes:
            report.progress(f"ledger: filling a plane with {plane.size:,} rows")
            _fill(plane)
        _turn_all(planes, warmup=2, repeats=repeats)
        for plane in planes:
            report.progress(f"ledger: kill -9 of the plane with {plane.size:,} rows")
            _restart(plane)
        return [_figures(plane, planes[0]) for plane in planes]


def _start(size: int, cleanup: ExitStack) -> _Plane:
    folder = Path(tempfile.mkdtemp(prefix="penstock-bench-"))
    cleanup.callback(_remove, folder)
    client = LocalDataPlaneClient(folder, plane=PlaneConfig(max_rows=_ROWS_LIMIT))
    cleanup.callback(client.close)
    client.register_partition(_PARTITION, [_FIELD], size, [_TASK])
    return _Plane(size, client)


def _remove(folder: Path) -> None:
    await_end(folder, _END_S)
    shutil.rmtree(folder)


def _fill(plane: _Plane) -> None:
    import torch

    before = _private_bytes(plane.client.status().pid)
    for first in range(0, plane.size, _FILL_ROWS):
        keys = [f"fill{i // 8}_g{i % 8}" for i in range(first, min(first + _FILL_ROWS, plane.size))]
        plane.client.put_samples(keys, _PARTITION, {_FIELD: torch.zeros(len(keys))})
    plane.bytes_per_row = (_private_bytes(plane.client.status().pid) - before) / plane.size


def _private_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise DataPlaneUnavailable(f"/proc/{pid}/status has no RssAnon")


def _turn_all(planes: Sequence[_Plane], *, warmup: int, repeats: int) -> None:
    for turn in range(warmup + repeats):
        for plane in planes:
            _turn(plane)
            if turn < warmup:
                plane.laps.clear()
                plane.cpu.clear()


def _turn(plane: _Plane) -> None:
    import torch

    client, pid = plane.client, plane.client.status().pid
    plane.turns += 1
    keys = [f"turn{plane.turns}-{i // 8}_g{i % 8}" for i in range(ROWS)]
    values = torch.zeros(ROWS)
    with _measured(plane, "put", pid):
        client.put_samples(keys, _PARTITION, {_FIELD: values})
    with _measured(plane, "claim", pid):
        meta = client.claim_meta(_PARTITION, _TASK, [_FIELD], ROWS, blocking=False)
    with _measured(plane, "pop", pid):
        client.pop(meta.sample_ids, _PARTITION)
    if meta.size != ROWS:
        raise DataPlaneUnavailable(f"claimed {meta.size} rows of {ROWS} with {plane.size} alive")


@contextmanager
def _measured(plane: _Plane, operation: str, pid: int) -> Iterator[None]:
    spent, begun = _processor_s(pid), time.perf_counter()
    yield
    plane.laps.setdefault(operation, []).append(time.perf_counter() - begun)
    plane.cpu.setdefault(operation, []).append(_processor_s(pid) - spent)


def _processor_s(pid: int) -> float:
    """Return the processor time of a process' main thread so far, which is where a plane decides."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _restart(plane: _Plane) -> None:
    before = plane.client.status()
    begun = time.perf_counter()
    os.kill(before.pid, signal.SIGKILL)
    after = plane.client.status(timeout_s=_RESTART_S)
    plane.restart_s = time.perf_counter() - begun
    if after.pid == before.pid or not before.rows == after.rows == plane.size:
        raise DataPlaneUnavailable(f"{before.rows} rows in process {before.pid} became {after.rows} in {after.pid}")
    if plane.client.audit().residue:
        raise DataPlaneUnavailable("the books do not balance after the restart")


def _figures(plane: _Plane, smallest: _Plane) -> LedgerFigures:
    return LedgerFigures(
        plane.size,
        _medians(plane.laps),
        _ratios(plane.laps, smallest.laps),
        _medians(plane.cpu),
        _ratios(plane.cpu, smallest.cpu),
        plane.bytes_per_row,
        plane.restart_s,
    )


def _medians(laps: dict[str, list[float]]) -> dict[str, float]:
    return {operation: 1e3 * median(seconds) for operation, seconds in laps.items()}


def _ratios(laps: dict[str, list[float]], base: dict[str, list[float]]) -> dict[str, float]:
    return {operation: median(seconds) / median(base[operation]) for operation, seconds in laps.items()}
