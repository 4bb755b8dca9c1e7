"""A run in one process: generators, a trainer and weights that keep what a real one would keep on disk.

``Shop`` is what survives a controller: the trainer's durable record and the log of what was trained. Faults are asked
for by name, and counted when they fire.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.controller.config import ControllerConfig
from penstock.controller.events import RunEvent
from penstock.controller.policies import windowed
from penstock.controller.roles import StepRecord, TrainResult
from penstock.controller.single import SingleController
from penstock.plane.aio import AsyncDataPlaneClient
from penstock.plane.contract import DataPlaneClient
from penstock.records import KVBatchMeta

GROUP = 2


def config(**changes: Any) -> ControllerConfig:
    """Return a small run's configuration."""
    options: dict[str, Any] = {
        "fields": ("x",),
        "group_size": GROUP,
        "groups_per_step": 3,
        "policy": windowed(),
        "max_steps": 4,
        "list_every_s": 0.02,
        "retry_base_s": 0.01,
        "retry_cap_s": 0.05,
        "orphan_grace_s": 0.2,
        "call_timeout_s": 5.0,
        "recover_deadline_s": 20.0,
    }
    return ControllerConfig(**{**options, **changes})


class Numbers:
    """Prompts are their own numbers."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def prompt(self, index: int) -> int | None:
        return None if self.count is not None and index >= self.count else index


@dataclass
class Shop:
    """What survives the controller: the trainer's checkpoint, what was trained, which weights are out."""

    record: StepRecord | None = None
    trained: Counter[str] = field(default_factory=Counter)  # rows
    prompts: Counter[int] = field(default_factory=Counter)
    published: list[int] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)


class ToyGenerator:
    """Puts a group of rows per prompt, uncommitted, then commits it. ``hurt`` may raise before, between or after."""

    def __init__(self, plane: DataPlaneClient, hurt: Callable[[str, str], None] | None = None) -> None:
        self._plane = AsyncDataPlaneClient(plane)
        self._hurt = hurt or (lambda moment, group_id: None)
        self.delay: Callable[[int], float] = lambda prompt: 0.0
        self.sizes: Callable[[int], int] = lambda prompt: GROUP

    async def generate(self, prompt: Any, weight_version: int, group_id: str) -> None:
        await asyncio.sleep(self.delay(prompt))
        self._hurt("before put", group_id)
        size = self.sizes(prompt)
        keys = [f"{group_id}_g{i}" for i in range(size)]
        tag = {
            "group_id": group_id,
            "expected_num_keys": GROUP,
            "weight_version": weight_version,
            "committed": False,
            "prompt": prompt,
        }
        columns = {"x": np.full((size, 4), prompt, dtype=np.int64)}
        await self._plane.put_samples(keys, "train", columns, [tag] * size)
        self._hurt("before commit", group_id)
        await self._plane.put_samples(keys, "train", tags=[{"committed": True}] * size)
        self._hurt("after commit", group_id)

    async def close(self) -> None:
        await self._plane.close()


class ToyTrainer:
    """Reads the rows, then "saves" the step in the shop. ``hurt`` may raise before or after that."""

    def __init__(self, plane: DataPlaneClient, shop: Shop, hurt: Callable[[str, int], None] | None = None) -> None:
        self._plane = AsyncDataPlaneClient(plane)
        self.shop = shop
        self._hurt = hurt or (lambda moment, step: None)
        self.delay_s = 0.0

    async def last_step(self) -> StepRecord | None:
        return self.shop.record

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        if self.shop.record is not None and self.shop.record.step == step:
            return TrainResult(record=self.shop.record)
        self._hurt("before read", step)
        await self._plane.get_data(meta)
        await asyncio.sleep(self.delay_s)
        self._hurt("before save", step)
        record = self.shop.record = StepRecord.of(step, meta)
        self.shop.trained.update(record.keys)
        self.shop.prompts.update(int(group.split(".")[1]) for group in record.groups)
        self._hurt("after save", step)
        return TrainResult(record=record, metrics={"rows": float(len(record.keys))})

    async def close(self) -> None:
        await self._plane.close()


class ToyWeights:
    """Notes what was published."""

    def __init__(self, shop: Shop, hurt: Callable[[int], None] | None = None) -> None:
        self.shop = shop
        self._hurt = hurt or (lambda version: None)

    async def publish(self, version: int) -> None:
        self._hurt(version)
        self.shop.published.append(version)


@dataclass
class Cast:
    """All parts of one life."""

    controller: SingleController
    generator: ToyGenerator
    trainer: ToyTrainer
    events: list[RunEvent]

    def of(self, kind: type) -> list[Any]:
        """Return the events of a kind."""
        return [event for event in self.events if isinstance(event, kind)]


def cast(
    connect: Callable[[], DataPlaneClient], folder: Path, shop: Shop, settings: ControllerConfig, **options: Any
) -> Cast:
    """Build a life of a run round clients that ``connect`` makes."""
    events: list[RunEvent] = []
    generator = ToyGenerator(connect(), options.pop("hurt_generator", None))
    trainer = ToyTrainer(connect(), shop, options.pop("hurt_trainer", None))
    weights = ToyWeights(shop, options.pop("hurt_weights", None))
    controller = SingleController(
        connect(),
        settings,
        prompts=options.pop("prompts", Numbers()),
        generator=generator,
        trainer=trainer,
        weights=weights,
        folder=folder,
        listeners=[events.append],
        **options,
    )
    return Cast(controller, generator, trainer, events)
