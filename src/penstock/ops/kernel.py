"""Kernel features the plane leans on, each tried for real rather than guessed from a version."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["FEATURES", "Feature"]

_MADV_POPULATE_WRITE = 23  # linux/mman.h; Python's mmap has no name for it
_SMALL = 1 << 16


@dataclass(frozen=True)
class Feature:
    """A feature, how to try it, and what its absence means."""

    name: str
    works: Callable[[], bool]
    severity: Literal["warning", "problem"]
    remedy: str


def _pidfd_open() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return False
    return True


def _populate_write() -> bool:
    with mmap.mmap(-1, _SMALL) as memory:
        try:
            memory.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            return False
    return True


def _memfd() -> bool:
    try:
        os.close(os.memfd_create("penstock-doctor"))
    except (OSError, AttributeError):
        return False
    return True


def _peer_credentials() -> bool:
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        try:
            left.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            return False
    return True


FEATURES = (
    Feature("pidfd_open", _pidfd_open, "problem", "needs Linux 5.3 and a seccomp profile that allows it"),
    Feature("SO_PEERCRED", _peer_credentials, "problem", "needs Linux"),
    Feature(
        "MADV_POPULATE_WRITE", _populate_write, "warning", "needs Linux 5.14; without it first puts fault pages in"
    ),
    Feature("memfd_create", _memfd, "warning", "needs Linux 3.17"),
)
