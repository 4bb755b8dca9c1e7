"""What is lost: blocks that are damaged or missing, hosts that fall silent and are gone.

Rules: rows of a block that lies a second time go on from there; all others are lost, by name and with the reason. A
host is silent when its agent's session has ended, and gone ``host_grace_s`` later; one that comes back before has lost
nothing. What lies in a store is lost by its agent's word alone: an agent that is silent holds none of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from penstock.ledger import puts
from penstock.ledger.desk import Desk
from penstock.ledger.facts import AnyFact, Moved, Removed
from penstock.ledger.hosts import Host
from penstock.ledger.limits import MAX_REASON

__all__ = ["await_hosts", "falls_silent", "grace_ends", "lose_places", "lose_rows", "lose_some"]

SLICE = 500  # rows, or blocks that lie elsewhere too, that are decided on at once: about 5 ms
_AGAIN_S = 0.001


def lose_rows(desk: Desk, block_ids: Collection[int], why: str) -> None:
    """Every row that needs one of these blocks is lost."""
    lost = set(block_ids)
    if not lost:
        return
    for partition in list(desk.state.partitions.values()):
        rows = [row for row in partition.rows.values() if any(w.id in lost for w, _ in row.pairs())]
        if rows:
            desk.record([Removed(partition.name, [row.id for row in rows], "lost", why[:MAX_REASON])])
            desk.counters["rows.lost"] += len(rows)


def lose_places(desk: Desk, host: Host, block_ids: Iterable[int], why: str) -> None:
    """These blocks do not lie on the host any more, or are damaged there: it frees what is left of them.

    What follows is decided ``SLICE`` rows or blocks at a time: a host's million must not hold everybody else up.
    """
    for block_id in block_ids:
        if block_id in host.blocks:
            host.losing.setdefault(block_id, why)
    lose_some(desk, host)


def lose_some(desk: Desk, host: Host) -> None:
    """Decide on the next few blocks that the host is losing; come back for the others."""
    moved: list[AnyFact] = []
    lost: dict[tuple[str, str], list[int]] = {}  # partition and reason -> rows
    left, taken = SLICE, set[int]()
    for block_id, why in list(islice(host.losing.items(), SLICE)):
        write = desk.state.writes[block_id]
        others = [place for place in write.places() if place.host != host.id]
        rows = [row for row in write.living() if row not in taken][:left]
        if others:
            moved.append(Moved(others[0], None))
            desk.order("free", block_id, host.id)
        else:
            lost.setdefault((write.partition, why[:MAX_REASON]), []).extend(rows)
            taken.update(rows)
        left -= 1 if others else len(rows)
        if left <= 0:
            break
    if moved:
        desk.record(moved)
        desk.counters["blocks.on_one_host_less"] += len(moved)
    for (partition, why), ids in lost.items():
        desk.record([Removed(partition, ids, "lost", why)])
        desk.counters["rows.lost"] += len(ids)
    if host.losing:
        desk.books.start_timer(_AGAIN_S, "loss", str(host.id))
    elif host.given_up:
        _is_gone(desk, host)


# -- hosts ------------------------------------------------------------------------------------------------------------


def falls_silent(desk: Desk, host: Host, why: str) -> None:
    """The agent's session has ended: wait for it, so long."""
    grace_s = desk.config.host_grace_s
    host.session_id, host.report = 0, None
    host.forget_orders()
    desk.state.ordered.pop(host.id, None)
    _wait_for(desk, host, grace_s)
    desk.counters["hosts.silent"] += 1
    patience = "puts wait for it" if host.is_store else f"its rows wait {grace_s:g} s for it"
    desk.books.note("", f"{host.who()} is silent, {patience}: {why}")


def await_hosts(desk: Desk) -> None:
    """A life begins: every host that is known may come back."""
    for host in desk.state.hosts.values():
        _wait_for(desk, host, max(desk.config.host_grace_s, desk.config.resume_grace_s))


def _wait_for(desk: Desk, host: Host, grace_s: float) -> None:
    host.state, host.since, host.given_up = "silent", desk.books.clock, False
    host.until = host.since + grace_s
    desk.books.start_timer(grace_s, "host", str(host.id))


def grace_ends(desk: Desk, host_id: int) -> None:
    """The host is gone, if it has not come back meanwhile."""
    host = desk.state.hosts.get(host_id)
    if host is None or host.state != "silent" or host.until > desk.books.clock:
        return
    if host.is_store and (host.blocks or host.stored):
        host.until = desk.books.clock + desk.config.host_grace_s
        desk.books.start_timer(desk.config.host_grace_s, "host", str(host.id))
        return
    host.given_up = True
    for pending in [p for p in desk.state.grants.values() if next(iter(p.lives), 0) == host.id]:
        puts.drop(desk, pending.id)
    silent = desk.books.clock - host.since
    lose_places(desk, host, list(host.blocks), f"host {host.place.name or host.id} gone for {silent:.0f} s")


def _is_gone(desk: Desk, host: Host) -> None:
    """Nothing waits for the host any more."""
    if host.blocks:  # committed there, beside another place, since it was given up
        lose_places(desk, host, list(host.blocks), f"host {host.place.name or host.id} gone")
        return
    host.state, host.given_up = "gone", False
    desk.counters["hosts.gone"] += 1
    desk.books.note("", f"{host.who()} is gone after {desk.books.clock - host.since:.1f} s")
