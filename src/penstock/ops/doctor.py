"""``penstock doctor``: would a plane work on this machine, and did a dead one leave anything behind?

Each check is a function that returns findings; a finding says what is, how bad that is, and what to do. Nothing is
changed without ``--fix``, and ``--fix`` removes a segment only under the flock of its plane's directory: a plane that
lives, or starts meanwhile, keeps its own.
"""

from __future__ import annotations

import platform
import resource
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer
from rich.table import Table

from penstock.errors import abbreviate
from penstock.ops import kernel, leftovers, reach
from penstock.ops.connecting import Where, is_listening
from penstock.ops.finding import Finding, Severity
from penstock.ops.machine import OPTIONAL, package_version, redis_version
from penstock.ops.report import ExitCode, Report
from penstock.ops.tables import bytes_text, table
from penstock.wire.paths import SHM_DIR, socket_path

__all__ = ["Finding", "examine"]

_STYLE: dict[Severity, str] = {"ok": "green", "note": "dim", "warning": "yellow", "problem": "bold red"}

_SMALL_SHM = 1 << 30  # Docker's default is 64 MiB, less than one batch of a real run
_FEW_FILES = 1024  # each client costs the plane two descriptors, each arena one


def examine(report: Report, where: Where, *, fix: bool, discard_rows: bool) -> None:
    """Look at everything, print it, and leave with 1 when there is a problem."""
    data_dir = where.data_dir
    findings = [
        *shared_memory(SHM_DIR),
        *limits(),
        *interpreter(),
        *kernel_features(),
        *packages(),
        *(directory(data_dir) if data_dir is not None else ()),
        *segments(data_dir, fix=fix, discard_rows=discard_rows),
        *private_directories(),
        *(reach.findings(where, where.url) if where.url is not None else ()),
    ]
    problems = sum(f.severity == "problem" for f in findings)
    value = {"problems": problems, "findings": [vars(f) for f in findings]}
    report.answer(value, _table(findings))
    if problems:
        raise typer.Exit(ExitCode.FINDING)


def _table(findings: list[Finding]) -> Table:
    made = table("doctor", ("check", "", "found", "remedy"), ())
    for finding in findings:
        style = _STYLE[finding.severity]
        made.add_row(finding.check, f"[{style}]{finding.severity}[/]", finding.found, finding.remedy)
    return made


# -- the machine ------------------------------------------------------------------------------------------------------


def shared_memory(folder: Path) -> Iterator[Finding]:
    """Size and free space of /dev/shm."""
    if not folder.is_dir():
        yield Finding("shared memory", "warning", f"there is no {folder}", "payloads will lie in the data directory")
        return
    space = shutil.disk_usage(folder)
    found = f"{folder}: {bytes_text(space.free)} free of {bytes_text(space.total)}"
    if space.free < _SMALL_SHM:
        remedy = (
            f"docker run --shm-size=8g, or mount -o remount,size=8g {folder}; payloads fall back to the data directory"
        )
        yield Finding("shared memory", "warning", found, remedy)
    else:
        yield Finding("shared memory", "ok", found)


