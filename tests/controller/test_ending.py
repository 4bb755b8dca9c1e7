"""How a run ends: by itself, on request, or because it cannot go on; always within its limits."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.controller.config import Role
from penstock.controller.policies import ready_first, windowed
from penstock.controller.record import ControllerRecord, OpenPrompt
from penstock.controller.roles import StepRecord
from penstock.controller.run import Phase
from tests.controller.steering import Steering, config

STOP_S = 5.2  # half of it does not fall on a whole tick after the waits
DRAIN_S = 0.3
STEP_STOP_S = 1.1


def stoppable(**options: Any) -> dict[str, Any]:
    return {"stop_s": STOP_S, "drain_s": DRAIN_S, "step_stop_s": STEP_STOP_S, "max_steps": 9, **options}


def ok(s: Steering) -> str:
    assert s.finish is not None
    assert s.finish.ok, s.finish
    assert s.of(ev.Finished)[-1].reason == s.finish.reason
    return s.finish.reason


# -- by itself --------------------------------------------------------------------------------------------------------


def test_a_run_ends_when_its_steps_are_made() -> None:
    """The last one popped and published; what is still out is given up and stays under way."""
    s = (
        Steering(
            config(max_steps=2, over_sampling=2.0, policy=ready_first()), length=lambda d: 0.1 if d.prompt < 4 else 50.0
        )
        .begin()
        .run()
    )
    assert ok(s) == "2 steps are made"
    assert s.of(ev.Published)[-1].version == 2
    assert s.now < 105.0
    assert s.of(do.Cancel)
    assert s.saved is not None
    assert len(s.saved.open) == s.state.dispatched - 4


def test_a_run_ends_when_its_prompts_are_used_up() -> None:
    """All are trained or dropped; what is not enough for a step stays for the next life, which may be given more."""
    s = Steering(config(max_steps=None, max_prompts=5)).begin().run()
    assert ok(s) == "the prompts are used up"
    assert (s.state.trained, s.state.places["ready"]) == (4, 1)
    more = Steering(config(max_steps=None, max_prompts=6), last=s).begin().run()
    assert more.state.trained == 6
    assert more.shop.trained == dict.fromkeys(range(6), 1)


def test_a_run_does_not_end_on_a_group_that_is_about_to_go_again() -> None:
    """The last step made it stale: no listing has said so yet, and the prompt is not left behind."""
    saved = ControllerRecord(run="run", life=1, step=2, cursor=3, open=tuple(OpenPrompt(i, 0) for i in range(3)))
    settings = config(max_steps=None, max_prompts=3, policy=windowed(1))
    s = Steering(settings, record=saved)
    s.rules[do.AskTrainer] = lambda one: nw.TrainerStands(StepRecord(step=2))
    for index in range(3):
        s.plane.put(f"run.{index}.0", 1)
    s.begin().until(do.Pop)
    s.rules[do.List] = lambda one: None
    s.run(1.0)
    assert s.state.published == 3
    assert s.finish is None
    del s.rules[do.List]
    s.answered(s.plane.answer(do.List()))
    s.run()
    assert ok(s) == "the prompts are used up"
    assert [(event.prompt, event.why) for event in s.of(ev.Again)] == [(2, "stale")]


def test_a_run_that_is_done_already_ends_at_once() -> None:
    """Started again after its last step it publishes its weights and dispatches nothing."""
    first = Steering().begin().run()
    s = Steering(last=first).begin().run()
    assert ok(s) == "3 steps are made"
    assert s.of(do.Dispatch) == []
    assert s.of(ev.Published)[0].version == 3


# -- leftovers --------------------------------------------------------------------------------------------------------


def test_leftovers_are_kept_for_the_next_life() -> None:
    """By default: nothing is evicted and no prompt is dropped."""
    s = Steering(config(max_steps=1)).begin().run()
    s = Steering(config(max_steps=2, max_prompts=5), last=s).begin().run()
    kept = Steering(config(max_steps=2, over_sampling=2.0)).begin().run()
    assert kept.plane.rows
    assert kept.state.dropped == {}


def test_leftovers_are_evicted_if_nobody_will_train_them() -> None:
    """Each prompt is then trained or dropped, and the plane holds nothing of the run; foreign groups stay."""
    s = Steering(config(max_steps=2, over_sampling=2.0, leftovers="evict", policy=ready_first()))
    s.plane.put("other.1.0", 0)
    s.begin().run()
    assert ok(s) == "2 steps are made"
    assert {tag["group_id"] for tag in s.plane.rows.values()} == {"other.1.0"}
    assert set(s.plane.evicted.values()) == {"run over"}
    assert s.state.dropped["run over"] == s.state.dispatched - 4
    assert sum(s.state.places.values()) == 0


def test_leftovers_of_attempts_that_end_at_the_end_are_evicted_too() -> None:
    """A group that was committed after the last listing was asked for is seen by the one after it."""
    s = Steering(config(**stoppable(leftovers="evict")), fate=lambda one: "hang").begin()
    s.run(3.0)
    s.rules[do.List] = lambda one: None
    s.tell(nw.StopAsked("enough"))
    while "List" not in s.trail[-3:]:
        s._one_thing()
    before = s.plane.groups()
    s.run(DRAIN_S)  # attempts are cancelled
    s.plane.put("run.0.0", 0)  # one of them was faster
    del s.rules[do.List]
    s.answered(nw.Listed(before))
    s.run()
    assert ok(s) == "enough"
    assert s.plane.rows == {}


def test_a_step_that_was_given_up_keeps_its_rows() -> None:
    """The trainer may yet make it: its rows are not evicted and its prompts stay under way."""
    s = Steering(config(**stoppable(leftovers="evict", max_steps=2)), train_s=60.0).begin()
    s.until(do.Train)
    s.run(1.0)
    s.tell(nw.StopAsked("enough"))
    s.run(10.0)
    assert ok(s) == "enough"
    assert s.state.dropped == {"run over": 2}
    assert {one.index for one in s.saved.open} == {0, 1} if s.saved else False
    s.shop.make(1, s.of(do.Train)[0].meta)  # after the end
    after = Steering(config(max_steps=2), last=s).begin().run()
    assert after.state.step == 2
    assert after.shop.trained == {0: 1, 1: 1, 4: 1, 5: 1}
    assert after.of(ev.Popped)[0].lost == []


@pytest.mark.parametrize("leftovers", ["keep", "evict"])
def test_a_group_of_a_step_that_was_given_up_is_not_judged(leftovers: str) -> None:
    """A row of it is lost meanwhile: what is left stays, and its prompt does not go again, for it may be trained."""
    s = Steering(config(**stoppable(leftovers=leftovers, max_steps=2)), train_s=60.0).begin()
    s.until(do.Train)
    s.tell(nw.StopAsked("enough"))
    s.run(STEP_STOP_S)
    s.plane.answer(do.Evict(("run.0.0_g0",), "lost"))
    s.run(10.0)
    assert ok(s) == "enough"
    assert "run.0.0_g1" in s.plane.rows
    assert s.of(ev.Again) == []
    s.shop.make(1, s.of(do.Train)[0].meta)  # after the end
    after = Steering(config(max_steps=2), last=s).begin().run()
    assert after.shop.trained[0] == after.shop.trained[1] == 1
    assert after.of(ev.Popped)[0].lost == ["run.0.0_g0"]


# -- stop -------------------------------------------------------------------------------------------------------------


def at_start(s: Steering) -> None:
    pass


def plane_away(s: Steering) -> None:
    s.until(do.Train)
    s.plane.up = False
    s.until(ev.Paused)


def recovering(s: Steering) -> None:
    plane_away(s)
    s.rules[do.Register] = lambda one: None
    s.plane_up()
    s.until(do.Register)


def generating(s: Steering) -> None:
    s.fate = lambda one: "hang"
    s.run(3.0)


def claiming(s: Steering) -> None:
    s.rules[do.Claim] = lambda one: None
    s.until(do.Claim)


def training(s: Steering) -> None:
    s.rules[do.Train] = lambda one: None
    s.until(do.Train)


def failed(s: Steering) -> None:
    s.rules[do.AskTrainer] = lambda one: nw.TrainerStands(None) if s.state.published is None else None
    s.rules[do.Train] = lambda one: nw.StepFailed(one.step, "no")
    s.until(do.Train)
    s.run(10.0)


def popping(s: Steering) -> None:
    s.rules[do.Pop] = lambda one: None
    s.until(do.Pop)


def publishing(s: Steering) -> None:
    s.until(ev.Popped)
    s.rules[do.Publish] = lambda one: None
    s.run(3.0)


def releasing(s: Steering) -> None:
    training(s)
    s.rules[do.Release] = lambda one: None
    s.tell(nw.StepUnreadable(1, ["run.0.0_g0"], "bad"))
    s.until(do.Release) if not s.of(do.Release) else None


def evicting(s: Steering) -> None:
    s.plane.put("run.77.0", 0)
    s.rules[do.Evict] = lambda one: None
    s.until(do.Evict)


def paused(s: Steering) -> None:
    s.until(do.Train)
    s.tell(nw.GateClosed("an incident"))


STATES = [
    at_start,
    plane_away,
    recovering,
    generating,
    claiming,
    training,
    failed,
    popping,
    publishing,
    releasing,
    evicting,
    paused,
]


@pytest.mark.parametrize("leftovers", ["keep", "evict"])
@pytest.mark.parametrize("state", STATES, ids=[state.__name__ for state in STATES])
def test_stop_ends_the_run_in_time_whatever_is_under_way(state: Any, leftovers: str) -> None:
    """Half of ``stop_s`` is the machine's; nobody who owes an answer is waited for longer; nothing follows the end."""
    s = Steering(config(**stoppable(leftovers=leftovers))).begin()
    state(s)
    began = s.now
    s.tell(nw.StopAsked("enough"))
    if s.finish is None:
        s.run(100.0)
    assert ok(s) == "enough"
    assert s.now <= began + STOP_S / 2
    assert s.state.phase == "over"
    out = {one.group_id for one in s.of(do.Dispatch)}
    assert s.state.places["out"] == 0
    assert {one.group_id for one in s.of(do.Cancel)} <= out
    assert s.saved is not None
    assert s.saved.cursor == s.state.dispatched


