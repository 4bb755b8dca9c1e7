"""Whole runs on real planes: to their end, over several lives, with groups that stay short; metadata is enough."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from penstock.controller.events import (
    Again,
    Committed,
    Dispatched,
    Evicted,
    Finished,
    Popped,
    Published,
    Started,
    Trained,
)
from penstock.controller.policies import Standing, ready_first
from penstock.controller.record import ControllerRecord, RecordFile
from penstock.controller.roles import StepRecord
from penstock.controller.single import SingleController
from penstock.errors import BadArgument, ControllerError, PromptRejected, VersionWentBack
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.records import GroupPolicy, KVBatchMeta
from penstock.testing.crew import Crew
from tests.controller.lives import Files, Outcome, serve_plane, work
from tests.controller.planes import balanced, life, local, run_to_end, told
from tests.controller.toys import GROUP, Cast, Numbers, Shop
from tests.crews import PRELOAD

get_temp_dir()  # before the session moves TMPDIR: multiprocessing keeps this folder until the interpreter ends

Connect = Callable[[], DataPlaneClient]
CREW_S = 45.0


@pytest.fixture
def memory() -> Iterator[NoOpDataPlaneClient]:
    with NoOpDataPlaneClient() as plane:
        yield plane


@pytest.fixture(params=["noop", "local"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Clients of one plane, which lives as long as the test."""
    with NoOpDataPlaneClient() if request.param == "noop" else local(tmp_path) as keeper:
        yield keeper.peer if isinstance(keeper, NoOpDataPlaneClient) else lambda: local(tmp_path)


def books_of(connect: Connect) -> Any:
    client = connect()
    assert isinstance(client, NoOpDataPlaneClient | LocalDataPlaneClient)
    with client:
        return client.audit()


# -- to the end -------------------------------------------------------------------------------------------------------


def test_a_run_goes_to_its_end(connect: Connect, tmp_path: Path) -> None:
    """Every prompt is trained once, in contiguous steps; the events tell all of it in order; the books balance."""
    result, made = asyncio.run(run_to_end(connect, tmp_path))
    shop = made.trainer.shop
    assert (result.reason, result.step, result.dispatched, result.trained) == ("4 steps are made", 4, 12, 12)
    assert (result.rows, result.dropped, result.open) == (12 * GROUP, {}, 0)
    assert shop.prompts == dict.fromkeys(range(12), 1)
    assert set(shop.trained.values()) == {1}
    assert shop.published == [0, 1, 2, 3, 4]
    assert [event.step for event in made.of(Trained)] == [1, 2, 3, 4]
    assert [event.step for event in made.of(Popped)] == [1, 2, 3, 4]
    assert [event.version for event in made.of(Published)] == [0, 1, 2, 3, 4]
    assert isinstance(made.events[0], Started)
    assert all(event.life == 1 and event.at > 0 for event in made.events)
    balanced(books_of(connect), 12 * GROUP)


def test_lives_of_a_run_continue_each_other(connect: Connect, tmp_path: Path) -> None:
    """Everything is closed in between; the record and the trainer's checkpoint are what the next life has."""
    shop = Shop()
    for number, steps in ((1, 1), (2, 3), (3, 4)):
        result, made = asyncio.run(run_to_end(connect, tmp_path, shop=shop, max_steps=steps, over_sampling=2.0))
        assert result.step == steps
        assert made.events[0].life == number
    assert result.dispatched == result.trained + result.open
    assert [step for step, _ in sorted(shop.prompts.items())] == sorted(shop.prompts)
    assert set(shop.prompts.values()) == {1}
    assert set(shop.trained.values()) == {1}
    balanced(books_of(connect), 12 * GROUP)


