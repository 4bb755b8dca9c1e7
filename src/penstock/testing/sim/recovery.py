"""Is what the journal gives back what the dead plane had decided, and do the books balance at the end?

Two ledgers are compared by their fingerprints. A session's replies may differ where nothing depends on it: those that
the client has taken (not every word of it is journaled), and those that say that nothing happened (they are decided
anew). What the replayed ledger remembers and the client has not taken must be what was said, and a claim that holds
rows must be remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from penstock.ledger.fingerprint import fingerprint
from penstock.ledger.machine import Ledger
from penstock.ledger.reports import audit_partition
from penstock.ledger.state import Lease, Session, State
from penstock.requests import Claimed, ReplyBody

__all__ = ["books_of", "differences", "owed", "state_of"]

if TYPE_CHECKING:
    from penstock.testing.sim.plane import SimPlane

_MAX_SHOWN = 6


def state_of(ledger: Ledger) -> State:
    """The ledger's state, with which its users have no business."""
    return ledger.desk.state


def differences(live: Ledger, replayed: Ledger) -> list[str]:
    """Return what differs, in sentences; the first few."""
    found = [*_durable_differences(live, replayed), *_session_differences(state_of(live), state_of(replayed))]
    more = len(found) - _MAX_SHOWN
    return [*found[:_MAX_SHOWN], f"and {more} more"] if more > 0 else found


def owed(ledger: Ledger) -> dict[str, object]:
    """The durable state but for the sessions' replies."""
    return {name: value for name, value in fingerprint(ledger).items() if not name.startswith("session ")}


def _durable_differences(live: Ledger, replayed: Ledger) -> Iterator[str]:
    was, now = owed(live), owed(replayed)
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield f"{name}: was {was.get(name)}, is {now.get(name)}"


def _session_differences(live: State, replayed: State) -> Iterator[str]:
    for session_id in sorted(live.sessions.keys() | replayed.sessions.keys()):
        was, now = live.sessions.get(session_id), replayed.sessions.get(session_id)
        if was is None or now is None:
            yield f"session {session_id}: was {was}, is {now}"
        else:
            yield from _of_session(was, now)


def _of_session(live: Session, replayed: Session) -> Iterator[str]:
    me = f"session {live.id}"
    was = (live.secret, live.client_id, live.pid, sorted(live.leases))
    now = (replayed.secret, replayed.client_id, replayed.pid, sorted(replayed.leases))
    if was != now:
        yield f"{me}: was {was}, is {now}"
    for seq, reply in replayed.replies.items():
        if seq >= live.done_below and _plain(live.replies.get(seq)) != _plain(reply):
            yield f"{me}, reply {seq}: was {live.replies.get(seq)}, is {reply}"
    for seq, reply in live.replies.items():
        if isinstance(reply, Lease) and reply.rows and seq not in replayed.replies:
            yield f"{me}, reply {seq}: the lease {reply.token} is forgotten"


def _plain(reply: Lease | ReplyBody | None) -> object:
    """A claim's reply whose lease holds nothing any more is an empty one, however it came to be so."""
    if isinstance(reply, Lease):
        return ("lease", reply.token) if reply.rows else "empty claim"
    return "empty claim" if isinstance(reply, Claimed) else reply


def books_of(plane: SimPlane) -> Iterator[str]:
    """Yield what is wrong with a plane at the end of a world, when all its clients have gone."""
    if not plane.up:
        yield "the plane is down at the end"
        return
    plane.ledger.check_invariants()
    state = state_of(plane.ledger)
    audits = [audit_partition(p) for p in state.partitions.values()]
    yield from (f"the audit does not balance: {a}" for a in audits if a.residue or a.broken)
    live = {(place.block_id, place.generation) for place in plane.ledger.live_blocks()}
    leaks = {
        "sessions": len(state.sessions),
        "leases": len(state.leases),
        "grants": len(state.grants),
        "blocks": len(plane.arena.slots.keys() - live),
    }
    yield from (f"leaked {count} {kind}" for kind, count in leaks.items() if count)
