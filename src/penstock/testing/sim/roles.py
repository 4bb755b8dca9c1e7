"""What simulated clients do: produce groups, annotate rows, train them, steer from metadata.

They behave as users should: a put whose outcome is unknown is put again; a step is written down with its keys and token
before the commit, and a successor commits it again; ``LeaseLost`` voids the step for the rows that it names. They log
for the checker and know nothing of the plane's insides.
"""

from __future__ import annotations

import msgspec

from penstock.records import GroupPolicy
from penstock.requests import (
    Ack,
    Claim,
    Claimed,
    Done,
    Evict,
    Groups,
    ListMetadata,
    Pop,
    PutTags,
    RegisterPartition,
    Release,
    Renew,
    TagColumn,
    Tokens,
)
from penstock.testing import checker
from penstock.testing.sim.arena import value_of
from penstock.testing.sim.client import Ask, Pause, Program, SimClient
from penstock.testing.sim.habits import (
    PARTITION,
    Sub,
    Surprises,
    expect,
    put,
    read,
    register,
    until_done,
    until_over,
)

__all__ = ["Notebook", "Scenario", "Script", "Step", "annotator", "controller", "producer", "trainer"]


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
    hosts: int = 0
    replicas: int = 1
    at_least: int = 1

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


class Script(Surprises, kw_only=True):
    """What all roles of one world share."""

    scenario: Scenario
    log: list[checker.Entry]
    over: bool = False
    steps: int = 0

    def register(self) -> RegisterPartition:
        scenario = self.scenario
        return RegisterPartition(PARTITION, scenario.fields, 64, scenario.tasks, policy=scenario.policy)


def _hash(value: int) -> str:
    return f"{value:016x}"


# -- writing ----------------------------------------------------------------------------------------------------------


def producer(client: SimClient, script: Script, notebook: Notebook) -> Program:
    """Produce the scenario's groups, one after the other; a group that was removed under us begins anew."""
    yield from register(client, script, script.register())
    rng = client.world.rng
    while notebook.finished < script.scenario.groups:
        notebook.attempts += 1
        gid = f"{client.name}.{notebook.finished}.{notebook.attempts}"
        complete = yield from _group(client, script, gid)
        if complete:
            notebook.finished += 1
        yield Pause(rng.uniform(0, 0.3))
    client.close()  # what it put and somebody lost can be given up now


def _group(client: SimClient, script: Script, gid: str) -> Sub:
    size = script.scenario.group_size
    keys = [f"{gid}_g{i}" for i in range(size)]
    early = client.world.chance(0.3)
    tags = [TagColumn("group_id", [gid]), TagColumn("expected_num_keys", [size]), TagColumn("committed", [early])]
    cut = client.world.rng.randint(1, size)
    for part in (keys[:cut], keys[cut:]):
        if not part:
            continue
        script.log += [checker.Put("before", key, _hash(value_of(key, "ids")), 0) for key in part]
        if not (yield from put(client, script, part, ["ids"], tags)):
            return False
        script.log += [checker.Put("after", key, _hash(value_of(key, "ids")), 0) for key in part]
    if early:
        return True
    flip = PutTags(PARTITION, keys, [TagColumn("committed", [True])])
    return isinstance((yield from until_done(client, script, flip, "RowRemoved")), Done)


# -- consuming --------------------------------------------------------------------------------------------------------


def _claim(client: SimClient, script: Script, task: str, keys: list[str] | None = None) -> Sub:
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
    expect(client, script, answer, "DataPlaneTimeout", *(("UnknownName", "RowRemoved") if keys else ()))
    return None


def annotator(client: SimClient, script: Script) -> Program:
    """The first stage: read rows, add a column, acknowledge."""
    yield from register(client, script, script.register())
    while not script.over:
        claimed = yield from _claim(client, script, "logp")
        if claimed is None:
            yield Pause(0.05)
            continue
        tokens = Tokens([claimed.token], [])
        seen, _ = yield from read(client, script, claimed.keys, ["ids"])
        if seen is None or not (yield from put(client, script, claimed.keys, ["logp"], [])):
            yield from until_over(client, script, Release(PARTITION, "logp", claimed.keys, tokens))
        else:
            yield from until_over(client, script, Ack(PARTITION, "logp", claimed.keys, tokens))


def trainer(client: SimClient, script: Script, notebook: Notebook) -> Program:
    """Claim, read, train, commit; a step that a predecessor left is committed first."""
    yield from register(client, script, script.register())
    yield from _commit(client, script, notebook)
    while not script.over:
        claimed = yield from _claim(client, script, "train")
        if claimed is None:
            yield Pause(0.05)
            continue
        yield from _train(client, script, notebook, claimed.keys, claimed.token)


def _train(client: SimClient, script: Script, notebook: Notebook, keys: list[str], token: str) -> Sub:
    rng = client.world.rng
    seen, _ = yield from read(client, script, keys, script.scenario.fields)
    if seen is None or rng.random() < 0.05:
        yield from until_over(client, script, Release(PARTITION, "train", keys, Tokens([token], [])))
        return
    yield Pause(rng.choice((0.01, 0.05, 0.3, 1.0)))
    if script.scenario.lease_s is not None and rng.random() < 0.3:
        renew = Renew(PARTITION, "train", keys, Tokens([token], []), script.scenario.lease_s)
        yield from until_done(client, script, renew, "LeaseLost")
    script.steps += 1
    notebook.step = Step(script.steps, keys, token, seen)
    _log_step(script, notebook.step, "before")
    yield from _commit(client, script, notebook)


def _log_step(script: Script, step: Step, moment: checker.Moment) -> None:
    script.log += [
        checker.Trained(moment, key, _hash(value), 0, step.number, 0)
        for key, value in zip(step.keys, step.seen, strict=True)
    ]


def _commit(client: SimClient, script: Script, notebook: Notebook) -> Sub:
    """Commit the step under the token it was claimed with, until the outcome is certain."""
    step = notebook.step
    if step is None:
        return
    tokens = Tokens([step.token], [])
    body: Pop | Ack = Pop(PARTITION, step.keys, tokens)
    if step.number % 2:
        body = Ack(PARTITION, "train", step.keys, tokens)
    lost = yield from until_over(client, script, body)
    _log_step(script, step.without(lost), "after")
    notebook.step = None


def controller(client: SimClient, script: Script, notebook: Notebook) -> Program:
    """Choose complete and partial groups from metadata, lease them by key; train most, evict some."""
    yield from register(client, script, script.register())
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
            yield from until_done(client, script, Evict(PARTITION, claimed.keys, "stale"))
        else:
            yield from _train(client, script, notebook, claimed.keys, claimed.token)
