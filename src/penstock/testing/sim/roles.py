"""What simulated clients do: produce groups, annotate rows, train them, steer from metadata.

They behave as users should: a put whose outcome is unknown is put again; a step is written down with its keys and token
before the commit, and a successor commits it again; ``LeaseLost`` voids the step for the rows that it names. They log
for the checker and know nothing of the plane's insides.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeAlias

import msgspec
import xxhash

from penstock.plane import events as ev
from penstock.records import GroupPolicy
from penstock.requests import (
    Ack,
    Claim,
    Claimed,
    Commit,
    Done,
    Evict,
    Failed,
    FieldSpec,
    Grant,
    GrantAgain,
    Granted,
    Groups,
    ListMetadata,
    Locate,
    Located,
    Pop,
    PutTags,
    RegisterPartition,
    Release,
    Renew,
    Source,
    TagColumn,
    Tokens,
)
from penstock.testing import checker
from penstock.testing.sim.arena import value_of
from penstock.testing.sim.client import Answer, Ask, Pause, Program, SimClient

__all__ = ["Notebook", "Scenario", "Script", "Step", "annotator", "controller", "producer", "trainer"]

PARTITION = "train"
_SPECS = {"ids": FieldSpec("ids", "int64", 1), "logp": FieldSpec("logp", "float32", 1)}
_ROW_BYTES = 1000
_REFUSED_AT_ONCE = 0.2  # seconds before trying again what was refused


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of one world; drawn from its seed."""

    producers: int
    trainers: int
    controllers: int
    groups: int
    group_size: int
    two_stages: bool
    whole_groups: bool
    lease_s: float | None
    tight: bool
    max_deliveries: int
    policy: GroupPolicy | None

    @property
    def tasks(self) -> list[str]:
        return ["logp", "train"] if self.two_stages else ["train"]

    @property
    def fields(self) -> list[str]:
        return ["ids", "logp"] if self.two_stages else ["ids"]


class Step(msgspec.Struct):
    """A training step that was taken and is to be committed."""

    number: int
    keys: list[str]
    token: str
    seen: list[int]

    def without(self, lost: list[str]) -> Step:
        """The part of it that was committed: a row that was evicted under the lease is not trained."""
        kept = [(key, value) for key, value in zip(self.keys, self.seen, strict=True) if key not in lost]
        return Step(self.number, [key for key, _ in kept], self.token, [value for _, value in kept])


class Notebook(msgspec.Struct):
    """What a process's disk keeps for its successor: the groups it has finished, its step, its attempts."""

    finished: int = 0
    attempts: int = 0
    step: Step | None = None


class Script(msgspec.Struct):
    """What all roles of one world share. ``surprises``: answers that must not be."""

    scenario: Scenario
    log: list[checker.Entry]
    surprises: list[str]
    over: bool = False
    steps: int = 0

    def surprise(self, client: SimClient, what: object) -> None:
        self.surprises.append(f"{client.name} at {client.world.now:.3f}: {what}")


_Sub: TypeAlias = Generator[Ask | Pause, Answer, Any]


def _hash(value: int) -> str:
    return f"{value:016x}"


# -- writing ----------------------------------------------------------------------------------------------------------


def _put(client: SimClient, script: Script, keys: list[str], fields: list[str], tags: list[TagColumn]) -> _Sub:
    """Put until it is certain; return whether the rows are there (False: they were removed, the put is void)."""
    content = xxhash.xxh3_64_intdigest("|".join([*keys, *fields]).encode())
    grant = Grant(PARTITION, keys, [_SPECS[f] for f in fields], tags, _ROW_BYTES * len(keys), [_ROW_BYTES] * len(keys))
    while True:
        granted = yield Ask(grant)
        if isinstance(granted, Failed) and granted.code == "RowRemoved":
            return False
        if not isinstance(granted, Granted):
            _expect(client, script, granted, "DataPlaneFull", "DataPlaneTimeout")
            yield Pause(_REFUSED_AT_ONCE)
            continue
        if client.world.chance(0.2):  # a large copy, or a writer that is not scheduled
            yield Pause(client.world.rng.choice((0.05, 0.2, 1.5)))
        client.plane.arena.write(granted.place, keys, fields)
        done = yield Ask(Commit(granted.grant, content))
        client.tell(ev.GrantOver(granted.grant))
        if isinstance(done, Done):
            return True
        if isinstance(done, Failed) and done.code == "RowRemoved":
            return False
        if not isinstance(done, GrantAgain):
            _expect(client, script, done)


