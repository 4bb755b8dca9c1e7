"""Where the files of a plane lie. Everything follows from its data directory, so that no path crosses the wire.

Invariants: two names of one directory (links, relative paths) give the same files; two directories never share one;
nothing here creates or opens anything, but for ``make_socket_dir``.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from penstock.errors import DataPlaneUnavailable
from penstock.requests import ArenaPlace

__all__ = [
    "arena_files",
    "arena_path",
    "host_dir",
    "host_dirs",
    "host_file",
    "journal_dir",
    "lock_path",
    "log_path",
    "make_private",
    "make_socket_dir",
    "plane_id",
    "served_path",
    "socket_path",
]

SHM_DIR = Path("/dev/shm")  # noqa: S108 - Linux's shared memory, not a scratch file
_SHORT_DIR = "/tmp/penstock-{uid}"  # noqa: S108 - 0700 and its owner is checked by ``make_socket_dir``
_HOST = "host-"
_ARENA_ID = re.compile("[0-9]{1,19}", re.ASCII)  # a wall clock in nanoseconds, or a little more
_MAX_SOCKET_PATH = 107  # bytes of sun_path on Linux, less the terminating zero (unix(7))


def plane_id(data_dir: str | os.PathLike[str]) -> str:
    """Return 12 hex digits that name the plane of ``data_dir``, which must exist.

    Its inode counts too: containers that share ``/dev/shm`` may each have a directory of this path.
    """
    real = os.path.realpath(data_dir)
    name = os.fsencode(f"{Path(real).stat().st_ino} {real}")
    return hashlib.blake2b(name, digest_size=6).hexdigest()


def socket_path(data_dir: str | os.PathLike[str]) -> Path:
    """Return ``<data_dir>/plane.sock``, or a short one under ``/tmp`` where that is too long for a socket."""
    path = Path(os.path.realpath(data_dir)) / "plane.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    return Path(_SHORT_DIR.format(uid=os.getuid())) / f"{plane_id(data_dir)}.sock"


def host_dir(url: str) -> Path:
    """Return the directory of the agent of this machine's host, where nobody has named another, by its plane's URL."""
    name = hashlib.blake2b(url.rstrip("/").encode(), digest_size=6).hexdigest()
    return Path(_SHORT_DIR.format(uid=os.getuid())) / f"{_HOST}{name}"


def host_dirs() -> list[Path]:
    """Return the directories that ``host_dir`` has given out and that are there."""
    return sorted(Path(_SHORT_DIR.format(uid=os.getuid())).glob(f"{_HOST}*"))


def host_file(data_dir: str | os.PathLike[str]) -> Path:
    """Return the file in which the agent of a host keeps who it is; where it is, blocks may lie that rows need."""
    return Path(data_dir) / "host.json"


def make_socket_dir(data_dir: str | os.PathLike[str]) -> None:
    """Make the socket's directory, 0700.

    Raises:
        DataPlaneUnavailable: somebody else made it first: ``/tmp`` is everybody's.
    """
    folder = socket_path(data_dir).parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder != Path(os.path.realpath(data_dir)):
        make_private(folder)


def make_private(folder: Path) -> None:
    """Make a directory, 0700, whose parent may be everybody's.

    Raises:
        DataPlaneUnavailable: somebody else made it first.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise DataPlaneUnavailable(f"{folder} is not this user's own directory of mode 0700: remove it")


def lock_path(data_dir: str | os.PathLike[str]) -> Path:
    """Return the file whose flock the directory's plane holds."""
    return Path(data_dir) / "plane.lock"


def served_path(data_dir: str | os.PathLike[str]) -> Path:
    """Return the marker of a directory that ``penstock serve`` has served: clients never start a plane on it."""
    return Path(data_dir) / "served"


def journal_dir(data_dir: str | os.PathLike[str]) -> Path:
    """Return the directory of the journal's segments."""
    return Path(data_dir) / "journal"


def log_path(data_dir: str | os.PathLike[str]) -> Path:
    """Return the plane's log."""
    return Path(data_dir) / "plane.log"


def arena_path(data_dir: str | os.PathLike[str], arena: ArenaPlace) -> Path:
    """Return the file of ``arena``."""
    if arena.in_shm:
        return SHM_DIR / f"penstock-{plane_id(data_dir)}-{arena.arena_id}"
    return Path(os.path.realpath(data_dir)) / f"arena-{arena.arena_id}"


def arena_files(data_dir: str | os.PathLike[str]) -> list[tuple[Path, ArenaPlace]]:
    """Return the arena files of this plane that exist, oldest id first; those of earlier lives included.

    Only regular files of this user count: what others or links pretend to be is neither opened nor removed.
    """
    folders = (
        (SHM_DIR, f"penstock-{plane_id(data_dir)}-", True),
        (Path(os.path.realpath(data_dir)), "arena-", False),
    )
    found = [
        (path, ArenaPlace(arena_id=int(digits), nbytes=file.st_size, in_shm=in_shm))
        for folder, prefix, in_shm in folders
        for path in folder.glob(f"{prefix}*")
        if _ARENA_ID.fullmatch(digits := path.name.removeprefix(prefix)) and (file := _own_file(path)) is not None
    ]
    return sorted(found, key=lambda item: (item[1].arena_id, item[1].in_shm))


def _own_file(path: Path) -> os.stat_result | None:
    """Return what is at ``path`` if it is a regular file of this user: anybody may put others into ``/dev/shm``."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() else None