@pytest.mark.parametrize("state", STATES, ids=[state.__name__ for state in STATES])
def test_a_run_that_was_stopped_anywhere_goes_on_in_the_next_life(state: Any) -> None:
    """Nothing is lost and nothing is trained twice."""
    s = Steering(config(**stoppable())).begin()
    state(s)
    s.tell(nw.StopAsked("enough"))
    s.run(100.0)
    s.plane.held.clear()  # its session ended
    s.plane.up = True
    after = Steering(config(max_steps=3), last=s).begin().run()
    assert after.finish is not None
    assert after.finish.ok
    assert after.state.step == 3
    assert set(s.shop.trained.values()) == {1}
    assert after.state.trained == sum(s.shop.trained.values()) == 6


@pytest.mark.parametrize("state", STATES, ids=[state.__name__ for state in STATES])
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_cannot_go_on_ends_at_once(state: Any, stopped: bool) -> None:
    """Whatever is under way, also while it is ending: nothing more is done, attempts are given up."""
    s = Steering(config(**stoppable())).begin()
    state(s)
    if stopped:
        s.tell(nw.StopAsked("enough"))
    if s.state.phase == "over":
        return  # it had nothing to wait for
    out = s.state.places["out"]
    s.clear()
    s.tell(nw.CallBroken("a bug"))
    assert s.finish == do.Finish("a bug", ok=False)
    assert s.trail == ["> CallBroken", *["Cancel"] * out, "Finished", "Finish"]
    assert s.state.phase == "over"


