"""Everything that watches a run, on a run that is real: two lives, failures, a controller that is cut off."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import penstock
from penstock.controller import events as ev
from penstock.controller.event_file import EVENTS_NAME, EventFile, read_events
from penstock.controller.lineage import lineage
from penstock.controller.metrics import ControllerMetrics
from penstock.controller.run_log import RunLog
from penstock.controller.trace import chrome_trace
from tests.controller.perfetto import of_phase, problems
from tests.controller.toys import Cast, Numbers, Shop, cast, config

STEPS = 6


class Watched:
    """A run in a folder, its lives one after the other, with everything that watches."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shop = folder, Shop()
        self.fired: Counter[str] = Counter()
        self.told: list[ev.RunEvent] = []

    def _hurt_generator(self, moment: str, group_id: str) -> None:
        if moment == "before commit" and group_id == "run.1.0":
            self.fired["generator"] += 1
            raise ConnectionError("no engine")

    def _hurt_trainer(self, moment: str, step: int) -> None:
        if moment == "before save" and step == 2 and not self.fired["trainer"]:
            self.fired["trainer"] += 1
            raise RuntimeError("no GPU")

    async def life(self, cut_at: int | None = None) -> CollectorRegistry:
        """Run to the end, or until the trainer has made step ``cut_at``."""
        registry = CollectorRegistry()
        now = cast(
            lambda: penstock.connect("local", data_dir=self.folder / "plane"),
            self.folder,
            self.shop,
            config(max_steps=STEPS),
            prompts=Numbers(),
            hurt_generator=self._hurt_generator,
            hurt_trainer=self._hurt_trainer,
        )
        with EventFile(self.folder / EVENTS_NAME) as file:
            now.controller._listeners += [file, RunLog(), ControllerMetrics(registry)]
            try:
                await self._drive(now, cut_at)
            finally:
                await now.generator.close()
                await now.trainer.close()
        self.told += now.events
        return registry

    async def _drive(self, now: Cast, cut_at: int | None) -> None:
        run = asyncio.ensure_future(now.controller.run())

        def cut(event: ev.RunEvent) -> None:
            if isinstance(event, ev.Trained) and event.step == cut_at:
                self.fired["controller"] += run.cancel()

        now.controller._listeners.append(cut)
        with suppress(asyncio.CancelledError):
            await run


@pytest.fixture
def watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> tuple[Watched, CollectorRegistry]:
    """A run of six steps in two lives, with a generator and a trainer that fail once, and the last life's metrics."""
    run = Watched(tmp_path)
    with caplog.at_level(logging.INFO, "penstock.controller.run_log"):
        asyncio.run(run.life(cut_at=3))
        registry = asyncio.run(run.life())
    assert run.fired == {"generator": 1, "trainer": 1, "controller": 1}
    return run, registry


def test_a_real_run_is_kept_traced_counted_and_told(
    watched: tuple[Watched, CollectorRegistry], caplog: pytest.LogCaptureFixture
) -> None:
    """File, trace, stories, metrics and log agree with one another and with what the trainer saved."""
    run, registry = watched
    events = read_events(run.folder)
    assert events == run.told
    assert {event.life for event in events} == {1, 2}

    trace = chrome_trace(events)
    assert problems(trace) == []
    outcomes = Counter(e["args"].get("outcome") for e in of_phase(trace, "X") if e["cat"] in ("step", "generation"))
    assert outcomes["trained"] >= STEPS - 1
    assert outcomes["again: ConnectionError: no engine"] == 1
    assert any(str(outcome).startswith("failed") for outcome in outcomes)

    assert set(run.shop.trained.values()) == {1}
    for row in run.shop.trained:
        story = lineage(events, row)
        assert story.now.startswith("was trained in step")
        assert {line.event for line in story.lines if line.own} >= {"Committed", "Claimed", "Trained", "Popped"}
    assert [line.event for line in lineage(events, "run.1.1").lines][:2] == ["Dispatched", "Again"]

    made = len({event.step for event in events if isinstance(event, ev.Trained) and event.life == 2})
    assert registry.get_sample_value("penstock_run_steps_total") == made
    assert registry.get_sample_value("penstock_run_step") == STEPS
    assert registry.get_sample_value("penstock_run_running") == 0
    said = [record.message for record in caplog.get_records("setup") if record.name == "penstock.controller.run_log"]
    assert sum(line.startswith("step") and "rows of" in line for line in said) == sum(
        isinstance(event, ev.Trained) for event in events
    )
    assert f"the run is over at step {STEPS}" in said[-1]


def test_a_prompt_is_where_its_story_says(watched: tuple[Watched, CollectorRegistry]) -> None:
    """Every prompt that was dispatched is trained, or under way, and the trainer's own record agrees."""
    run, _ = watched
    events = read_events(run.folder)
    for prompt in {event.prompt for event in events if isinstance(event, ev.Dispatched)}:
        is_trained = lineage(events, str(prompt)).now.startswith("was trained")
        assert is_trained == (prompt in run.shop.prompts)
