"""The adapters: the run's processes as generator, trainer and weights, over letters that a test answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from penstock.controller.roles import StepRecord
from penstock.demo.adapters import Checkpoints, PromptNumbers, TrainerProcess, WorkerPool, as_record
from penstock.demo.checkpoint import save_training, step_path
from penstock.demo.crew import PeerLeft
from penstock.demo.messages import (
    Attempt,
    Hello,
    Here,
    RolledOut,
    Rollout,
    Train,
    Trained,
    Unreadable,
)
from penstock.demo.messages import StepRecord as Checkpointed
from penstock.demo.model import Policy
from penstock.demo.spec import ModelSpec
from penstock.errors import DataPlaneNotReady, DataPlaneReadError
from penstock.records import KVBatchMeta
from tests.demo.test_crew import Exchange, on_a_loop

KEYS = ["run.0.0_g0", "run.0.0_g1", "run.1.2_g0", "run.1.2_g1"]
META = KVBatchMeta("p", "train", KEYS, fields=["x"], lease=("7:1",))
DONE = Checkpointed(step=3, keys=KEYS, xxh3=["ff"] * 4, weight_versions=[2] * 4, lease=["7:1"], reward=0.5)


def generating(pool: WorkerPool, *prompts: int, version: int = 0) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(pool.generate(prompt, version, f"run.{prompt}.0")) for prompt in prompts]


async def breathe() -> None:
    """Let everything happen that can."""
    for _ in range(5):
        await asyncio.sleep(0)


def orders(exchange: Exchange) -> list[tuple[str, int, list[int]]]:
    """Who was ordered to answer which prompts, with which version."""
    return [
        (peer, order.version, [attempt.prompt for attempt in order.prompts])
        for peer, order, _ in exchange.sent
        if isinstance(order, Rollout)
    ]


# -- workers ----------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_what_is_asked_for_in_one_breath_goes_in_orders_of_the_size() -> None:
    """One forward pass answers several prompts; what finds nobody free waits."""
    exchange = Exchange()
    pool = WorkerPool(exchange.crew, 2)
    exchange.join("worker-0.1", "worker-1.2")
    tasks = generating(pool, 0, 1, 2, 3, 4)
    await breathe()
    assert orders(exchange) == [("worker-0.1", 0, [0, 1]), ("worker-1.2", 0, [2, 3])]
    assert exchange.sent[-1][1] == Rollout(0, [Attempt(2, "run.2.0"), Attempt(3, "run.3.0")])
    exchange.answer(RolledOut())
    await breathe()
    assert orders(exchange)[2:] == [("worker-1.2", 0, [4])]
    assert [task.done() for task in tasks] == [False, False, True, True, False]
    exchange.answer(RolledOut())
    exchange.answer(RolledOut(), which=-3)
    await asyncio.gather(*tasks)


@on_a_loop
async def test_an_order_is_of_one_version() -> None:
    """The oldest request goes first, and those of its version with it."""
    exchange = Exchange()
    pool = WorkerPool(exchange.crew, 4)
    tasks = [*generating(pool, 0, version=1), *generating(pool, 1, version=2), *generating(pool, 2, version=1)]
    await breathe()
    exchange.join("worker-0.1")
    assert orders(exchange) == [("worker-0.1", 1, [0, 2])]
    exchange.answer(RolledOut())
    assert orders(exchange)[1:] == [("worker-0.1", 2, [1])]
    exchange.answer(RolledOut())
    await asyncio.gather(*tasks)


@on_a_loop
async def test_a_worker_that_leaves_fails_its_prompts_and_no_others() -> None:
    """The controller sends them again; those that wait are not concerned."""
    exchange = Exchange()
    pool = WorkerPool(exchange.crew, 2)
    exchange.join("worker-0.1")
    tasks = generating(pool, 0, 1, 2)
    await breathe()
    exchange.leave("worker-0.1")
    await breathe()
    for task in tasks[:2]:
        with pytest.raises(PeerLeft, match=r"worker-0\.1"):
            await task
    exchange.join("worker-0.3")
    exchange.answer(RolledOut())
    await tasks[2]


@on_a_loop
async def test_a_prompt_that_is_given_up_before_it_went_out_goes_nowhere() -> None:
    """One that is out stays out: its worker is busy with it, and the rest of its order is answered."""
    exchange = Exchange()
    pool = WorkerPool(exchange.crew, 2)
    exchange.join("worker-0.1")
    tasks = generating(pool, 0, 1, 2, 3)
    await breathe()
    tasks[0].cancel()
    tasks[2].cancel()
    await breathe()
    exchange.answer(RolledOut())
    await tasks[1]
    assert orders(exchange) == [("worker-0.1", 0, [0, 1]), ("worker-0.1", 0, [3])]
    exchange.answer(RolledOut())
    await tasks[3]


def test_a_prompt_is_its_number() -> None:
    """The same in every life; there are always more."""
    assert [PromptNumbers().prompt(index) for index in (0, 7, 10**9)] == [0, 7, 10**9]


# -- the trainer ------------------------------------------------------------------------------------------------------


@on_a_loop
async def test_the_last_step_is_told_by_whichever_trainer_is_there_when_it_is_free() -> None:
    """A trainer that leaves while it is asked is followed by one that knows as much."""
    exchange = Exchange()
    asking = asyncio.create_task(TrainerProcess(exchange.crew).last_step())
    await breathe()
    exchange.join("trainer-0.1")
    await breathe()
    exchange.leave("trainer-0.1")
    exchange.join("trainer-0.2", free=False)
    await breathe()
    assert not asking.done()
    exchange.answer(Here(DONE))  # as it must, on joining
    await breathe()
    assert exchange.sent[-1][:2] == ("trainer-0.2", Hello())
    exchange.answer(Here(DONE))
    assert await asking == StepRecord(step=3, keys=KEYS, groups=["run.0.0", "run.1.2"], lease=["7:1"])


@on_a_loop
async def test_a_step_is_ordered_and_its_reward_told() -> None:
    """With the very rows and lease of the controller's."""
    exchange = Exchange()
    exchange.join("trainer-0.1")
    training = asyncio.create_task(TrainerProcess(exchange.crew).train(META, 3))
    await breathe()
    assert exchange.sent[-1][:2] == ("trainer-0.1", Train(3, META))
    exchange.answer(Trained(DONE))
    result = await training
    assert (result.record, result.metrics) == (as_record(DONE), {"reward": 0.5})


