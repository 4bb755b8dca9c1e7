"""Grants that wait for room in the arena: in order, each until its deadline.

Invariants: a grant is placed, given up or waiting, and is reported once; it is never placed at or after its deadline;
one that does not fit may be overtaken by those behind it that do (they may be the last columns that a full plane needs
before it can free anything), but only ``_MAX_OVERTAKEN`` times. Pure: the clock and the arena are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from penstock.requests import BlockPlace

__all__ = ["Allotment", "Request"]

_MAX_OVERTAKEN = 64
_MAX_TRIES = 64  # of the waiting, oldest first, each time room may have come


@dataclass(slots=True)
class Request:
    """One grant that wants ``nbytes``; ``owner`` is the arena's name of its holder."""

    grant: int
    nbytes: int
    owner: int
    session_id: int
    call_id: int
    asked: float
    deadline: float
    overtaken: int = 0


class Allotment:
    """Args: place: ask the arena for a slot: (block id, bytes, owner) -> place or None."""

    def __init__(self, place: Callable[[int, int, int], BlockPlace | None]) -> None:
        self._place = place
        self._waiting: dict[int, Request] = {}  # in order of arrival

    def ask(self, request: Request) -> BlockPlace | None:
        """Place the grant now, or let it wait behind the others."""
        found = None if self._barred() else self._try(request)
        if found is None:
            self._waiting[request.grant] = request
        return found

    def retry(self, now: float) -> list[tuple[Request, BlockPlace]]:
        """Room may have come: place what fits now."""
        placed: list[tuple[Request, BlockPlace]] = []
        for request in list(islice(self._waiting.values(), _MAX_TRIES)):
            if request.deadline <= now:
                continue
            found = self._try(request)
            if found is not None:
                del self._waiting[request.grant]
                placed.append((request, found))
            elif request.overtaken >= _MAX_OVERTAKEN:
                break
        return placed

    def ask_again(self, grant: int, now: float) -> tuple[Request, BlockPlace] | None:
        """Have more of the room for this grant made ready: place it if that was all."""
        request = self._waiting.get(grant)
        if request is None or request.deadline <= now:
            return None
        found = self._try(request)
        if found is None:
            return None
        del self._waiting[grant]
        return request, found

    def expired(self, now: float) -> list[Request]:
        """Remove and return those whose deadline has come."""
        late = [r for r in self._waiting.values() if r.deadline <= now]
        for request in late:
            del self._waiting[request.grant]
        return late

    def cancel(self, grant: int) -> bool:
        """Forget ``grant``; whether it was waiting."""
        return self._waiting.pop(grant, None) is not None

    def forsake(self, calls: frozenset[int]) -> list[Request]:
        """Nobody waits for the answers to these calls any more: remove those that wait for one, and return them."""
        forsaken = [r for r in self._waiting.values() if r.call_id in calls]
        for request in forsaken:
            del self._waiting[request.grant]
        return forsaken

    def next_deadline(self) -> float | None:
        return min((r.deadline for r in self._waiting.values()), default=None)

    def __len__(self) -> int:
        return len(self._waiting)

    def _barred(self) -> bool:
        return any(r.overtaken >= _MAX_OVERTAKEN for r in self._waiting.values())

    def _try(self, request: Request) -> BlockPlace | None:
        found = self._place(request.grant, request.nbytes, request.owner)
        if found is not None:
            for other in self._waiting.values():
                if other is request:
                    break
                other.overtaken += 1
        return found
