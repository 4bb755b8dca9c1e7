"""The controller's process: how the run is steered, what is written down of evictions, and a SIGTERM at any moment."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from penstock.controller.policies import Windowed
from penstock.controller.single import RunResult
from penstock.demo import steering
from penstock.demo.spec import SCORE_TASK, TRAIN_TASK, RunFiles, RunSpec, TaskSpec
from penstock.demo.steering import FarWitness, NearWitness, settings, steer
from penstock.errors import DataPlaneTimeout
from penstock.plane.client import PlaneClient
from penstock.testing.checker import EventLog, Evicted, read_log

SPEC = RunSpec(task=TaskSpec(), max_staleness=2, groups_per_step=4, max_steps=7)


def test_the_run_is_steered_as_its_description_says() -> None:
    """The bound on staleness is the checker's, the last task the trainer's, the end the one that was asked for."""
    config = settings(SPEC)
    assert config.policy == Windowed(max_staleness_versions=2)
    assert (config.group_size, config.groups_per_step, config.max_steps) == (SPEC.group_size, 4, 7)
    assert (config.consumers, config.task) == ((SCORE_TASK, TRAIN_TASK), TRAIN_TASK)
    assert config.leftovers == "keep"  # the launcher evicts what is left, when no worker can put any more


@pytest.mark.parametrize("witness", [NearWitness, FarWitness])
@pytest.mark.parametrize("fails", [False, True])
def test_an_eviction_is_written_down_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, witness: type[NearWitness | FarWitness]
) -> None:
    """Of one whose outcome is unknown only the beginning is."""
    log = EventLog(tmp_path / "log.jsonl")

    def evict(_self: object, keys: Sequence[str], *_args: object, **_options: object) -> None:
        assert read_log(log.path) == [Evicted("before", key, "stale") for key in keys]
        if fails:
            raise DataPlaneTimeout("no answer")

    monkeypatch.setattr(PlaneClient, "evict", evict)
    client = witness.__new__(witness)
    client._log = log
    if fails:
        with pytest.raises(DataPlaneTimeout):
            client.evict(["a", "b"], "p")
    else:
        client.evict(["a", "b"], "p")
    assert [entry.moment for entry in read_log(log.path) if isinstance(entry, Evicted)] == (
        ["before"] * 2 if fails else ["before", "before", "after", "after"]
    )


@pytest.fixture
def _sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def files_in(root: Path) -> RunFiles:
    files = RunFiles(root)
    files.create(SPEC)
    return files


CHANNEL: Any = SimpleNamespace(me="controller-0.1", send=lambda _line: None, note=lambda _note: None)


class Run:
    """A controller that does nothing until it is stopped."""

    def __init__(self, *_parts: object, **_options: object) -> None:
        self.why, self.stopped = "", asyncio.Event()

    def stop(self, why: str) -> None:
        self.why = self.why or why
        self.stopped.set()

    async def run(self) -> RunResult:
        await self.stopped.wait()
        return RunResult(reason=self.why, step=0, dispatched=0, trained=0, rows=0, dropped={}, open=0)


@pytest.mark.usefixtures("_sigterm")
def test_a_sigterm_while_the_plane_is_awaited_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was begun, so nothing is to be settled: it exits 0."""

    def connect(_files: RunFiles, _peer: str, sleep: Callable[[float], None], *_makers: object) -> NoReturn:
        sleep(0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        sleep(600.0)
        raise AssertionError("it slept on")

    monkeypatch.setattr(steering, "connect", connect)
    with pytest.raises(SystemExit) as caught:
        steer(files_in(tmp_path), CHANNEL)
    assert caught.value.code == 0


@pytest.mark.usefixtures("_sigterm")
@pytest.mark.parametrize("moment", ["connecting", "running"])
def test_a_sigterm_ends_the_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    """Whether it came before the run or in it; one that comes after it changes nothing any more."""

    class Struck(Run):
        async def run(self) -> RunResult:
            if moment == "running":
                os.kill(os.getpid(), signal.SIGTERM)
            return await super().run()

    def connect(*_args: object) -> None:
        if moment == "connecting":
            os.kill(os.getpid(), signal.SIGTERM)

    async def nothing(_self: object) -> None:
        """No letters."""
        await asyncio.Event().wait()

    monkeypatch.setattr(steering, "connect", connect)
    monkeypatch.setattr(steering, "SingleController", Struck)
    monkeypatch.setattr(steering._Steering, "_read", nothing)
    steer(files_in(tmp_path), CHANNEL)
    assert "the run is over: the launcher said so" in capsys.readouterr().err
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("_sigterm")
@pytest.mark.parametrize("is_torn", [False, True])
def test_a_controller_that_hears_nothing_more_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_torn: bool
) -> None:
    """In order where the launcher has closed the pipe; with the error where a letter cannot be read."""

    async def read(_self: object) -> None:
        if is_torn:
            raise ValueError("a letter that is too long")

    monkeypatch.setattr(steering, "connect", lambda *_: None)
    monkeypatch.setattr(steering, "SingleController", Run)
    monkeypatch.setattr(steering._Steering, "_read", read)
    if is_torn:
        with pytest.raises(ValueError, match="too long"):
            steer(files_in(tmp_path), CHANNEL)
    else:
        steer(files_in(tmp_path), CHANNEL)
        assert "the run is over: the launcher's letters have ended" in capsys.readouterr().err
