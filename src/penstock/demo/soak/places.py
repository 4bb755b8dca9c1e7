"""Where a fault may strike in the main job: which role passes which points, and what must happen first to get there.

Invariants: every point of ``penstock.points`` but those of hosts' agents, of which a run on one machine has none, is a
place of at least one role (a test compares them); a lead strikes a process that lives, so that somebody gets to the
place after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from penstock.errors import BadArgument, abbreviate
from penstock.points import POINTS
from penstock.testing.faults import Sentence, kill, terminate

__all__ = ["PLACES", "ROLES", "Place", "lead_to", "select"]

ROLES = ("worker", "scorer", "trainer", "controller", "plane")

_PUT = ("client.putting", "client.granted", "client.copied", "client.put")
_READ = ("client.reading", "client.pinned", "client.read")
_CALLS: Mapping[str, tuple[str, ...]] = {  # a client's points are passed by whoever makes the call
    "worker": (*_PUT, "client.tagging", "client.tagged"),
    "scorer": ("client.claimed", *_READ, *_PUT, "client.acking", "client.acked"),
    "trainer": _READ,
    "controller": ("client.claimed", "client.popping", "client.popped"),
    "plane": (),
}
_ROOMS: Mapping[str, tuple[str, ...]] = {"plane": ("server", "journal")}  # whose own points they are; else the role's

# Points that are passed by a plane that begins (it restates its journal soon after), by one that ends, and after a
# worker's death between its put and its commit.
_BEGINS = (
    *("server.replayed", "server.recovered", "server.listening", "server.moved"),
    *("server.checkpointing", "server.restated", "server.checkpointed", "journal.rebased"),
    "controller.recovering",
)
_ENDS = ("server.stopping", "server.parted", "server.rescued", "server.ended")
_LEAVES = ("controller.evicted",)
_ALIVE, _HALF_PUT = "server.received", "worker.put"  # where leads strike


@dataclass(frozen=True, order=True)
class Place:
    """A role at a point of its way. ``often``: it is passed several times a step."""

    role: str
    point: str

    @property
    def often(self) -> bool:
        return self.point not in (*_BEGINS, *_ENDS, *_LEAVES)

    def __str__(self) -> str:
        return f"{self.role}/{self.point}"


def _places() -> Iterator[Place]:
    for role in ROLES:
        own = _ROOMS.get(role, (role,))
        yield from (Place(role, point.name) for point in POINTS if point.role in own)
        yield from (Place(role, name) for name in _CALLS[role])


PLACES = tuple(_places())


def lead_to(place: Place, nth: int) -> Sentence | None:
    """Return the fault that brings ``place`` about; None = it is passed anyway. ``nth``: when that fault comes."""
    if place.point in _BEGINS:
        return kill("plane", at=_ALIVE, nth=nth)
    if place.point in _ENDS:
        return terminate("plane", at=_ALIVE, nth=nth)
    if place.point in _LEAVES:
        return kill("worker", at=_HALF_PUT)
    return None


def select(wanted: tuple[str, ...]) -> tuple[Place, ...]:
    """Return the places that are meant: each word is a role, a point or "role/point"; no word means all.

    Raises:
        BadArgument: a word means no place.
    """
    chosen: list[Place] = []
    for word in wanted:
        found = [place for place in PLACES if word in (place.role, place.point, str(place))]
        if not found:
            raise BadArgument(
                f"{word!r} is no role, no point and no role/point; roles are {', '.join(ROLES)}; "
                f"places are {abbreviate([str(place) for place in PLACES])}; penstock chaos --list shows the points"
            )
        chosen += found
    return tuple(dict.fromkeys(chosen)) or PLACES
