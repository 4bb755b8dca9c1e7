"""What the demo brings to a run: workers as the generator, its trainer, its checkpoints as the weights, its prompts.

Invariants: metadata only, no torch; a peer that leaves fails what it was at, and the controller decides what follows;
what is asked of a role again is answered as before.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from penstock.controller.roles import StepRecord, TrainResult
from penstock.demo import messages as m
from penstock.demo.checkpoint import read_record
from penstock.demo.crew import Crew, PeerLeft
from penstock.errors import DataPlaneNotReady, DataPlaneReadError
from penstock.records import KVBatchMeta

__all__ = ["Checkpoints", "PromptNumbers", "TrainerProcess", "WorkerPool", "as_record"]


class PromptNumbers:
    """A prompt is its number: every process knows the task, so nothing else travels."""

    def prompt(self, index: int) -> int:
        return index


@dataclass
class _Wanted:
    """An attempt that waits for a worker, or for one's answer."""

    attempt: m.Attempt
    version: int
    done: asyncio.Future[None]


class WorkerPool:
    """Hands prompts to whichever worker is free, several at once: one forward pass answers them all.

    Args:
        crew: the workers among others.
        prompts_per_order: how many at most.
    """

    def __init__(self, crew: Crew, prompts_per_order: int) -> None:
        self._crew = crew
        self._most = prompts_per_order
        self._waiting: list[_Wanted] = []
        self._is_due = False
        crew.when_free(self._hand_out)

    async def generate(self, prompt: int, weight_version: int, group_id: str) -> None:
        """Return when a worker has put and committed the group.

        Raises:
            PeerLeft: the worker ended meanwhile.
        """
        loop = asyncio.get_running_loop()
        wanted = _Wanted(m.Attempt(prompt, group_id), weight_version, loop.create_future())
        self._waiting.append(wanted)
        if not self._is_due:  # not at once: what is asked for in the same breath goes in one order
            self._is_due = True
            loop.call_soon(self._hand_out)
        try:
            await wanted.done
        finally:
            if wanted in self._waiting:
                self._waiting.remove(wanted)

    def _hand_out(self) -> None:
        self._is_due = False
        for worker in self._crew.free("worker"):
            if not self._waiting:
                return
            version = self._waiting[0].version
            batch = [wanted for wanted in self._waiting if wanted.version == version][: self._most]
            self._waiting = [wanted for wanted in self._waiting if wanted not in batch]
            answer = self._crew.order(worker, m.Rollout(version, [wanted.attempt for wanted in batch]))
            answer.add_done_callback(partial(_settle, batch))


def _settle(batch: list[_Wanted], answer: asyncio.Future[m.Answer]) -> None:
    failure = answer.exception()
    for wanted in batch:
        if wanted.done.done():
            continue
        if failure is None:
            wanted.done.set_result(None)
        else:
            wanted.done.set_exception(PeerLeft(str(failure)))


class TrainerProcess:
    """The trainer, whichever life of it is there.

    Args:
        crew: the trainer among others.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew

    async def last_step(self) -> StepRecord | None:
        """Return the newest record, when there is a trainer and it has nothing under way."""
        while True:
            try:
                answer = await self._crew.order(await self._crew.await_free("trainer"), m.Hello())
            except PeerLeft:
                continue  # its successor knows as much
            if isinstance(answer, m.Here) and answer.record is not None:
                return as_record(answer.record)
            raise DataPlaneNotReady(f"the trainer told no step: {answer}")

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        """Have ``step`` made, when there is a trainer.

        Raises:
            PeerLeft: the trainer ended meanwhile.
            DataPlaneReadError: rows cannot be read.
        """
        answer = await self._crew.order(await self._crew.await_free("trainer"), m.Train(step, meta))
        match answer:
            case m.Trained(record):
                return TrainResult(record=as_record(record), metrics={"reward": record.reward})
            case m.Unreadable(_, keys, why):
                raise DataPlaneReadError(why, partition=meta.partition_id, keys=keys)
        raise DataPlaneNotReady(f"the trainer answered an order to train with {answer}")


def as_record(record: m.StepRecord) -> StepRecord:
    """Return what the controller must know of a step."""
    groups = dict.fromkeys(m.group_of_key(key) for key in record.keys)
    return StepRecord(step=record.step, keys=record.keys, groups=list(groups), lease=record.lease)


class Checkpoints:
    """The weights: a worker loads the version that it is told, so all there is to do is to see that it is there.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def publish(self, version: int) -> None:
        """Return when ``version`` can be loaded.

        Raises:
            DataPlaneNotReady: it cannot.
        """
        try:
            record = await asyncio.to_thread(read_record, self._folder, version)
        except FileNotFoundError as missing:
            raise DataPlaneNotReady(f"there is no checkpoint of version {version} in {self._folder}") from missing
        if record.step != version:
            raise DataPlaneNotReady(f"the checkpoint of version {version} was made by step {record.step}")
