"""What a client on a machine with an agent does: puts go through the agent, reads come from wherever the blocks lie."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from penstock.plane import events as ev
from penstock.requests import (
    BlockPlace,
    Commit,
    Damaged,
    Grant,
    GrantAgain,
    Granted,
    Hold,
    Located,
    Reserve,
    Seal,
    Sealed,
)
from penstock.testing.sim.client import Ask, AskAgent, Pause, SimClient, Sub
from penstock.testing.sim.host import SimHost
from penstock.testing.sim.memory import HostMemory

__all__ = ["Fetched", "fetch", "machine_of", "put_once"]

_FETCH_S = (0.001, 0.03)
_COPIES_S = (0.02, 0.2, 1.5)  # a large copy, or a writer that is not scheduled
_SLOW_COPIES = 0.15
_DIES = 0.02  # of a put's halves, those after which the writer forgets to go on

Fetched: TypeAlias = dict[int, tuple[HostMemory, BlockPlace]]  # block -> where it may be read


def machine_of(client: SimClient) -> SimHost | None:
    """The machine with an agent that the client runs on; None = the plane's own."""
    return client.home if isinstance(client.home, SimHost) else None


# -- putting ----------------------------------------------------------------------------------------------------------


def put_once(client: SimClient, machine: SimHost, grant: Grant, content: int, leaves_s: float | None) -> Sub:
    """Put, from the grant to the commit. Return the plane's last answer; None: the agent did not do its part."""
    replicas, at_least = machine.replicas
    wanted = msgspec.structs.replace(grant, host=machine.number, replicas=replicas, at_least=at_least)
    granted = yield Ask(wanted, leaves_s=leaves_s)
    if not isinstance(granted, Granted):
        return granted
    answer = yield from _put_granted(client, machine, wanted, granted, content)
    client.tell(ev.GrantOver(granted.grant))
    machine.let_go(client, granted.grant)
    return answer


def _put_granted(client: SimClient, machine: SimHost, grant: Grant, granted: Granted, content: int) -> Sub:
    rng = client.world.rng
    reserved = yield AskAgent(Reserve(granted.grant, grant.nbytes, granted.life))
    if not isinstance(reserved, Granted) or rng.random() < _DIES:
        return None
    if rng.random() < _SLOW_COPIES:
        yield Pause(rng.choice(_COPIES_S))
    machine.memory.write(reserved.place, grant.keys, [spec.name for spec in grant.fields])
    sealed = yield AskAgent(Seal(granted.grant, content, granted.replica))
    if not isinstance(sealed, Sealed) or len(sealed.places) < grant.at_least or rng.random() < _DIES:
        return None
    if rng.random() < _SLOW_COPIES:
        yield Pause(rng.choice(_COPIES_S))
    client.world.counts["sealed twice"] += len(sealed.places) > 1
    answer = yield Ask(Commit(granted.grant, content, sealed.places))
    client.world.counts["commits begun anew"] += isinstance(answer, GrantAgain)
    return answer


# -- reading ----------------------------------------------------------------------------------------------------------


def fetch(client: SimClient, machine: SimHost, located: Located) -> Sub:
    """Find each block on a machine that has it whole; None: one is nowhere to be had now."""
    second = {place.block_id: place for place in located.others}
    lies = {place.block_id: [place, *[p for p in (second.get(place.block_id),) if p]] for place in located.blocks}
    held = yield from _hold(client, machine, [b for b, places in lies.items() if _here(machine, places)])
    found: Fetched = {}
    for block_id, places in lies.items():
        for place in [held[block_id]] if block_id in held else places:
            there = yield from _look(client, machine, place)
            if there is not None:
                found[block_id] = (there, place)
                break
    if len(found) < len(lies):
        return None
    return found


def _here(machine: SimHost, places: list[BlockPlace]) -> bool:
    return any(place.host == machine.number for place in places)


def _hold(client: SimClient, machine: SimHost, blocks: list[int]) -> Sub:
    """Pin the blocks that lie on this machine. Return those that do, by id."""
    answer = (yield AskAgent(Hold(blocks))) if blocks else None
    if not isinstance(answer, Located):
        return {}
    machine.unpin(client, [place.pin for place in answer.blocks])  # it leaves before it is read: a little later
    return {place.block_id: place for place in answer.blocks}


def _look(client: SimClient, machine: SimHost, place: BlockPlace) -> Sub:
    """Fetch the block. Return the memory that has it; a damaged one is told to the plane."""
    there = machine if place.host == machine.number else machine.others[place.host]
    if there is not machine:
        yield Pause(client.world.rng.uniform(*_FETCH_S))
        if not (there.up and there.enlisted) or client.world.now < there.frozen_until:
            client.world.counts["hosts not reached"] += 1
            return None
    if not there.memory.has(place):
        return None
    if place.block_id in there.memory.damaged:
        yield Ask(Damaged(place.block_id, place.host))
        return None
    return there.memory
