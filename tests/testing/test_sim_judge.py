"""The judge of simulated runs: each promise that a book breaks is named, and a book that keeps all is not."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from penstock.controller import events as ev
from penstock.controller.effects import Finish
from penstock.controller.policies import in_order, weight_fifo, windowed
from penstock.controller.record import ControllerRecord, OpenPrompt
from penstock.controller.roles import StepRecord
from penstock.testing import checker
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.steering.book import Attempt, Book
from penstock.testing.sim.steering.judge import judge
from penstock.testing.sim.steering.scenario import RunScenario, draw
from penstock.testing.sim.steering.workers import hash_of
from penstock.testing.sim.world import World

STEPS = 2


def scenario(**changes: object) -> RunScenario:
    """Return a run of two steps of two groups of two rows, with a window of one version."""
    drawn = draw(random.Random(1))
    options = {
        "group_size": 2,
        "groups_per_step": 2,
        "min_groups_per_step": None,
        "policy": windowed(1),
        "group_policy": None,
        "max_steps": STEPS,
        "max_prompts": None,
        "on_stale": "again",
    }
    config = msgspec.structs.replace(drawn.config, **{**options, **changes})
    return msgspec.structs.replace(
        drawn, config=config, prompts=None, bound=1, is_filtered=False, is_rejecting=False, is_short=False
    )


def book() -> Book:
    """Return the book of a run that kept all promises: prompts 0 to 3 trained, 4 dropped, 5 open."""
    found = Book()
    for prompt in range(6):
        version, group = (0 if prompt < 3 else 1), f"run.{prompt}.0"
        found.attempts[group] = Attempt(prompt, version, [f"{group}_g0", f"{group}_g1"])
        found.dispatched[group] = 1
    for step in (1, 2):
        train(found, step, [f"run.{2 * step - 2}.0", f"run.{2 * step - 1}.0"])
    found.record = ControllerRecord(
        run="run", life=1, step=2, cursor=6, trained=4, rows=8, dropped={"failed": 1}, open=(OpenPrompt(5, 0),)
    )
    found.events.append((1, ev.Dropped(prompt=4, reason="failed")))
    found.finishes.append(Finish("2 steps are made", ok=True))
    found.published += [0, 1, 2]
    return found


def train(found: Book, step: int, groups: list[str]) -> None:
    """Make a step of whole groups."""
    keys = [key for group in groups for key in found.attempts[group].keys]
    found.steps.append(StepRecord(step=step, keys=keys, groups=groups))
    for group in groups:
        version = found.attempts[group].version
        for key in found.attempts[group].keys:
            found.log.append(checker.Put("before", key, hash_of(key), version))
            found.log.append(checker.Put("after", key, hash_of(key), version))
            found.log.append(checker.Trained("after", key, hash_of(key), version, step, step - 1))


def plane() -> SimPlane:
    """Return an empty plane."""
    world = World(1)
    empty = SimPlane(world, scenario().plane)
    empty.start()
    return empty


def verdict(found: Book, run: RunScenario | None = None) -> list[str]:
    return list(judge(run or scenario(), found, plane(), is_complete=True))


def test_a_run_that_kept_all_promises_is_not_accused() -> None:
    """Nothing is said of a good book."""
    assert verdict(book()) == []


def _replaced(**changes: object) -> Callable[[Book], None]:
    def spoil(found: Book) -> None:
        assert found.record is not None
        found.record = msgspec.structs.replace(found.record, **changes)

    return spoil


def _again(found: Book) -> None:
    train(found, 2, ["run.0.0", "run.5.0"])


def _skips(found: Book) -> None:
    found.steps[1] = msgspec.structs.replace(found.steps[1], step=3)


def _small(found: Book) -> None:
    found.steps[1] = StepRecord(step=2, keys=found.attempts["run.2.0"].keys, groups=["run.2.0"])


def _part(found: Book) -> None:
    found.steps[1] = msgspec.structs.replace(found.steps[1], keys=found.steps[1].keys[1:])


def _old(found: Book) -> None:
    found.attempts["run.2.0"].version = -1


def _ahead(found: Book) -> None:
    found.attempts["run.2.0"].version = 2


def _two_attempts(found: Book) -> None:
    found.attempts["run.3.0"].prompt = 0


def _lost(found: Book) -> None:
    found.log.append(checker.Put("after", "run.5.0_g0", hash_of("run.5.0_g0"), 1))


def _corrupted(found: Book) -> None:
    found.log.append(checker.Trained("after", "run.5.0_g0", "0" * 16, 1, 3, 2))
    found.log.append(checker.Put("after", "run.5.0_g0", hash_of("run.5.0_g0"), 1))


def _silent(found: Book) -> None:
    found.events.clear()
    found.events.append((1, ev.Paused(why="a life that told something")))


def _told_and_trained(found: Book) -> None:
    found.events.append((1, ev.Dropped(prompt=2, reason="failed")))


def _gives_up(found: Book) -> None:
    found.finishes.append(Finish("evict: BadArgument", ok=False))


def _weights_go_back(found: Book) -> None:
    found.published.append(0)


def _wrong_when_done(found: Book) -> None:
    found.wrong.append("a thing that was seen to be wrong when it was done")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_again, "rows were trained twice"),
        (_again, "prompts were trained twice: [0]"),
        (_again, "3 steps instead of 2"),
        (_skips, "the steps are [1, 3]"),
        (_small, "made of 1 groups"),
        (_part, "of the group 'run.2.0'"),
        (_old, "2 versions old"),
        (_ahead, "-1 versions old"),
        (_two_attempts, "prompts were trained twice: [0]"),
        (_lost, "lost: 'run.5.0_g0'"),
        (_corrupted, "corrupted: 'run.5.0_g0'"),
        (_silent, "vanished without a word: [4]"),
        (_told_and_trained, "told to be dropped and are trained: [2]"),
        (_gives_up, "a life gave up: evict"),
        (_weights_go_back, "weights went back"),
        (_wrong_when_done, "seen to be wrong"),
        (_replaced(trained=3), "is not what was trained"),
        (_replaced(step=1), "is not what was trained"),
        (_replaced(cursor=7), "not conserved"),
        (_replaced(dropped={"boredom": 1}), "dropped for {'boredom': 1}"),
        (_replaced(dropped={"stale": 1}), "stale prompts were dropped"),
        (_replaced(open=(OpenPrompt(1, 0),)), "is not what was trained"),
    ],
)
def test_a_broken_promise_is_named(spoil: Callable[[Book], None], said: str) -> None:
    """One sentence says what is wrong."""
    found = book()
    spoil(found)
    assert any(said in sentence for sentence in verdict(found))


def test_order_is_judged_where_the_policy_promises_it() -> None:
    """By prompt, or by version."""
    found = book()
    found.attempts["run.1.0"].prompt, found.attempts["run.2.0"].prompt = 2, 1
    assert verdict(found) == []
    assert any("prompts were trained out of order" in one for one in verdict(found, scenario(policy=in_order())))
    found = book()
    found.attempts["run.0.0"].version, found.attempts["run.2.0"].version = 1, 0
    assert any("versions were trained out of order" in one for one in verdict(found, scenario(policy=weight_fifo())))


def test_a_run_that_ends_with_its_prompts_has_begun_them_all() -> None:
    """And has left fewer than make a step."""
    run = msgspec.structs.replace(scenario(max_steps=None), prompts=6)
    assert verdict(book(), run) == []
    assert any("at prompt 6 of 7" in one for one in verdict(book(), msgspec.structs.replace(run, prompts=7)))
    small = msgspec.structs.replace(run, config=msgspec.structs.replace(run.config, min_groups_per_step=1))
    assert any("prompts [5] open, which would make a step" in one for one in verdict(book(), small))


def test_a_trained_row_that_the_controller_evicts_is_settled_twice() -> None:
    """One that the plane lost by itself meanwhile is not."""
    found, owner = book(), plane()
    owner.removed["run.0.0_g0"] = [("lost", "checksum mismatch")]
    assert list(judge(scenario(), found, owner, is_complete=True)) == []
    owner.removed["run.0.0_g0"] = [("evicted", "superseded")]
    found.evicted["run.0.0_g0"] = "superseded"
    assert any("duplicated: 'run.0.0_g0'" in one for one in judge(scenario(), found, owner, is_complete=True))


def test_rows_that_no_step_names_are_not_removed_as_trained() -> None:
    """What was popped must have been trained."""
    found, owner = book(), plane()
    owner.removed["run.5.0_g0"] = [("trained", "")]
    told = list(judge(scenario(), found, owner, is_complete=True))
    assert any("removed as trained, and in no step: 'run.5.0_g0'" in one for one in told)


def test_a_record_never_goes_back() -> None:
    """An older one over a newer is told."""
    found = Book()
    found.save(ControllerRecord(run="run", life=2, step=3))
    found.save(ControllerRecord(run="run", life=2, step=2))
    assert len(found.wrong) == 1
