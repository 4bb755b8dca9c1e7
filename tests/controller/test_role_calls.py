"""Whatever the user's generator, trainer or weights do, the machine is told one piece of news, in time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.controller import news as nw
from penstock.controller.role_calls import RoleCalls
from penstock.controller.roles import StepRecord, TrainResult
from penstock.controller.underway import Underway
from penstock.errors import DataPlaneReadError, FieldNotProduced, PromptRejected
from penstock.records import KVBatchMeta
from tests.controller.toys import config

META = KVBatchMeta(partition_id="train", task_name="train", sample_ids=["a", "b"], fields=["x"])
RECORD = StepRecord(step=1, keys=["a", "b"])
NEVER_S = 60.0


class Roles:
    """All three; whatever is asked of them ends in ``outcome``: it is raised, returned, or (None given) awaited."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome

    async def _end(self) -> Any:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        if self._outcome is asyncio.sleep:
            await asyncio.sleep(NEVER_S)
        return self._outcome

    async def generate(self, prompt: Any, weight_version: int, group_id: str) -> None:
        await self._end()

    async def last_step(self) -> StepRecord | None:
        answer: StepRecord | None = await self._end()
        return answer

    async def train(self, meta: KVBatchMeta, step: int) -> TrainResult:
        answer: TrainResult = await self._end()
        return answer

    async def publish(self, version: int) -> None:
        await self._end()


def asked(call: str, outcome: Any) -> nw.News:
    """Return the news that ``call`` becomes."""
    arguments: dict[str, tuple[Any, ...]] = {
        "generate": ("a prompt", "run.0.0", 0),
        "ask_trainer": (),
        "train": (1, META),
        "publish": (1,),
    }

    async def run() -> nw.News:
        roles, limits = Roles(outcome), ("generate_timeout_s", "train_timeout_s", "publish_timeout_s")
        calls = RoleCalls(roles, roles, roles, Underway(), config(**dict.fromkeys(limits, 0.02)))
        news: nw.News = await getattr(calls, call)(*arguments[call])
        return news

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("call", "outcome", "news"),
    [
        ("generate", None, nw.Generated("run.0.0")),
        ("generate", PromptRejected("too long"), nw.GenerationFailed("run.0.0", "too long", rejected=True)),
        ("generate", OSError("gone"), nw.GenerationFailed("run.0.0", "OSError: gone")),
        ("generate", KeyError(), nw.GenerationFailed("run.0.0", "KeyError")),
        ("ask_trainer", None, nw.TrainerStands(None)),
        ("ask_trainer", RECORD, nw.TrainerStands(RECORD)),
        ("ask_trainer", OSError("gone"), nw.TrainerSilent("OSError: gone")),
        ("train", TrainResult(record=RECORD), nw.StepMade(TrainResult(record=RECORD))),
        ("train", OSError("gone"), nw.StepFailed(1, "OSError: gone")),
        ("train", DataPlaneReadError("torn", keys=["b"]), nw.StepUnreadable(1, ["b"], "torn")),
        ("publish", None, nw.PublicationMade(1)),
        ("publish", OSError("gone"), nw.PublicationFailed(1, "OSError: gone")),
    ],
)
def test_each_outcome_is_one_piece_of_news(call: str, outcome: Any, news: nw.News) -> None:
    """What was made, or why it was not, in the words of whoever failed."""
    assert asked(call, outcome) == news


@pytest.mark.parametrize("error", [DataPlaneReadError("torn", keys=["c"]), FieldNotProduced("which row?")])
def test_a_read_error_that_names_no_row_of_the_step_is_a_failure(error: Exception) -> None:
    """There is nothing to be evicted: the step goes again."""
    assert isinstance(asked("train", error), nw.StepFailed)


@pytest.mark.parametrize("call", ["generate", "ask_trainer", "train", "publish"])
def test_nobody_is_waited_for_beyond_the_limit(call: str) -> None:
    """It is told like any failure."""
    assert "TimeoutError: no answer within 0.02 s" in str(asked(call, asyncio.sleep))


@pytest.mark.parametrize(("call", "answer"), [("train", None), ("train", RECORD), ("ask_trainer", {"step": 1})])
def test_an_answer_of_the_wrong_type_is_a_failure(call: str, answer: Any) -> None:
    """It says what an answer is; nothing of it reaches the machine."""
    news = asked(call, answer)
    assert isinstance(news, nw.StepFailed | nw.TrainerSilent)
    assert "a trainer answers with a" in news.why
