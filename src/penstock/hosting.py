"""What a plane, the agents of its hosts and their clients say to each other about memory, and about nothing else.

A put on a host: ``Grant`` at the plane, ``Reserve`` at the host's agent, one copy, ``Seal`` at the agent, ``Commit`` at
the plane. A read: ``Locate`` at the plane, then ``Hold`` at the own host's agent, or a fetch from another's listeners.
The agent learns what became of it all by ``HostReport``, which waits for ``Orders``.
"""

from __future__ import annotations

from penstock.parts import BlockPlace, HostPlace, Record

__all__ = ["Enlist", "Enlisted", "Hold", "HostReport", "Orders", "Reserve", "Seal", "Sealed"]


# -- between the plane and the agents of hosts ------------------------------------------------------------------------


class Enlist(Record, frozen=True):
    """The session is a host agent's: what is put on its host lies with it. Answered ``Enlisted``.

    The first request of an agent in each of its lives and in each of the plane's. Grants on this host of an earlier
    life of the agent are dropped, and another session that is this host's is ended: the newest life counts.

    ``plane``: the one whose blocks lie there, by its ``Enlisted.plane``; another one, which would have all of them
    freed, refuses. 0 = nobody's that outlives its plane.
    """

    place: HostPlace
    plane: int = 0


class HostReport(Record, frozen=True):
    """What an agent has to say, and its wait for orders. Answered ``Orders``, at the latest when its deadline nears.

    Attributes:
        after: orders up to this number have been carried out; the plane forgets them.
        done_with: blocks that were sealed here and whose writers have gone or let go: are they anybody's? Those that
            no row needs come back as ``Orders.free``, the others as ``Orders.adopt``.
        ended: clients (by client id) of this host whose processes the kernel says have ended.
        lost: blocks that are missing or damaged here, and why.
        moved: blocks that lie elsewhere on this host now.
    """

    after: int
    done_with: list[int] = []
    ended: list[int] = []
    lost: list[int] = []
    why: str = ""
    moved: list[BlockPlace] = []


# -- between a client and the agent of its host -----------------------------------------------------------------------


class Reserve(Record, frozen=True):
    """Ask the agent for a slot for a block that the plane has granted. Waits for room. Answered ``Granted``.

    ``life``: of this host's agent for which it was granted; another refuses, for the plane does not count what that one
    holds. 0 = whichever lives (it asks itself, for another host's copy).
    """

    grant: int
    nbytes: int
    life: int = 0


class Seal(Record, frozen=True):
    """The slot is written. Answered ``Sealed`` once the block is READY, and on ``replica`` too if one is named."""

    grant: int
    content: int
    replica: HostPlace | None = None


class Hold(Record, frozen=True):
    """Pin these blocks of the agent's arenas for a read. Answered ``Located``; ``issues`` names, by id, the others."""

    blocks: list[int]


# -- replies -----------------------------------------------------------------------------------------------------------


class Sealed(Record, frozen=True):
    """The block lies there, READY and verified, its own host first. ``why``: the replica is missing, and why."""

    places: list[BlockPlace]
    why: str = ""


class Enlisted(Record, frozen=True):
    """The host is known. ``live``: where rows that live need this host's blocks to lie; orders count from ``after``.

    ``plane``: its name, the same in all its lives; 0 = it forgets its rows with each (durability ``memory``).
    """

    live: list[BlockPlace]
    after: int = 0
    plane: int = 0


class Orders(Record, frozen=True):
    """What the plane wants of an agent: all that was decided since ``HostReport.after``.

    Attributes:
        number: of the newest order here; the agent states it back in ``after`` once all are carried out.
        adopt: blocks that rows live in now: kept until ``free``, whoever their writers were.
        free: blocks that nothing needs any more; pins and reads under way keep their bytes until they end.
        verify: blocks that a reader found damaged; those that are, are reported as lost.
    """

    number: int
    adopt: list[int] = []
    free: list[int] = []
    verify: list[int] = []
