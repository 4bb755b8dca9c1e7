"""The controller's machine as a whole: killed anywhere, told anything, it conserves prompts and never stands still."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

import penstock.controller
from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.machine import MAX_TICK_S, ControllerMachine
from penstock.controller.policies import in_order, ready_first, weight_fifo, windowed
from penstock.controller.record import ControllerRecord
from penstock.controller.roles import TrainResult
from penstock.controller.run import PHASES, Phase, Run
from penstock.errors import IllegalTransition
from tests.controller.steering import CALLS, Died, Steering, config, prompt_of

ROOM = Path(penstock.controller.__file__).parent


# -- the table --------------------------------------------------------------------------------------------------------


def test_every_trigger_that_is_used_is_in_the_table_and_none_is_dead() -> None:
    """What the room's modules turn the phase with, and what the table knows, are the same words."""
    used = {word for path in ROOM.glob("*.py") for word in re.findall(r'\.turn\("([^"]+)"\)', path.read_text())}
    assert used == {trigger for _, trigger in PHASES}


def test_every_entry_of_the_table_happens_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of all kinds go through each of them; a run that is over stays so."""
    seen: set[tuple[Phase, str]] = set()
    turn = Run.turn

    def noting(run: Run, what: str) -> None:
        seen.add((run.phase, what))
        turn(run, what)

    monkeypatch.setattr(Run, "turn", noting)
    for moment in (do.AwaitPlane, do.Dispatch, do.Register):
        for news in (nw.StopAsked("x"), nw.PlaneGone("x"), nw.CallBroken("x")):
            s = Steering(fate=lambda one: "hang").begin()
            s.until(moment) if not s.of(moment) else None
            s.tell(news)
            s.run(10.0)
    for stopped in (False, True):
        s = Steering(config(drain_s=1.0), fate=lambda one: "hang").begin()
        s.run(5.0)
        s.tell(nw.StopAsked("x")) if stopped else None
        s.plane.up = False
        s.run(5.0)
        s.plane_up()
        s.rules[do.List] = lambda one: nw.CallFailed("x")
        s.run(1.0)
    s = Steering(config(drain_s=1.0), fate=lambda one: "hang").begin()
    s.run(5.0)
    s.tell(nw.StopAsked("x"))
    s.tell(nw.CallBroken("x"))
    assert seen == set(PHASES)
    assert all(phase is not Phase.OVER for phase, _ in PHASES)


def test_a_transition_that_is_not_in_the_table_is_our_own_bug() -> None:
    """The error tells the phase, what was tried, and the last news."""
    s = Steering().begin()
    with pytest.raises(IllegalTransition, match=r"'settled' while recovering; last events: Begun at 100\.000"):
        s.machine._run.turn("settled")


def test_every_kind_of_news_has_a_handler() -> None:
    """And no other kind has one; each effect that asks for something is answered by one of them."""
    s = Steering()
    assert set(s.machine._handlers) == set(get_args(nw.News))
    assert {kind.__name__ for kind in get_args(nw.News)} | {"News"} == set(nw.__all__)
    assert {kind.__name__ for kind in get_args(do.Effect)} | {"Effect", "PlaneCall"} == set(do.__all__)
    assert set(get_args(do.PlaneCall)) == set(CALLS)


# -- a life -----------------------------------------------------------------------------------------------------------


def test_the_first_news_of_a_life() -> None:
    """It counts itself, durably, before it does anything; it tells where it stands, looks for plane and trainer."""
    saved = ControllerRecord(run="run", life=4, step=2, cursor=4, trained=4, rows=8)
    s = Steering(record=saved, rules={do.AwaitPlane: lambda one: None, do.AskTrainer: lambda one: None}).begin()
    assert s.trail == ["> Begun", "Save", "Started", "AwaitPlane", "AskTrainer"]
    assert s.saves[0].life == 5
    started = s.of(ev.Started)[0]
    assert (started.step, started.cursor, started.open_prompts) == (2, 4, 0)
    assert s.state.published is None


def test_what_is_known_of_a_run() -> None:
    """At any moment."""
    s = Steering(train_s=5.0).begin()
    s.tell(nw.ReplicaJoined("r", "rollout"))
    s.until(do.Train)
    now = s.state
    assert (now.phase, now.life, now.step, now.published, now.dispatched, now.trained, now.rows) == (
        "running",
        1,
        0,
        0,
        4,
        0,
        0,
    )
    assert now.places == {"waiting": 0, "out": 0, "landed": 0, "ready": 2, "training": 2}
    assert (now.replicas, now.recoveries, now.dropped) == ({"r": "rollout"}, 1, {})
    s.run()
    assert (s.state.rows, s.state.trained, s.state.phase) == (12, 6, "over")


def test_the_record_is_saved_only_when_it_changes() -> None:
    """Time that passes costs no disk."""
    s = Steering(fate=lambda one: "hang").begin()
    s.run(5.0)
    s.clear()
    s.run(60.0)
    assert s.of(do.Save) == []


def test_it_is_ticked_at_least_every_second_and_never_at_once() -> None:
    """Whatever it waits for: a timer in the past would be a spin, one far away a controller that looks stopped."""
    s = Steering(config(stop_s=5.0, drain_s=1.0, max_steps=4), fate=lambda d: "good")
    s.fate = lambda one: "fail" if one.prompt % 3 and one.group_id.endswith(".0") else "good"
    s.begin()
    for _ in range(1000):
        if s.finish is not None:
            break
        assert s.now < s.machine.next_timer() <= s.now + MAX_TICK_S
        s._one_thing()
    assert s.finish is not None


# -- news that come late, twice, or from nowhere ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "news",
    [
        nw.Generated("run.0.0"),  # twice
        nw.Generated("run.0.7"),
        nw.Generated("run.99.0"),
        nw.Generated("nonsense"),
        nw.GenerationFailed("run.0.0", "late"),
        nw.GenerationFailed("run.0.0", "late", rejected=True),
        nw.GenerationFailed("other.0.0", "x"),
        nw.NoSuchPrompt("run.99.0"),
        nw.NoSuchPrompt("run.0.7"),
        nw.Left("stranger"),
        nw.Heard("stranger"),
        nw.Ticked(),
        nw.GateOpened(),
        nw.PublicationMade(0),  # twice
    ],
    ids=str,
)
def test_news_that_nobody_asked_for_do_no_harm(news: nw.News) -> None:
    """The run goes on and ends as if they had not come."""
    plain = Steering().begin().run()
    s = Steering(rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    before = s.state
    s.tell(news)
    assert s.state == before
    del s.rules[do.Train]
    s.tell(nw.StepMade(s.shop.make(1, s.of(do.Train)[0].meta)))
    s.run()
    assert s.finish == plain.finish
    assert s.shop.trained == plain.shop.trained
    assert s.state.dropped == {}
    assert s.plane.evicted == {}


def test_a_step_that_is_told_twice_is_popped_once() -> None:
    """Before the pop the repeat changes nothing; after it, it is a step of the wrong number."""
    s = Steering(rules={do.Pop: lambda one: None}).begin()
    s.until(do.Pop)
    assert s.shop.record is not None
    again = nw.StepMade(TrainResult(record=s.shop.record))
    s.tell(again)
    assert len(s.of(do.Pop)) == 1
    del s.rules[do.Pop]
    s.answered(s.plane.answer(s.of(do.Pop)[0]))
    assert s.state.trained == 2
    s.tell(again)
    assert s.finish is not None
    assert not s.finish.ok


# -- killed anywhere --------------------------------------------------------------------------------------------------


def die(s: Steering, nth: int) -> bool:
    """Let a life go on to its ``nth`` effect, and no further; return whether it came so far."""
    s.dies_after = nth
    try:
        s.begin().run()
    except Died:
        return True
    return False


def leave_behind(s: Steering, rng: random.Random) -> None:
    """What was under way when the controller died takes effect, or does not; its session's leases end."""
    call = next((e for e in reversed(s.effects) if isinstance(e, CALLS)), None)
    if call is not None and s.calls_out and rng.random() < 0.5:
        s.plane.answer(call)
    order = next((e for e in reversed(s.effects) if isinstance(e, do.Train)), None)
    standing = 0 if s.shop.record is None else s.shop.record.step
    undone = "> StepUnreadable" in s.trail[len(s.trail) - 1 - s.trail[::-1].index("Train") :] if order else True
    if order is not None and not undone and order.step == standing + 1 and rng.random() < 0.5:
        s.shop.make(order.step, order.meta)
    for one in s.of(do.Dispatch):
        if not any(tag["group_id"] == one.group_id for tag in s.plane.rows.values()) and rng.random() < 0.3:
            was_there = f"{one.group_id}_g0" in {**s.plane.popped, **s.plane.evicted}
            if not was_there:
                s.plane.put(one.group_id, one.version, committed=rng.random() < 0.7)
    s.plane.held.clear()
    s.plane.up = True