def test_the_record_is_durable_before_what_it_tells_of(
    memory: NoOpDataPlaneClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is called finds himself in the file: a life that dies has done nothing that its successor cannot know."""
    looked: list[str] = []

    def on_disk() -> ControllerRecord:
        found = RecordFile(tmp_path).load("run")
        assert found is not None
        return found

    def generating(moment: str, group_id: str) -> None:
        _, prompt, attempt = group_id.split(".")
        assert [(p.index, p.attempt) for p in on_disk().open if p.index == int(prompt)] == [(int(prompt), int(attempt))]
        looked.append("generator")

    def training(moment: str, step: int) -> None:
        assert on_disk().step == step - 1
        looked.append("trainer")

    def publishing(version: int) -> None:
        now = on_disk()
        assert now.step == version
        assert now.trained == 3 * version
        looked.append("weights")

    save = RecordFile.save

    def slow(self: RecordFile, record: ControllerRecord) -> None:
        time.sleep(0.02)  # for whoever does not wait to come too early
        save(self, record)

    monkeypatch.setattr(RecordFile, "save", slow)
    hurt = {"hurt_generator": generating, "hurt_trainer": training, "hurt_weights": publishing}
    result, made = asyncio.run(run_to_end(memory.peer, tmp_path, max_steps=3, **hurt))
    assert result.step == 3
    assert not made.of(Again), "a look was wrong"
    assert set(looked) == {"generator", "trainer", "weights"}


def test_a_run_ends_when_its_prompts_are_used_up(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """A source that has seven prompts makes two whole steps; what is left stays for a life that has more."""
    result, made = asyncio.run(run_to_end(memory.peer, tmp_path, max_steps=None, prompts=Numbers(7)))
    assert (result.reason, result.step, result.dispatched) == ("the prompts are used up", 2, 7)
    assert result.open == 1
    assert sorted(event.prompt for event in made.of(Dispatched)) == list(range(7)), "told of prompts that never were"


def test_failures_of_all_who_take_part_cost_time_only(connect: Connect, tmp_path: Path) -> None:
    """Generators, trainer and weight sync fail now and then, before and after what they do has happened."""
    failed: set[tuple[str, object]] = set()

    def once(moment: str, which: object) -> None:
        if (moment, which) not in failed:
            failed.add((moment, which))
            raise OSError(f"{moment} {which}")

    def hurt_generator(moment: str, group_id: str) -> None:
        if group_id in ("run.1.0", "run.5.0", "run.9.0", "run.9.1"):
            once(moment, group_id)

    result, made = asyncio.run(
        run_to_end(
            connect,
            tmp_path,
            hurt_generator=hurt_generator,
            hurt_trainer=lambda moment, step: once(moment, step) if step in (1, 3) else None,
            hurt_weights=lambda version: once("publish", version),
        )
    )
    shop = made.trainer.shop
    assert len(failed) > 12
    assert result.step == 4
    assert set(shop.prompts.values()) == {1}
    assert set(shop.trained.values()) == {1}
    balanced(books_of(connect), 12 * GROUP)


def test_a_prompt_that_cannot_be_answered_is_dropped(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """Rejected is not failed: it does not go again."""

    def reject(moment: str, group_id: str) -> None:
        if group_id.startswith("run.2."):
            raise PromptRejected("too long")

    result, made = asyncio.run(run_to_end(memory.peer, tmp_path, hurt_generator=reject))
    assert result.dropped == {"rejected": 1}
    assert 2 not in made.trainer.shop.prompts
    assert result.dispatched == 13


def test_a_prompt_source_that_fails_is_asked_again(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """It is the machinery's failure, like a generator's."""

    class Shaky(Numbers):
        failures = 2

        def prompt(self, index: int) -> int | None:
            if index == 1 and self.failures:
                self.failures -= 1
                raise OSError("the file server is away")
            return super().prompt(index)

    result, made = asyncio.run(run_to_end(memory.peer, tmp_path, prompts=Shaky()))
    assert result.trained == 12
    assert [event.why for event in made.of(Again)] == ["the prompt source: OSError: the file server is away"] * 2


@pytest.mark.parametrize("who", ["generator", "trainer"])
def test_work_that_somebody_cancels_is_done_again(who: str, memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """A user's task may be cancelled by the user's own machinery; that is not our end."""
    cancelled: list[str] = []

    def cancel(moment: str, _which: object) -> None:
        if not cancelled:
            cancelled.append(moment)
            raise asyncio.CancelledError

    result, _ = asyncio.run(run_to_end(memory.peer, tmp_path, **{f"hurt_{who}": cancel}))
    assert cancelled
    assert result.step == 4


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_controller_runs_once(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """The next life is another controller's."""

    async def run() -> None:
        async with life(memory.peer, tmp_path, max_steps=1) as made:
            await made.controller.run()
            with pytest.raises(ControllerError, match="runs once"):
                await made.controller.run()

    asyncio.run(run())


def test_a_replica_of_no_known_role_is_refused(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """Nobody would miss it."""

    async def run() -> None:
        async with life(memory.peer, tmp_path, max_steps=0) as made:
            with pytest.raises(BadArgument, match="role must be one of rollout, trainer, got 'rollouts'"):
                made.controller.register("a", "rollouts")  # type: ignore[arg-type]
            await made.controller.run()

    asyncio.run(run())


def test_a_folder_of_another_run_is_refused(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """Its record would be lost."""
    asyncio.run(run_to_end(memory.peer, tmp_path, max_steps=1))
    with pytest.raises(BadArgument, match="belongs to the run 'run'"):
        asyncio.run(run_to_end(memory.peer, tmp_path, run="other"))


def test_a_trainer_that_lost_its_checkpoint_is_refused(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """A version that goes back would train on rows of the future."""
    shop = Shop()
    asyncio.run(run_to_end(memory.peer, tmp_path, shop=shop, max_steps=2))
    shop.record = StepRecord(step=1)
    with pytest.raises(VersionWentBack, match="step 1"):
        asyncio.run(run_to_end(memory.peer, tmp_path, shop=shop))


# -- what nobody promised ---------------------------------------------------------------------------------------------


def foreign(*_: Any, **__: Any) -> Any:
    raise OSError("a foreign error")


@pytest.mark.parametrize("call", ["ping", "list_metadata", "register_partition", "claim_meta"])
def test_a_client_that_raises_what_is_no_planes_ends_the_run(
    call: str, memory: NoOpDataPlaneClient, tmp_path: Path
) -> None:
    """A call whose answer never comes would be waited for without end; the error names it."""

    async def run() -> Cast:
        async with life(memory.peer, tmp_path) as made:
            setattr(made.controller._calls._plane.inner, call, foreign)
            with pytest.raises(ControllerError, match="OSError: a foreign error"):
                await asyncio.wait_for(made.controller.run(), 10.0)
            return made

    made = asyncio.run(run())
    assert [event.ok for event in made.of(Finished)] == [False]


class Choosy:
    """A policy of a user's that fails."""

    def admits(self, _now: Standing) -> int:
        return 1

    def oldest_version(self, _version: int) -> int | None:
        return None

    def select(self, _now: Standing) -> Any:
        raise KeyError("nothing like it")


def never(_group: object) -> bool:
    raise ValueError("no such tag")


@pytest.mark.parametrize(
    ("options", "cause"), [({"accept": never}, ValueError), ({"policy": Choosy()}, KeyError)], ids=["accept", "policy"]
)
def test_a_filter_or_a_policy_that_fails_ends_the_run(
    options: dict[str, Any], cause: type[Exception], memory: NoOpDataPlaneClient, tmp_path: Path
) -> None:
    """With a typed error that has it as its cause; and whoever listens is told that the life is over."""

    async def run() -> Cast:
        async with life(memory.peer, tmp_path, **options) as made:
            with pytest.raises(ControllerError, match=f"failed: {cause.__name__}") as raised:
                await asyncio.wait_for(made.controller.run(), 10.0)
            assert isinstance(raised.value.__cause__, cause)
            return made

    made = asyncio.run(run())
    assert [(event.ok, event.step) for event in made.of(Finished)] == [(False, 0)]


def test_a_trainer_that_answers_with_something_else_has_failed(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """It is told what an answer is, not which attribute something lacks."""

    async def run() -> None:
        async with life(memory.peer, tmp_path, max_attempts=2) as made:

            async def train(meta: KVBatchMeta, step: int) -> Any:
                return None

            made.trainer.train = train  # type: ignore[method-assign]
            with pytest.raises(ControllerError, match="answers with a TrainResult, this one did with a NoneType"):
                await asyncio.wait_for(made.controller.run(), 10.0)

    asyncio.run(run())


def test_a_record_that_cannot_be_written_is_told(
    memory: NoOpDataPlaneClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is raised, and whoever listens sees the life end."""
    saves = 0
    save = RecordFile.save

    def full(file: RecordFile, record: ControllerRecord) -> None:
        nonlocal saves
        saves += 1
        if saves > 3:
            raise ControllerError("no space left")
        save(file, record)

    monkeypatch.setattr(RecordFile, "save", full)

    async def run() -> Cast:
        async with life(memory.peer, tmp_path) as made:
            with pytest.raises(ControllerError, match="no space left"):
                await asyncio.wait_for(made.controller.run(), 10.0)
            return made

    made = asyncio.run(run())
    assert saves == 4
    assert [event.reason for event in made.of(Finished)] == ["no space left"]


def test_a_run_that_is_cancelled_is_told(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """Else it would seem to run for ever."""

    async def run() -> Cast:
        async with life(memory.peer, tmp_path, max_steps=None) as made:
            running = asyncio.create_task(made.controller.run())
            await told(made, Trained)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return made

    made = asyncio.run(run())
    assert [(event.reason, event.ok) for event in made.of(Finished)] == [("cancelled", False)]


def test_a_stop_without_any_time_is_an_end_in_order(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """A disk that is well is not said to hang."""

    async def run() -> None:
        async with life(memory.peer, tmp_path, stop_s=0.0) as made:
            made.controller.stop("at once")
            result = await asyncio.wait_for(made.controller.run(), 10.0)
            assert (result.reason, result.step) == ("at once", 0)

    asyncio.run(run())


# -- said from other threads ------------------------------------------------------------------------------------------


def test_the_gate_and_the_end_are_reached_from_any_thread(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """While the gate is closed nothing is dispatched; ``stop`` ends the run."""

    async def run() -> None:
        async with life(memory.peer, tmp_path, max_steps=None) as made:
            running = asyncio.create_task(made.controller.run())
            await told(made, Trained)
            await asyncio.to_thread(made.controller.pause, "a look")
            await asyncio.sleep(0.05)
            before = len(made.of(Dispatched))
            await asyncio.sleep(0.1)
            assert len(made.of(Dispatched)) == before
            await asyncio.to_thread(made.controller.resume)
            await told(made, Dispatched, before + 1)
            stopper = threading.Thread(target=made.controller.stop, args=("enough",))
            stopper.start()
            result = await asyncio.wait_for(running, 10.0)
            stopper.join()
            assert result.reason == "enough"
            made.controller.stop("once more: nobody is there")
            now = made.controller.statistics()
            assert now is not None
            assert now.phase == "over"
            assert "over" in repr(made.controller)

    asyncio.run(run())


@pytest.mark.slow
def test_statistics_balance_from_any_thread(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """Metrics are scraped by a thread of their own, in the middle of anything."""
    over = threading.Event()
    wrong: list[object] = []
    looks = 0

    def scrape(controller: SingleController) -> None:
        nonlocal looks
        while not over.is_set():
            now = controller.statistics()
            if now is not None:
                looks += 1
                if now.dispatched != now.trained + sum(now.dropped.values()) + sum(now.places.values()):
                    wrong.append(now)

    async def run() -> None:
        async with life(memory.peer, tmp_path, max_steps=20, groups_per_step=8, policy=ready_first()) as made:
            scraper = threading.Thread(target=scrape, args=(made.controller,))
            scraper.start()
            try:
                await made.controller.run()
            finally:
                over.set()
                await asyncio.to_thread(scraper.join)

    asyncio.run(run())
    assert looks > 100
    assert wrong == []


def test_what_is_said_after_the_loop_is_closed_is_nothing(memory: NoOpDataPlaneClient, tmp_path: Path) -> None:
    """A watcher's thread may be late."""
    _, made = asyncio.run(run_to_end(memory.peer, tmp_path, max_steps=1))
    made.controller.stop()
    made.controller.left("somebody")


# -- metadata is enough -----------------------------------------------------------------------------------------------


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the controller touches columns")


PAYLOAD = [name for name in dir(DataPlaneClient) if name.startswith(("get_data", "get_samples", "put_"))]


def test_the_controller_needs_no_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client may refuse every read and write of columns."""
    clients: list[LocalDataPlaneClient] = []

    def connect() -> DataPlaneClient:
        clients.append(local(tmp_path))
        return clients[-1]

    async def run() -> None:
        async with life(connect, tmp_path, max_steps=2) as made:
            for name in PAYLOAD:
                monkeypatch.setattr(clients[2], name, refuse)  # the third of a cast is the controller's
            result = await made.controller.run()
            assert result.step == 2

    with local(tmp_path):
        asyncio.run(run())
    assert {"get_data", "get_samples", "put_samples"} <= set(PAYLOAD)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["tensordict"] = None
from tests.controller.lives import steer
steer(1, sys.argv[1], True, {"max_steps": 3})
assert sys.modules["torch"] is None
"""


def test_a_controller_lives_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    """The whole run of a process in which ``import torch`` fails; workers and trainer are processes of their own."""
    with Crew([], tmp_path, limit_s=CREW_S, preload=PRELOAD) as crew:
        crew.start("plane", serve_plane, str(tmp_path), 1 << 20)
        crew.start("trainer", work, str(tmp_path), "trainer")
        crew.start("worker", work, str(tmp_path), "worker")
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=CREW_S,
            check=False,
        )
        Files(tmp_path).over.touch()
        crew.play()
    assert done.returncode == 0, done.stderr
    outcome = msgspec.json.decode(Files(tmp_path).outcome.read_bytes(), type=Outcome)
    assert (outcome.result.step, outcome.residue) == (3, 0)


# -- groups that stay short -------------------------------------------------------------------------------------------


async def short_group(folder: Path, policy: GroupPolicy, **options: Any) -> tuple[Any, Cast, Any]:
    """A run whose prompt 1 gets one row of two, committed, at its first attempt."""
    short = "run.1.0"

    with local(folder) as keeper:
        async with life(lambda: local(folder), folder, group_policy=policy, max_steps=2, **options) as made:
            whole = made.generator.generate

            async def generate(prompt: Any, weight_version: int, group_id: str) -> None:
                if group_id != short:
                    return await whole(prompt, weight_version, group_id)
                tag = {"group_id": short, "expected_num_keys": GROUP, "weight_version": weight_version}
                columns = {"x": np.full((1, 4), prompt, dtype=np.int64)}
                await made.generator._plane.put_samples([f"{short}_g0"], "train", columns, [{**tag, "committed": True}])
                return None

            made.generator.generate = generate  # type: ignore[method-assign]
            result = await asyncio.wait_for(made.controller.run(), 30.0)
        return result, made, keeper.audit()


def test_a_short_group_is_trained_as_it_is(tmp_path: Path) -> None:
    """``partial``: the plane lets the rows go that are there; the run trains them and says so."""
    policy = GroupPolicy(deadline_s=0.2, on_deadline="partial")
    result, made, books = asyncio.run(short_group(tmp_path, policy))
    (partial,) = [event for event in made.of(Committed) if event.partial]
    assert (partial.group_id, partial.keys) == ("run.1.0", ["run.1.0_g0"])
    assert made.trainer.shop.trained["run.1.0_g0"] == 1
    assert (result.trained, result.rows) == (6, 6 * GROUP - 1)
    balanced(books, 6 * GROUP - 1)


def test_a_short_group_is_dropped_and_its_prompt_goes_again(tmp_path: Path) -> None:
    """``drop``: the plane evicts it, and the prompt's next attempt is trained."""
    policy = GroupPolicy(deadline_s=0.2, on_deadline="drop")
    result, made, books = asyncio.run(short_group(tmp_path, policy))
    assert [event.prompt for event in made.of(Again)] == [1]
    assert made.trainer.shop.trained["run.1.1_g0"] == 1
    assert (result.trained, result.rows) == (6, 6 * GROUP)
    assert books.partitions[0].evicted == {"incomplete": 1}
    balanced(books, 6 * GROUP)


def test_a_short_group_that_may_wait_is_abandoned_by_the_run(tmp_path: Path) -> None:
    """``wait``: the plane keeps it; the controller knows that its attempt is over, and lets the prompt go again."""
    result, made, books = asyncio.run(short_group(tmp_path, GroupPolicy()))
    (evicted,) = made.of(Evicted)
    assert (evicted.group_id, evicted.reason) == ("run.1.0", "abandoned")
    assert (result.trained, result.rows) == (6, 6 * GROUP)
    balanced(books, 6 * GROUP)
