"""The engine does what the reference model does: the same random calls on both have the same results and errors."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from penstock.errors import DataPlaneBadRequest, DataPlaneError, DataPlaneNotReady, LeaseLost, RowRemoved
from penstock.plane.connect import connect
from penstock.plane.contract import DataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.records import KVBatchMeta

KEYS = [f"k{i}" for i in range(6)]
GROUP_OF = {"k0": "g", "k1": "g", "k2": "h", "k3": "h", "k4": "k4", "k5": "k5"}
TAGS: dict[str, list[Any]] = {"committed": [True, False, "yes"], "num_keys": [1, 2, 3], "weight_version": [1, 2, "x"]}
TASKS = ["prep", "train"]
KINDS = (LeaseLost, RowRemoved, DataPlaneNotReady, KeyError, ValueError, TypeError, DataPlaneBadRequest, DataPlaneError)
STEPS = 60
numbers = itertools.count()


@pytest.fixture(scope="module")
def engine() -> Iterator[DataPlaneClient]:
    with connect("local", durability="memory") as client:
        yield client


class Pair:
    """One partition on the model and on the engine, driven by the same random calls."""

    def __init__(self, engine: DataPlaneClient, seed: int) -> None:
        self.name = f"agree-{next(numbers)}"
        self.model: DataPlaneClient = NoOpDataPlaneClient()
        self.engine = engine
        self.random = random.Random(seed)
        self.metas: list[tuple[KVBatchMeta, KVBatchMeta]] = []
        self.told: list[str] = []
        self.value = 0
        self.latest: tuple[list[str], dict[str, torch.Tensor] | None, list[dict[str, Any]]] = ([], {}, [])
        self.register()

    def both(self, what: str, call: Callable[[DataPlaneClient], Any], shown: Callable[[Any], Any]) -> tuple[Any, Any]:
        """Make a call on both and require the same result, as ``shown``, or the same kind of error."""
        self.told.append(what)
        results = [self.one(client, call) for client in (self.model, self.engine)]
        views = [r if isinstance(r, str) else shown(r) for r in results]
        assert views[0] == views[1], "model and engine differ after:\n" + "\n".join(self.told)
        return results[0], results[1]

    @staticmethod
    def one(client: DataPlaneClient, call: Callable[[DataPlaneClient], Any]) -> Any:
        try:
            return call(client)
        except DataPlaneError as error:
            return next(kind.__name__ for kind in KINDS if isinstance(error, kind))

    def some(self, of: list[str], least: int = 1) -> list[str]:
        return self.random.sample(of, self.random.randint(least, 3))

    # -- the calls ----------------------------------------------------------------------------------------------------

    def register(self) -> None:
        self.both(
            "register",
            lambda c: c.register_partition(self.name, ["x", "y"], 8, TASKS, grpo_group_size=2),
            lambda result: result,
        )

    def put(self) -> None:
        keys, self.value = self.some(KEYS), self.value + 1
        fields = self.random.choice([["x"], ["x"], ["y"], ["x", "y"], []])
        columns = {name: torch.full((len(keys),), self.value) for name in fields}
        uniform = [name for name in TAGS if self.random.random() < 0.4] if self.random.random() < 0.5 else None
        tags = [self.tag(key, uniform) for key in keys]
        self.latest = (keys, columns or None, tags)
        self.put_again()

    def put_again(self) -> None:
        """The latest put, as it was: what a client does whose reply was lost."""
        keys, columns, tags = self.latest
        self.both(
            f"put {keys} {columns} {tags}",
            lambda c: c.put_samples(keys, self.name, columns, tags),
            lambda meta: (meta.sample_ids, meta.fields, meta.tags),
        )

    def tag(self, key: str, names: list[str] | None) -> dict[str, Any]:
        chosen = [name for name in TAGS if self.random.random() < 0.4] if names is None else names
        group = {"group_id": GROUP_OF[key]} if key in GROUP_OF else {}
        return {**group, **{name: self.random.choice(TAGS[name]) for name in chosen}}

    def get(self) -> None:
        keys, fields = self.some(KEYS), self.random.choice([["x"], ["y"]])
        on_failed = self.random.choice(["raise", "drop"])
        self.both(
            f"get {keys} {fields} {on_failed}",
            lambda c: c.get_samples(keys, self.name, fields, on_failed=on_failed),  # type: ignore[call-overload]
            lambda got: (
                (got[0][fields[0]].tolist(), got[1].sample_ids) if isinstance(got, tuple) else got[fields[0]].tolist()
            ),
        )

    def claim(self) -> None:
        task, required = self.random.choice(TASKS), self.random.choice([["x"], ["y"]])
        whole = self.random.random() < 0.3
        keys = self.some(KEYS) if self.random.random() < 0.3 and not whole else None
        batch = self.random.randint(1, 4)
        first, second = self.both(
            f"claim {task} {required} batch={batch} keys={keys} whole={whole}",
            lambda c: c.claim_meta(
                self.name, task, required, batch, blocking=False, keys=keys, whole_groups=whole, timeout_s=10.0
            ),
            lambda meta: (sorted(meta.sample_ids) if keys else meta.sample_ids, len(meta.lease or ())),
        )
        if isinstance(first, KVBatchMeta) and first.size:
            order = [second.sample_ids.index(key) for key in first.sample_ids]
            self.metas.append((first, second.subset(order)))

    def finish(self) -> None:
        if not self.metas:
            return
        pair = self.random.choice(self.metas[-4:])
        rows = sorted(self.random.sample(range(pair[0].size), self.random.randint(1, pair[0].size)))
        metas = {id(self.model): pair[0].subset(rows), id(self.engine): pair[1].subset(rows)}
        operation = self.random.choice(["ack", "ack", "release", "renew"])
        extra = (50.0,) if operation == "renew" else ()
        self.both(
            f"{operation} {pair[0].task_name} {metas[id(self.model)].sample_ids} of {pair[0].lease}",
            lambda c: getattr(c, operation)(metas[id(c)], *extra),
            lambda result: result,
        )

    def remove(self) -> None:
        keys, how = self.some(KEYS), self.random.choice(["pop", "evict", "clear_samples"])
        self.both(f"{how} {keys}", lambda c: getattr(c, how)(keys, self.name), lambda result: result)

    def clear_all(self) -> None:
        if self.random.random() < 0.1:
            self.both("clear all", lambda c: c.clear_samples(None, self.name), lambda result: result)
            self.register()

    def look(self) -> None:
        filters: dict[str, Any] = self.random.choice(
            [{}, {"committed": True}, {"min_weight_version": 2}, {"ready_for": "train"}, {"limit": 2}, {"after": "h"}]
        )
        self.both(
            f"list {filters}",
            lambda c: c.list_metadata(self.name, **filters),
            lambda groups: [
                (g.group_id, g.keys, g.committed, g.expected_num_keys, g.weight_version, g.tags) for g in groups
            ],
        )
        self.both("depth", lambda c: c.depth(self.name), lambda n: n)
        tasks = [self.random.choice(TASKS)]
        self.both(f"status {tasks}", lambda c: c.check_consumption_status(self.name, tasks), lambda flag: flag)

    def step(self) -> None:
        often = [*[self.put] * 5, *[self.claim] * 4, *[self.finish] * 4]
        calls = [*often, self.get, self.look, self.remove, self.clear_all, self.put_again]
        self.random.choice(calls)()


@pytest.mark.parametrize("seed", range(20))
def test_model_and_engine_agree(engine: DataPlaneClient, seed: int) -> None:
    """Whatever is called, results and kinds of error are the same on both, and so is what is listed."""
    pair = Pair(engine, seed)
    for _ in range(STEPS):
        pair.step()
    pair.look()
