"""On which hosts a put's block will lie, lies, and is told to lie no more.

Rules: a put is granted on a host that is up; its second host is the least laden of the other machines,
those that the client has found unwilling last. A commit counts a place
only if its host is up in the very life in which the grant was given: what an earlier life of an agent had sealed and no
row needed yet, its successor has let go of. Whatever host may hold a block that nobody needs is told to free it.
A store is alone: how often it keeps a block is its own affair. Its life is that of its contents, whoever its agent is,
so that a silent agent makes nothing uncertain that lies there.
"""

from __future__ import annotations

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.ledger.desk import Desk
from penstock.ledger.events import Assign, Unassign
from penstock.ledger.facts import StoreMayHold
from penstock.ledger.hosts import Host
from penstock.ledger.state import PendingGrant, Waiter
from penstock.requests import ArenaPlace, BlockPlace, Commit, Grant, Granted

__all__ = ["assign", "check", "choose", "count_places", "let_go", "sealed"]

MAX_REPLICAS = 2


def check(desk: Desk, grant: Grant) -> None:
    """Refuse a grant whose hosts make no sense, or whose own host is not there now."""
    if not 1 <= grant.at_least <= grant.replicas <= MAX_REPLICAS:
        raise BadArgument(
            f"a put lies on 1 to {MAX_REPLICAS} hosts, and on at least 1: "
            f"refused replicas {grant.replicas}, at_least {grant.at_least}",
            partition=grant.partition,
        )
    if grant.host:
        choose(desk, grant)
    elif grant.at_least > 1:
        raise BadArgument(
            "a put into the plane's own arena lies there alone: start host agents (penstock host), and put through one",
            partition=grant.partition,
        )


def choose(desk: Desk, grant: Grant) -> list[Host]:
    """The hosts on which the block shall lie, the writer's own first.

    Raises:
        DataPlaneUnavailable: its own host is not up, or no second one is and the put needs it.
    """
    own = desk.state.hosts.get(grant.host)
    if own is None or own.state != "up":
        raise DataPlaneUnavailable(_not_up(desk, own, grant.host), partition=grant.partition)
    if own.is_store and grant.at_least > 1:
        raise BadArgument(
            f"{own.who()} is no machine, and no second one takes its copies: have the store keep two "
            "(replicas=2 in its URL)",
            partition=grant.partition,
        )
    if grant.replicas == 1 or own.is_store:
        return [own]
    machines = [host for host in desk.state.hosts.values() if not host.is_store]
    others = [host for host in machines if host.state == "up" and host is not own]
    willing = [host for host in others if host.id not in grant.avoid] or others
    if willing:
        return [own, min(willing, key=lambda host: (host.load, host.id))]
    if grant.at_least > 1:
        raise DataPlaneUnavailable(
            f"no second host is up beside {own.who()}: start another agent (penstock host), or put with "
            "replicas=1 or under_replicated=True",
            partition=grant.partition,
        )
    return [own]


def _not_up(desk: Desk, host: Host | None, host_id: int) -> str:
    command = "penstock store" if host is not None and host.is_store else "penstock host"
    remedy = f"see that its agent ({command}) runs and reaches the plane"
    if host is None:
        return f"host {host_id:x} is not enlisted at this plane: {remedy}"
    silent = desk.books.clock - host.since
    return f"{host.who()} is {host.state}, heard of {silent:.1f} s ago at the latest: {remedy}"


def assign(desk: Desk, waiter: Waiter, pending: PendingGrant, hosts: list[Host]) -> None:
    """Answer an admitted grant: these hosts' agents find the room."""
    nbytes = pending.request.nbytes
    for host in hosts:
        pending.lives[host.id] = host.place.life
        host.promise(pending.id, nbytes)
        if host.is_store:
            desk.record([StoreMayHold(host.id, [pending.id])])
    place = BlockPlace(pending.id, 0, 0, nbytes, 0, host=hosts[0].id)
    replica = hosts[1].place if len(hosts) > 1 else None
    granted = Granted(pending.id, place, ArenaPlace(0, 0, in_shm=False), replica, hosts[0].place.life)
    desk.out.append(Assign(waiter.session_id, waiter.call_id, granted))


def sealed(pending: PendingGrant, commit: Commit) -> list[BlockPlace]:
    """The places that a commit names.

    Raises:
        BadArgument: they are not those of the grant.
    """
    request, places = pending.request, commit.places
    granted = list(pending.lives)
    told = [place.host for place in places]
    if told != granted[: len(told)] or (granted and not places):
        raise BadArgument(f"grant {pending.id} is for hosts {granted}, the commit names {told}")
    for place in places:
        if place.block_id != pending.id or place.nbytes != request.nbytes or min(place.offset, place.generation) < 0:
            raise BadArgument(f"{place} is no place of grant {pending.id}, of {request.nbytes} bytes")
    if granted and len(places) < request.at_least:
        raise BadArgument(f"grant {pending.id} asked for {request.at_least} places, the commit names {len(places)}")
    return places


def count_places(desk: Desk, pending: PendingGrant, places: list[BlockPlace]) -> list[BlockPlace] | None:
    """Those of the places that count, the first of them first; None = too few are certain: nothing is committed.

    A place on a host that is silent may come back with it, and is kept beside enough that are certain.
    """
    kept = []
    certain = 0
    for place in places:
        host = desk.state.hosts.get(place.host)
        if host is not None and host.state != "gone" and host.place.life == pending.lives[place.host]:
            kept.append(place)
            certain += host.state == "up" or host.is_store
    return kept if certain >= pending.request.at_least else None


def let_go(desk: Desk, pending: PendingGrant, kept: list[BlockPlace]) -> None:
    """The grant is over: the block stays at ``kept``, every other host that may have it frees it."""
    staying = {place.host for place in kept}
    for host_id in pending.lives:
        host = desk.state.hosts.get(host_id)
        if host is not None:
            host.unpromise(pending.id)
        desk.order("adopt" if host_id in staying else "free", pending.id, host_id)
    desk.out.append(Unassign(pending.id))
