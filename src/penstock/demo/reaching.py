"""How launcher, controller and roles reach the run's plane: by its Unix socket, or, of two hosts, over the network.

Not by ``penstock.connect``, which makes sure of torch first: launcher and controller live without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from penstock.config import ClientConfig
from penstock.demo.patience import patiently
from penstock.demo.processes import kind_of
from penstock.demo.site import host_of
from penstock.demo.spec import RunFiles
from penstock.launch.orders import Access
from penstock.plane.client import PlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.remote import RemoteDataPlaneClient
from penstock.wire.auth import read_token

__all__ = ["Far", "Near", "beside", "connect"]

CALL_S = 5.0  # deadline of one call of the plane; a plane that is away for longer is waited for
REPLICAS = 2  # a host may be gone for good and no row with it; when there is no second one just now, one must do

C = TypeVar("C", bound=PlaneClient)
Near = Callable[[Path, ClientConfig], C]
Far = Callable[[str, bytes, Path, ClientConfig], C]
Sleep = Callable[[float], object]


def _near(data_dir: Path, config: ClientConfig) -> PlaneClient:
    return LocalDataPlaneClient(data_dir, config=config)


def _far(url: str, token: bytes, host_dir: Path, config: ClientConfig) -> PlaneClient:
    return RemoteDataPlaneClient(url, token, host_dir=host_dir, config=config)


def beside(files: RunFiles, role: str, owner: str, sleep: Sleep | None = None) -> PlaneClient:
    """Return a client on the plane's own machine, which sees no payloads of other hosts."""
    config = ClientConfig(timeout_s=CALL_S, role=role, owner=owner)
    return patiently(lambda: _near(files.plane, config), files.spec().plane_patience_s, sleep)


def connect(
    files: RunFiles,
    peer: str,
    sleep: Sleep | None = None,
    near: Near[PlaneClient] = _near,
    far: Far[PlaneClient] = _far,
) -> PlaneClient:
    """Return a client for ``peer``, on its host, of the run's plane, which may just be restarting.

    ``near`` makes it for a plane on this machine, ``far`` for one of several hosts.
    """
    spec = files.spec()
    replicas = REPLICAS if len(spec.hosts) > 1 and not spec.store else 1
    config = ClientConfig(
        timeout_s=CALL_S,
        role=kind_of(peer),
        owner=peer,
        replicas=replicas,
        under_replicated=True,
        store=spec.store,
    )

    def make() -> PlaneClient:
        if not spec.hosts:
            return near(files.plane, config)
        if spec.engine == "ray":
            there = msgspec.json.decode(files.access(host_of(peer)).read_bytes(), type=Access)
            return far(there.url, read_token(there.token_file), Path(there.host_dir), config)
        return far(spec.url, read_token(files.token), files.host(host_of(peer)), config)

    return patiently(make, spec.plane_patience_s, sleep)