def test_what_is_out_may_be_waited_for() -> None:
    """``drain_s``: groups that come in time are kept, and the end does not wait any longer than they take."""
    s = Steering(config(**stoppable(drain_s=2.0)), length=lambda one: 1.0).begin()
    s.until(do.Dispatch)
    s.tell(nw.StopAsked("enough"))
    began = s.now
    s.run(100.0)
    assert ok(s) == "enough"
    assert 0.9 < s.now - began < 1.2
    assert s.of(do.Cancel) == []
    assert len(s.plane.groups()) == 4


def test_without_a_drain_nothing_is_waited_for() -> None:
    """The default: attempts are given up at once."""
    s = Steering(config(**stoppable(drain_s=0.0)), fate=lambda one: "hang").begin()
    s.until(do.Dispatch)
    s.tell(nw.StopAsked("enough"))
    assert len(s.of(do.Cancel)) == 4
    assert ok(s) == "enough"


def test_a_step_that_is_out_may_be_waited_for() -> None:
    """One that becomes durable within ``step_stop_s`` is popped and counts."""
    s = Steering(config(**stoppable()), train_s=1.0).begin()
    s.until(do.Train)
    s.tell(nw.StopAsked("enough"))
    s.run(100.0)
    assert ok(s) == "enough"
    assert s.state.step == 1
    assert len(s.of(do.Train)) == 1


