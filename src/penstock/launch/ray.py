"""Planes on a Ray cluster: ``start`` in the driver, ``connect`` in any task or actor, ``attach`` by who comes later.

The plane's actor stands on one node, where its journal is; an agent's on every node. All are named and restarted by
Ray without limit; after ``ray.kill``, after kill -9 of what they keep, and after a node's restart they go on where they
were, at the same URL, and clients with them. Invariants: a plane is known by its name, so that a name is all that
tasks must be given; an agent is started where it is first asked for, so that nodes may come later; whoever is on the
cluster may do this: Ray itself runs anybody's code.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from penstock.config import PlaneConfig, config_from
from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable, UnknownName
from penstock.launch.asking import connected_ray
from penstock.launch.cluster import Actors, alive_nodes, head_node, own_node
from penstock.launch.keeper import LINGER_S, Standing
from penstock.launch.orders import Access, HostOrders, PlaneOrders
from penstock.retry import Deadline

if TYPE_CHECKING:
    from penstock.plane.contract import DataPlaneClient

__all__ = ["Access", "HostOrders", "RayPlane", "Standing", "access", "attach", "connect", "start"]

NAMESPACE = "penstock"
START_S = 60.0  # for a plane to serve, on a cluster that has just begun
CLOSE_S = 60.0  # an agent that ends writes down first what rows need
_LOOK_S = 5.0


class RayPlane:
    """A plane on Ray, by its name: plain data, fit to be handed to tasks; no process is behind it here.

    Attributes:
        made: by the ``start`` that returned this; False = it was there, or another ``start`` made it at that moment.
    """

    def __init__(self, name: str, namespace: str = NAMESPACE, *, made: bool = False) -> None:
        self.name, self.namespace, self.made = name, namespace, made

    def access(self, timeout_s: float = START_S) -> Access:
        """Return how this process's node reaches the plane; starts the node's agent if it has none.

        Raises:
            UnknownName: there is no plane of this name.
            DataPlaneTimeout: its agent, or the plane itself, does not serve in time; says why.
        """
        actors, deadline = self._actors(), Deadline(timeout_s)
        return actors.access(actors.orders(deadline), own_node(), deadline)

    def connect(self, *, access_timeout_s: float = START_S, **options: Any) -> DataPlaneClient:
        """Return a client of the plane in this process; ``options`` are those of ``penstock.connect``.

        It lives through restarts of the plane, of agents and of their actors, as every client does.

        Args:
            access_timeout_s: see ``access``.
            **options: of the client.
        """
        from penstock.plane.connect import connect as connect_to

        found = self.access(access_timeout_s)
        given = {"token_file": found.token_file, "host_dir": found.host_dir, "tls_ca": found.tls_ca}
        return connect_to(found.url, **given, **options)

    def url(self, timeout_s: float = START_S) -> str:
        """Return the plane's URL, once it serves."""
        return str(self._actors().serving(Deadline(timeout_s)).said["url"])

    def serve_nodes(self, timeout_s: float = START_S) -> list[str]:
        """See that every node of the cluster has an agent that serves; return the nodes' addresses."""
        actors, deadline = self._actors(), Deadline(timeout_s)
        return actors.serve_nodes(actors.orders(deadline), deadline)

    def standing(self, timeout_s: float = _LOOK_S) -> dict[str, Standing]:
        """Return how each actor stands: "plane", and the agents by their nodes' addresses.

        One that does not answer in time stands as "starting", and ``why`` says what Ray says of it.
        """
        return self._actors().standing(Deadline(timeout_s))

    def kill(self, role: str = "plane") -> None:
        """``ray.kill`` an actor of ``standing``, as a fault; Ray starts it again.

        Raises:
            UnknownName: there is none of this role.
        """
        actors = self._actors()
        found = {"plane": actors.plane(), **actors.hosts()}
        if role not in found:
            raise UnknownName(f"{role!r} is no actor of the plane {self.name!r}; there are {sorted(found)}")
        connected_ray().kill(found[role], no_restart=False)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """End agents and plane in order, and their actors for good; what is in their directories stays. Idempotent.

        Raises:
            DataPlaneTimeout: something had not ended in order by then; its actor is gone all the same.
        """
        late = self._actors().end(Deadline(timeout_s))
        if late:
            raise DataPlaneTimeout(f"{', '.join(late)}: not ended within {timeout_s:g} s", missing=late)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RayPlane({self.name!r}, namespace={self.namespace!r})"

    def _actors(self) -> Actors:
        return Actors(self.name, self.namespace)


