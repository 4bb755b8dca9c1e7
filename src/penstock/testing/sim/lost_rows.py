"""Judges what is lost with hosts: no row is lost that some host still has, and no block lacks that a row needs.

It reads the journal's facts as they become durable, and looks at the machines themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.ledger.facts import AnyFact, Moved, Put, Removed, WriteIs
from penstock.ledger.machine import Ledger
from penstock.requests import BlockPlace
from penstock.testing.sim.host import SimHost
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.recovery import state_of
from penstock.testing.sim.world import World

__all__ = ["LossJudge"]


class LossJudge:
    """Args: hosts: by number, of the plane.

    Attributes: violations: in sentences; lost: rows that were lost, rightly or not; saved: blocks that lost a place
    and had another.
    """

    def __init__(self, world: World, plane: SimPlane, hosts: dict[int, SimHost]) -> None:
        self.violations: list[str] = []
        self.lost = 0
        self.saved = 0
        self._world = world
        self._hosts = hosts
        self._plane = plane
        self._places: dict[int, list[BlockPlace]] = {}  # block -> where the journal says that it lies
        self._writes: dict[int, list[int]] = {}  # row -> blocks

    def noted(self, fact: AnyFact) -> None:
        """A fact is durable."""
        if isinstance(fact, WriteIs):
            self._lies(fact.put.write_id, fact.put.place, fact.put.replica)
        elif isinstance(fact, Put):
            self._lies(fact.write_id, fact.place, fact.replica)
            for row_id in fact.ids:
                self._writes.setdefault(row_id, []).append(fact.write_id)
        elif isinstance(fact, Moved):
            before = self._places.get(fact.place.block_id, [])
            self.saved += len(before) > 1 and fact.replica is None
            self._lies(fact.place.block_id, fact.place, fact.replica)
        elif isinstance(fact, Removed) and fact.reason == "lost":
            for row_id in fact.ids:
                self.lost += 1
                if not any(self._is_gone(block) for block in self._writes.get(row_id, [])):
                    where = [self._places.get(block) for block in self._writes.get(row_id, [])]
                    self.violations.append(f"row {row_id} is lost at {self._world.now:.3f}, and lies on {where}")

    def _lies(self, block: int, place: BlockPlace | None, replica: BlockPlace | None) -> None:
        places = [p for p in (place, replica) if p is not None]
        if place is not None and place.host:
            self._places[block] = places

    def _is_gone(self, block: int) -> bool:
        """Whether no host has the block that was heard of within the grace."""
        places = self._places.get(block)
        return places is not None and not any(self._is_there(place) for place in places)

    def _is_there(self, place: BlockPlace) -> bool:
        host = self._hosts[place.host]
        waited = self._world.now < self._until(host)
        return waited and host.memory.has(place) and place.block_id not in host.memory.damaged

    def _until(self, host: SimHost) -> float:
        """Until when a host that says nothing more is waited for: through its session's end, or from a restart on."""
        config, began = self._plane.config, self._plane.began
        if host.heard > began:
            return host.heard + config.dead_after_s + config.host_grace_s
        return began + max(config.host_grace_s, config.resume_grace_s)

    def look(self, ledger: Ledger) -> None:
        """What rows need lies where the ledger says, unless a fault has damaged it."""
        for write in state_of(ledger).writes.values():
            for place in write.places() if write.live and write.hosted else ():
                memory = self._hosts[place.host].memory
                if not memory.has(place) and place.block_id not in memory.damaged:
                    self.violations.append(f"rows need {place} at {self._world.now:.3f}, and it is not there")

    def leaks(self, ledger: Ledger) -> Iterator[str]:
        """Yield what hosts hold that nobody needs, once everything is at rest."""
        live = {
            (place.host, place.block_id, place.generation)
            for write in state_of(ledger).writes.values()
            if write.live and write.hosted
            for place in write.places()
        }
        for number, host in self._hosts.items():
            held = {(number, *where) for where in host.memory.slots}
            if held - live:
                yield f"{host.name} holds {len(held - live)} blocks that nobody needs: {sorted(held - live)[:3]}"
            kept = {(number, place.block_id, place.generation) for place in host.keeper.live_blocks()}
            if kept - live:
                yield f"the agent of {host.name} keeps {sorted(kept - live)[:3]}"