def limits() -> Iterator[Finding]:
    """Open files, and locked memory, which RDMA transports need."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = files != resource.RLIM_INFINITY and files < _FEW_FILES
    yield Finding(
        "open files", "warning" if few else "ok", _limit_text(files), f"ulimit -n {_FEW_FILES * 4}" if few else ""
    )
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    bounded = locked != resource.RLIM_INFINITY
    text = bytes_text(locked) if bounded else "unlimited"
    yield Finding(
        "locked memory",
        "note" if bounded else "ok",
        text,
        "only RDMA needs more: ulimit -l unlimited" if bounded else "",
    )


def _limit_text(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def interpreter() -> Iterator[Finding]:
    """Python and the operating system."""
    yield Finding("python", "ok", f"{platform.python_implementation()} {platform.python_version()}")
    linux = platform.system() == "Linux"
    yield Finding(
        "system",
        "ok" if linux else "problem",
        f"{platform.system()} {platform.release()} {platform.machine()}",
        "" if linux else "Penstock needs Linux: pidfd, /dev/shm, SO_PEERCRED",
    )


def kernel_features() -> Iterator[Finding]:
    """Each kernel feature the plane leans on, tried for real."""
    for feature in kernel.FEATURES:
        works = feature.works()
        yield Finding(
            feature.name,
            "ok" if works else feature.severity,
            "works" if works else "missing",
            "" if works else feature.remedy,
        )


def packages() -> Iterator[Finding]:
    """Optional packages and programs, with what is lost without them."""
    for name in OPTIONAL:
        version = package_version(name)
        yield Finding(name, "ok" if version else "note", version or "not installed", "" if version else _WITHOUT[name])
    redis = redis_version()
    yield Finding(
        "redis-server", "ok" if redis else "note", redis or "not installed", "" if redis else _WITHOUT["redis"]
    )


_WITHOUT = {
    "torch": "needed by every client: pip install 'penstock[torch]'",
    "tensordict": "needed by every client: pip install 'penstock[torch]'",
    "safetensors": "a peer of the benchmark: pip install 'penstock[bench]'",
    "redis": "a peer of the benchmark: apt install redis-server; pip install 'penstock[bench]'",
    "ray": "a peer of the benchmark, best in an environment of its own: bench --peer-python",
    "TransferQueue": "a peer of the benchmark, best in an environment of its own: bench --peer-python",
    "uvloop": "not required",
    "matplotlib": "draws the demo's curve: pip install 'penstock[demo]'",
}


# -- planes -----------------------------------------------------------------------------------------------------------


def directory(data_dir: Path) -> Iterator[Finding]:
    """The named data directory: whether a plane runs there, and where its socket lies."""
    if not data_dir.is_dir():
        yield Finding("data directory", "note", f"{data_dir} does not exist", "penstock serve makes it")
        return
    running = is_listening(data_dir)
    yield Finding("data directory", "ok", f"{data_dir}: {'a plane runs' if running else 'no plane runs'}")
    socket = socket_path(data_dir)
    moved = socket.parent != data_dir.resolve()
    yield Finding(
        "socket path",
        "note" if moved else "ok",
        f"{socket} ({len(str(socket))} bytes)",
        "the directory's path is too long for a socket; containers that share it must share this folder too"
        if moved
        else "",
    )


def segments(data_dir: Path | None, *, fix: bool, discard_rows: bool) -> Iterator[Finding]:
    """Shared memory of planes that are no more, by plane; ``fix`` is for the named plane, or for all that are known."""
    found = leftovers.find(data_dir)
    if not found:
        yield Finding("leftover segments", "ok", "none")
    meant = [segment for segment in found if fix and data_dir in (None, segment.data_dir)]
    removed = [segment for segment in meant if leftovers.remove(segment, discard_rows=discard_rows)]
    if removed:
        yield Finding("leftover segments", "ok", f"removed {_names(removed)}")
    for owner in dict.fromkeys(segment.data_dir for segment in found):
        left = [segment for segment in found if segment.data_dir == owner and segment not in removed]
        if left:
            yield Finding("leftover segments", "warning", f"{left[0].story}: {_names(left)}", left[0].remedy)


def private_directories() -> Iterator[Finding]:
    """What private planes left whose clients died with them."""
    dead = [str(folder) for folder in leftovers.dead_directories()]
    if dead:
        remedy = f"if no client of theirs is to come back: rm -r {dead[0]}" + (" ..." if len(dead) > 1 else "")
        yield Finding("private planes", "warning", f"no plane holds {abbreviate(dead, shown=2)}", remedy)
    else:
        yield Finding("private planes", "ok", "none left behind")


def _names(found: Sequence[leftovers.Segment]) -> str:
    size = bytes_text(sum(segment.nbytes for segment in found))
    return f"{size} in {abbreviate([str(segment.path) for segment in found], shown=2)}"
