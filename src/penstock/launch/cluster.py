"""A Ray cluster as we need it: its nodes, and the actors of one plane, made, found, waited for and ended.

Invariants: an actor is pinned to its node's address, not to the node's id, so that a node that comes back is the same;
every wait has a deadline and says what it met; an actor whose process has been ended is no use any more and makes room
for a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.errors import BadArgument, DataPlaneTimeout, DataPlaneUnavailable, UnknownName
from penstock.launch.actors import HostActor, PlaneActor
from penstock.launch.asking import connected_ray, named, patiently, reply_of
from penstock.launch.keeper import Standing
from penstock.launch.orders import Access, PlaneOrders, actor_name
from penstock.retry import Deadline

__all__ = ["Actors", "alive_nodes", "head_node", "own_node"]

_ASK_S = 5.0  # for one try
_HOSTS_SHARE = 0.75  # of the time to end; the plane has less to write down than they
_WRONG = {2, 65}  # exit codes that waiting does not mend: a wrong option, a damaged journal
_OWNED: dict[str, Any] = {}  # Ray ends an actor with its maker's handle of it; those that are looked up do not count
_HEAD = "node:__internal_head__"  # Ray's mark of its head node, among a node's resources


def alive_nodes() -> list[str]:
    """Return the addresses of the cluster's nodes. Two raylets of one address are one: they share its memory."""
    return sorted({node["NodeManagerAddress"] for node in connected_ray().nodes() if node["Alive"]})


def head_node() -> str:
    """Return the address of the head node."""
    found = [n["NodeManagerAddress"] for n in connected_ray().nodes() if n["Alive"] and _HEAD in n["Resources"]]
    if not found:
        raise DataPlaneUnavailable("this Ray has no head node: pass node=")
    return str(found[0])


def own_node() -> str:
    """Return the address of this process's node."""
    return str(connected_ray().util.get_node_ip_address())


