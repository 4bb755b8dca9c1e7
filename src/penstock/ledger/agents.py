"""What the agents of hosts say, and what they are told.

Rules: an agent enlists first, in each of its lives and of the plane's; the newest life of a host counts, and a session
of it that enlists ends the one before. One that has another plane's blocks is refused: it would be told to free them.
Orders are told until the agent says that it has carried them out, so that losing an answer, or asking twice, does no
harm. Clients are ended by their ``client_id`` alone: 63 random bits that nobody but the plane and the agents to which
the client has said them knows.
"""

from __future__ import annotations

from penstock.errors import BadArgument, DataPlaneUnavailable
from penstock.ledger import losses, puts, sessions
from penstock.ledger.desk import Desk
from penstock.ledger.events import Answer, Asked
from penstock.ledger.facts import AnyFact, HostIs, Moved, StoreFreed
from penstock.ledger.hosts import Host, Report
from penstock.ledger.limits import MAX_HOSTS, MAX_NAME, MAX_PORTS, MAX_URL
from penstock.ledger.state import Session
from penstock.requests import BlockPlace, Damaged, Done, Enlist, Enlisted, HostPlace, HostReport, Orders

__all__ = ["damaged", "enlist", "expire_waiting", "report", "serve_waiting", "withdraw"]

_EARLY_S = 0.5  # before its deadline an agent's waiting call is answered, or after three quarters of a short one


# -- enlisting --------------------------------------------------------------------------------------------------------


def enlist(desk: Desk, session: Session, asked: Asked) -> None:
    """The session is the agent of a host: say what must lie there."""
    body = asked.body
    assert isinstance(body, Enlist)
    place = body.place
    _check(desk, session, place)
    _refuse_strangers(desk, body)
    host = desk.books.host(place.host_id)
    if place.life < host.place.life:
        raise DataPlaneUnavailable(
            f"life {place.life} of {host.who()} is over: the plane knows life {host.place.life} of it"
        )
    older = desk.state.sessions.get(host.session_id)
    if older is not None and older is not session:
        sessions.end(desk, older, f"life {place.life} of {host.who()} has enlisted")
    if place.life > host.place.life:
        for pending in [p for p in desk.state.grants.values() if next(iter(p.lives), 0) == host.id]:
            puts.drop(desk, pending.id)
    was = host.state
    desk.record([HostIs(place)])
    host.state, host.since, host.session_id = "up", desk.books.clock, session.id
    host.given_up = False
    host.losing.clear()  # what is left may be there after all; what is not, the agent says
    host.number = max(host.number, desk.state.incarnation)  # never a number of an earlier life of the plane
    host.forget_orders()
    live = [_place_on(desk, host, block_id) for block_id in host.blocks]
    desk.answer(asked, Enlisted(live, host.number, desk.plane))
    desk.counters["hosts.enlisted"] += 1
    desk.books.note("", f"{host.who()} has enlisted in its life {place.life}; it was {was}")
    if place.store:
        _free_stored(desk, host)


def _free_stored(desk: Desk, host: Host) -> None:
    """What may lie in a store and nobody needs was told to no agent, or not done by it: it is told anew."""
    for block_id in host.stored:
        if block_id not in host.blocks and block_id not in host.grants:
            desk.order("free", block_id, host.id)


def _refuse_strangers(desk: Desk, body: Enlist) -> None:
    """An agent whose blocks are another plane's would be told to free them all."""
    if body.plane not in (0, desk.plane):
        raise DataPlaneUnavailable(
            f"blocks of another plane lie on host {body.place.name or body.place.host_id}, and this one would have them"
            " freed: start that plane again, on its own directory; or start an agent on another one (--dir) for this"
        )


def _check(desk: Desk, session: Session, place: HostPlace) -> None:
    ports = [*place.ports, *place.ucx_ports, place.peer_port]
    if place.host_id < 1 or place.life < 0 or len(place.name) > MAX_NAME or len(place.address) > MAX_NAME:
        raise BadArgument(f"{place} is no host")
    if len(place.store) > MAX_URL or (place.store and "://" not in place.store):
        raise BadArgument(f"{place.store[:MAX_NAME]!r} is no URL of a store")
    known = desk.state.hosts.get(place.host_id)
    if known is not None and known.place.address and known.is_store != bool(place.store):
        raise BadArgument(f"{known.who()} is {'a store' if known.is_store else 'a machine'}, and stays what it is")
    if not (place.name.isprintable() and place.address.isprintable() and place.store.isprintable()):
        raise BadArgument("a host's name and address are printable: they go into logs and onto terminals")
    if len(ports) > MAX_PORTS or not all(0 <= port < 1 << 16 for port in ports):
        raise BadArgument(f"a host has at most {MAX_PORTS} ports, all below 65536")
    other = _host_of(desk, session)
    if other is not None and other.id != place.host_id:
        raise BadArgument(f"this session is the agent of {other.who()}, and of no other")
    if place.host_id not in desk.state.hosts and len(desk.state.hosts) >= MAX_HOSTS:
        gone = next((host for host in desk.state.hosts.values() if host.state == "gone" and not host.grants), None)
        if gone is None:
            raise DataPlaneUnavailable(f"this plane knows {MAX_HOSTS} hosts already")
        del desk.state.hosts[gone.id]


