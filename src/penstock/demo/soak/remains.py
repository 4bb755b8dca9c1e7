"""What a soak has left behind: processes, threads, descriptors, shared memory, sockets.

Invariant: only what belongs to the run is looked at (its folder's name, its plane's id, this process), so that other
runs on the machine are neither blamed nor touched.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from penstock.demo.spec import RunFiles
from penstock.wire.paths import arena_files, socket_path

__all__ = ["Census", "plane_remains"]

_ROLE = b"penstock.demo.role"
_OURS = 2  # descriptors that a library of this process may open once and keep


class Census:
    """This process and its run, before; and what is more of it afterwards.

    Args:
        files: of the run.
    """

    def __init__(self, files: RunFiles) -> None:
        self._root = str(files.root)
        self._threads = {thread.ident for thread in threading.enumerate()}
        self._descriptors = _descriptors()

    def remains(self) -> list[str]:
        """Return what is left, a few words each."""
        threads = [f"thread {t.name}" for t in threading.enumerate() if t.ident not in self._threads]
        more = _descriptors() - self._descriptors
        descriptors = [f"{more} more open descriptors"] if more > _OURS else []
        return [*_processes(self._root), *threads, *descriptors]


def plane_remains(files: RunFiles) -> list[str]:
    """Return what an ended plane has left outside of the run's folder, or in the way of the next one."""
    segments = [f"segment {path}" for path, _ in arena_files(files.plane)]
    socket = socket_path(files.plane)
    return [*segments, *([f"socket {socket}"] if socket.exists() else [])]


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _processes(root: str) -> list[str]:
    """Return the processes that play a role in the run of ``root``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if _ROLE in words and os.fsencode(root) in words:
            found.append(f"process {folder.name}, {b' '.join(words[2:]).decode(errors='replace').strip()}")
    return found