def settled(s: Steering) -> None:
    """Each prompt was trained once or dropped, the books say so, and nothing of the past is in the plane."""
    assert s.finish is not None
    assert s.finish.ok, s.finish
    assert max(s.shop.trained.values()) == 1, "trained twice"
    assert s.state.trained == sum(s.shop.trained.values())
    assert s.state.dispatched == s.state.trained + sum(s.state.dropped.values()) + sum(s.state.places.values())
    assert s.saved is not None
    assert (s.saved.trained, s.saved.step) == (s.state.trained, s.state.step)
    assert set(s.shop.trained).isdisjoint(one.index for one in s.saved.open)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_after_any_effect_the_next_life_goes_on(seed: int) -> None:
    """Between any two effects: no step is made twice, no prompt is trained twice or lost, the run comes to its end."""
    rng = random.Random(seed)
    nth, deaths = 1, 0
    while True:
        first = Steering(config(max_steps=3))
        if not die(first, nth):
            break
        leave_behind(first, rng)
        s = Steering(config(max_steps=3), last=first).begin().run()
        settled(s)
        assert s.state.step == 3, nth
        assert (s.state.trained, s.state.dropped) == (6, {}), nth
        nth, deaths = nth + 1, deaths + 1
    assert deaths > 50


POLICIES = [windowed(1), windowed(2, wait_for_stragglers=False), in_order(), ready_first(), weight_fifo(1)]


