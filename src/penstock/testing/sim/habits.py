"""What any well-behaved client does, whatever its role: put until it is certain, end a lease, read and look.

A put whose outcome is unknown is put again; a refusal that a client must expect is named, any other is a surprise.
"""

from __future__ import annotations

from typing import Any

import msgspec
import xxhash

from penstock.plane import events as ev
from penstock.requests import (
    Ack,
    Commit,
    Done,
    Failed,
    FieldSpec,
    Grant,
    GrantAgain,
    Granted,
    Locate,
    Located,
    Pop,
    RegisterPartition,
    Release,
    Source,
    TagColumn,
)
from penstock.testing.sim.abroad import Fetched, fetch, machine_of, put_once
from penstock.testing.sim.arena import value_of
from penstock.testing.sim.client import Answer, Ask, Pause, SimClient, Sub
from penstock.testing.sim.host import SimHost

__all__ = ["PARTITION", "Sub", "Surprises", "expect", "put", "read", "register", "until_done", "until_over"]

PARTITION = "train"
_SPECS = {"ids": FieldSpec("ids", "int64", 1), "logp": FieldSpec("logp", "float32", 1)}
_ROW_BYTES = 1000
_REFUSED_AT_ONCE = 0.2  # seconds before trying again what was refused
_LEAVES = 0.1  # of a put's calls, those whose caller leaves
_LEAVES_S = (0.002, 0.01, 0.3)  # at most, after so long


class Surprises(msgspec.Struct, kw_only=True):
    """Answers that must not be."""

    surprises: list[str] = []

    def surprise(self, client: SimClient, what: object) -> None:
        self.surprises.append(f"{client.name} at {client.world.now:.3f}: {what}")


def put(
    client: SimClient,
    script: Surprises,
    keys: list[str],
    fields: list[str],
    tags: list[TagColumn],
    void: tuple[str, ...] = ("RowRemoved",),
) -> Sub:
    """Put until it is certain; return whether the rows are there. ``void``: refusals that say that they never will."""
    content = xxhash.xxh3_64_intdigest("|".join([*keys, *fields]).encode())
    grant = Grant(PARTITION, keys, [_SPECS[f] for f in fields], tags, _ROW_BYTES * len(keys), [_ROW_BYTES] * len(keys))
    machine = machine_of(client)
    if machine is not None:
        return (yield from _put_abroad(client, script, machine, grant, content, void))
    while True:
        granted = yield Ask(grant, leaves_s=_leaves_s(client))
        if isinstance(granted, Failed) and granted.code in void:
            return False
        if not isinstance(granted, Granted):
            expect(client, script, granted, "DataPlaneFull", "DataPlaneTimeout")
            yield Pause(_REFUSED_AT_ONCE)
            continue
        if client.world.chance(0.2):  # a large copy, or a writer that is not scheduled
            yield Pause(client.world.rng.choice((0.05, 0.2, 1.5)))
        client.plane.arena.write(granted.place, keys, fields)
        done = yield Ask(Commit(granted.grant, content), leaves_s=_leaves_s(client))
        client.tell(ev.GrantOver(granted.grant))
        if isinstance(done, Done):
            return True
        if isinstance(done, Failed) and done.code in void:
            return False
        if not isinstance(done, GrantAgain):
            expect(client, script, done)


def _put_abroad(
    client: SimClient, script: Surprises, machine: SimHost, grant: Grant, content: int, void: tuple[str, ...]
) -> Sub:
    while True:
        done = yield from put_once(client, machine, grant, content, _leaves_s(client))
        if isinstance(done, Done):
            return True
        if isinstance(done, Failed) and done.code in void:
            return False
        if done is not None and not isinstance(done, GrantAgain):
            expect(client, script, done, "DataPlaneFull", "DataPlaneTimeout", "DataPlaneUnavailable")
        yield Pause(_REFUSED_AT_ONCE)


def _leaves_s(client: SimClient) -> float | None:
    rng = client.world.rng
    return rng.uniform(0, rng.choice(_LEAVES_S)) if client.world.chance(_LEAVES) else None


def expect(client: SimClient, script: Surprises, answer: Answer, *codes: str) -> None:
    """An errand may end without an answer; a refusal must be one of ``codes``."""
    if isinstance(answer, ev.Verdict) or (isinstance(answer, Failed) and answer.code in codes):
        return
    script.surprise(client, f"unexpected answer {answer}")


def register(client: SimClient, script: Surprises, request: RegisterPartition) -> Sub:
    """Register until it is certain."""
    while not isinstance((answer := (yield Ask(request))), Done):
        expect(client, script, answer)


def until_done(client: SimClient, script: Surprises, body: Any, *codes: str) -> Sub:
    """Repeat ``body`` until it was answered; return the answer."""
    while True:
        answer = yield Ask(body)
        if not isinstance(answer, ev.Verdict):
            if not isinstance(answer, Done):
                expect(client, script, answer, *codes)
            return answer


def until_over(client: SimClient, script: Surprises, body: Ack | Pop | Release) -> Sub:
    """End a lease; of a refused batch, that of the rows which were not named as lost. Return those that were."""
    lost: list[str] = []
    while body.keys:
        answer = yield from until_done(client, script, body, "LeaseLost")
        if isinstance(answer, Done):
            break
        lost += answer.keys
        body = msgspec.structs.replace(body, keys=[key for key in body.keys if key not in answer.keys])
    return lost


def read(client: SimClient, script: Surprises, keys: list[str], fields: list[str]) -> Sub:
    """Return the rows' values of the first field, in order, or None; and the rows because of which it is None."""
    for _ in range(5):
        located = yield Ask(Locate(PARTITION, keys, fields))
        if isinstance(located, Located):
            machine = machine_of(client)
            there: Fetched | None = {}
            if machine is not None and not located.issues:
                there = yield from fetch(client, machine, located)
            none = located.issues or there is None
            values = None if none else _values(client, script, located, keys, there or {})
            pins = tuple(block.pin for block in located.blocks if not block.host)
            client.tell(ev.Unpinned(pins))
            if values is not None or located.issues:
                return values, [issue.key for issue in located.issues]
        elif isinstance(located, Failed):
            expect(client, script, located, "UnknownName", "RowRemoved", "DataPlaneReadError")
            return None, list(located.keys)
        yield Pause(0.05)
    return None, []


def _values(
    client: SimClient, script: Surprises, located: Located, keys: list[str], there: Fetched
) -> list[int] | None:
    first: list[int] | None = None
    for source in located.sources:
        for name in source.fields:
            values = _column(client, script, located, source, name, keys, there)
            if values is None:
                return None
            first = values if first is None else first
    return first


def _column(
    client: SimClient, script: Surprises, located: Located, source: Source, name: str, keys: list[str], there: Fetched
) -> list[int] | None:
    values = []
    for key, block, index in zip(keys, source.block, source.index, strict=True):
        place = located.blocks[block]
        memory, place = there.get(place.block_id, (client.plane.arena, place))
        found = memory.read(place, name, index)
        if found is None:
            return None  # the plane died meanwhile, and its pins with it
        if found != (key, value_of(key, name)):
            script.surprise(client, f"corrupted: {name!r} of {key!r} reads as {found}")
        values.append(found[1])
    return values
