"""How a command reaches a plane: the one that runs, never one it would have to start."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.config import ClientConfig
from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.server.lock import holder_of
from penstock.wire.auth import read_token
from penstock.wire.paths import served_path, socket_path
from penstock.wire.tls import client_context

if TYPE_CHECKING:
    from penstock.plane.client import PlaneClient
    from penstock.plane.remote import RemoteDataPlaneClient

__all__ = ["Where", "await_end", "far_client", "is_listening", "plane_at", "require_plane"]


@dataclass(frozen=True)
class Where:
    """Which plane is meant: the one of ``data_dir`` on this machine, or, if there is a ``url``, the one there."""

    data_dir: Path | None
    url: str | None = None
    token_file: Path | None = None
    tls_ca: Path | None = None


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
        raise BadArgument("which plane? Pass --data-dir DIR, or set PENSTOCK_DATA_DIR, or pass --plane URL")
    start = f"start one with: penstock serve --data-dir {data_dir}"
    if not data_dir.is_dir():
        raise DataPlaneUnavailable(f"no plane runs at {data_dir}: there is no such directory; {start}")
    if not is_listening(data_dir):
        what = "it was served before and is down" if served_path(data_dir).exists() else "nothing listens there"
        raise DataPlaneUnavailable(f"no plane runs at {data_dir}: {what}; {start}")
    return data_dir


@contextmanager
def plane_at(where: Where, timeout_s: float) -> Iterator[PlaneClient]:
    """Yield a client of the plane that runs there; it is not waited for.

    Raises:
        BadArgument, DataPlaneUnavailable: see ``require_plane``; or the token or the URL is of no use.
    """
    config = ClientConfig(timeout_s=timeout_s, owner="penstock", role="operator")
    client = _near(where, config) if where.url is None else far_client(where, where.url, config)
    try:
        yield client
    finally:
        client.close(timeout_s=min(timeout_s, 1.0))


def _near(where: Where, config: ClientConfig) -> PlaneClient:
    there = require_plane(where.data_dir)
    from penstock.plane.local import LocalDataPlaneClient

    return LocalDataPlaneClient(there, config=config, start=False)


def far_client(where: Where, url: str, config: ClientConfig) -> RemoteDataPlaneClient:
    """Return a client of the plane at ``url``. Raises as ``plane_at`` does."""
    if where.token_file is None:
        raise BadArgument(f"{url} wants a token: pass --token-file, a copy of the plane's, chmod 600")
    token = read_token(where.token_file)
    tls = None if where.tls_ca is None else client_context(where.tls_ca)
    from penstock.plane.remote import RemoteDataPlaneClient

    return RemoteDataPlaneClient(url, token, tls=tls, config=config, wait=False)