def _host_of(desk: Desk, session: Session) -> Host | None:
    return next((host for host in desk.state.hosts.values() if host.session_id == session.id), None)


def _place_on(desk: Desk, host: Host, block_id: int) -> BlockPlace:
    return next(place for place in desk.state.writes[block_id].places() if place.host == host.id)


# -- reports ----------------------------------------------------------------------------------------------------------


def report(desk: Desk, session: Session, asked: Asked) -> None:
    """Hear what the agent has to say; its call waits for orders."""
    body = asked.body
    assert isinstance(body, HostReport)
    host = _host_of(desk, session)
    if host is None:
        raise DataPlaneUnavailable("this session is no host's in this life of the plane: enlist first")
    _carried_out(desk, host, body.after)
    _blocks_moved(desk, host, body.moved)
    for block_id in body.lost:
        pending = desk.state.grants.get(block_id)
        if pending is not None and host.id in pending.lives:
            puts.drop(desk, block_id)
    who = f"{host.kind} {host.place.name or host.id}"
    losses.lose_places(desk, host, body.lost, f"{who}: {body.why or 'missing or damaged'}")
    _clients_ended(desk, session, host, body.ended)
    for block_id in body.done_with:
        _writer_has_gone(desk, host, block_id)
    _answer(desk, host, Orders(host.report.after) if host.report is not None else None)
    patience_s = max(0.0, asked.deadline - desk.now)
    until = asked.deadline - min(_EARLY_S, patience_s / 4)
    host.report = Report(session.id, asked.call_id, body.after, until)
    desk.wait_until(until)
    desk.state.ordered[host.id] = None


def _carried_out(desk: Desk, host: Host, after: int) -> None:
    """What a store's agent has freed is journaled: no later life has it done again."""
    freed = [block_id for block_id in host.carried_out(after) if block_id in host.stored]
    if freed:
        desk.record([StoreFreed(host.id, freed)])


def _blocks_moved(desk: Desk, host: Host, places: list[BlockPlace]) -> None:
    """The agent has moved blocks within its host."""
    facts: list[AnyFact] = []
    for place in places:
        write = desk.state.writes.get(place.block_id)
        if place.host == host.id and write is not None and place.block_id in host.blocks and write.place is not None:
            first, second = write.place, write.replica
            moved = Moved(place, None, second) if first.host == host.id else Moved(first, None, place)
            if (moved.place, moved.replica) != (first, second):
                facts.append(moved)
    if facts:
        desk.record(facts)


def _clients_ended(desk: Desk, agent: Session, host: Host, client_ids: list[int]) -> None:
    """The kernel of that host says so: nobody waits for their heartbeats to be late."""
    ended = set(client_ids)
    if not ended:
        return
    for session in [s for s in desk.state.sessions.values() if s.client_id in ended and s is not agent]:
        sessions.end(desk, session, f"its process on {host.who()} has ended")
    for pending in [p for p in desk.state.grants.values() if p.lives and p.client_id in ended]:
        puts.drop(desk, pending.id)


def _writer_has_gone(desk: Desk, host: Host, block_id: int) -> None:
    """Say whose the block is: rows', then it stays; nobody's, then it goes; a second host waits for the commit."""
    pending = desk.state.grants.get(block_id)
    if pending is not None and host.id in pending.lives:
        if next(iter(pending.lives)) == host.id:
            puts.drop(desk, block_id)
        return
    desk.order("adopt" if block_id in host.blocks else "free", block_id, host.id)


def damaged(desk: Desk, session: Session, asked: Asked) -> None:
    """A reader found a block damaged on a host: its agent looks for itself before it is believed."""
    body = asked.body
    assert isinstance(body, Damaged)
    host = desk.state.hosts.get(body.host)
    if host is not None and body.block_id in host.blocks:
        desk.order("verify", body.block_id, host.id)
    desk.answer(asked, Done())


# -- waiting calls ----------------------------------------------------------------------------------------------------


def serve_waiting(desk: Desk) -> None:
    """Tell the agents that wait what has been ordered since."""
    ordered = desk.state.ordered
    while ordered:
        host = desk.state.hosts.get(next(iter(ordered)))
        del ordered[next(iter(ordered))]
        if host is not None and host.report is not None and host.has_orders:
            _answer(desk, host, host.orders())


def expire_waiting(desk: Desk) -> None:
    """Answer the agents' calls whose deadline nears: nothing new."""
    for host in desk.state.hosts.values():
        if host.report is not None and host.report.until <= desk.now:
            _answer(desk, host, Orders(host.report.after))


def withdraw(desk: Desk, calls: frozenset[int]) -> None:
    """Nobody waits for the answers to these calls any more."""
    for host in desk.state.hosts.values():
        if host.report is not None and host.report.call_id in calls:
            _answer(desk, host, Orders(host.report.after))


def _answer(desk: Desk, host: Host, orders: Orders | None) -> None:
    """Answer the waiting call. One without orders says of none that it is told, so that the agent acknowledges none."""
    waiting, host.report = host.report, None
    if waiting is not None and orders is not None:
        desk.out.append(Answer(waiting.session_id, waiting.call_id, orders))