def wild(seed: int, last: Steering | None, settings: Any) -> Steering:
    """Return a life in which everything fails now and then."""
    rng = random.Random(seed)
    fates = ["good"] * 8 + ["fail", "torn", "late", "empty", "orphan", "short", "rejected"]
    s = Steering(
        settings,
        last=last,
        fate=lambda one: rng.choice(fates),
        length=lambda one: rng.expovariate(2.0),
        train_s=rng.choice([0.05, 1.0]),
        accept=lambda group: prompt_of(group.group_id) % 7 != 0 if seed % 3 == 0 else True,
        seed=seed,
    )

    def train(one: do.Train) -> nw.News:
        dice = rng.random()
        if dice < 0.1:
            return nw.StepFailed(one.step, "no")
        if dice < 0.2:
            s.shop.make(one.step, one.meta)
            return nw.StepFailed(one.step, "no answer, and it was made")
        standing = 0 if s.shop.record is None else s.shop.record.step
        if dice < 0.3 and standing < one.step:
            return nw.StepUnreadable(one.step, rng.sample(one.meta.sample_ids, 1), "bad")
        return nw.StepMade(s.shop.make(one.step, one.meta))

    def call(one: do.PlaneCall) -> nw.News:
        dice = rng.random()
        if not s.plane.up:
            return nw.CallFailed("away")
        if dice < 0.03:
            s.plane.answer(one)
            s.plane.held.clear()
            return nw.CallFailed("no answer, and it was done")
        if dice < 0.05:
            s.plane.restart(keep=rng.random() < 0.5)
            s.plane.held.clear()
            return nw.CallFailed("restarted")
        return s.plane.answer(one)

    s.rules.update({do.Train: train, **dict.fromkeys(CALLS, call)})
    s.rules[do.Publish] = lambda one: (
        nw.PublicationFailed(one.version, "no") if rng.random() < 0.2 else nw.PublicationMade(one.version)
    )
    s.rules[do.AskTrainer] = lambda one: (
        nw.TrainerSilent("no") if rng.random() < 0.2 else nw.TrainerStands(s.shop.record)
    )
    return s


