"""The plane's calls, one at a time; and the way back after the plane was away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from penstock.controller import effects as do
from penstock.controller import events as ev
from penstock.controller import news as nw
from penstock.errors import IllegalTransition
from tests.controller.steering import CALLS, Steering, config

CALL_NAMES = {kind.__name__ for kind in CALLS}


def calls(s: Steering) -> list[str]:
    return [move for move in s.trail if move in CALL_NAMES]


def running(**options: Any) -> Steering:
    """Return a run with two ready groups of three that a step needs, and two more prompts at generators."""
    s = Steering(
        config(groups_per_step=3, max_steps=2, **options),
        fate=lambda d: "good" if d.prompt < 2 else "hang",
    ).begin()
    s.run(3.0)
    assert s.state.places == {"waiting": 0, "out": 4, "landed": 0, "ready": 2, "training": 0}
    return s


# -- recovery ---------------------------------------------------------------------------------------------------------


def test_the_way_back_step_by_step() -> None:
    """Paused, awaited, its incarnation noted, the partition registered, the groups listed, then it goes on."""
    s = running()
    s.plane.up = False
    s.until(ev.Paused)
    assert s.state.phase == "recovering"
    s.clear()
    s.run(30.0)
    assert set(s.trail) <= {"> Ticked", "AskWhy"}  # no call, no dispatch
    s.plane.restart()
    s.clear()
    s.plane_up()
    s.until(ev.Recovered)
    assert s.moves("> Ticked") == [
        "> PlaneBack",
        "Register",
        "> Registered",
        "List",
        "> Listed",
        "Recovered",
    ]
    told = s.of(ev.Recovered)[-1]
    assert (told.incarnation, told.empty, told.kept, told.again) == (2, False, 2, 0)
    assert 30.0 < told.seconds < 31.0
    assert told.plane_s < 0.1
    assert s.state.phase == "running"
    assert s.state.places["ready"] == 2
    assert s.state.recoveries == 2  # the start is the first


def test_prompts_whose_groups_were_lost_go_again_when_the_plane_is_back() -> None:
    """Those whose rows are gone and whose attempt is over; what is still at a generator is left there."""
    s = running()
    s.plane.up = False
    s.until(ev.Paused)
    s.plane.answer(do.Evict(("run.1.0_g0", "run.1.0_g1"), "lost"))
    s.plane.restart()
    s.plane_up()
    s.until(ev.Recovered)
    assert [(event.prompt, event.why) for event in s.of(ev.Again)] == [(1, "its rows are gone")]
    assert s.of(ev.Recovered)[-1].again == 1
    assert s.attempts == {0: 1, 1: 2, 2: 1, 3: 1, 4: 1, 5: 1}
    assert s.prompts.open[1].failures == 0


@pytest.mark.parametrize("anew", [True, False])
def test_a_plane_that_came_back_empty_is_told_from_one_that_was_drained(anew: bool) -> None:
    """Only an empty one under another incarnation came back with nothing."""
    s = running()
    s.plane.up = False
    s.until(ev.Paused)
    if anew:
        s.plane.restart(keep=False)
    else:
        s.plane.rows.clear()
    s.plane_up()
    s.until(ev.Recovered)
    assert s.of(ev.Recovered)[-1].empty is anew
    why = "the plane came back empty" if anew else "its rows are gone"
    assert {(event.prompt, event.why) for event in s.of(ev.Again)} == {(0, why), (1, why)}
    assert all(prompt.failures == 0 for prompt in s.prompts.open.values())


def test_a_plane_that_came_back_empty_is_known_although_the_first_listing_fails() -> None:
    """The new incarnation is compared with the one that the run last went on with."""
    s = running()
    s.plane.up = False
    s.until(ev.Paused)
    s.plane.restart(keep=False)
    s.rules[do.List] = lambda one: nw.CallFailed("a hiccup")
    s.plane_up()
    s.until(ev.Paused)
    del s.rules[do.List]
    s.until(ev.Recovered)
    assert s.of(ev.Recovered)[-1].empty
    s.plane.up = False
    s.until(ev.Paused)
    s.plane.rows.clear()
    s.plane_up()
    s.until(ev.Recovered)
    assert not s.of(ev.Recovered)[-1].empty  # the same life, drained


def test_a_new_controller_does_not_take_an_empty_plane_for_a_new_one() -> None:
    """It does not know which life of the plane its predecessor saw."""
    first = running()
    first.plane.restart(keep=False)
    s = Steering(first.config, last=first).begin()
    s.until(ev.Recovered)
    assert not s.of(ev.Recovered)[0].empty
    assert s.of(ev.Recovered)[0].again == 6
    s.run()
    assert set(s.shop.trained.values()) == {1}


def test_a_plane_that_is_back_with_another_life_between_two_calls_is_recovered_from() -> None:
    """Both calls succeeded: the shell tells the change as a call that failed, and the listing is not believed."""
    s = running()
    s.rules[do.List] = lambda one: nw.CallFailed("the plane was restarted: incarnation 1 -> 2")
    s.plane.restart()
    s.until(ev.Paused)
    del s.rules[do.List]
    s.until(ev.Recovered)
    assert s.of(ev.Again) == []
    assert s.of(ev.Recovered)[-1].incarnation == 2


def test_a_plane_that_stays_away_ends_the_run() -> None:
    """The shell waits for ``recover_deadline_s``; what it says then is the reason."""
    s = running()
    s.plane.up = False
    s.until(ev.Paused)
    s.tell(nw.PlaneGone("away for 120 s"))
    assert s.finish == do.Finish("away for 120 s", ok=False)
    assert {one.group_id for one in s.of(do.Cancel)} == {f"run.{i}.0" for i in (2, 3, 4, 5)}


def test_a_plane_that_answers_and_does_not_serve_ends_the_run() -> None:
    """It answers pings, and every call fails: calls are spaced, and after ``recover_deadline_s`` it is given up."""
    s = running(recover_deadline_s=60.0)
    s.rules[do.List] = s.rules[do.Register] = lambda one: nw.CallFailed("no room on disk")
    began = s.now
    s.run(500.0)
    assert s.finish is not None
    assert s.finish.reason == "the plane answers, and its calls have failed for 60 s: no room on disk"
    assert 59.0 < s.now - began < 70.0
    assert len(s.of(do.Register)) < 120


@pytest.mark.parametrize("call", [do.Register, do.List, do.Claim, do.Pop])
def test_a_call_that_failed_is_made_again_when_the_plane_is_back(call: type) -> None:
    """Whichever it was; nothing is trained twice and nothing is lost."""
    left = [2]
    s = Steering(config())

    def rule(one: do.PlaneCall) -> nw.News:
        left[0] -= 1
        return nw.CallFailed("no answer") if left[0] >= 0 else s.plane.answer(one)

    s.rules[call] = rule
    s.begin().run()
    assert left[0] < 0
    assert s.state.step == 3
    assert set(s.shop.trained.values()) == {1}
    assert s.plane.rows == {}


def test_a_claim_whose_answer_was_lost_is_not_believed_to_have_failed() -> None:
    """It may have been granted: the rows are claimed anew when the plane gives them back."""
    s = Steering(config())

    def lost(one: do.Claim) -> nw.News:
        s.plane.answer(one)
        del s.rules[do.Claim]
        return nw.CallFailed("no answer")

    s.rules[do.Claim] = lost
    s.begin()
    s.run(5.0)
    assert s.state.step == 0
    assert s.state.places["ready"] == 4
    s.plane.held.clear()  # the plane undoes a claim that its caller has given up
    s.run()
    assert s.state.step == 3


def test_a_release_that_failed_is_made_again() -> None:
    """The rows of a step that came to nothing do not stay leased because the plane was away."""
    s = Steering(rules={do.Train: lambda one: None, do.Release: lambda one: nw.CallFailed("no answer")}).begin()
    s.until(do.Train)
    del s.rules[do.Train]
    s.tell(nw.StepUnreadable(1, ["run.0.0_g0"], "bad"))
    s.until(ev.Paused)
    del s.rules[do.Release]
    s.run()
    assert s.state.step == 3
    assert s.plane.held == {}


def test_a_step_goes_on_while_the_plane_is_away() -> None:
    """The trainer has its rows; the step is popped when the plane is back, before anything is listed."""
    s = Steering(train_s=5.0).begin()
    s.until(do.Train)
    s.plane.up = False
    s.until(ev.Trained)
    assert s.state.phase == "recovering"
    s.run(10.0)
    s.plane.restart()
    s.clear()
    s.plane_up()
    s.until(ev.Recovered)
    assert calls(s)[:3] == ["Register", "Pop", "List"]
    assert s.of(ev.Popped)[-1].lost == []
    s.run()
    assert set(s.shop.trained.values()) == {1}


def test_a_step_that_fails_while_the_plane_is_away_waits_for_it() -> None:
    """It is not ordered again, and no attempt is used up, before the plane is back."""
    s = Steering(config(max_attempts=2), rules={do.Train: lambda one: None}).begin()
    s.until(do.Train)
    s.plane.up = False
    s.until(ev.Paused)
    s.tell(nw.StepFailed(1, "the plane is away"))
    s.run(60.0)
    assert len(s.of(do.Train)) == 1
    del s.rules[do.Train]
    s.plane_up()
    s.run()
    assert s.state.step == 3


def test_nothing_is_dispatched_while_the_plane_is_away() -> None:
    """Not even what had been admitted; generators that fail meanwhile go again when it is back."""
    s = running()
    s.plane.up = False
    s.until(ev.Paused)
    for index in (2, 3):
        s.tell(nw.GenerationFailed(f"run.{index}.0", "the plane is away"))
    before = len(s.of(do.Dispatch))
    s.run(60.0)
    assert len(s.of(do.Dispatch)) == before
    s.plane_up()
    s.until(ev.Recovered)
    s.run(1.0)
    assert {event.prompt for event in s.of(ev.Again)} == {2, 3}


def test_the_plane_goes_away_for_good_measure_at_every_call() -> None:
    """Cut off at the n-th call, for every n, with its rows or without: each prompt is trained once in the end."""
    whole = Steering(config(max_steps=2)).begin().run()
    total = len(calls(whole))
    assert total >= 10
    for nth in range(1, total + 1):
        for keep in (True, False):
            s = Steering(config(max_steps=2))
            cut(s, nth, s.plane.answer, keep=keep)
            s.begin().run()
            assert s.finish is not None
            assert s.finish.ok, (nth, keep, s.finish)
            assert (s.state.step, s.state.trained) == (2, 4), (nth, keep)
            assert set(s.shop.trained.values()) == {1}, (nth, keep)


def cut(s: Steering, nth: int, answer: Callable[[do.PlaneCall], nw.News], *, keep: bool) -> None:
    """Have the ``nth`` call take effect or not, by turns, unanswered; the plane comes back in another life."""
    made = [0]

    def rule(one: do.PlaneCall) -> nw.News:
        made[0] += 1
        if made[0] != nth:
            return answer(one)
        if nth % 2:
            answer(one)
        s.plane.restart(keep=keep)
        s.plane.held = {}
        return nw.CallFailed("no answer")

    s.rules.update(dict.fromkeys(CALLS, rule))


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_that_is_broken_ends_the_run() -> None:
    """The plane refused what it should not have: going on would be guessing."""
    s = running()
    s.rules[do.List] = lambda one: nw.CallBroken("list: BadArgument: no")
    s.run()
    assert s.finish == do.Finish("list: BadArgument: no", ok=False)


@pytest.mark.parametrize(
    "news", [nw.Registered(), nw.Listed([]), nw.RowsGone(), nw.Refused([], "no"), nw.CallFailed("no")]
)
def test_an_answer_to_no_call_is_our_own_bug(news: nw.News) -> None:
    """It is raised, with the last news, and not guessed at."""
    s = Steering(rules={do.AwaitPlane: lambda one: None}).begin()
    with pytest.raises(IllegalTransition, match="last events: Begun at 100") as raised:
        s.tell(news)
    assert raised.value.history[-1].startswith(type(news).__name__)


def test_an_answer_to_another_call_is_our_own_bug() -> None:
    """A listing that answers a registration would be read as one that was asked for."""
    s = Steering(rules={do.Register: lambda one: None}).begin()
    s.until(do.Register)
    with pytest.raises(IllegalTransition, match="an answer to Register"):
        s.answered(nw.Listed([]))


def test_the_plane_is_listed_when_something_lands_and_every_so_often() -> None:
    """Nobody needs to say anything: rows that others commit are found after ``list_every_s``."""
    s = running(list_every_s=2.0)
    s.clear()
    s.run(20.0)
    assert 9 <= len(s.of(do.List)) <= 10
    s.clear()
    s.tell(nw.Generated("run.2.0"))
    assert calls(s) == ["List"]


def test_evictions_are_made_one_by_one_and_told_when_they_are_made() -> None:
    """Before the next listing, so that none is decided twice; those that a failure cut off are decided anew."""
    s = running()
    for index in (7, 8, 9):
        s.plane.put(f"run.{index}.0", 0)
    s.rules[do.Evict] = lambda one: None
    s.until(do.Evict)
    s.clear()
    assert s.of(ev.Evicted) == []
    s.plane.answer(do.Evict(("run.7.0_g0", "run.7.0_g1"), "superseded"))
    del s.rules[do.Evict]
    s.answered(nw.RowsGone())
    assert [event.group_id for event in s.of(ev.Evicted)] == ["run.7.0"]
    s.rules[do.Evict] = lambda one: nw.CallFailed("no answer")
    s.until(ev.Paused)
    del s.rules[do.Evict]
    s.clear()
    s.run(3.0)
    assert calls(s)[:3] == ["Register", "List", "Evict"]
    assert set(s.plane.evicted) == {f"run.{i}.0_g{j}" for i in (7, 8, 9) for j in (0, 1)}
    assert [event.group_id for event in s.of(ev.Evicted)].count("run.9.0") == 1