class Actors:
    """The actors of the plane ``name``."""

    def __init__(self, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace

    def plane(self) -> Any:
        """Return the plane's actor.

        Raises:
            UnknownName: there is none.
        """
        actor = named(actor_name(self.name), self.namespace)
        if actor is None:
            raise UnknownName(f"there is no plane {self.name!r} in the namespace {self.namespace!r} of this Ray")
        return actor

    def hosts(self) -> dict[str, Any]:
        """Return the actors of agents, by their nodes' addresses."""
        prefix = actor_name(self.name, "")
        listed = connected_ray().util.list_named_actors(all_namespaces=True)
        names = [one["name"] for one in listed if one["namespace"] == self.namespace]
        actors = {name.removeprefix(prefix): named(name, self.namespace) for name in names if name.startswith(prefix)}
        return {node: actor for node, actor in sorted(actors.items()) if actor is not None}

    def orders(self, deadline: Deadline) -> PlaneOrders:
        """Return what the plane was started with."""

        def ask(until: Deadline) -> PlaneOrders:
            orders = reply_of(self.plane().orders.remote(), _share(until))
            assert isinstance(orders, PlaneOrders)
            return orders

        return patiently(f"the orders of the plane {self.name!r}", ask, deadline)

    def start_plane(self, orders: PlaneOrders, *, maker: str, detached: bool, deadline: Deadline) -> Standing:
        """Return how the plane stands once it serves; its actor is made, by ``maker``, if there is none.

        Raises:
            BadArgument: there is one, with other orders; or it can never serve.
        """
        lifetime = "detached" if detached else None

        def ask(until: Deadline) -> Standing | None:
            actor = named(actor_name(self.name), self.namespace)
            if actor is None:
                actor = _made(PlaneActor, actor_name(self.name), orders, orders.node, lifetime).remote(orders, maker)
                _OWNED[f"{self.namespace}/{self.name}"] = actor
            standing = _live(f"the plane {self.name!r}", actor, until)
            if standing is not None and reply_of(actor.orders.remote(), _share(until)) != orders:
                raise BadArgument(
                    f"there is a plane {self.name!r} that was started with other arguments: attach to it, or close it"
                )
            return standing

        return patiently(f"the plane {self.name!r}", ask, deadline)

    def was_made_by(self, maker: str, deadline: Deadline) -> bool:
        """Whether the plane's actor is the one that ``maker`` made.

        Raises:
            UnknownName: there is none.
            DataPlaneUnavailable: it does not say.
        """
        return bool(reply_of(self.plane().maker.remote(), _share(deadline)) == maker)

    def serving(self, deadline: Deadline) -> Standing:
        """Return how the plane stands once it serves."""

        def ask(until: Deadline) -> Standing | None:
            return _live(f"the plane {self.name!r}", self.plane(), until)

        return patiently(f"the plane {self.name!r}", ask, deadline)

    def serve_nodes(self, orders: PlaneOrders, deadline: Deadline) -> list[str]:
        """Have an agent serve on each node of the cluster; a node that goes meanwhile is not waited for."""
        served, nodes = [], alive_nodes()
        for node in nodes:
            _host(orders, node)
        for node in nodes:

            def ask(until: Deadline, node: str = node) -> bool | None:
                if node not in alive_nodes():
                    return False
                return None if self._try(orders, node, until) is None else True

            if patiently(self._agent_of(node), ask, deadline):
                served.append(node)
        return served

    def access(self, orders: PlaneOrders, node: str, deadline: Deadline) -> Access:
        """Return how clients on ``node`` reach the plane, once its agent serves; the agent is made if there is none."""
        return patiently(self._agent_of(node), lambda until: self._try(orders, node, until), deadline)

    def _agent_of(self, node: str) -> str:
        return f"the agent of {node} of the plane {self.name!r}"

    def _try(self, orders: PlaneOrders, node: str, deadline: Deadline) -> Access | None:
        actor = _host(orders, node)
        found: Access | None = reply_of(actor.access.remote(), _share(deadline))
        if found is None:
            _live(f"the agent of {node}", actor, deadline)
        return found

    def standing(self, deadline: Deadline) -> dict[str, Standing]:
        """Return how each stands; one that does not answer as "starting", with why."""
        found = {}
        for role, actor in {"plane": self.plane(), **self.hosts()}.items():
            try:
                found[role] = _standing(actor, deadline)
            except DataPlaneUnavailable as away:
                found[role] = Standing(why=str(away))
        return found

    def end(self, deadline: Deadline) -> list[str]:
        """End agents and plane, in order and for good; return those that had not ended by then.

        An agent whose node is gone has nothing that could be ended: its actor is not started again, that is all.
        """
        nodes = alive_nodes()
        hosts = self.hosts()
        for node in [node for node in hosts if node not in nodes]:
            connected_ray().kill(hosts.pop(node), no_restart=True)
        late = _end(hosts, deadline.within(_HOSTS_SHARE * deadline.remaining()))
        plane = named(actor_name(self.name), self.namespace)
        late += _end({} if plane is None else {"plane": plane}, deadline)
        _OWNED.pop(f"{self.namespace}/{self.name}", None)
        return late


def _host(orders: PlaneOrders, node: str) -> Any:
    """Detached, for whoever needs it first makes it; it watches over the plane's actor, and ends with that."""
    return _made(HostActor, actor_name(orders.name, node), orders, node, "detached").remote(orders, node)


def _made(kind: type[Any], name: str, orders: PlaneOrders, node: str, lifetime: str | None) -> Any:
    return (
        connected_ray()
        .remote(kind)
        .options(
            name=name,
            namespace=orders.namespace,
            get_if_exists=True,
            lifetime=lifetime,
            max_restarts=-1,
            num_cpus=0,
            resources={f"node:{node}": 0.001},
        )
    )


def _live(what: str, actor: Any, deadline: Deadline) -> Standing | None:
    """Return how it stands if it serves, None if it may soon.

    Raises:
        DataPlaneUnavailable: not yet, and something stands against it.
        BadArgument: it never will.
    """
    now = _standing(actor, deadline)
    if now.state == "ready":
        return now
    if now.state == "ended":  # whoever ended it did not get to the actor
        connected_ray().kill(actor, no_restart=True)
    if now.code in _WRONG:
        raise BadArgument(f"{what} cannot start: {now.why}")
    if now.why:
        raise DataPlaneUnavailable(f"{what} is {now.state}: {now.why}")
    return None


def _standing(actor: Any, deadline: Deadline) -> Standing:
    found = reply_of(actor.standing.remote(), _share(deadline))
    assert isinstance(found, Standing)
    return found


def _end(actors: Mapping[str, Any], deadline: Deadline) -> list[str]:
    for actor in actors.values():
        actor.end.remote()
    late = []
    for role, actor in actors.items():
        try:
            _await_end(role, actor, deadline)
        except DataPlaneTimeout:
            late.append(role)
        connected_ray().kill(actor, no_restart=True)
    return late


def _await_end(role: str, actor: Any, deadline: Deadline) -> None:
    def ask(until: Deadline) -> bool:
        now = _standing(actor, until)
        if now.state == "ended":
            return True
        if now.state != "ending":  # it was between two lives when it was told
            reply_of(actor.end.remote(), _share(until))
        raise DataPlaneUnavailable(f"process {now.pid} is {now.state}")

    patiently(f"the end of {role}", ask, deadline)


def _share(deadline: Deadline) -> float:
    return min(_ASK_S, deadline.remaining())
