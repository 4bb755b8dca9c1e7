"""How a command reaches a plane: the one that runs, never one it would have to start."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config import ClientConfig
from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.server.lock import holder_of
from penstock.wire.paths import served_path, socket_path

if TYPE_CHECKING:
    from penstock.plane.local import LocalDataPlaneClient

__all__ = ["await_end", "is_listening", "plane_at", "require_plane"]


def is_listening(data_dir: Path) -> bool:
    """Whether somebody listens on the directory's socket; asks the kernel only, so a stopped plane counts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(socket_path(data_dir)))
        except BlockingIOError:  # its backlog is full: it listens
            return True
        except OSError:
            return False
    return True


def await_end(data_dir: Path, timeout_s: float = 20.0) -> bool:
    """Wait until the plane of ``data_dir`` has ended; whether that came in time.

    A plane that was started on demand ends soon after its last client. Asking it whether it is there would keep it.
    """
    holder = holder_of(data_dir)
    if holder is None:
        return True
    try:
        process = os.pidfd_open(holder.pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], timeout_s)[0])
    finally:
        os.close(process)


def require_plane(data_dir: Path | None) -> Path:
    """Return the directory of a running plane.

    Raises:
        BadArgument: no directory was named.
        DataPlaneUnavailable: no plane runs there; says how to start one.
    """
    if data_dir is None:
        raise BadArgument("which plane? Pass --data-dir DIR or set PENSTOCK_DATA_DIR")
    start = f"start one with: penstock serve --data-dir {data_dir}"
    if not data_dir.is_dir():
        raise DataPlaneUnavailable(f"no plane runs at {data_dir}: there is no such directory; {start}")
    if not is_listening(data_dir):
        what = "it was served before and is down" if served_path(data_dir).exists() else "nothing listens there"
        raise DataPlaneUnavailable(f"no plane runs at {data_dir}: {what}; {start}")
    return data_dir


@contextmanager
def plane_at(data_dir: Path | None, timeout_s: float) -> Iterator[LocalDataPlaneClient]:
    """Yield a client of the plane that runs at ``data_dir``.

    Raises:
        BadArgument, DataPlaneUnavailable: see ``require_plane``.
    """
    there = require_plane(data_dir)
    from penstock.plane.local import LocalDataPlaneClient

    config = ClientConfig(timeout_s=timeout_s, owner="penstock", role="operator")
    client = LocalDataPlaneClient(there, config=config, start=False)
    try:
        yield client
    finally:
        client.close(timeout_s=min(timeout_s, 1.0))