def test_a_step_that_is_late_but_in_time_counts() -> None:
    """It was given up, and becomes durable before the end: it is popped, too."""
    s = Steering(config(**stoppable(stop_s=100.0, drain_s=10.0)), fate=lambda d: "good" if d.prompt < 2 else "hang")
    s.train_s = 5.0
    s.begin()
    s.until(do.Train)
    s.tell(nw.StopAsked("enough"))
    s.run(100.0)
    assert ok(s) == "enough"
    assert s.state.step == 1
    assert s.of(ev.Popped)[0].lost == []


def test_no_step_begins_after_the_stop() -> None:
    """A claim that is answered then is given back."""
    s = Steering(config(**stoppable())).begin()
    claiming(s)
    claim = s.of(do.Claim)[0]
    s.tell(nw.StopAsked("enough"))
    s.answered(s.plane.answer(claim))
    s.run(100.0)
    assert ok(s) == "enough"
    assert s.of(do.Train) == []
    assert s.plane.held == {}


def test_nothing_is_chosen_after_the_stop() -> None:
    """Whole batches that are there stay there: the end is no time to begin a step."""
    s = Steering(config(**stoppable(drain_s=2.0)), fate=lambda d: "hang" if d.prompt == 3 else "good").begin()
    s.until(do.Dispatch)
    s.tell(nw.StopAsked("enough"))
    s.run(100.0)
    assert ok(s) == "enough"
    assert s.state.places["ready"] == 3
    assert s.of(do.Claim) == []


def test_a_second_stop_changes_nothing() -> None:
    """Neither the reason nor the time."""
    s = Steering(config(**stoppable()), fate=lambda one: "hang").begin()
    s.until(do.Dispatch)
    s.tell(nw.StopAsked("enough"))
    s.run(DRAIN_S - 0.1)
    assert s.finish is None
    s.tell(nw.StopAsked("now!"))
    s.run(0.2)
    assert ok(s) == "enough"


