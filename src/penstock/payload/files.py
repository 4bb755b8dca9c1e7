"""Arena files: where a new one should lie, and whether an existing one may be mapped. Their names are the wire's.

Invariant: nothing is mapped that is not a regular file of this user.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

SHM = Path("/dev/shm")  # noqa: S108 - Linux's shared memory, not a scratch file
_log = logging.getLogger(__name__)


def fits_in_shm(nbytes: int, shm: Path = SHM) -> bool:
    """Return whether shared memory has room for ``nbytes``; if not, log what that means."""
    try:
        found = os.statvfs(shm)
    except OSError as error:
        _log.warning("there is no %s (%s): the arena lies in the data directory, which is slower", shm, error)
        return False
    room = found.f_bavail * found.f_frsize
    if room < nbytes:
        _log.warning(
            "%s has %d MiB free and the arena may need %d MiB: it lies in the data directory, which is slower; "
            "give it more (docker run --shm-size) or lower max_bytes",
            shm,
            room >> 20,
            nbytes >> 20,
        )
    return room >= nbytes


def checked_size(fd: int, path: Path) -> int:
    """Return the size of the open file.

    Raises:
        OSError: it is not a regular file of this user.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"{path} is not a regular file of user {os.geteuid()}")
    return found.st_size