def conserve(seed: int) -> Counter[str]:
    """Play one wild run of several lives to its end; return what happened in them."""
    rng = random.Random(f"wild {seed}")
    settings = config(
        policy=POLICIES[seed % len(POLICIES)],
        max_steps=8,
        min_groups_per_step=rng.choice([None, 1]),
        over_sampling=rng.choice([1.0, 1.5]),
        max_groups=rng.choice([None, None, 3]),
        on_stale=rng.choice(["again", "drop"]),
        leftovers=rng.choice(["keep", "evict"]),
        drain_s=rng.choice([0.0, 0.5]),
        step_stop_s=rng.choice([0.0, 1.0]),
        retry_cap_s=1.0,
        orphan_grace_s=1.0,
        max_attempts=50,
    )
    happened: Counter[str] = Counter()
    s = None
    for life in range(rng.randrange(1, 6)):
        s = wild(seed * 100 + life, s, settings)
        disturb(s, rng)
        has_died = die(s, rng.randrange(5, 400))
        happened.update([*s.trail, "killed" if has_died else "ended"])
        if not has_died and s.state.step == 8:
            break
        leave_behind(s, rng)
    assert s is not None
    if s.finish is None or s.state.step < 8:
        s = wild(seed * 100 + 99, s, settings).begin().run()
    settled(s)
    assert s.state.step == 8
    assert set(s.state.dropped) <= {"rejected", "filtered", "stale", "failed", "run over"}
    return happened


def disturb(s: Steering, rng: random.Random) -> None:
    """The user closes the gate for a while, or has the run end; the plane is away for a while."""
    if rng.random() < 0.3:
        s.later(nw.GateClosed("x"), rng.uniform(0.0, 3.0))
        s.later(nw.GateOpened(), rng.uniform(3.0, 6.0))
    if rng.random() < 0.4:
        s.later(nw.StopAsked("x"), rng.uniform(0.0, 6.0))
    if rng.random() < 0.3:
        began = s.now + rng.uniform(0.0, 3.0)
        s.at(began, lambda: setattr(s.plane, "up", False))
        s.at(began + 2.0, s.plane_up)


def test_wild_runs_conserve_their_prompts() -> None:
    """Everything fails now and then, the controller is killed a few times: in the end all is accounted for."""
    happened: Counter[str] = Counter()
    for seed in range(60):
        try:
            happened += conserve(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    for fault in (
        "CallFailed",
        "StepFailed",
        "StepUnreadable",
        "GenerationFailed",
        "TrainerSilent",
        "Refused",
        "StopAsked",
    ):
        assert happened[f"> {fault}"] > 5, fault
    assert happened["killed"] > 50


def test_the_events_of_a_run_add_up() -> None:
    """What is told is what happened: each prompt ends once, steps are in order, each row is popped once."""
    settings = config(max_steps=12, on_stale="drop", retry_cap_s=1.0, orphan_grace_s=1.0, max_attempts=50)
    s = wild(4, None, settings).begin().run()
    ends = Counter(event.prompt for event in s.of(ev.Dropped))
    ends.update(prompt_of(group) for event in s.of(ev.Trained) for group in event.groups)
    assert set(ends.values()) == {1}
    sent = Counter(one.prompt for one in s.of(do.Dispatch))
    again = Counter(event.prompt for event in s.of(ev.Again))
    waiting = {one.index for one in s.prompts.at() if one.where.value == "waiting"}
    assert all(sent[prompt] == 1 + again[prompt] - (prompt in waiting) for prompt in sent)
    popped = [key for event in s.of(ev.Popped) for key in event.keys]
    assert len(popped) == len(set(popped)) == s.state.rows
    assert [event.step for event in s.of(ev.Trained)] == list(range(1, 13))
    assert [event.step for event in s.of(ev.Popped)] == list(range(1, 13))
    assert [event.version for event in s.of(ev.Published)] == list(range(13))
    assert s.of(ev.Recovered)[0].again == 0
    assert len(s.of(ev.Recovered)) == s.state.recoveries


def test_a_machine_needs_no_clock_and_no_loop() -> None:
    """The same news at the same times give the same effects."""
    trails = []
    for _ in range(2):
        s = wild(11, None, config(max_steps=5, retry_cap_s=1.0, orphan_grace_s=1.0)).begin().run()
        trails.append((s.trail, s.now))
    assert trails[0] == trails[1]
    assert isinstance(s.machine, ControllerMachine)