def test_a_plane_that_goes_away_during_the_end_ends_it() -> None:
    """What is not settled is left to the next life."""
    s = Steering(config(**stoppable()), rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    s.tell(nw.StopAsked("enough"))
    s.plane.up = False
    s.run(100.0)
    assert ok(s) == "enough"
    assert s.of(ev.Paused)


EVERY = [
    nw.Begun(),
    nw.Ticked(),
    nw.StopAsked("again"),
    nw.GateClosed("x"),
    nw.GateOpened(),
    nw.PlaneGone("x"),
    nw.Registered(),
    nw.Listed([]),
    nw.RowsGone(),
    nw.Refused(["k"], "x"),
    nw.CallFailed("x"),
    nw.CallBroken("x"),
    nw.Explained(["x"]),
    nw.Generated("run.0.0"),
    nw.GenerationFailed("run.0.0", "x", rejected=True),
    nw.NoSuchPrompt("run.0.0"),
    nw.TrainerStands(None),
    nw.TrainerSilent("x"),
    nw.StepFailed(1, "x"),
    nw.StepUnreadable(1, ["run.0.0_g0"], "x"),
    nw.PublicationMade(0),
    nw.PublicationFailed(0, "x"),
    nw.ReplicaJoined("r", "rollout"),
    nw.Heard("r"),
    nw.Left("r"),
]


@pytest.mark.parametrize("news", EVERY, ids=[type(news).__name__ for news in EVERY])
def test_news_after_the_end_change_nothing(news: nw.News) -> None:
    """Whatever still comes from those who were given up."""
    s = Steering(config(**stoppable()), fate=lambda one: "hang").begin()
    s.until(do.Dispatch)
    s.tell(nw.StopAsked("enough"))
    s.run(100.0)
    before = s.state, s.saved
    assert s.machine.handle(news, s.now + 1.0) == []
    assert (s.state, s.saved) == before


# -- replicas ---------------------------------------------------------------------------------------------------------


def crewed(**options: Any) -> Steering:
    settings = config(
        **{
            "needs": ("rollout", "trainer"),
            "startup_grace_s": 60.0,
            "replica_dead_s": 10.0,
            "replica_grace_s": 20.0,
            "max_steps": None,
            **options,
        }
    )
    return Steering(settings, fate=lambda one: "hang").begin()


def join(s: Steering, **replicas: Role) -> None:
    for name, role in replicas.items():
        s.tell(nw.ReplicaJoined(name, role, beats=False))


def test_a_run_does_not_end_before_anybody_came() -> None:
    """The guard at the start: a run without rollout workers yet has not lost them; it ends when none comes in time."""
    s = crewed()
    s.run(59.0)
    assert s.finish is None
    s.run(3.0)
    assert ok(s) == "no trainer replica has registered within 60 s"
    s = crewed()
    join(s, t="trainer")
    s.run(62.0)
    assert ok(s) == "no rollout replica has registered within 60 s"


def test_a_trainer_that_never_answers_does_not_hold_the_end_up() -> None:
    """The run cannot even begin without it: the guard at the start holds then, too."""
    s = Steering(config(needs=("trainer",), startup_grace_s=60.0), rules={do.AskTrainer: lambda one: None}).begin()
    s.run(62.0)
    assert ok(s) == "no trainer replica has registered within 60 s"


@pytest.mark.parametrize("role", ["rollout", "trainer"])
def test_the_run_ends_when_the_last_replica_of_a_role_is_gone(role: Role) -> None:
    """After its grace: it may be restarting."""
    s = crewed()
    join(s, r1="rollout", r2="rollout", t="trainer")
    s.run(30.0)
    for name in ("r1", "r2") if role == "rollout" else ("t",):
        s.tell(nw.Left(name))
    s.run(19.0)
    assert s.finish is None
    s.run(3.0)
    assert ok(s) == f"the last {role} replica is gone"
    assert [event.replica for event in s.of(ev.Reaped)][-1] in ("r2", "t")


def test_a_replica_that_comes_back_in_time_saves_the_run() -> None:
    """Also another one of its role; one of two that leaves ends nothing."""
    s = crewed()
    join(s, r1="rollout", r2="rollout", t="trainer")
    s.tell(nw.Left("r1"))
    s.run(60.0)
    s.tell(nw.Left("r2"))
    s.run(15.0)
    join(s, r3="rollout")
    s.run(200.0)
    assert s.finish is None


def test_a_silent_replica_is_reaped() -> None:
    """After ``replica_dead_s``; one that is watched by somebody else is not judged by its silence."""
    s = crewed()
    s.tell(nw.ReplicaJoined("loud", "rollout"))
    s.tell(nw.ReplicaJoined("watched", "trainer", beats=False))
    for _ in range(5):
        s.run(8.0)
        s.tell(nw.Heard("loud"))
    assert s.of(ev.Reaped) == []
    s.run(12.0)
    assert [(event.replica, event.role) for event in s.of(ev.Reaped)] == [("loud", "rollout")]
    assert 10.0 < s.of(ev.Reaped)[0].silent_s < 11.1
    assert s.state.replicas == {"watched": "trainer"}
    s.tell(nw.Heard("loud"))  # it must register again
    assert s.state.replicas == {"watched": "trainer"}
    s.tell(nw.ReplicaJoined("loud", "rollout"))
    assert len(s.of(ev.Joined)) == 3


def test_strangers_harm_nobody() -> None:
    """Who never registered cannot be heard, nor leave."""
    s = crewed()
    before = s.state
    s.tell(nw.Left("x"))
    s.tell(nw.Heard("x"))
    assert s.of(ev.Reaped) == []
    assert s.state == before


def test_a_controller_that_was_stopped_buries_nobody() -> None:
    """It wakes after an hour: nobody was silent, no role was vacant, and nobody was late in that time."""
    s = crewed(stall_timeout_s=1000.0)
    s.tell(nw.ReplicaJoined("r", "rollout"))
    s.tell(nw.ReplicaJoined("t", "trainer"))
    s.run(5.0)
    s.tell(nw.Left("t"))
    s.now += 3600.0
    s.tell(nw.Ticked())
    assert [event.replica for event in s.of(ev.Reaped)] == ["t"]
    assert s.finish is None
    s.run(4.0)
    s.tell(nw.Heard("r"))
    s.tell(nw.ReplicaJoined("t", "trainer"))
    s.run(5.0)
    assert s.finish is None
    late = crewed()
    late.now += 3600.0
    late.tell(nw.Ticked())
    late.run(30.0)
    assert late.finish is None


def test_what_is_ready_is_trained_before_the_end() -> None:
    """The last generator is gone; whole batches that are in the plane are not left behind."""
    s = crewed(policy=config().policy)
    join(s, r="rollout", t="trainer")
    s.run(2.0)
    s.train_s = 15.0
    for index in range(4):
        s.plane.put(f"run.{index}.0", 0)
        s.tell(nw.Generated(f"run.{index}.0"))
    s.tell(nw.Left("r"))
    s.run(200.0)
    assert ok(s) == "the last rollout replica is gone"
    assert s.state.step == 2
    assert s.state.trained == 4


def test_nothing_is_dispatched_when_nobody_generates() -> None:
    """While the last step is still being made."""
    s = crewed()
    join(s, r="rollout", t="trainer")
    s.run(2.0)
    s.train_s = 100.0
    for index in range(2):
        s.plane.put(f"run.{index}.0", 0)
        s.tell(nw.Generated(f"run.{index}.0"))
    s.until(do.Train)
    s.tell(nw.Left("r"))
    s.run(30.0)
    before = len(s.of(do.Dispatch))
    s.tell(nw.GenerationFailed("run.2.0", "no"))
    s.run(30.0)
    assert len(s.of(do.Dispatch)) == before
    assert s.machine._run.phase is Phase.RUNNING
    s.run(100.0)
    assert ok(s) == "the last rollout replica is gone"
    assert s.state.step == 1


def test_roles_that_are_not_needed_are_not_watched() -> None:
    """By default replicas may come and go."""
    s = crewed(needs=())
    join(s, r="rollout")
    s.tell(nw.Left("r"))
    s.run(500.0)
    assert s.finish is None
