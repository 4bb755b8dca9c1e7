"""Blocks on several hosts: this machine's own from its agent's memory, all others fetched from the hosts they lie on.

Invariants: a block has one outcome, whatever was tried for it; a place that failed is followed by the block's other
one; what was fetched once in a read is not fetched again; a host that does not answer is named, with how long it has
been silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from penstock.errors import (
    CorruptPayload,
    DataPlaneError,
    DataPlaneNotReady,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    StaleSlotError,
)
from penstock.plane.blocks import FetchedBlock, Opened, Opening
from penstock.plane.exchange import LEAST_S
from penstock.plane.link import Link
from penstock.plane.recall import recallable
from penstock.plane.remote_host import OwnHost
from penstock.requests import (
    ArenaPlace,
    BlockPlace,
    Damaged,
    Hold,
    HostPlace,
    HostStatus,
    Located,
    Status,
    StatusReport,
)
from penstock.retry import Deadline
from penstock.transport.loop_thread import Waiting
from penstock.transport.wanted import Fetched, Wanted

__all__ = ["FetchedBlock", "Fetches", "RemoteBlocks"]

HOLD_S = 5.0  # an agent answers in milliseconds; one that is stopped is not waited for: its blocks may lie elsewhere
FETCH_S = 20.0  # then the plane is asked again where the rest lies: hosts restart, at other ports
_RESERVE_SHARE, _RESERVE_S = 0.1, 0.5  # of a call's time, kept for saying what went wrong


class Fetches(Protocol):
    """What is needed of a ``transport.client.PayloadClient``."""

    def fetch(
        self, wanted: Sequence[Wanted], deadline: Deadline, waiting: Waiting = ...
    ) -> list[Fetched | DataPlaneError]: ...


class RemoteBlocks:
    """Where the blocks of one client come from. Args: its link to the plane, its host, and what fetches from others."""

    def __init__(self, link: Link, host: OwnHost, fetches: Fetches) -> None:
        self.link = link
        self.host = host
        self.fetches = fetches

    def begin(self) -> Opening:
        return _RemoteOpening(self)


class _RemoteOpening:
    """One read."""

    def __init__(self, blocks: RemoteBlocks) -> None:
        self.damage: list[Damaged] = []
        self._blocks = blocks
        self._arenas: list[ArenaPlace] = []
        self._fetched: dict[int, FetchedBlock] = {}  # by block id; an id is one block's for ever
        self._said: dict[int, DataPlaneError] = {}  # by block id: how its last fetch failed

    @property
    def ended(self) -> bool:
        return self._blocks.host.arenas.ended

    def lost(self) -> bool:
        return self._blocks.host.arenas.lost(self._arenas)

    def open(self, located: Located, stack: ExitStack, deadline: Deadline) -> Opened:
        lying = [_Lying(located, at) for at in range(len(located.blocks))]
        opened = Opened()
        self._hold([one for one in lying if one.block_id not in self._fetched], stack, deadline, opened)
        self._fetch([one for one in lying if one.at not in opened.blocks], deadline, opened)
        return opened

    # -- this machine's -----------------------------------------------------------------------------------------------

    def _hold(self, lying: Sequence[_Lying], stack: ExitStack, deadline: Deadline, opened: Opened) -> None:
        """Open what lies here, and note of the rest that it is not to be had here."""
        link = self._blocks.host.begin()
        if link is None:
            return
        soon = deadline.within(HOLD_S)
        try:
            here = self._blocks.host.host_id(link, soon, once=True)
            own = {one.block_id: one for one in lying if here in one.places}
            if not own:
                return
            held = stack.enter_context(link.call(Hold(list(own)), Located, soon, once=True))
        except (DataPlaneUnavailable, DataPlaneTimeout):
            return  # its listeners may still answer, or the block's other host
        self._arenas = held.arenas
        arenas = {arena.arena_id: arena for arena in held.arenas}
        for issue in held.issues:
            own.pop(int(issue.key)).failed(here, StaleSlotError(issue.why))
        for place in held.blocks:
            self._open_own(own[place.block_id], place, arenas[place.arena_id], stack, opened)

    def _open_own(self, one: _Lying, place: BlockPlace, arena: ArenaPlace, stack: ExitStack, opened: Opened) -> None:
        try:
            opened.blocks[one.at] = stack.enter_context(self._blocks.host.arenas.reader(place, arena))
        except StaleSlotError as stale:
            one.failed(place.host, stale)
        except CorruptPayload as damaged:
            one.failed(place.host, damaged)
            self.damage.append(Damaged(one.block_id, place.host))

    # -- other hosts' -------------------------------------------------------------------------------------------------

    def _fetch(self, lying: Sequence[_Lying], deadline: Deadline, opened: Opened) -> None:
        wanted = []
        for one in lying:
            if one.block_id in self._fetched:
                opened.blocks[one.at] = self._fetched[one.block_id]
            elif one.hosts:
                wanted.append(one)
            else:
                opened.bad[one.at] = one.error
        if not wanted:
            return
        outcomes = self._blocks.fetches.fetch([one.wanted() for one in wanted], _before(deadline), recallable)
        for one, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, Fetched):
                opened.blocks[one.at] = self._fetched[one.block_id] = FetchedBlock(outcome.header, outcome.data)
                self.damage += [Damaged(one.block_id, host_id) for host_id in outcome.damaged]
            else:
                self._failed(one, outcome, opened)
        self._explain(wanted, opened, deadline)

    def _failed(self, one: _Lying, error: DataPlaneError, opened: Opened) -> None:
        if isinstance(error, CorruptPayload):
            self.damage += [Damaged(one.block_id, host.host_id) for host in one.hosts]
        before = self._said.get(one.block_id)
        if isinstance(error, DataPlaneTimeout) and isinstance(before, DataPlaneUnavailable):
            error = before  # a last try in what was left of the time has less to say
        if isinstance(error, DataPlaneTimeout | DataPlaneNotReady):
            error = DataPlaneUnavailable(str(error))
        opened.bad[one.at] = self._said[one.block_id] = error

    def _explain(self, wanted: Sequence[_Lying], opened: Opened, deadline: Deadline) -> None:
        """Say of hosts that do not answer what the plane knows of them."""
        silent = [one for one in wanted if isinstance(opened.bad.get(one.at), DataPlaneUnavailable)]
        if not silent:
            return
        known = self._standing(deadline)
        for one in silent:
            hosts = " and ".join(_in_words(host, known.get(host.host_id)) for host in one.hosts)
            opened.bad[one.at] = DataPlaneUnavailable(f"{hosts}: {opened.bad[one.at]}")

    def _standing(self, deadline: Deadline) -> dict[int, HostStatus]:
        try:
            report = self._blocks.link.ask(Status(), StatusReport, deadline.within(HOLD_S), method="get_samples")
        except (DataPlaneUnavailable, DataPlaneTimeout):
            return {}
        return {status.place.host_id: status for status in report.hosts}


class _Lying:
    """One located block, and the places where it has not been found wanting.

    Attributes: at: its position in ``Located.blocks``; places: by host id; error: what the last failure was.
    """

    def __init__(self, located: Located, at: int) -> None:
        self.at = at
        first = located.blocks[at]
        self.block_id = first.block_id
        self.places = {place.host: place for place in (first, *located.others) if place.block_id == first.block_id}
        self.error: DataPlaneError = DataPlaneUnavailable(f"where block {self.block_id} lies is known to nobody")
        self._nbytes = first.nbytes
        self._known = [host for host in located.hosts if host.host_id in self.places]

    @property
    def hosts(self) -> list[HostPlace]:
        """The hosts from which it can be fetched, those that are silent last."""
        return [host for host in self._known if host.host_id in self.places]

    def failed(self, host_id: int, error: DataPlaneError) -> None:
        """It is not to be had there."""
        self.places.pop(host_id, None)
        self.error = error

    def wanted(self) -> Wanted:
        places = [(host, self.places[host.host_id].generation) for host in self.hosts]
        return Wanted(self.block_id, self._nbytes, places)


def _before(deadline: Deadline) -> Deadline:
    """Return the deadline of a fetch: there is to be time for saying how it went."""
    left = deadline.remaining()
    return Deadline(max(LEAST_S, min(FETCH_S, left - min(_RESERVE_S, left * _RESERVE_SHARE))), deadline.clock)


def _in_words(host: HostPlace, status: HostStatus | None) -> str:
    name = f"host {host.name or host.address}"
    if status is None or status.state == "up":
        return f"{name} did not give it" if status else f"{name} does not answer"
    return f"{name} is {status.state}, for {status.silent_s:.1f} s now"