def _expect(client: SimClient, script: Script, answer: Answer, *codes: str) -> None:
    """An errand may end without an answer; a refusal must be one of ``codes``."""
    if isinstance(answer, ev.Verdict) or (isinstance(answer, Failed) and answer.code in codes):
        return
    script.surprise(client, f"unexpected answer {answer}")


def _register(client: SimClient, script: Script) -> _Sub:
    scenario = script.scenario
    request = RegisterPartition(PARTITION, scenario.fields, 64, scenario.tasks, policy=scenario.policy)
    while not isinstance((answer := (yield Ask(request))), Done):
        _expect(client, script, answer)


def _until_done(client: SimClient, script: Script, body: Any, *codes: str) -> _Sub:
    """Repeat ``body`` until it was answered; return the answer."""
    while True:
        answer = yield Ask(body)
        if not isinstance(answer, ev.Verdict):
            if not isinstance(answer, Done):
                _expect(client, script, answer, *codes)
            return answer


def _until_over(client: SimClient, script: Script, body: Ack | Pop | Release) -> _Sub:
    """End a lease; of a refused batch, that of the rows which were not named as lost. Return those that were."""
    lost: list[str] = []
    while body.keys:
        answer = yield from _until_done(client, script, body, "LeaseLost")
        if isinstance(answer, Done):
            break
        lost += answer.keys
        body = msgspec.structs.replace(body, keys=[key for key in body.keys if key not in answer.keys])
    return lost


def producer(client: SimClient, script: Script, notebook: Notebook) -> Program:
    """Produce the scenario's groups, one after the other; a group that was removed under us begins anew."""
    yield from _register(client, script)
    rng = client.world.rng
    while notebook.finished < script.scenario.groups:
        notebook.attempts += 1
        gid = f"{client.name}.{notebook.finished}.{notebook.attempts}"
        complete = yield from _group(client, script, gid)
        if complete:
            notebook.finished += 1
        yield Pause(rng.uniform(0, 0.3))
    client.close()  # what it put and somebody lost can be given up now


def _group(client: SimClient, script: Script, gid: str) -> _Sub:
    size = script.scenario.group_size
    keys = [f"{gid}_g{i}" for i in range(size)]
    early = client.world.chance(0.3)
    tags = [TagColumn("group_id", [gid]), TagColumn("expected_num_keys", [size]), TagColumn("committed", [early])]
    cut = client.world.rng.randint(1, size)
    for part in (keys[:cut], keys[cut:]):
        if not part:
            continue
        script.log += [checker.Put("before", key, _hash(value_of(key, "ids")), 0) for key in part]
        if not (yield from _put(client, script, part, ["ids"], tags)):
            return False
        script.log += [checker.Put("after", key, _hash(value_of(key, "ids")), 0) for key in part]
    if early:
        return True
    flip = PutTags(PARTITION, keys, [TagColumn("committed", [True])])
    return isinstance((yield from _until_done(client, script, flip, "RowRemoved")), Done)


# -- reading ----------------------------------------------------------------------------------------------------------


def _claim(client: SimClient, script: Script, task: str, keys: list[str] | None = None) -> _Sub:
    scenario, rng = script.scenario, client.world.rng
    whole = scenario.whole_groups and task == "train"
    required = ["ids"] if task == "logp" else scenario.fields
    batch = 0 if keys else scenario.group_size * rng.randint(1, 2) if whole else rng.randint(1, 6)
    claim = Claim(
        PARTITION, task, required, batch, blocking=rng.random() < 0.8, keys=keys, whole_groups=whole,
        lease_s=scenario.lease_s if task == "train" else None,
    )  # fmt: skip
    answer = yield Ask(claim, rng.choice((0.3, 1.0, 3.0)))
    if isinstance(answer, Claimed):
        return answer if answer.keys else None
    _expect(client, script, answer, "DataPlaneTimeout", *(("UnknownName", "RowRemoved") if keys else ()))
    return None


def _read(client: SimClient, script: Script, keys: list[str], fields: list[str]) -> _Sub:
    """Return the rows' values of the first field, in order; None when they could not be read."""
    for _ in range(5):
        located = yield Ask(Locate(PARTITION, keys, fields))
        if isinstance(located, Located):
            values = None if located.issues else _values(client, script, located, keys)
            pins = tuple(block.pin for block in located.blocks)
            client.tell(ev.Unpinned(pins))
            if values is not None:
                return values
            if located.issues:
                return None
        elif isinstance(located, Failed):
            _expect(client, script, located, "UnknownName", "RowRemoved", "DataPlaneReadError")
            return None
        yield Pause(0.05)
    return None


