"""Where the plane is that the calls use: started here, joined, reached by URL, or found by name on a Ray cluster.

Invariants: every process that passes what ``init`` returned reaches the same plane; a plane that was made here for this
purpose alone ends with its last client (on Ray: with the process that started it) and leaves nothing, as
TransferQueue's does; one that was named (``data_dir``, a URL) keeps its rows.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.config import ClientConfig, PlaneConfig, config_from
from penstock.errors import BadArgument, DataPlaneUnavailable, UnknownName
from penstock.plane.client import PlaneClient
from penstock.plane.connect import connect
from penstock.plane.local import LocalDataPlaneClient
from penstock.wire.paths import make_private

if TYPE_CHECKING:
    from penstock.launch.ray import RayPlane

__all__ = ["Opened", "is_on_ray", "join", "open_plane"]

RAY_NAME = "transfer_queue"  # of the plane on a cluster, unless another is asked for
_RAY_DIR = "/tmp/penstock-{uid}/ray-{session}"  # noqa: S108 - beside the sockets; 0700 by whoever serves there


@dataclass(frozen=True)
class Opened:
    """A client, what leads others to the same plane, and how to end it all."""

    client: PlaneClient
    section: dict[str, Any]
    end: Callable[[], None]


def open_plane(section: Mapping[str, Any] | None) -> Opened:
    """Return a client of the plane that ``section`` describes, which is started if it may be.

    Args:
        section: ``plane``: "local", "penstock://HOST:PORT" or "ray"; and options of ``penstock.connect``. None = on
            Ray, if this process is connected to one, else a plane of its own.

    Raises:
        BadArgument: it describes none.
        DataPlaneUnavailable, MissingExtra: as ``penstock.connect``.
    """
    options = dict(section or {})
    plane = options.pop("plane", None) or ("ray" if not options and is_on_ray() else "local")
    if plane == "ray":
        return _on_ray(options)
    if plane == "local":
        return _local(options)
    if not isinstance(plane, str) or not plane.startswith("penstock://"):
        raise BadArgument(f'penstock.plane must be "local", "ray" or "penstock://HOST:PORT", got {plane!r}')
    client = _plane_client(connect(plane, **_carrying_all(options)))
    return Opened(client, {"plane": plane, **options}, client.close)


def join(timeout_s: float) -> Opened:
    """Return a client of the plane that another process of this Ray cluster has started.

    Raises:
        DataPlaneTimeout: it, or this node's agent, does not serve in time.
        DataPlaneUnavailable: there is none, or this process is on no Ray.
    """
    lacking = "there is no plane here yet: call init() first, with what init() returned where the plane was started"
    if not is_on_ray():
        raise DataPlaneUnavailable(lacking)
    from penstock.launch import ray as launch

    try:
        client = _plane_client(launch.connect(RAY_NAME, access_timeout_s=timeout_s, strict_tensors=False))
    except UnknownName as nobody:
        raise DataPlaneUnavailable(f"{lacking} ({nobody})") from nobody
    return Opened(client, {"plane": "ray"}, client.close)


def is_on_ray() -> bool:
    """Whether this process is connected to a Ray cluster; imports nothing."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


# -- on this machine --------------------------------------------------------------------------------------------------


def _local(options: dict[str, Any]) -> Opened:
    """``start`` False, as ``section`` of a plane that has no other purpose says: it is over when nobody is there."""
    given = dict(options)
    may_start = given.pop("start", True)
    client = _started(given) if may_start else _joined(given)
    section = {"plane": "local", **options, "data_dir": str(client.data_dir)}
    if "data_dir" not in options:
        section["start"] = False
    return Opened(client, section, client.close)


def _started(options: dict[str, Any]) -> LocalDataPlaneClient:
    client = connect("local", **_carrying_all(options))
    assert isinstance(client, LocalDataPlaneClient)
    return client


def _joined(options: dict[str, Any]) -> LocalDataPlaneClient:
    data_dir = options.pop("data_dir", None)
    if data_dir is None:
        raise BadArgument("penstock.start False needs penstock.data_dir: where the plane is that is to be joined")
    if not Path(data_dir).is_dir():
        raise DataPlaneUnavailable(f"no plane is left at {data_dir}: it has ended with its last session")
    return LocalDataPlaneClient(
        data_dir, config=config_from(ClientConfig, _carrying_all(_clients(options))), start=False
    )


def _clients(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options but those that are the plane's alone: ``store`` is both."""
    planes = set(PlaneConfig.__struct_fields__) - set(ClientConfig.__struct_fields__)
    return {name: value for name, value in options.items() if name not in planes}


def _carrying_all(options: Mapping[str, Any]) -> dict[str, Any]:
    """Strings and other plain values are columns too, as they are in TransferQueue."""
    return {"strict_tensors": False, **options}


def _plane_client(client: object) -> PlaneClient:
    assert isinstance(client, PlaneClient), client
    return client


# -- on Ray -----------------------------------------------------------------------------------------------------------


def _on_ray(options: dict[str, Any]) -> Opened:
    """The cluster's plane of that name; whoever does not find it starts it, and ends it."""
    from penstock.launch import ray as launch

    given = dict(options)
    name = given.pop("name", RAY_NAME)
    chosen_dir = given.pop("data_dir", None)
    plane = {key: value for key, value in given.items() if key in PlaneConfig.__struct_fields__}
    mine = _carrying_all(_clients(given))
    section = {"plane": "ray", **options}
    try:
        client = _plane_client(launch.connect(name, **mine))
    except UnknownName:
        data_dir = chosen_dir or _ray_dir()
        held = launch.start(name, data_dir=data_dir, plane=plane)
        try:
            client = _plane_client(held.connect(**mine))
        except BaseException:
            if held.made:
                held.close()
            raise
        if not held.made:  # another process did, at the same moment
            return Opened(client, section, client.close)
        return Opened(client, section, lambda: _end(client, held, None if chosen_dir else data_dir))
    return Opened(client, section, client.close)


def _end(client: PlaneClient, held: RayPlane, own_dir: str | None) -> None:
    """End a plane that was started here; of one that has no other purpose nothing remains."""
    with ExitStack() as ends:  # each happens, whatever becomes of those before it; the last one first
        if own_dir is not None:
            ends.callback(shutil.rmtree, own_dir, ignore_errors=True)
        ends.callback(held.close)
        ends.callback(client.close)
        if own_dir is not None:
            for known in client.status().partitions:
                client.clear_samples(None, known.partition)  # or the agents would write them down for the next life


def _ray_dir() -> str:
    """A directory of the cluster's own: the same on every node, and another for every cluster."""
    import ray

    folder = Path(_RAY_DIR.format(uid=os.getuid(), session=ray.get_runtime_context().get_session_name()))
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    make_private(folder.parent)
    return str(folder)
