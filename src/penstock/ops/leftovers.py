"""Shared memory that dead planes left: found by name, removed only under the flock of the plane's directory.

Invariants: a segment that any process maps is not a leftover; one whose plane is not known is never removed, one whose
rows a restart of its plane would recover only when the operator says so; removal holds the directory's lock, so that a
plane that starts meanwhile keeps what it is about to recover.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.wire.paths import SHM_DIR, host_dirs, host_file, journal_dir, lock_path, plane_id

__all__ = ["Segment", "dead_directories", "find", "remove"]

_PREFIX = "penstock-"
_BLOCK = 512  # bytes; the unit of st_blocks, stat(2)


@dataclass(frozen=True)
class Segment:
    """A file that no process maps.

    Attributes:
        nbytes: memory it takes; its file may be longer.
        data_dir: the directory of its plane, None when that is not known.
    """

    path: Path
    nbytes: int
    data_dir: Path | None

    @property
    def recoverable(self) -> bool:
        """Whether a restart might need it: its plane kept a journal, it is a host's, or nobody knows."""
        return self.data_dir is None or journal_dir(self.data_dir).is_dir() or self.is_hosts

    @property
    def is_hosts(self) -> bool:
        """Whether it is that of a host's agent, which holds blocks for its plane."""
        return self.data_dir is not None and host_file(self.data_dir).exists()

    @property
    def story(self) -> str:
        if self.data_dir is None:
            return "no process maps it; the directory of its plane is not known"
        return f"the {'agent' if self.is_hosts else 'plane'} of {self.data_dir} is dead"

    @property
    def remedy(self) -> str:
        if self.data_dir is None:
            return f"name its directory with --data-dir, or, if its rows do not matter: rm {self.path}"
        if self.is_hosts:
            again = f"penstock host --dir {self.data_dir} --plane URL --token-file FILE"
            return f"recover its rows while its plane waits for them: {again}; or drop them: --fix --discard-rows"
        if self.recoverable:
            return f"recover its rows: penstock serve --data-dir {self.data_dir}; or drop them: --fix --discard-rows"
        return "remove it: --fix"


def find(data_dir: Path | None, folder: Path = SHM_DIR) -> list[Segment]:
    """Return the segments of this user's dead planes. ``data_dir`` and private planes' directories are known ones."""
    files = {path: size for path in sorted(folder.glob(f"{_PREFIX}*-*")) if (size := _own_size(path)) is not None}
    if not files:
        return []
    mapped = mapped_files()
    known = dict(_directories(data_dir))
    found = [Segment(path, size, known.get(_plane_of(path))) for path, size in files.items() if str(path) not in mapped]
    return [segment for segment in found if segment.data_dir is None or not _is_locked(segment.data_dir)]


def dead_directories() -> list[Path]:
    """Return directories of private planes, in the folder for temporary files, that no plane holds any more."""
    found = (folder for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*") if lock_path(folder).exists())
    return sorted(folder for folder in found if not _is_locked(folder))


def remove(segment: Segment, *, discard_rows: bool) -> bool:
    """Unlink ``segment``, unless its plane is unknown or lives, a process maps it, or nobody said to drop its rows."""
    if segment.data_dir is None or (segment.recoverable and not discard_rows):
        return False
    lock = _try_lock(segment.data_dir)
    if lock is None:
        return False
    try:
        if str(segment.path) in mapped_files():
            return False
        segment.path.unlink(missing_ok=True)
    finally:
        os.close(lock)
    return True


def mapped_files() -> set[str]:
    """Return the plane segments that some process maps; processes that end meanwhile are passed over."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "maps").read_text().splitlines()
        except OSError:
            continue
        found.update(line[line.index("/") :] for line in lines if f"/{_PREFIX}" in line)
    return found


def _directories(data_dir: Path | None) -> Iterator[tuple[str, Path]]:
    """Directories that might own a segment, by name: the one that was named, those of private planes and of hosts."""
    private = (folder for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*") if lock_path(folder).exists())
    for folder in (*private, *host_dirs(), *([data_dir] if data_dir is not None else [])):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not there
            yield plane_id(folder), folder


def _own_size(segment: Path) -> int | None:
    """Return the memory a segment takes; None if it is not a file of ours, or no more."""
    try:
        found = segment.lstat()
    except OSError:
        return None
    ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
    return found.st_blocks * _BLOCK if ours else None


def _plane_of(segment: Path) -> str:
    return segment.name.removeprefix(_PREFIX).rpartition("-")[0]


def _is_locked(data_dir: Path) -> bool:
    """Whether a plane holds the directory, by the kernel's list of locks: trying would be in a starting plane's way."""
    try:
        lock = lock_path(data_dir).stat()
    except OSError:
        return False
    name = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    return any("FLOCK" in line and name in line.split() for line in Path("/proc/locks").read_text().splitlines())


def _try_lock(data_dir: Path) -> int | None:
    """Return a descriptor that holds the directory's flock, None when a plane holds it."""
    try:
        descriptor = os.open(lock_path(data_dir), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
