"""What the plane is still to be told by this host, until it has answered that it knows. Pure.

Invariants: what is noted is told again and again until a report that held it was answered; a report is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.hosting import HostReport
from penstock.parts import BlockPlace

__all__ = ["MAX_NEWS", "News"]

MAX_NEWS = 4096  # of each kind in one report
_MAX_ENDED = 65536  # clients; of more the plane learns by their silence
_MAX_WHY = 300  # characters of a reason


class News:
    """Clients that have ended, blocks that are lost, blocks that moved."""

    def __init__(self) -> None:
        self._ended: dict[int, None] = {}
        self._lost: dict[int, str] = {}
        self._moved: dict[int, BlockPlace] = {}

    def __bool__(self) -> bool:
        return bool(self._ended or self._lost or self._moved)

    @property
    def moves(self) -> int:
        """Blocks of which the plane does not know yet where they lie."""
        return len(self._moved)

    def ended(self, client_id: int) -> None:
        """The client's process is dead."""
        self._ended[client_id] = None
        if len(self._ended) > _MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def lost(self, block_ids: Iterable[int], why: str) -> None:
        """These blocks are not here, or not whole. The first reason counts."""
        for block_id in block_ids:
            self._lost.setdefault(block_id, why[:_MAX_WHY])
            self._moved.pop(block_id, None)

    def moved(self, place: BlockPlace) -> None:
        """The block lies there now."""
        self._moved[place.block_id] = place

    def freed(self, block_id: int) -> None:
        """Nobody cares where it lies any more."""
        self._moved.pop(block_id, None)

    def report(self, after: int, done_with: list[int]) -> HostReport:
        """Return what there is to say now; a report has one ``why``, so that losses of other reasons wait."""
        why = next(iter(self._lost.values()), "")
        return HostReport(
            after=after,
            done_with=done_with[:MAX_NEWS],
            ended=list(self._ended)[:MAX_NEWS],
            lost=[block_id for block_id, reason in self._lost.items() if reason == why][:MAX_NEWS],
            why=why,
            moved=list(self._moved.values())[:MAX_NEWS],
        )

    def heard(self, said: HostReport) -> None:
        """The plane has answered this report."""
        for client_id in said.ended:
            self._ended.pop(client_id, None)
        for block_id in said.lost:
            self._lost.pop(block_id, None)
        for place in said.moved:
            if self._moved.get(place.block_id) == place:
                del self._moved[place.block_id]