def start(  # noqa: D417 - two arguments share a line
    name: str = "penstock",
    *,
    data_dir: str | Path,
    plane: PlaneConfig | Mapping[str, Any] | None = None,
    hosts: HostOrders | None = None,
    node: str | None = None,
    port: int = 0,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    detached: bool = False,
    namespace: str = NAMESPACE,
    linger_s: float = LINGER_S,
    timeout_s: float = START_S,
) -> RayPlane:
    """Start a plane on the cluster to which this process is connected, and an agent on each of its nodes.

    One that is there, with the same arguments, is the one; one that was on this ``data_dir`` goes on, with its rows.

    Args:
        name: letters, digits, ".", "_", "-"; what tasks and actors call it by.
        data_dir: absolute, the same path on every node, on a disk that survives its restart: ``plane/`` below it holds
            the journal, ``hosts/ADDRESS/`` what each agent keeps. It may be one folder that all nodes share.
        plane, hosts: options of the plane, all of ``PlaneConfig`` or those that differ; how the agents are.
        node: the address of the node for the plane; None = Ray's head node. It does not move: its journal is there.
        port: of the plane; 0 = a free one, kept from then on.
        tls_cert, tls_key: PEM files on the plane's node; with those of ``hosts``.
        detached: True lets it outlive this process, until it is closed; otherwise it ends with it, in order.
        namespace: of Ray, in which the actors are named.
        linger_s: how long the plane and the agents go on without their actors, for those to come back.
        timeout_s: for all of it to serve.

    Raises:
        BadArgument: arguments that cannot be, or are not those of the plane that is there; a damaged journal.
        DataPlaneTimeout: it does not serve in time; says what stands against it. A new one is taken away again.
    """
    orders = PlaneOrders(
        name=name,
        namespace=namespace,
        node=head_node() if node is None else node,
        data_dir=str(data_dir),
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        linger_s=linger_s,
        plane=_options(plane),
        hosts=HostOrders() if hosts is None else hosts,
    )
    if orders.node not in (nodes := alive_nodes()):
        raise BadArgument(f"no node of this Ray has the address {orders.node!r}; there are {nodes}")
    actors, deadline, maker = Actors(name, namespace), Deadline(timeout_s), secrets.token_hex(8)
    was_there = _is_there(actors)
    try:
        actors.start_plane(orders, maker=maker, detached=detached, deadline=deadline)
        RayPlane(name, namespace).serve_nodes(deadline.remaining())
    except BaseException:
        if not was_there and _is_ours(actors, maker):
            actors.end(Deadline(_LOOK_S))
        raise
    return RayPlane(name, namespace, made=not was_there and _is_ours(actors, maker))


def attach(name: str = "penstock", *, namespace: str = NAMESPACE, timeout_s: float = START_S) -> RayPlane:
    """Return the plane of that name, once it serves.

    Raises:
        UnknownName: there is none.
        DataPlaneTimeout: it does not serve in time.
    """
    Actors(name, namespace).serving(Deadline(timeout_s))
    return RayPlane(name, namespace)


def access(name: str = "penstock", *, namespace: str = NAMESPACE, timeout_s: float = START_S) -> Access:
    """Return how this process reaches the plane of that name: see ``RayPlane.access``."""
    return RayPlane(name, namespace).access(timeout_s)


def connect(name: str = "penstock", *, namespace: str = NAMESPACE, **options: Any) -> DataPlaneClient:
    """Return a client, in this process, of the plane of that name: see ``RayPlane.connect``."""
    return RayPlane(name, namespace).connect(**options)


def _is_there(actors: Actors) -> bool:
    try:
        actors.plane()
    except UnknownName:
        return False
    return True


def _is_ours(actors: Actors, maker: str) -> bool:
    """Whether this ``start`` made the plane's actor; one that was not there before and cannot say is taken for ours."""
    try:
        return actors.was_made_by(maker, Deadline(_LOOK_S))
    except UnknownName:
        return False
    except DataPlaneUnavailable:
        return True


def _options(plane: PlaneConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what differs from the defaults; an unknown or senseless option is refused here, not by a process."""
    given = plane if isinstance(plane, PlaneConfig) else config_from(PlaneConfig, dict(plane or {}))
    default, names = PlaneConfig(), PlaneConfig.__struct_fields__
    return {name: getattr(given, name) for name in names if getattr(given, name) != getattr(default, name)}
