"""What arena files are called, where they lie, and which of them are nobody's.

The path of an arena follows from the plane's id, the arena's id and the directory, so that no path crosses a wire.
Invariant: a live owner holds an exclusive flock on its arena file; a file without one is a dead plane's.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from pathlib import Path

from penstock.errors import BadArgument

SHM = Path("/dev/shm")  # noqa: S108 - created exclusively, mode 0600
_PLANE_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
_NAME = re.compile(r"penstock-([A-Za-z0-9_]{1,64})-(\d{1,20})")
_log = logging.getLogger(__name__)


def arena_path(plane_id: str, arena_id: int, *, in_shm: bool, data_dir: Path) -> Path:
    """Return where the arena's file lies. ``plane_id`` is letters, digits and underscores.

    Raises:
        BadArgument: an id that could leave the directory.
    """
    if not _PLANE_ID.fullmatch(plane_id) or arena_id < 0:
        raise BadArgument(f"no arena file is named after plane {plane_id!r} and arena {arena_id}")
    return (SHM if in_shm else data_dir) / f"penstock-{plane_id}-{arena_id}"


def choose_shm(needed_bytes: int) -> bool:
    """Return whether /dev/shm can hold ``needed_bytes``; if not, say so: the data directory is used, and is slower."""
    try:
        stat = os.statvfs(SHM)
    except OSError as error:
        _log.warning("there is no %s (%s): the arena lies in the data directory", SHM, error)
        return False
    room = stat.f_bavail * stat.f_frsize
    if room >= needed_bytes:
        return True
    _log.warning(
        "%s has %d MiB free and the arena may need %d MiB: it lies in the data directory; a larger shm (docker: "
        "--shm-size) makes puts and reads faster",
        SHM,
        room >> 20,
        needed_bytes >> 20,
    )
    return False


def find_leftovers(directory: Path, plane_id: str | None = None) -> list[Path]:
    """List the arena files in ``directory`` whose owner is dead, of one plane or of any that this user ran."""
    found = []
    for path in sorted(directory.glob("penstock-*-*")):
        match = _NAME.fullmatch(path.name)
        if match and plane_id in {None, match.group(1)} and _is_abandoned(path):
            found.append(path)
    return found


def hold(fd: int) -> bool:
    """Mark the open arena file as owned for the life of this process; False if another owns it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def checked_size(fd: int, path: Path) -> int:
    """Return the size of an arena file that is a regular file of this user.

    Raises:
        OSError: it is not.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"{path} is not a regular file of user {os.geteuid()}")
    return found.st_size


def _is_abandoned(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or another user's
        return False
    try:
        return os.fstat(fd).st_uid == os.geteuid() and hold(fd)
    finally:
        os.close(fd)