def _values(client: SimClient, script: Script, located: Located, keys: list[str]) -> list[int] | None:
    first: list[int] | None = None
    for source in located.sources:
        for name in source.fields:
            values = _column(client, script, located, source, name, keys)
            if values is None:
                return None
            first = values if first is None else first
    return first


def _column(
    client: SimClient, script: Script, located: Located, source: Source, name: str, keys: list[str]
) -> list[int] | None:
    values = []
    for key, block, index in zip(keys, source.block, source.index, strict=True):
        place = located.blocks[block]
        found = client.plane.arena.read(place, name, index)
        if found is None:
            return None  # the plane died meanwhile, and its pins with it
        if found != (key, value_of(key, name)):
            script.surprise(client, f"corrupted: {name!r} of {key!r} reads as {found}")
        values.append(found[1])
    return values


# -- consuming --------------------------------------------------------------------------------------------------------


def annotator(client: SimClient, script: Script) -> Program:
    """The first stage: read rows, add a column, acknowledge."""
    yield from _register(client, script)
    while not script.over:
        claimed = yield from _claim(client, script, "logp")
        if claimed is None:
            yield Pause(0.05)
            continue
        tokens = Tokens([claimed.token], [])
        read = yield from _read(client, script, claimed.keys, ["ids"])
        if read is None or not (yield from _put(client, script, claimed.keys, ["logp"], [])):
            yield from _until_over(client, script, Release(PARTITION, "logp", claimed.keys, tokens))
        else:
            yield from _until_over(client, script, Ack(PARTITION, "logp", claimed.keys, tokens))


def trainer(client: SimClient, script: Script, notebook: Notebook) -> Program:
    """Claim, read, train, commit; a step that a predecessor left is committed first."""
    yield from _register(client, script)
    yield from _commit(client, script, notebook)
    while not script.over:
        claimed = yield from _claim(client, script, "train")
        if claimed is None:
            yield Pause(0.05)
            continue
        yield from _train(client, script, notebook, claimed.keys, claimed.token)


def _train(client: SimClient, script: Script, notebook: Notebook, keys: list[str], token: str) -> _Sub:
    rng = client.world.rng
    seen = yield from _read(client, script, keys, script.scenario.fields)
    if seen is None or rng.random() < 0.05:
        yield from _until_over(client, script, Release(PARTITION, "train", keys, Tokens([token], [])))
        return
    yield Pause(rng.choice((0.01, 0.05, 0.3, 1.0)))
    if script.scenario.lease_s is not None and rng.random() < 0.3:
        renew = Renew(PARTITION, "train", keys, Tokens([token], []), script.scenario.lease_s)
        yield from _until_done(client, script, renew, "LeaseLost")
    script.steps += 1
    notebook.step = Step(script.steps, keys, token, seen)
    _log_step(script, notebook.step, "before")
    yield from _commit(client, script, notebook)


def _log_step(script: Script, step: Step, moment: checker.Moment) -> None:
    script.log += [
        checker.Trained(moment, key, _hash(value), 0, step.number, 0)
        for key, value in zip(step.keys, step.seen, strict=True)
    ]


def _commit(client: SimClient, script: Script, notebook: Notebook) -> _Sub:
    """Commit the step under the token it was claimed with, until the outcome is certain."""
    step = notebook.step
    if step is None:
        return
    tokens = Tokens([step.token], [])
    body: Pop | Ack = Pop(PARTITION, step.keys, tokens)
    if step.number % 2:
        body = Ack(PARTITION, "train", step.keys, tokens)
    lost = yield from _until_over(client, script, body)
    _log_step(script, step.without(lost), "after")
    notebook.step = None


def controller(client: SimClient, script: Script, notebook: Notebook) -> Program:
    """Choose complete and partial groups from metadata, lease them by key; train most, evict some."""
    yield from _register(client, script)
    yield from _commit(client, script, notebook)
    while not script.over:
        listed = yield Ask(ListMetadata(PARTITION, committed=True, ready_for="train"))
        groups = [g for g in listed.groups if g.usable_keys] if isinstance(listed, Groups) else []
        claimed = None
        if groups:
            chosen = client.world.rng.choice(groups)
            claimed = yield from _claim(client, script, "train", list(chosen.usable_keys))
        if claimed is None:
            yield Pause(0.3)
        elif client.world.chance(0.2):
            yield from _until_done(client, script, Evict(PARTITION, claimed.keys, "stale"))
        else:
            yield from _train(client, script, notebook, claimed.keys, claimed.token)
