"""What every serving process of ours does round its machine: a starter to tell, a log, descriptors, a socket, an end.

Invariants: the starter is told one word, once; a socket is mode 0600 from its first moment; what nobody expected ends
the process, but for a newcomer for whom there is no descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import logging
import logging.handlers
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import DataPlaneWriteError, JournalCorrupt
from penstock.server.moving import Mover
from penstock.server.plane import EX_IOERR, EX_SOFTWARE, Plane
from penstock.wire import paths

__all__ = [
    "Starter",
    "configure_log",
    "guarded",
    "listen_locally",
    "refuse",
    "unexpected",
    "unlink_socket",
    "within_descriptors",
]

EX_DATAERR = 65  # sysexits.h: the journal is damaged
_DESCRIPTORS = 65536  # wanted; two for each client
_OWN_DESCRIPTORS = 64  # journal, arenas, log, loop
_LOG_BYTES = 16 * 1024 * 1024
_NO_MORE_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger("penstock.server")


class Starter:
    """Whoever started this process, told one word, once."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def say(self, word: str) -> None:
        """Say it and hang up; nothing, if a word was said before."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):  # whoever it was has gone
                os.write(fd, word.replace("\n", " ").encode() + b"\n")
                os.close(fd)


def within_descriptors(config: PlaneConfig) -> PlaneConfig:
    """Raise the limit of open files; admit no more connections than leave some for the journal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    possible = (soft - _OWN_DESCRIPTORS) // 2  # its socket, and its process's pidfd
    if soft == resource.RLIM_INFINITY or config.max_connections <= possible:
        return config
    log.warning("%d open files allow %d connections, not %d (ulimit -n)", soft, possible, config.max_connections)
    return msgspec.structs.replace(config, max_connections=max(possible, 1))


async def guarded(plane: Plane, mover: Mover) -> None:
    """The top frame of the mover: what it did not expect ends the plane."""
    try:
        await mover.run()
    except Exception:  # top frame of the mover
        log.exception("a bug of ours while moving blocks")
        plane.fail(EX_SOFTWARE, "a bug of ours while moving blocks")


def unexpected(plane: Plane, context: dict[str, Any]) -> None:
    """Something raised in a callback of the loop: a bug of ours, unless there was no descriptor for a newcomer."""
    error = context.get("exception")
    accepting = "socket" in context  # asyncio says so of its listener, and tries again by itself
    if accepting and isinstance(error, OSError) and error.errno in _NO_MORE_DESCRIPTORS:
        plane.warnings.warn("accept_failed", f"{context.get('message')}: {error}")
        return
    log.critical("a bug of ours: %s", context.get("message"), exc_info=error)
    plane.fail(EX_SOFTWARE, f"a bug of ours: {context.get('message')}: {error!r}")


def listen_locally(data_dir: Path) -> socket.socket:
    """Bind the plane's socket, mode 0600 from its first moment."""
    paths.make_socket_dir(data_dir)
    path = paths.socket_path(data_dir)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def unlink_socket(data_dir: Path) -> None:
    with contextlib.suppress(OSError):
        paths.socket_path(data_dir).unlink(missing_ok=True)


def configure_log(path: Path) -> None:
    """Log to the plane's file, and to stderr unless that is the same file."""
    handlers: list[logging.Handler] = [logging.handlers.RotatingFileHandler(path, maxBytes=_LOG_BYTES, backupCount=1)]
    if not os.path.samestat(path.stat(), os.fstat(sys.stderr.fileno())):
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(
        level=logging.INFO, handlers=handlers, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # kill -USR1: where it is now, all threads, on stderr


def refuse(starter: Starter, error: Exception) -> int:
    print(f"penstock: {error}", file=sys.stderr)  # noqa: T201 - the last word of a process
    starter.say(f"error: {error}")
    if isinstance(error, JournalCorrupt):
        return EX_DATAERR
    return EX_IOERR if isinstance(error, DataPlaneWriteError) else 1