@on_a_loop
async def test_a_trainer_that_leaves_fails_the_step() -> None:
    """Whether it is durable nobody knows: the controller asks its successor."""
    exchange = Exchange()
    exchange.join("trainer-0.1")
    training = asyncio.create_task(TrainerProcess(exchange.crew).train(META, 3))
    await breathe()
    exchange.leave("trainer-0.1")
    with pytest.raises(PeerLeft, match=r"trainer-0\.1"):
        await training


@on_a_loop
async def test_rows_that_cannot_be_read_are_named() -> None:
    """They are the controller's to evict."""
    exchange = Exchange()
    exchange.join("trainer-0.1")
    training = asyncio.create_task(TrainerProcess(exchange.crew).train(META, 3))
    await breathe()
    exchange.answer(Unreadable(3, KEYS[:1], "checksum"))
    with pytest.raises(DataPlaneReadError, match="checksum") as caught:
        await training
    assert (caught.value.keys, caught.value.partition) == (KEYS[:1], "p")


@on_a_loop
async def test_an_answer_that_makes_no_sense_fails() -> None:
    """It is not taken for anything else."""
    exchange = Exchange()
    exchange.join("trainer-0.1")
    training = asyncio.create_task(TrainerProcess(exchange.crew).train(META, 3))
    await breathe()
    exchange.answer(RolledOut())
    with pytest.raises(DataPlaneNotReady, match="RolledOut"):
        await training


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_published_when_they_can_be_loaded(tmp_path: Path) -> None:
    """A version without its file, or with another's, is not: the controller tries again."""
    policy = Policy(ModelSpec(vocab=5, context=4, width=8, layers=1, heads=2))
    save_training(tmp_path, policy, torch.optim.Adam(policy.parameters()), Checkpointed(step=3))
    weights = Checkpoints(tmp_path)
    asyncio.run(weights.publish(3))
    with pytest.raises(DataPlaneNotReady, match="no checkpoint of version 4"):
        asyncio.run(weights.publish(4))
    step_path(tmp_path, 3).rename(step_path(tmp_path, 4))
    with pytest.raises(DataPlaneNotReady, match="made by step 3"):
        asyncio.run(weights.publish(4))
